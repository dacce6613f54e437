"""Verification: every file that a pass leaves is run against the original, in another process.

The *reference session* (optimizations BASIC, no integer fusion, no library of ours, deterministic) tells
what the file means; the *deployed session* (the defaults) tells what users get.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxopt import comparing
from onnxopt.backends.jobs import run_batches
from onnxopt.backends.machine import free_memory_bytes
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.backends.worker import Worker, WorkerDied
from onnxopt.comparing import Noise, Outputs
from onnxopt.edit import Edit
from onnxopt.errors import ContractViolation, ModelError, OnnxOptError
from onnxopt.model import Model, load
from onnxopt.passing import Contract, Exact
from onnxopt.recipe import Level, Verify

logger = logging.getLogger(__name__)

Feed = Mapping[str, Any]

_SEED = 1.0
_PATIENCE = 120.0
"""Seconds (or 20 times `max_seconds`) after which a call is ended: a loop may have lost its end."""

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Verdict:
    """What verification found about one file.

    Attributes:
        level: how much was proved.
        drift: worst relative L2 against the original in the reference session; None where nothing ran.
        deployed_drift: the same in the deployed session.
        broken: what breaks the contract, one line each.
        undecidable: outputs in which the original does not agree with itself.
        batches: how many batches were compared.
        seconds: what it took.
    """

    level: Level
    drift: float | None = None
    deployed_drift: float | None = None
    broken: tuple[str, ...] = ()
    undecidable: int = 0
    batches: int = 0
    seconds: float = 0.0


class Verifier:
    """Holds the original's outputs and judges candidates against them.

    Args:
        worker: the process in which sessions run.
        original: the input model's file.
        feeds: what both models are run on.
        guard: held-back calibration samples for the collapse guard; empty: no guard.
        config: the recipe's `verify`.
        real_data: whether the feeds are the user's, so that NaNs in the original's outputs are an error.
        scratch: folder for copies of models in which random numbers are seeded.
    """

    def __init__(
        self, worker: Worker, original: Path, feeds: Sequence[Feed], guard: Sequence[Feed], config: Verify,
        real_data: bool, scratch: Path,
    ) -> None:  # fmt: skip
        self._worker = worker
        self._original = original
        self._feeds = list(feeds)
        self._guard = list(guard)
        self._config = config
        self._real_data = real_data
        self._scratch = scratch
        self._tolerance = 0.0
        self._reference: list[Outputs] = []
        self._deployed: list[Outputs] = []
        self._guard_outputs: list[Outputs] = []
        self._previous: list[Outputs] = []
        self._noise = Noise({}, frozenset())
        self._full_check = True
        self._guarded = True
        self._seeded: dict[tuple[Path, int, int], tuple[Path, bool]] = {}
        self.level: Level = config.level
        self.unverified: str | None = None
        """Why nothing was verified end to end; None where everything was."""

    @property
    def batches(self) -> int:
        """How many batches outputs are compared on."""
        return len(self._feeds)

    @property
    def notes(self) -> list[str]:
        """What the original does that leaves less to prove."""
        notes = [
            f"output {name} of the original differs from itself (relative L2 {size:.1g}): mean and spread are compared"
            for name, size in self._noise.relative.items()
            if size > comparing.WAVERING
        ]
        if not self._guarded:
            notes.append("the collapse guard had nothing to judge: it needs an output that differs among three samples")
        if self._noise.unstable:
            names = ", ".join(sorted({name for name, _ in self._noise.unstable}))
            notes.append(f"the original does not agree with itself in {names}: nothing is decided where it does not")
        return notes

    def prepare(self, model: Model, batches: int | None = None) -> None:
        """Run the original: what it gives, and how far it agrees with itself.

        Args:
            model: the original.
            batches: how many batches to compare (a resumed run keeps to what it began with); None: as time allows.

        Raises:
            ModelError: the checker refuses the original, no session loads it, or it gives NaN on real data.
        """
        self._check_original()
        self._tolerance = default_tolerance(model)
        if self.level == "structure":
            self.unverified = "asked for by verify.level"
            return
        if (why := self._too_large(model)) is not None:
            self._fall_back(why)
            return
        started = time.monotonic()
        try:
            self._reference = self._run(self._original, SessionMode.REFERENCE, self._feeds[:1])
            self._fit_time(time.monotonic() - started, batches)
            self._reference += self._run(self._original, SessionMode.REFERENCE, self._feeds[1:])
            without = self._run(self._original, SessionMode.NOISE_NONE, self._feeds)
            self._noise = comparing.noise(self._run(self._original, SessionMode.NOISE_ALL, self._feeds), without)
            self._guard_outputs = self._run(self._original, SessionMode.DEPLOYED, self._guard)
            if self.level == "full":
                self._deployed = self._run(self._original, SessionMode.DEPLOYED, self._feeds)
        except WorkerDied as error:
            self._fall_back(f"the original ended the runtime: {error}")
            return
        except ModelError as error:
            raise ModelError(f"{error}; `verify: structure` goes on without running it") from error
        except Exception as error:
            if self._real_data:
                raise
            self._fall_back(f"the original fails on synthetic data: {error}")
            return
        self._previous = self._reference
        self._refuse_nan()
        self._settle_guard()

    def _settle_guard(self) -> None:
        """Where nothing or too little is held back, the guard looks at the samples that outputs are compared on."""
        if not comparing.judgeable(self._guard_outputs):
            self._guard = self._feeds
            self._guard_outputs = self._deployed or self._run(self._original, SessionMode.DEPLOYED, self._feeds)
            self._guarded = comparing.judgeable(self._guard_outputs)

    def resume_from(self, state: Path) -> None:
        """Hold the next exact pass to the outputs of a state that was accepted before."""
        if self.unverified is None:
            self._previous = self._run(state, SessionMode.REFERENCE, self._feeds)

    def judge(self, candidate: Path, contract: Contract, *, guard: bool) -> tuple[Verdict, Callable[[], None]]:
        """Judge a candidate's file against a contract.

        Args:
            candidate: the file.
            contract: what the pass promised.
            guard: whether the collapse guard holds (a lossy pass without limits).

        Returns:
            The verdict, and what to call when the candidate is accepted.
        """
        started = time.monotonic()
        verdict = Verdict(self.level)
        complaint = self._worker.call(check_file, str(candidate), full=self._full_check)
        if complaint is not None:
            broken = (f"the file is not valid ONNX: {complaint}",)
            return replace(verdict, broken=broken, seconds=time.monotonic() - started), _nothing
        if self.unverified is not None:
            return replace(verdict, seconds=time.monotonic() - started), _nothing
        try:
            verdict, outputs = self._compare(candidate, contract, guard, verdict)
        except OnnxOptError as error:
            broken = (f"the file does not run: {error}",)
            return replace(verdict, broken=broken, seconds=time.monotonic() - started), _nothing
        return replace(verdict, seconds=time.monotonic() - started), lambda: self._accept(outputs)

    def _compare(
        self, candidate: Path, contract: Contract, guard: bool, verdict: Verdict
    ) -> tuple[Verdict, list[Outputs]]:
        outputs = self._run(candidate, SessionMode.REFERENCE, self._feeds)
        against_original = comparing.measure(self._reference, outputs, self._noise)
        judged = against_original
        if isinstance(contract, Exact):
            judged = comparing.compare(self._previous, outputs, contract.tolerance or self._tolerance, self._noise)
        broken = list(judged.broken)
        if guard and self._guard and not broken:
            guarded = self._run(candidate, SessionMode.DEPLOYED, self._guard)
            broken += comparing.collapsed(self._guard_outputs, guarded, paired=self._real_data)
        deployed = None
        if self.level == "full":
            as_deployed = self._run(candidate, SessionMode.DEPLOYED, self._feeds)
            lived = comparing.measure(self._deployed, as_deployed, self._noise)
            broken += [f"as deployed: {line}" for line in lived.broken if line not in broken]
            deployed = lived.drift
        verdict = replace(
            verdict, drift=against_original.drift, deployed_drift=deployed, broken=tuple(broken),
            undecidable=judged.undecidable, batches=len(self._feeds),
        )  # fmt: skip
        return verdict, outputs

    def _accept(self, outputs: list[Outputs]) -> None:
        self._previous = outputs

    def _run(self, path: Path, mode: SessionMode, feeds: Sequence[Feed]) -> list[Outputs]:
        if not feeds:
            return []
        version = (path, path.stat().st_mtime_ns, path.stat().st_ino)
        if version not in self._seeded:
            self._seeded[version] = _seeded(path, self._scratch)
        seeded, random = self._seeded[version]
        function = run_afresh if random else run_batches
        limit = max(_PATIENCE, 20 * self._config.max_seconds)
        outputs: list[Outputs] = self._worker.call(function, str(seeded), mode, list(feeds), timeout=limit)
        return outputs

    def _check_original(self) -> None:
        complaint = self._worker.call(check_file, str(self._original), full=False)
        if complaint is not None:
            raise ModelError(f"{self._original} is not valid ONNX: {complaint}")
        self._full_check = self._worker.call(check_file, str(self._original), full=True) is None
        if not self._full_check:
            logger.info("the original's declared shapes contradict each other; candidates are checked without them")

    def _too_large(self, model: Model) -> str | None:
        """A session holds about the weights' size again; where that is most of what is free, none is opened."""
        weights = sum(value.const_value.nbytes for value in model.weights() if value.const_value is not None)
        free = free_memory_bytes()
        if free is None or 2 * weights <= 0.6 * free:
            return None
        return f"a session needs about {2 * weights / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"

    def _fit_time(self, first: float, batches: int | None) -> None:
        """Keep as many batches as fit the time: each is run about seven times."""
        affordable = batches or max(1, int(self._config.max_seconds / max(7 * first, 1e-3)))
        samples = 1 if self.level == "sample" else self._config.samples
        self._feeds = self._feeds[: min(affordable, samples)]

    def _fall_back(self, why: str) -> None:
        self.level, self.unverified = "structure", why

    def _refuse_nan(self) -> None:
        found = comparing.first_nan(self._reference)
        if found is not None and self._real_data:
            name, feed = found
            raise ModelError(
                f"{self._original}: the original gives NaN in output {name} on sample batch {feed}; "
                "check the data's scaling, or give data that the model can take"
            )


def check_file(path: str, *, full: bool) -> str | None:
    """The ONNX checker's first complaint about a file, None when it has none."""
    try:
        onnx.checker.check_model(path, full_check=full)
    except Exception as error:  # the checker raises several kinds, all of them complaints
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines[:3]) if lines else type(error).__name__
    return None


def default_tolerance(model: Model) -> float:
    """1e-4; 5e-3 where weights or outputs are half precision."""
    types = {value.dtype for value in model.weights()} | {value.dtype for value in model.signature.outputs}
    return 5e-3 if types & _HALF else 1e-4


def require(verdict: Verdict, what: str) -> None:
    """Raise ContractViolation when a verdict has anything broken."""
    if verdict.broken:
        more = f" (and {len(verdict.broken) - 1} more)" if len(verdict.broken) > 1 else ""
        raise ContractViolation(f"{what} broke its contract: {verdict.broken[0]}{more}")


def _nothing() -> None:
    """Nothing to remember of a candidate that was not run."""


def run_afresh(path: str, mode: SessionMode, feeds: Sequence[Feed]) -> list[Outputs]:
    """All outputs for each feed, each from a session of its own: a session's random numbers go on from run to run."""
    return [run(open_session(path, mode), feed) for feed in feeds]


def _seeded(path: Path, scratch: Path) -> tuple[Path, bool]:
    """The file, or where it draws random numbers without a seed, a copy with seeds; and whether it draws any.

    All nodes get the same seed, so that it does not matter what a pass renames or reorders.
    """
    model = load(path)
    bodies = (node for function in model.ir.functions.values() for node in function.all_nodes())
    drawing = [node for node in (*model.nodes(), *bodies) if _draws(node)]
    unseeded = [node for node in drawing if "seed" not in node.attributes]
    if not unseeded:
        return path, bool(drawing)
    edit = Edit("seed")
    for node in unseeded:
        edit.set_attribute(node, "seed", _SEED)
    model.apply(edit)
    copy = scratch / f"{path.stem}.seeded.onnx"
    model.save(copy)
    return copy, True


def _draws(node: ir.Node) -> bool:
    """Whether a node draws random numbers; Dropout does in training mode alone."""
    training = node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
    return node.domain in {"", "ai.onnx"} and (training or node.op_type in _RANDOM)
