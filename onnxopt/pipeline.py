"""The pipeline: load, then for each pass change, save, verify, keep or roll back; then measure, write, report."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import inputs as inputs_
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext, embedded
from onnxopt.errors import ContractViolation, DataError, ModelError, OnnxOptError, RecipeError
from onnxopt.measuring import Measuring
from onnxopt.model import Model, Source, load
from onnxopt.passing import Exact, Findings, Limits, Lossy, Pass, contract_of, make, parts, reshapes, separated
from onnxopt.recipe import Recipe
from onnxopt.report import Facts, Report, Step, facts, versions
from onnxopt.reproduce import reproduce
from onnxopt.rewrites import Rewrites
from onnxopt.serialization import digest
from onnxopt.verify import Verdict, Verifier, default_tolerance, require
from onnxopt.workdir import WorkDir

logger = logging.getLogger(__name__)

_NOTABLY_SLOWER = 1.1

PREPARATION = ("lift-constants", "inline-functions")
"""Run before the recipe's passes, so that none of them meets a Constant node or a model-local function."""


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
        report: folder of report.json; None: beside the output.
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


@dataclass(frozen=True)
class Result:
    """What a run gives: the optimized model (on disk where an output was named) and the report."""

    model: Model
    report: Report


def run(
    source: Source, recipe: Recipe, output: Path | None = None, *, data: Any = None, evaluation: Any = None,
    settings: Settings = Settings(),
) -> Result:  # fmt: skip
    """Run a recipe on a model.

    Args:
        source: the model.
        recipe: what to do.
        output: where the result goes; None: nowhere, `Result.model` holds it in memory.
        data, evaluation: in place of the recipe's data: a SPEC, arrays by input name, or batches.
        settings: how to do it.

    Raises:
        ModelError, DataError, RecipeError: bad input; nothing is written.
        ContractViolation: a pass or the run broke its promise; nothing is written, the old output is intact.
    """
    output = output.absolute() if output else None
    if output is not None:
        _check_writable(output)
    if settings.report is not None:
        _check_report(settings.report)
    temporary = None if output or settings.work else Path(tempfile.mkdtemp(prefix="onnxopt-"))
    folder = settings.work or (output.with_name(f"{output.name}.work") if output else temporary)
    assert folder is not None
    try:
        with Worker(threads=settings.threads) as worker:
            # What is refused up to here leaves the folder alone: another run may want to go on in it.
            this = _Run(source, recipe, output, data, evaluation, settings, folder, worker)
            try:
                result = this.run()
            except OnnxOptError:
                this.clean_up()
                raise
            this.clean_up()
            return result
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


class _Run:
    """One run, from loading to the report; a method for each stage."""

    def __init__(
        self, source: Source, recipe: Recipe, output: Path | None, data: Any, evaluation: Any, settings: Settings,
        folder: Path, worker: Worker,
    ) -> None:  # fmt: skip
        self.recipe, self.output, self.settings, self.worker = recipe, output, settings, worker
        self.original = load(source)
        self.inputs = inputs_.gather(self.original, recipe, data, evaluation, settings.shapes, settings.allow_code)
        self.digests = self._digests()
        self.workdir = WorkDir(folder, self.digests, resume=settings.resume)
        self.path = self._original_file()
        self.external = any(isinstance(v.const_value, ir.ExternalTensor) for v in self.original.weights())
        self.steps = [*map(make, PREPARATION), *(step for pass_ in recipe.passes for step in separated(pass_))]

    def run(self) -> Result:
        inputs = self.inputs
        self.verifier = Verifier(
            self.worker, self.path, inputs.feeds, inputs.guard, self.recipe.verify, real_data=not inputs.synthetic,
            scratch=self.workdir.folder,
        )  # fmt: skip
        self._tell(0, "checking the original")
        self.verifier.prepare(self.original, _batches(self.workdir.done))
        self.measuring = Measuring(
            self.worker, self.path, inputs, self.recipe.data.metric, self.verifier.unverified, self.settings.allow_code
        )
        self.context = RunContext(
            self.original, worker=self.worker, workdir=self.workdir, target=self.recipe.target,
            overrides=self.recipe.overrides, sizes=inputs.sizes, progress=self._progress_inside,
            observed=self.measuring.observe(self.original, self.workdir.folder),
        )  # fmt: skip
        before = facts(self.original, self.context.cost, self.path, self.digests["model"])
        model, first = self._start()
        if any(map(reshapes, self.steps[:first])):
            self.context.see(self.measuring.observe(model, self.workdir.folder))
        for index in range(first, len(self.steps)):
            self._tell(index, self.steps[index].name)
            model = self._step(index, model)
        return self._finish(model, before)

    def clean_up(self) -> None:
        """Take away the work folder, unless the caller named it."""
        if self.settings.work is None:
            self.workdir.remove()

    def _start(self) -> tuple[Model, int]:
        """The model to begin with: the original, or the last good state of a killed run."""
        state = self.workdir.last_state()
        if state is None:
            return load(self.path), len(self.workdir.done)
        logger.info("resuming after %d of %d steps", len(self.workdir.done), len(self.steps))
        self.verifier.resume_from(state)
        return load(state), len(self.workdir.done)

    def _step(self, index: int, model: Model) -> Model:
        """Run one pass; give back the model to go on with, read from the last good state."""
        pass_, started = self.steps[index], time.monotonic()
        self._current = index
        before, candidate = self.workdir.last_state() or self.path, self.workdir.candidate(index)
        try:
            findings = self._apply(pass_, model, index)
            if not findings.changed:
                self._commit(index, findings, time.monotonic() - started, None, None, None)
                return load(before)  # whatever a pass does without saying so ends here
            model.save(candidate, external_data=self.external)
            verdict, accept = self._judge(pass_, candidate, model, before)
        except ContractViolation as violation:
            self.workdir.discard(candidate)
            self._reproduce(index, before, violation)
            if self.recipe.on_violation == "stop":
                raise
            logger.warning("%s; rolled back", violation)
            self._commit(index, Findings(), time.monotonic() - started, None, None, str(violation))
            return load(before)
        self._commit(index, findings, time.monotonic() - started, verdict, candidate, None)
        accept()
        accepted = load(candidate)
        if reshapes(pass_):
            self.context.see(self.measuring.observe(accepted, self.workdir.folder))
        return accepted

    def _apply(self, pass_: Pass, model: Model, index: int) -> Findings:
        """Run a pass, its parts where it is a composite, on the model in memory."""
        findings = Findings()
        for part in parts(pass_):
            revision = model.revision
            self.context.use(model, self.recipe.seed + index)
            model.watcher = watch = self._watch(part, model)
            try:
                found = part.run(model, self.context)
            except (RecipeError, DataError, ContractViolation):
                raise
            except Exception as error:
                kind = "" if isinstance(error, OnnxOptError) else f"{type(error).__name__}: "
                raise ContractViolation(f"pass {part.name} crashed: {kind}{error}") from error
            finally:
                model.watcher = None
            if model.revision != revision and not found.changed:
                found.change(None, "unreported", "changed the model without saying what")
            findings.add(found)
            if watch is not None and watch.broken:
                raise ContractViolation(f"pass {part.name} broke its contract: {watch.broken[0]}")
            if watch is not None and model.revision != revision:
                findings.notes.append(f"{part.name}: {watch.summary()}")
        return findings

    def _watch(self, part: Pass, model: Model) -> Rewrites | None:
        """Where no session of the whole model is opened, each rewrite is run by itself."""
        if self.verifier.unverified is None:
            return None
        tolerance = part.contract.tolerance or default_tolerance(model) if isinstance(part.contract, Exact) else None
        rng = np.random.default_rng(self.recipe.seed)
        return Rewrites(model, self.context.shapes, self.context.evaluate, rng, tolerance)

    def _judge(self, pass_: Pass, candidate: Path, model: Model, before: Path) -> tuple[Verdict, Callable[[], None]]:
        may_change = any(part.changes_signature for part in (pass_, *parts(pass_)))
        if not may_change and model.signature != load(before).signature:
            raise ContractViolation(f"pass {pass_.name} broke its contract: it changed the model's inputs or outputs")
        contract = contract_of(pass_)
        limits = self.recipe.limits.with_(pass_.limits)
        limited = limits.metric_drop is not None or limits.drift is not None
        guard = isinstance(contract, Lossy) and not limited and not self.settings.accept_loss
        verdict, accept = self.verifier.judge(candidate, contract, guard=guard)
        require(verdict, f"pass {pass_.name}")
        if isinstance(contract, Lossy):
            self._check_limits(f"pass {pass_.name}", limits, candidate, verdict)
        return verdict, accept

    def _check_limits(self, what: str, limits: Limits, candidate: Path, verdict: Verdict) -> None:
        drift = verdict.drift if verdict.deployed_drift is None else verdict.deployed_drift
        if limits.drift is not None and drift is None:
            raise DataError(f"limits.drift cannot be measured: {self.verifier.unverified}")
        if limits.drift is not None and drift is not None and drift > limits.drift:
            raise ContractViolation(f"{what} goes past limits.drift: {drift:.2g}, allowed {limits.drift:.2g}")
        if limits.metric_drop is not None:
            drop = self.measuring.metric_drop(candidate)
            if drop > limits.metric_drop:
                raise ContractViolation(
                    f"{what} goes past limits.metric_drop: {drop:.4f}, allowed {limits.metric_drop:.4f}"
                )

    def _reproduce(self, index: int, before: Path, violation: ContractViolation) -> None:
        if self.settings.reproduce is None:
            return

        def context(model: Model) -> RunContext:
            return RunContext(
                model, worker=self.worker, target=self.recipe.target, overrides=self.recipe.overrides,
                seed=self.recipe.seed + index,
            )  # fmt: skip

        pass_ = self.steps[index]
        limit = self.recipe.limits.with_(pass_.limits).drift
        found = reproduce(
            parts(pass_), before, self.inputs.feeds, self.worker, self.settings.reproduce, context, lossy_limit=limit
        )
        violation.args = (f"{violation.args[0]}; {found}",)

    def _commit(
        self, index: int, findings: Findings, seconds: float, verdict: Verdict | None, state: Path | None,
        why: str | None,
    ) -> None:  # fmt: skip
        step = Step.of(self.steps[index], findings, seconds, verdict, why)
        self.workdir.commit(asdict(step), state)

    def _finish(self, model: Model, before: Facts) -> Result:
        self._tell(len(self.steps), "measuring and writing")
        done = [Step(**{k: v for k, v in record.items() if k != "state"}) for record in self.workdir.done]
        state = self.workdir.last_state() or self.path
        # Measured before anything is written: the output may take the input's place.
        metric, latency = self.measuring.metric(state), self.measuring.latency(state)
        for step in done[len(PREPARATION) :]:
            if step.outcome == "changed":
                model.record(_history(step))
        if self.output is not None:
            if self.workdir.must_write(_digest_of(self.output)):
                model.save(self.output, external_data=self.external)
            model = load(self.output)
        else:
            model = load(embedded(model.ir))
        self.context.use(model, self.recipe.seed)
        after = facts(model, self.context.cost, self.output, digest(self.output) if self.output else None)
        report = Report(
            verified=self.verifier.unverified is None, status=self._status(), before=before, after=after, steps=done,
            drift=_last(done, "drift"), deployed_drift=_last(done, "deployed_drift"),
            metric=metric, latency=latency,
            sizes={name: list(shape) for name, shape in self.inputs.sizes.items()}, data=self.inputs.describe(),
            recipe=self.recipe.resolved(), digests=self.digests, versions=versions(),
            notes=[*self.inputs.notes, *self.verifier.notes, *_slower(latency)],
            output=str(self.output.name) if self.output else None,
        )  # fmt: skip
        if self.output is not None or self.settings.report is not None:
            report.write(self.settings.report or self.output.parent)  # type: ignore[union-attr]
        return Result(model, report)

    def _status(self) -> str:
        if self.verifier.unverified is not None:
            return f"UNVERIFIED END TO END: {self.verifier.unverified}"
        count = sum(self.inputs.rows[: self.verifier.batches])
        kind = "calibration" if self.inputs.calibration else "evaluation"
        data = "synthetic data" if self.inputs.synthetic else f"{count} sample{'s'[: count != 1]} of {kind} data"
        return f"verified end to end on {data}"

    def _digests(self) -> dict[str, str]:
        recipe = json.dumps(self.recipe.resolved(), sort_keys=True, default=str)
        source = self.original.path
        content = b"" if self._on_disk() else self.original.proto().SerializeToString(deterministic=True)
        return {
            "model": digest(source) if source and not content else hashlib.sha256(content).hexdigest(),
            "recipe": hashlib.sha256(recipe.encode()).hexdigest(),
            "data": self.inputs.digest(),
            "versions": hashlib.sha256(json.dumps(versions()).encode()).hexdigest(),
        }

    def _on_disk(self) -> bool:
        """Whether the input is a file as it lies there, and no model object that was changed since it was read."""
        return self.original.path is not None and self.original.revision == 0

    def _original_file(self) -> Path:
        if self.original.path is not None and self._on_disk():
            return self.original.path.absolute()
        path = self.workdir.folder / "input.onnx"
        self.original.save(path)
        return path

    def _tell(self, step: int, name: str) -> None:
        if self.settings.progress is not None:
            self.settings.progress(Progress(step, len(self.steps), name))

    def _progress_inside(self, done: int, total: int, what: str) -> None:
        if self.settings.progress is not None:
            pass_ = self.steps[self._current]
            self.settings.progress(Progress(self._current, len(self.steps), pass_.name, done, total, what))


def plan(steps: Sequence[Pass]) -> list[Pass]:
    """The passes that would run, composites opened up."""
    return [part for pass_ in (*map(make, PREPARATION), *steps) for part in parts(pass_)]


def _batches(done: Sequence[Mapping[str, Any]]) -> int | None:
    """How many batches a killed run compared outputs on: the same go on, for drift is written into the file."""
    return next((record["verdict"]["batches"] or None for record in done if record.get("verdict")), None)


def _slower(latency: Mapping[str, Any] | None) -> list[str]:
    """A note where the output takes longer than the input on this machine."""
    if latency is None or latency["ratio"] <= _NOTABLY_SLOWER:
        return []
    return [f"the output is slower than the input on this machine: x{latency['ratio']:.2f} at the first sample"]


def _digest_of(output: Path) -> str:
    """Digest of the output that is there, whatever it is; empty where there is none."""
    try:
        return digest(output) if output.is_file() else ""
    except ModelError:
        return "damaged"


def _history(step: Step) -> dict[str, Any]:
    drift = (step.verdict or {}).get("drift")
    rounded = None if drift is None else float(f"{drift:.1e}")
    return {"pass": step.name, "options": step.options, "version": versions()["onnxopt"], "drift": rounded}


def _last(steps: Sequence[Step], key: str) -> float | None:
    values = [step.verdict[key] for step in steps if step.verdict and step.verdict.get(key) is not None]
    return values[-1] if values else None


def _check_writable(output: Path) -> None:
    """Say before the work, not after it, that the output cannot be written."""
    if output.is_dir():
        raise ModelError(f"cannot write {output}: it is a folder")
    if not output.parent.is_dir():
        raise ModelError(f"cannot write {output}: the folder {output.parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ModelError(f"cannot write {output}: {error.strerror}") from error


def _check_report(folder: Path) -> None:
    """The same for the report's folder, which is made when the report is written."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ModelError(f"cannot write the report into {folder}: {there} is not a folder that can be written")
