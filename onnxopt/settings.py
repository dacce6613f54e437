"""How a run is carried out, as opposed to what it does: that is the recipe's."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxopt.errors import RecipeError
from onnxopt.validating import short


@dataclass(frozen=True)
class Progress:
    """Where a run is: step `step` of `steps` (from 0), and inside it `done` of `total`."""

    step: int
    steps: int
    name: str
    done: int = 0
    total: int = 0
    what: str = ""


@dataclass(frozen=True)
class Settings:
    """How a run is carried out, as opposed to what it does (the recipe).

    Attributes:
        report: folder of report.json (of a second output NAME.onnx: NAME.report.json); None: the output's.
        work: work folder, kept; None: `OUTPUT.work`, removed at the end.
        resume: go on where a killed run stopped.
        accept_loss: keep what the collapse guard refuses.
        reproduce: on a violation, leave a minimal model that shows it in this folder.
        shapes: input name -> shape for dynamic axes; else the first sample's.
        memory: bytes for statistics of calibration data; None: a share of what is free.
    """

    report: Path | None = None
    work: Path | None = None
    resume: bool = False
    accept_loss: bool = False
    allow_code: bool = False
    reproduce: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    threads: int | None = None
    memory: int | None = None
    progress: Callable[[Progress], None] | None = None

    def flags(self) -> list[str]:
        """What of it has a part in the result, as options of the command line."""
        shapes = [f"{name}:{','.join(map(str, shape))}" for name, shape in (self.shapes or {}).items()]
        return [
            *(f"--shape {shlex.quote(shape)}" for shape in shapes),
            *(["--accept-loss"] if self.accept_loss else []),
            *(f"--{name} {value}" for name, value in (("threads", self.threads), ("memory", self.memory)) if value),
        ]


DEFAULT = Settings()

_BYTES = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?(?:([KMGT])(?:iB)?|B)?", re.ASCII | re.IGNORECASE)


def parse_bytes(value: int | str, where: str) -> int:
    """An amount of memory: bytes, or a text like `512M`, `1.5GiB` (powers of 1024).

    Args:
        value: as it was given.
        where: what messages call it.

    Raises:
        RecipeError: it is none, or less than a byte.
    """
    if isinstance(value, str) and (found := _BYTES.fullmatch(value.strip())):
        count = int(float(found[1]) * 1024 ** " KMGT".index((found[2] or " ").upper()))
    else:
        count = value if isinstance(value, int) and not isinstance(value, bool) else 0
    if count < 1:
        raise RecipeError(
            f"{where}: must be bytes, or a number with K, M, G or T behind it like 2G, not {short(value)}"
        )
    return count
