"""Timing tables: how long models take on a target, stored beside its profile for decisions made elsewhere.

A table says of what it was measured on only what makes times differ: no names of hosts or people.
"""

import json
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from onnxopt import atomic
from onnxopt.backends import machine
from onnxopt.backends.target import Target
from onnxopt.errors import DataError

_DIGITS = 4
"""Of a median; what follows is noise."""


class Timing(BaseModel):
    """One model at one size.

    Attributes:
        model: digest of the file and its external data.
        shapes: input name -> shape of the feed.
        median_ms: milliseconds a run.
        runs: that the median is of.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(pattern="^[0-9a-f]{64}$")
    shapes: dict[str, tuple[NonNegativeInt, ...]]
    median_ms: PositiveFloat
    runs: PositiveInt

    @classmethod
    def of(cls, model: str, shapes: dict[str, tuple[int, ...]], seconds: float, runs: int) -> Self:
        """A timing as it is stored."""
        return cls(model=model, shapes=shapes, median_ms=float(f"{seconds * 1e3:.{_DIGITS}g}"), runs=runs)


class TimingTable(BaseModel):
    """What was timed on one target.

    Attributes:
        target: the profile, as a recipe's `target` writes it.
        cores: that sessions could have used.
        timings: a model at a size stands once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    target: Target
    cores: PositiveInt
    timings: tuple[Timing, ...] = ()

    @classmethod
    def host(cls, threads: int | None) -> Self:
        """An empty table for this machine and the installed ONNX Runtime."""
        return cls(target=Target(name="cpu", threads=threads).resolved(), cores=machine.cores())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The table in a file.

        Raises:
            DataError: the file cannot be read, or is no timing table.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(f"cannot read timing table {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise DataError(f"{path} is no timing table: {where}: {first['msg'].lower()}") from error
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path} is no timing table: it is not YAML or JSON") from error

    def same_target(self, other: Self) -> bool:
        """Whether times of both tables can be compared."""
        return (self.target, self.cores) == (other.target, other.cores)

    def with_timings(self, timings: list[Timing]) -> Self:
        """With more timings; they take the place of older ones of the same model at the same size."""
        by_key = {(each.model, tuple(sorted(each.shapes.items()))): each for each in (*self.timings, *timings)}
        return self.model_copy(update={"timings": tuple(by_key.values())})

    def write(self, path: Path) -> None:
        """Write JSON where the name ends so, else YAML; the file is replaced whole or not at all.

        Raises:
            ModelError: it cannot be written.
        """
        content = self.model_dump(mode="json", exclude_none=True)
        is_json = path.suffix.lower() == ".json"
        atomic.write_text(
            path, json.dumps(content, indent=1) + "\n" if is_json else yaml.safe_dump(content, sort_keys=False)
        )
