"""How a run is carried out, as opposed to what it does: that is the recipe's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


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
    """

    report: Path | None = None
    work: Path | None = None
    resume: bool = False
    accept_loss: bool = False
    allow_code: bool = False
    reproduce: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    threads: int | None = None
    progress: Callable[[Progress], None] | None = None


DEFAULT = Settings()
