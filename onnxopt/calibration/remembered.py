"""Results that are kept for whoever asks again, as long as the disk has room for them."""

import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

from onnxopt.calibration.jobs import Outcome
from onnxopt.calibration.places import free_bytes
from onnxopt.calibration.results import Stored, take
from onnxopt.statistics import Found

_SHARE = 0.25
"""Of what is free on the disk, what results may take that nobody holds."""


class Remembered:
    """Found statistics by what makes them the same; of too many, those that were asked for longest ago are forgotten.

    A result's file is deleted when it is forgotten and nobody holds its `Found` any more.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: OrderedDict[Hashable, tuple[Found, int]] = OrderedDict()
        self.nbytes = 0

    def get(self, key: Hashable) -> Found | None:
        """What is known of a statistic."""
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key][0]

    def add(self, key: Hashable, outcome: Outcome) -> Found:
        """Take in what has been collected."""
        stored = outcome.stored
        found = Found(None if stored is None else partial(take, stored), outcome.why, outcome.rows)
        if stored is not None:
            weakref.finalize(found, _delete, stored)
        self._found[key] = found, 0 if stored is None else stored.nbytes
        self.nbytes += self._found[key][1]
        self._forget()
        return found

    def _forget(self) -> None:
        allowed = _SHARE * (free_bytes(self._folder) + self.nbytes)
        while self.nbytes > allowed and len(self._found) > 1:
            _, (_, nbytes) = self._found.popitem(last=False)
            self.nbytes -= nbytes


def _delete(stored: Stored[Any]) -> None:
    with contextlib.suppress(OSError):  # gone with its folder, or still mapped where that forbids it
        stored.path.unlink(missing_ok=True)
