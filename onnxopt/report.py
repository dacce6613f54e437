"""The report of a run: what went in, what each pass did and proved, what came out. Plain data, written as JSON."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from onnxopt.analysis.cost import Cost
from onnxopt.errors import ModelError
from onnxopt.inputs import Inputs
from onnxopt.model import Model
from onnxopt.passing import Findings, Pass
from onnxopt.reading import external_files
from onnxopt.recipe import seen_from
from onnxopt.rewrites import REWRITES_LEFT, REWRITES_RUN
from onnxopt.verify import Verdict, Verifier

_PACKAGES = ("onnxopt", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")
_NOTABLY_SLOWER = 1.1


@dataclass(frozen=True)
class Facts:
    """Size and work of one model. `macs` is at `Report.sizes`; None where no size was known."""

    nodes: int
    opset: int
    parameters: int
    weight_bytes: int
    macs: int | None
    file_bytes: int | None = None
    digest: str | None = None


@dataclass
class Step:
    """One pass of the run.

    Attributes:
        outcome: changed, unchanged (nothing to do, see `declined`), or rolled back (`why` tells).
        chosen: option -> what the pass chose where it was left to it.
    """

    name: str
    options: dict[str, Any]
    outcome: str
    seconds: float
    why: str | None = None
    changes: list[dict[str, str]] = field(default_factory=list)
    declined: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None

    @classmethod
    def of(cls, pass_: Pass, findings: Findings, seconds: float, verdict: Verdict | None, why: str | None) -> "Step":
        """A step as it is reported."""
        outcome = "rolled back" if why else ("changed" if findings.changed else "unchanged")
        return cls(
            pass_.name, pass_.options(), outcome, round(seconds, 3), why,
            [asdict(c) for c in findings.changes], [asdict(d) for d in findings.declined],
            list(findings.notes), dict(findings.measures), dict(findings.chosen),
            asdict(verdict) if verdict else None,
        )  # fmt: skip

    def history(self) -> dict[str, Any]:
        """What the file remembers of the step: two digits of its drift; no times, hosts or paths."""
        drift = (self.verdict or {}).get("drift")
        rounded = None if drift is None else float(f"{drift:.1e}")
        return {"pass": self.name, "options": self.options, "version": versions()["onnxopt"], "drift": rounded}


@dataclass
class Report:
    """Everything about one run. The first line of `summary` says whether it was verified end to end."""

    verified: bool
    status: str
    before: Facts
    after: Facts
    steps: list[Step] = field(default_factory=list)
    drift: float | None = None
    deployed_drift: float | None = None
    drift_on: str | None = None
    metric: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    memory: dict[str, int | None] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    output: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, infinities as text (JSON has none)."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain

    def _recipe_file(self, folder: Path) -> str:
        """The recipe as a file in a folder, with what else the command line has to say for the same run."""
        beside = f"# with {' '.join(self.flags)}\n" if self.flags else ""
        return beside + yaml.safe_dump(seen_from(self.recipe, folder), sort_keys=False)

    @contextlib.contextmanager
    def staged(self, folder: Path, name: str = "report") -> Iterator[Callable[[], None]]:
        """Write `NAME.json` and the resolved recipe `NAME.recipe.yaml` beside where they go.

        What the block gets puts them in place; what it leaves is taken away at its end.

        Raises:
            ModelError: the folder cannot be written.
        """
        texts = {
            folder / f"{name}.json": json.dumps(self.to_dict(), indent=1) + "\n",
            folder / f"{name}.recipe.yaml": self._recipe_file(folder),
        }
        temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in texts}

        def place() -> None:
            with _writing(folder):
                for path, temporary in temporaries.items():
                    os.replace(temporary, path)

        try:
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for path, text in texts.items():
                    if path.is_dir():
                        raise ModelError(f"cannot write the report {path}: it is a folder")
                    temporaries[path].write_text(text, encoding="utf-8")
            yield place
        finally:
            for temporary in temporaries.values():
                with contextlib.suppress(OSError):
                    temporary.unlink()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"cannot write the report into {folder}: {error.strerror}") from error


def facts(model: Model, cost: Cost, path: Path | None = None, digest: str | None = None) -> Facts:
    """Size and work of a model; file size with external data when a path is given."""
    return Facts(
        nodes=sum(1 for node in model.nodes() if node.op_type != "Constant"),
        opset=model.opset,
        parameters=cost.params,
        weight_bytes=cost.weight_bytes,
        macs=cost.macs if not cost.unknown_macs else None,
        file_bytes=total_bytes(path) if path else None,
        digest=digest,
    )


def total_bytes(path: Path) -> int:
    """Bytes of a model file and of the external data files that it refers to."""
    return path.stat().st_size + sum(file.stat().st_size for file in external_files(path))


def last(steps: Sequence[Step], key: str) -> float | None:
    """What the last step that measured it says of `drift` or `deployed_drift`."""
    values = [step.verdict[key] for step in steps if step.verdict and step.verdict.get(key) is not None]
    return values[-1] if values else None


def status(inputs: Inputs, verifier: Verifier, steps: Sequence[Step]) -> str:
    """The first line of a summary: whether the run was verified end to end, and on what; or what was not."""
    if verifier.unverified is not None:
        run, left = (sum(step.measures.get(key, 0) for step in steps) for key in (REWRITES_RUN, REWRITES_LEFT))
        parts = f"; rewrites run by themselves: {run} of {run + left}, not run: {left}" if run + left else ""
        return f"UNVERIFIED END TO END: {verifier.unverified}{parts}"
    return f"verified end to end on {inputs.compared_on(verifier.batches)}"


def drift_on(inputs: Inputs, verifier: Verifier, steps: Sequence[Step]) -> str | None:
    """What drift was measured on; None where none was."""
    return None if last(steps, "drift") is None else inputs.drift_on(verifier.batches)


def slower(latency: Mapping[str, Any] | None) -> list[str]:
    """A note where the output takes longer than the input on this machine."""
    if latency is None or latency["ratio"] <= _NOTABLY_SLOWER:
        return []
    return [f"the output is slower than the input on this machine: x{latency['ratio']:.2f} at the first sample"]


def versions() -> dict[str, str]:
    """Versions of what takes part in a run."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def finite(value: Any) -> Any:
    """Plain values with infinities and NaN as text: JSON has none."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
