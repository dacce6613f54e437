"""Files that take the place of others whole or not at all, and what may go wrong while they are written."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import EncodeError

from onnxopt.errors import ModelError, innermost


def fill(target: Path, cleanup: contextlib.ExitStack, writer: Callable[[BinaryIO], None]) -> Path:
    """A new file beside the target, with the target's permissions; gone at cleanup unless renamed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("xb") as file:
        cleanup.callback(temporary.unlink, missing_ok=True)
        writer(file)
        file.flush()
        os.fsync(file.fileno())
    if target.exists():
        shutil.copymode(target, temporary)
    return temporary


def write_text(target: Path, text: str) -> None:
    """Write a whole file or leave what was there.

    Raises:
        ModelError: it cannot be written.
    """

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    with told(target), contextlib.ExitStack() as cleanup:
        os.replace(fill(target, cleanup, write), target)


_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file grows too large",
}


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a model is written to `path` into a ModelError of one line."""
    try:
        yield
    except OSError as error:
        why = _FULL.get(error.errno or 0) or (str(error) if error.errno is None else error.strerror)
        where = f" ({error.filename})" if error.filename else ""
        raise ModelError(f"cannot write {path}: {why}{where}; what was there before is unchanged") from error
    except (EncodeError, ValueError) as error:
        raise ModelError(f"cannot write {path}: {innermost(error)}") from error
