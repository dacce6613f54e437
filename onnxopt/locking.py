"""A lock on a folder that dies with its process, however that ends."""

import contextlib
import errno
import logging
import os
import sys
import weakref
from pathlib import Path

logger = logging.getLogger(__name__)

_BEHIND_THE_NUMBER = 2**20
"""Windows lets nobody read a byte that is locked, so one behind the number of the process is."""

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class Held(Exception):
    """Another process has the lock; `pid` is its number, None where it has not written it yet."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


class Lock:
    """An exclusive lock on a file, made where it does not exist; held until `release`, or until nobody has it.

    Raises:
        Held: somebody else has it, in this process or another one.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._close = weakref.finalize(self, os.close, handle)
            try:
                _lock(handle)
            except (BlockingIOError, PermissionError):
                pid = _number(handle)
                self.release()
                raise Held(pid) from None
            if _is_there(handle, path):
                break
            self.release()  # whoever had it took the file away in between
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())

    def release(self) -> None:
        """Let others have it."""
        self._close()


def _number(handle: int) -> int | None:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 20)
    return int(text) if text.isdigit() else None


def _is_there(handle: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, _BEHIND_THE_NUMBER, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            logger.warning("this file system has no locks: two runs in one work folder would go unnoticed")
