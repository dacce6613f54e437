"""Values between stages of a model: those of all batches lie on disk, from where they are made to their last use.

The process that runs the model writes (`places.write`) and reads (`places.read`); a `Frontier` says where, and keeps
the accounts. So batches go through no pipe, and no process holds more of them than the one that it works on.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from onnxopt.calibration.places import Place, read, write
from onnxopt.errors import OnnxOptError
from onnxopt.statistics import Side
from onnxopt.statistics.masks import Array

Key = tuple[Side, str]

_STEM = "frontier-"


class Frontier:
    """Values by side and name, a file each, batch after batch. Use it in a `with` block: after it the files are gone.

    Args:
        folder: where the files go, among others; made when it is needed where it is missing, and removed then.
            Files that another Frontier left there when its process was killed are deleted first, so two of them must
            not share a folder.

    Attributes:
        nbytes: how many are on disk now.
        peak_bytes: the most that have been at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nbytes = self.peak_bytes = 0
        self._series: dict[Key, _Series] = {}
        self._files = 0
        self._own = not folder.exists()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def path(self, side: Side, value: str) -> Path:
        """The file that the next batch of a value is to be appended to, by whichever process makes it.

        Raises:
            ValueError: the value shares the dense side's file.
        """
        series = self._begun((side, value))
        if side == "current" and series is self._series.get(("dense", value)):
            raise ValueError(f"{value!r} of the current side is the dense one's: append to that")
        return series.path

    def admit(self, side: Side, value: str, place: Place) -> None:
        """Take note of the next batch of a value, which has been written to its `path`."""
        assert place.path == self.path(side, value)
        series = self._begun((side, value))
        self.nbytes += place.end - series.nbytes
        self.peak_bytes = max(self.peak_bytes, self.nbytes)
        series.places.append(place)

    def append(self, side: Side, value: str, array: Array) -> None:
        """Write the next batch of a value from this process.

        Args:
            side: whose value it is.
            value: its name.
            array: of any shape and of any of ONNX's element types; strings as objects.

        Raises:
            OnnxOptError: the disk is full or the like. All files are deleted then, as nothing is left to go on with.
            DataError: objects that are no strings.
        """
        try:
            place = write(self.path(side, value), array)
        except OnnxOptError:
            self.close()
            raise
        self.admit(side, value, place)

    def batches(self, side: Side, value: str) -> int:
        """How many batches of a value there are."""
        series = self._series.get((side, value))
        return len(series.places) if series else 0

    def place(self, side: Side, value: str, batch: int) -> Place:
        """Where a batch lies, for whichever process reads it; KeyError or IndexError where there is none."""
        return self._series[side, value].places[batch]

    def read(self, side: Side, value: str, batch: int) -> Array:
        """A batch, see `places.read`."""
        return read(self.place(side, value, batch))

    def share(self, value: str) -> None:
        """Let the current side have the dense side's file, before or while that is written.

        The file is deleted when both sides have dropped the value.
        """
        if ("current", value) in self._series:
            raise ValueError(f"{value!r} has a file of the current side already")
        self._series["current", value] = self._begun(("dense", value))

    def drop(self, side: Side, value: str) -> None:
        """Delete the batches of a value after their last use; views that are still held live on, and hold the space.

        Raises:
            KeyError: there are none.
        """
        series = self._series.pop((side, value))
        other: Side = "current" if side == "dense" else "dense"
        if self._series.get((other, value)) is not series:
            self.nbytes -= series.nbytes
            _delete(series.path)

    def close(self) -> None:
        """Delete everything."""
        self._series.clear()
        self.nbytes = 0
        for path in self.folder.glob(f"{_STEM}*.bin"):
            _delete(path)
        if self._own:
            with contextlib.suppress(OSError):  # not there, or others use it by now
                self.folder.rmdir()

    def _begun(self, key: Key) -> "_Series":
        if key not in self._series:
            self._files += 1
            self._series[key] = _Series(self.folder / f"{_STEM}{self._files:06d}.bin")
        return self._series[key]


@dataclass
class _Series:
    """All batches of a value."""

    path: Path
    places: list[Place] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return self.places[-1].end if self.places else 0


def _delete(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows deletes no file that is mapped; `close` tries again
        path.unlink(missing_ok=True)
