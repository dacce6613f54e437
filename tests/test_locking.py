"""The lock on a work folder: one holder at a time, in whatever process, and none after its death."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxopt.locking import Held, Lock

HOLDER = "import sys; from pathlib import Path; from onnxopt.locking import Lock; lock = Lock(Path(sys.argv[1])); " \
         "print('held', flush=True); sys.stdin.read()"  # fmt: skip


def holder(path: Path) -> "subprocess.Popen[bytes]":
    """Another process that has the lock."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_one_at_a_time(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock")
    with pytest.raises(Held) as held:
        Lock(tmp_path / "lock")
    assert held.value.pid == os.getpid()
    first.release()
    first.release()
    second = Lock(tmp_path / "lock")
    with pytest.raises(Held):
        Lock(tmp_path / "lock")
    second.release()


def test_what_nobody_has_any_more_is_free(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock")
    del first
    gc.collect()
    Lock(tmp_path / "lock").release()


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_it_dies_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    with pytest.raises(Held) as held:
        Lock(tmp_path / "lock")
    assert held.value.pid == process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "lock").read_text() == str(process.pid)
    Lock(tmp_path / "lock").release()


@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be deleted elsewhere")
def test_a_file_that_its_holder_deleted_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ends, and takes the file away, between our opening it and our locking it."""
    path = tmp_path / "lock"
    opened, real = [], os.open

    def late(file: Path, flags: int, mode: int) -> int:
        handle = real(file, flags, mode)
        opened.append(handle)
        if len(opened) == 1:
            path.unlink()
        return handle

    monkeypatch.setattr(os, "open", late)
    lock = Lock(path)
    assert len(opened) == 2
    with pytest.raises(Held):
        Lock(path)
    lock.release()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Lock(tmp_path / "missing" / "lock")
