"""The work folder: the last good state of a run, so that a killed run goes on, and heavy results off memory."""

import glob
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.errors import OnnxOptError, RecipeError
from onnxopt.locking import Held, Lock
from onnxopt.numerics.packing import pack

logger = logging.getLogger(__name__)

_STATE = "state.json"
_MARK = ".onnxopt-work"
_LOCK = ".lock"
_SCRATCH = "scratch"


class WorkDirError(OnnxOptError):
    """The work folder cannot be written, most likely because the disk is full."""


class WorkDir:
    """A folder that one run owns, and locks against others until `close` or the end of the process.

    `state.json` names the run (by the digests of all that goes in) and what is done; it is replaced
    whole, after the model file it speaks of is on disk, so a kill at any moment leaves a state that holds.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], *, resume: bool) -> None:
        self.folder = folder
        self._key = dict(key)
        self._done: list[dict[str, Any]] = []
        self._replaced: str | None = None
        self._stored = 0
        self._prepare()
        try:
            if resume:
                self._resume()
            else:
                self._clear()
        except BaseException:
            self.close()
            raise

    @property
    def scratch(self) -> Path:
        """A folder for what only this process needs: gone when the work folder is closed, and when it is opened."""
        return self.folder / _SCRATCH

    @property
    def done(self) -> list[dict[str, Any]]:
        """One record per finished step, as given to `commit`."""
        return list(self._done)

    def last_state(self) -> Path | None:
        """The model file of the last good state; None where only the input model is."""
        for record in reversed(self._done):
            if record.get("state"):
                return self.folder / str(record["state"])
        return None

    def candidate(self, index: int) -> Path:
        """Where the model goes that step `index` leaves, until it is accepted."""
        return self.folder / f"{index:03d}.onnx"

    def commit(self, record: Mapping[str, Any], state: Path | None) -> None:
        """Remember a finished step, and its model file as the last good state where it left one."""
        before = self.last_state()
        done = [*self._done, {**record, "state": state.name if state else None}]
        self._write_state(done, self._replaced)
        self._done = done
        self._drop_stored()
        if state is not None and before is not None and before != state:
            _remove_model(before)

    def must_write(self, present: str) -> bool:
        """Whether the output is still to be written.

        Args:
            present: digest of the output that is there now. Where it is not the one that was there when a killed
                run set out to write, that run had got as far as replacing it.
        """
        if self._replaced is not None and present != self._replaced:
            return False
        self._write_state(self._done, present)
        self._replaced = present
        return True

    def store(self, array: npt.NDArray[Any], dtype: ir.DataType | None = None) -> ir.ExternalTensor:
        """Write an array once and map it: a tensor whose memory is the page cache's.

        Types below a byte are packed on the way; the array then holds one element an entry.
        """
        dtype = dtype or ir.DataType.from_numpy(array.dtype)
        name = f"stored-{self._stored:05d}.bin"
        self._stored += 1
        content = pack(array, dtype.bitwidth) if dtype.bitwidth < 8 else np.ascontiguousarray(array)
        try:
            with (self.folder / name).open("wb") as file:
                file.write(content.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise WorkDirError(f"cannot write to the work folder {self.folder}: {error.strerror}") from error
        return ir.ExternalTensor(
            name, 0, content.nbytes, dtype, shape=ir.Shape(array.shape), name=name, base_dir=self.folder
        )

    def discard(self, candidate: Path) -> None:
        """Take away the file of a candidate that was not accepted, and what was stored for it."""
        _remove_model(candidate)
        self._drop_stored()

    def close(self) -> None:
        """Let another run have the folder."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self._lock.release()

    def remove(self) -> None:
        """Delete the folder and all that is in it."""
        if os.name == "nt":
            self.close()  # Windows deletes no open file
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def _prepare(self) -> None:
        try:
            existed = self.folder.is_dir() and any(self.folder.iterdir())
            if existed and not (self.folder / _MARK).exists():
                raise RecipeError(f"work folder {self.folder} holds files of others; name an empty or new folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / _MARK).touch()
            self._lock = Lock(self.folder / _LOCK)
            shutil.rmtree(self.scratch, ignore_errors=True)
        except Held as held:
            who = "another run" if held.pid is None else f"another run (pid {held.pid})"
            raise RecipeError(f"{who} uses the work folder {self.folder}; wait for it, or name another one") from held
        except OSError as error:
            raise RecipeError(f"cannot use work folder {self.folder}: {error.strerror}") from error

    def _resume(self) -> None:
        path = self.folder / _STATE
        if not path.is_file():
            logger.info("nothing to resume in %s; starting from the beginning", self.folder)
            return
        try:
            state = json.loads(path.read_text())
            key, done, replaced = dict(state["key"]), list(state["done"]), state["replaced"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"cannot resume: {path} cannot be read; run without --resume") from error
        changed = [name for name, digest in self._key.items() if key.get(name) != digest]
        if changed:
            raise RecipeError(
                f"cannot resume: {', '.join(changed)} differ from the run in {self.folder}; run without --resume"
            )
        self._done, self._replaced = done, replaced
        last = self.last_state()
        if last is not None and not last.is_file():
            raise RecipeError(f"cannot resume: {last} is missing; run without --resume")

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name not in {_MARK, _LOCK} and path.is_file():
                path.unlink()

    def _write_state(self, done: list[dict[str, Any]], replaced: str | None) -> None:
        temporary = self.folder / f".{_STATE}.tmp"
        try:
            with temporary.open("w") as file:
                json.dump({"key": self._key, "done": done, "replaced": replaced}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / _STATE)
        except OSError as error:
            raise WorkDirError(f"cannot write to the work folder {self.folder}: {error.strerror}") from error

    def _drop_stored(self) -> None:
        """Stored arrays were copied into the state's file, from which the model is read again."""
        for path in self.folder.glob("stored-*.bin"):
            path.unlink()


def _remove_model(path: Path) -> None:
    for file in (path, *path.parent.glob(f"{glob.escape(path.name)}*.data")):
        file.unlink(missing_ok=True)
