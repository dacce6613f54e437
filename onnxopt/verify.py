"""Verification: every file that a pass leaves is run against the original, in another process.

The *reference session* (optimizations BASIC, no integer fusion, no library of ours, deterministic) tells
what the file means; the *deployed session* (the defaults) tells what users get.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxopt import comparing
from onnxopt.analysis.declarations import belied, disproved
from onnxopt.analysis.parameters import stored_bytes
from onnxopt.analysis.precision import default_tolerance
from onnxopt.backends import machine
from onnxopt.backends.jobs import check_file, run_afresh, run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker, WorkerDied
from onnxopt.chance import Seeded, seeded
from onnxopt.comparing import Comparison, Noise, Outputs
from onnxopt.errors import ContractViolation, DataError, ModelError, OnnxOptError
from onnxopt.model import Model, load
from onnxopt.passing import Contract, Exact, Lossy
from onnxopt.recipe import Level, Verify

logger = logging.getLogger(__name__)

Feed = Mapping[str, Any]

_SETS_OF_OUTPUTS = 6
"""How often a batch's outputs are held at a time: of the original twice, the last good state, and the candidate."""
_OUTPUTS_SHARE = 0.25
"""So much of the free memory they may take."""

_PATIENCE = 120.0
"""Seconds (or 20 times `max_seconds`) after which a call is ended: a loop may have lost its end."""


@dataclass(frozen=True)
class Verdict:
    """What verification found about one file.

    Attributes:
        level: how much was proved.
        drift: worst relative L2 against the original in the reference session, on what no pass saw, if there is any;
            None where nothing ran.
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
        guard: samples that no pass saw, for the collapse guard; empty: it judges the feeds.
        config: the recipe's `verify`.
        real_data: whether the feeds are the user's, so that NaNs in the original's outputs are an error.
        scratch: folder for copies of models in which random numbers are seeded.
        unseen: how many of the feeds, the first ones, no pass saw: drift is of these; 0: of all.
    """

    def __init__(
        self, worker: Worker, original: Path, feeds: Sequence[Feed], guard: Sequence[Feed], config: Verify,
        real_data: bool, scratch: Path, unseen: int = 0,
    ) -> None:  # fmt: skip
        self._worker = worker
        self._original = original
        self._feeds = list(feeds)
        self._guard = list(guard)
        self._config = config
        self._real_data = real_data
        self._scratch = scratch
        self._unseen = unseen
        self._tolerance: Mapping[str, float] | None = None
        self._state = original
        self._chance = self._last_chance = Seeded(original)
        self._reference: list[Outputs] = []
        self._deployed: list[Outputs] = []
        self._guard_outputs: list[Outputs] = []
        self._previous: list[Outputs] = []
        self._held: list[Outputs] = []
        self._most = 1
        self._noise = Noise({}, frozenset())
        self._notes: list[str] = []
        self._full_check = True
        self._false_outputs: list[str] = []
        self._seeded: dict[tuple[Path, int, int], Seeded] = {}
        self._by_statistics: set[str] = set()
        self.guarded = True
        """Whether the collapse guard has anything to judge."""
        self.level: Level = config.level
        self.unverified: str | None = None
        """Why nothing was verified end to end; None where everything was."""
        self.refused: bool = False
        """Whether that is because the original does not run on random inputs of these sizes."""

    @property
    def batches(self) -> int:
        """How many batches outputs are compared on."""
        return len(self._feeds)

    @property
    def notes(self) -> list[str]:
        """What the original does that leaves less to prove."""
        notes = self._notes + [
            f"output {name} of the original differs from itself (relative L2 {size:.1g}): mean and spread are compared"
            for name, size in self._noise.relative.items()
            if size > comparing.WAVERING
        ]
        if self._by_statistics:
            names = ", ".join(sorted(self._by_statistics))
            notes.append(f"a pass renamed what draws random numbers for {names}: mean and spread are compared")
        if self._noise.unstable:
            names = ", ".join(sorted({name for name, _ in self._noise.unstable}))
            notes.append(f"the original does not agree with itself in {names}: nothing is decided where it does not")
        notes += [f"output {name} has another shape than the original declares" for name in self._false_outputs]
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
        if (why := "asked for by verify.level" if self.level == "structure" else self._too_large(model)) is not None:
            self._fall_back(why)
            if not self._full_check:
                self._false_outputs = disproved(model)
            return
        self._tolerance = default_tolerance(model)
        try:
            self._run_original(batches)
        except WorkerDied as error:
            self._fall_back(f"the original ended the runtime: {error}")
            return
        except ModelError as error:
            raise ModelError(f"{error}; `verify: structure` goes on without running it") from error
        except Exception as error:
            if self._real_data:
                raise
            self._fall_back(f"the original fails on synthetic data: {error}")
            self.refused = isinstance(error, DataError)
            return
        self._previous = self._reference
        self._refuse_nan()
        self._false_outputs = belied(model, self._reference)
        self._full_check = self._full_check and not self._false_outputs
        self._settle_guard()

    def _run_original(self, batches: int | None) -> None:
        """All that is compared with, on as many batches as there is time and memory for."""
        self._chance = self._last_chance = self._without_chance(self._original)
        started = time.monotonic()
        self._reference = self._run(self._original, SessionMode.REFERENCE, self._feeds[:1])
        self._fit_time(time.monotonic() - started, batches)
        if batches is None:
            self._fit_memory()
        self._reference += self._run(self._original, SessionMode.REFERENCE, self._feeds[1:])
        without = self._run(self._original, SessionMode.NOISE_NONE, self._feeds)
        self._noise = comparing.noise(self._run(self._original, SessionMode.NOISE_ALL, self._feeds), without)
        self._guard_outputs = self._run(self._original, SessionMode.DEPLOYED, self._guard)
        if self.level == "full":
            self._deployed = self._run(self._original, SessionMode.DEPLOYED, self._feeds)

    def _settle_guard(self) -> None:
        """Where nothing or too little is held back, the guard looks at the samples that outputs are compared on."""
        if not comparing.judgeable(self._guard_outputs):
            self._guard = self._feeds
            self._guard_outputs = self._deployed or self._run(self._original, SessionMode.DEPLOYED, self._feeds)
            self.guarded = comparing.judgeable(self._guard_outputs)

    def resume_from(self, state: Path) -> None:
        """Hold the next exact pass to the outputs of a state that was accepted before."""
        if self.unverified is None:
            self._accept(state, self._run(state, SessionMode.REFERENCE, self._feeds), Lossy())

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
        if (complaint := self._complaint(candidate)) is not None:
            broken = (f"the file is not valid ONNX: {complaint}",)
            return replace(verdict, broken=broken, seconds=time.monotonic() - started), _nothing
        if self.unverified is not None:
            return replace(verdict, seconds=time.monotonic() - started), _nothing
        try:
            verdict, outputs = self._compare(candidate, contract, guard, verdict)
        except OnnxOptError as error:
            broken = (f"the file does not run: {error}",)
            return replace(verdict, broken=broken, seconds=time.monotonic() - started), _nothing
        return replace(verdict, seconds=time.monotonic() - started), lambda: self._accept(candidate, outputs, contract)

    def deployed(self, candidate: Path, feeds: Sequence[Feed]) -> tuple[Comparison, int]:
        """How far a candidate is from the original as deployed, and on how many batches.

        Args:
            candidate: the file.
            feeds: the same in every call; as many are taken as time and memory allow.
        """
        feeds = feeds[: self._most]
        if not self._held:
            self._held = self._run(self._original, SessionMode.DEPLOYED, feeds)
        outputs = self._run(candidate, SessionMode.DEPLOYED, feeds)
        otherwise = self._drawn_otherwise(self._chance, candidate)
        return comparing.measure(self._held, outputs, Noise({}, frozenset()), otherwise), len(feeds)

    def _compare(
        self, candidate: Path, contract: Contract, guard: bool, verdict: Verdict
    ) -> tuple[Verdict, list[Outputs]]:
        outputs = self._run(candidate, SessionMode.REFERENCE, self._feeds)
        otherwise = self._drawn_otherwise(self._chance, candidate)
        against_original = comparing.measure(self._reference, outputs, self._noise, otherwise)
        judged = against_original
        if isinstance(contract, Exact):
            tolerance = contract.tolerance or self._tolerances()
            chance = self._drawn_otherwise(self._last_chance, candidate)
            judged = comparing.compare(self._previous, outputs, tolerance, self._noise, chance)
        broken = list(judged.broken)
        if guard and self._guard and not broken:
            guarded = self._run(candidate, SessionMode.DEPLOYED, self._guard)
            broken += comparing.collapsed(self._guard_outputs, guarded, paired=self._real_data)
        deployed = None
        if self.level == "full":
            as_deployed = self._run(candidate, SessionMode.DEPLOYED, self._feeds)
            lived = comparing.measure(self._deployed, as_deployed, self._noise, otherwise)
            broken += [f"as deployed: {line}" for line in lived.broken if line not in broken]
            deployed = self._drift(lived, self._deployed, as_deployed, otherwise)
        verdict = replace(
            verdict, drift=self._drift(against_original, self._reference, outputs, otherwise), deployed_drift=deployed,
            broken=tuple(broken), undecidable=judged.undecidable, batches=len(self._feeds),
        )  # fmt: skip
        return verdict, outputs

    def _drift(
        self, found: Comparison, reference: Sequence[Outputs], outputs: Sequence[Outputs], otherwise: Collection[str]
    ) -> float:
        """The drift of a comparison, on what no pass saw of all that was compared."""
        if not 0 < self._unseen < len(reference):
            return found.drift
        unseen = slice(self._unseen)
        return comparing.measure(reference[unseen], outputs[unseen], self._noise, otherwise).drift

    def _accept(self, state: Path, outputs: list[Outputs], contract: Contract) -> None:
        self._state, self._previous, self._last_chance = state, outputs, self._without_chance(state)
        if isinstance(contract, Lossy):
            self._tolerance = None

    def _tolerances(self) -> Mapping[str, float]:
        """What exact passes are allowed on the last good state: a lossy one may have changed its precision."""
        if self._tolerance is None:
            self._tolerance = default_tolerance(load(self._state))
        return self._tolerance

    def _drawn_otherwise(self, before: Seeded, candidate: Path) -> frozenset[str]:
        """The outputs that depend on chance, as before, and for which a candidate draws other random numbers."""
        after = self._without_chance(candidate)
        differing = before.outputs & after.outputs if before.keys != after.keys else frozenset()
        self._by_statistics |= differing
        return differing

    def _without_chance(self, path: Path) -> Seeded:
        """The original or a candidate with seeds; of candidates only the last one's copy is kept."""
        status = path.stat()
        version = (path, status.st_mtime_ns, status.st_ino)
        if version not in self._seeded:
            original = path == self._original
            self._seeded = {key: known for key, known in self._seeded.items() if key[0] == self._original}
            copy = self._scratch / f"{'original' if original else 'candidate'}.seeded.onnx"
            self._seeded[version] = seeded(path, copy)
        return self._seeded[version]

    def _run(self, path: Path, mode: SessionMode, feeds: Sequence[Feed]) -> list[Outputs]:
        if not feeds:
            return []
        quiet = self._without_chance(path)
        function = run_afresh if quiet.draws else run_batches
        limit = max(_PATIENCE, 20 * self._config.max_seconds)
        outputs: list[Outputs] = self._worker.call(function, str(quiet.path), mode, list(feeds), timeout=limit)
        return outputs

    def _check_original(self) -> None:
        complaint = self._worker.call(check_file, str(self._original), full=False)
        if complaint is not None:
            raise ModelError(f"{self._original} is not valid ONNX: {complaint}")
        self._full_check = self._worker.call(check_file, str(self._original), full=True) is None
        if not self._full_check:
            logger.info("the original's declared shapes contradict each other; candidates are checked without them")

    def _complaint(self, candidate: Path) -> str | None:
        """The checker's complaint about a candidate; declared shapes are no matter where the original's are false.

        Where nothing is compared, that is found out when the checker complains: from the graph, or by one run of the
        original if there is room for its session.
        """
        complaint: str | None = self._worker.call(check_file, str(candidate), full=self._full_check)
        if complaint is None or not self._full_check or self.unverified is None:
            return complaint
        model = load(self._original)
        self._false_outputs = disproved(model) or self._belied_by_a_run(model)
        self._full_check = not self._false_outputs
        return complaint if self._full_check else self._complaint(candidate)

    def _belied_by_a_run(self, model: Model) -> list[str]:
        if self._config.level != "structure" or self._too_large(model) is not None:
            return []
        try:
            return belied(model, self._run(self._original, SessionMode.REFERENCE, self._feeds[:1]))
        except OnnxOptError as error:
            logger.info("the original was not run to see the shapes of its outputs: %s", error)
            return []

    def _too_large(self, model: Model) -> str | None:
        """A session holds about the weights' size again; where that is most of what is free, none is opened."""
        needed = machine.session_bytes(stored_bytes(model))
        if machine.has_room(needed):
            return None
        free = machine.free_memory_bytes()
        return f"a session needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free"

    def _fit_time(self, first: float, batches: int | None) -> None:
        """Keep as many batches as fit the time: each is run about seven times."""
        affordable = batches or max(1, int(self._config.max_seconds / max(7 * first, 1e-3)))
        samples = 1 if self.level == "sample" else self._config.samples
        self._most = min(affordable, samples)
        self._feeds = self._feeds[: self._most]

    def _fit_memory(self) -> None:
        """Keep as many batches as leave room for their outputs."""
        run = _SETS_OF_OUTPUTS * _bytes_of(self._reference[0].values())
        fitting = max(1, int(_OUTPUTS_SHARE * machine.free_memory_bytes() / max(run, 1)))
        wanted = max(len(self._feeds), len(self._guard))
        if fitting < wanted:
            size = run / _SETS_OF_OUTPUTS / 2**20
            self._notes.append(
                f"the outputs of one batch take {size:.0f} MiB: {fitting} of {wanted} batches are compared; "
                "smaller batches would let more fit into memory"
            )
            self._feeds, self._guard = self._feeds[:fitting], self._guard[:fitting]
            self._most = min(self._most, fitting)

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


def require(verdict: Verdict, what: str) -> None:
    """Raise ContractViolation when a verdict has anything broken."""
    if verdict.broken:
        more = f" (and {len(verdict.broken) - 1} more)" if len(verdict.broken) > 1 else ""
        raise ContractViolation(f"{what} broke its contract: {verdict.broken[0]}{more}")


def _bytes_of(values: Iterable[Any]) -> int:
    """Memory of output values: arrays, and lists and maps of them."""
    total, waiting = 0, list(values)
    while waiting:
        match waiting.pop():
            case Mapping() as held:
                waiting.extend(held.values())
            case list() | tuple() as held:
                waiting.extend(held)
            case value:
                total += getattr(value, "nbytes", 0)
    return total


def _nothing() -> None:
    """Nothing to remember of a candidate that was not run."""
