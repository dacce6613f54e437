"""What a pass gets for the statistics that it asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from onnxopt.errors import DataError
from onnxopt.statistics.stat import Stat

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Found:
    """One statistic.

    Attributes:
        load: gives the result, memory-mapped; None where there is none.
        why: why not.
        rows: how many rows counted.
    """

    load: Callable[[], Any] | None
    why: str = ""
    rows: int = 0


class Collected:
    """Results by statistic. Large arrays in them are read-only and mapped: their memory is the page cache's."""

    def __init__(self, found: Mapping[Stat[Any], Found]) -> None:
        self._found = dict(found)

    def __getitem__(self, stat: Stat[ResultT]) -> ResultT:
        """The result.

        Raises:
            DataError: there is none (`why` gives the reason), or it stands on fewer rows than `stat.least_rows`.
        """
        if why := self.why(stat):
            raise DataError(why)
        load = self._found[stat].load
        assert load is not None
        result: ResultT = load()
        return result

    def why(self, stat: Stat[Any]) -> str:
        """Why there is no result to be had; empty where there is one."""
        found = self._found[stat]
        if found.load is not None and found.rows < stat.least_rows:
            return (
                f"tensor {stat.tensor!r}: {found.rows} rows of calibration data, and {stat.least_rows} are needed; "
                f"give about {-(-stat.least_rows // max(found.rows, 1))} times as many samples"
            )
        return found.why

    def rows(self, stat: Stat[Any]) -> int:
        """How many rows counted."""
        return self._found[stat].rows

    def under(self, names: Mapping[Stat[Any], Stat[Any]]) -> "Collected":
        """The results of some statistics (the values) for whoever asks for others (the keys)."""
        return Collected({asked: self._found[stat] for asked, stat in names.items()})

    def __or__(self, other: "Collected") -> "Collected":
        """The results of both."""
        return Collected(self._found | other._found)
