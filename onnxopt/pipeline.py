"""The pipeline: load, then for each pass change, save, verify, keep or roll back; then measure, write, report."""

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import inputs as inputs_
from onnxopt.backends.worker import Worker
from onnxopt.comparing import shown
from onnxopt.context import RunContext, embedded
from onnxopt.errors import ContractViolation, DataError, Declined, OnnxOptError, RecipeError
from onnxopt.measuring import Measuring
from onnxopt.model import Model, Signature, Source, load
from onnxopt.origin import as_file, digests
from onnxopt.overrides import Idle
from onnxopt.passing import Exact, Findings, Limits, Lossy, Pass, contract_of, make, parts, reshapes, rounds, separated
from onnxopt.publish import check_output, check_report, present_digest, publish, report_name
from onnxopt.recipe import Recipe
from onnxopt.report import Facts, Report, Step, drift_on, facts, last, slower, status, versions
from onnxopt.reproduce import reproduce
from onnxopt.rewrites import Rewrites
from onnxopt.settings import DEFAULT, Progress, Settings
from onnxopt.skips import Skipped, skipped
from onnxopt.verify import Verdict, Verifier, require
from onnxopt.workdir import WorkDir, WorkDirError

logger = logging.getLogger(__name__)

PREPARATION = ("inline-functions", "lift-constants")
"""Run before the recipe's passes, so that none of them meets a Constant node or a model-local function."""


@dataclass(frozen=True)
class Result:
    """What a run gives: the optimized model (on disk where an output was named) and the report."""

    model: Model
    report: Report


def run(
    source: Source, recipe: Recipe, output: Path | None = None, *, data: Any = None, evaluation: Any = None,
    settings: Settings = DEFAULT,
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
        check_output(output)
    if settings.report is not None:
        check_report(settings.report)
    temporary = None if output or settings.work else Path(tempfile.mkdtemp(prefix="onnxopt-"))
    folder = settings.work or (output.with_name(f"{output.name}.work") if output else temporary)
    assert folder is not None
    try:
        with Worker(threads=settings.threads) as worker:
            # What is refused up to here leaves the folder alone: another run may want to go on in it.
            this = _Run(source, recipe, output, data, evaluation, settings, folder, worker)
            with contextlib.closing(this.workdir):
                try:
                    result = this.run()
                except OnnxOptError as error:
                    this.give_up(error)
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
        self.ours = isinstance(source, str | Path)
        self.inputs = inputs_.gather(self.original, recipe, data, evaluation, settings.shapes, settings.allow_code)
        self.digests = digests(self.original, recipe, self.inputs)
        self.workdir = WorkDir(folder, self.digests, resume=settings.resume)
        self.used = recipe.on(data, evaluation)
        """The recipe as it is reported, with the data that were given for this run."""
        self.idle = Idle(recipe.overrides)
        self._within: tuple[Path | None, Limits] = None, Limits()
        """What was last held to limits, and to which."""
        self._limit_notes: list[str] = []
        self.external = any(isinstance(v.const_value, ir.ExternalTensor) for v in self.original.weights())
        self.steps = [*map(make, PREPARATION), *(step for pass_ in recipe.passes for step in separated(pass_))]

    def run(self) -> Result:
        self._tell(0, "checking the original")
        self.path = as_file(self.original, self.workdir.folder)
        self.verifier = self._verifier()
        if self.verifier.refused:
            runs = inputs_.takes(self.worker, self.path, self.recipe.verify.max_seconds)
            if (resized := inputs_.resized(self.inputs, self.original, self.recipe, runs)) is not None:
                self.inputs = resized
                self.verifier = self._verifier()
        inputs = self.inputs
        self.measuring = Measuring(
            self.worker, self.path, inputs, self.recipe.data.metric, self.verifier.unverified, self.settings.allow_code
        )
        self.context = RunContext(
            self.original, worker=self.worker, workdir=self.workdir, target=self.recipe.target,
            overrides=self.recipe.overrides, sizes=inputs.sizes, progress=self._progress_inside,
            observed=self.measuring.observe(self.original, self.workdir.folder), sample=inputs.sample,
            timed=lambda: self.inputs.first, calibration=inputs.calibration, memory=self.settings.memory,
        )  # fmt: skip
        before = facts(self.original, self.context.cost, self.path, self.digests["model"])
        model, first = self._start()
        if any(map(reshapes, self.steps[:first])):
            self.context.see(self.measuring.observe(model, self.workdir.folder))
        for index in range(first, len(self.steps)):
            self._tell(index, self.steps[index].name)
            model = self._step(index, model)
        return self._finish(model, before)

    def _verifier(self) -> Verifier:
        """What judges candidates on the inputs, with the original's outputs."""
        verifier = Verifier(
            self.worker, self.path, self.inputs.feeds, self.inputs.guard, self.recipe.verify,
            real_data=not self.inputs.synthetic, scratch=self.workdir.folder, unseen=self.inputs.unseen,
        )  # fmt: skip
        verifier.prepare(self.original, _batches(self.workdir.done))
        return verifier

    def clean_up(self) -> None:
        """Take away the work folder, unless the caller named it."""
        if self.settings.work is None:
            self.workdir.remove()

    def give_up(self, error: OnnxOptError) -> None:
        """Take away the work folder, or say how to go on: what is wrong with a pass or what was given stays wrong."""
        done, total = len(self.workdir.done), len(self.steps)
        final = isinstance(error, ContractViolation | RecipeError | DataError)
        if final or not done or (self.output is None and self.settings.work is None):
            self.clean_up()
            return
        where = f"from step {done + 1} of {total}" if done < total else "after the last step"
        error.args = (f"{error}; --resume goes on {where}",)

    def _start(self) -> tuple[Model, int]:
        """The model to begin with: the original, or the last good state of a killed run."""
        state = self.workdir.last_state()
        if state is None:
            # A model object of the caller's is left as it is.
            return (self.original if self.ours else load(self.path)), len(self.workdir.done)
        logger.info("resuming after %d of %d steps", len(self.workdir.done), len(self.steps))
        self.verifier.resume_from(state)
        return load(state), len(self.workdir.done)

    def _step(self, index: int, model: Model) -> Model:
        """Run one pass; give back the model to go on with, read from the last good state."""
        pass_, started = self.steps[index], time.monotonic()
        self._current = index
        before, candidate = self.workdir.last_state() or self.path, self.workdir.candidate(index)
        signature, revision = model.signature, model.revision
        try:
            findings = self._apply(pass_, model, index)
            if not findings.changed:
                self._commit(index, findings, time.monotonic() - started, None, None, None)
                # Whatever a pass does without saying so ends here.
                return model if model.revision == revision and _edits_only(pass_) else load(before)
            model.save(candidate, external_data=self.external)
            verdict, accept = self._judge(pass_, candidate, model, signature)
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
        findings, declined = Findings(), dict[str, list[Declined]]()
        for part in rounds(pass_, lambda: model.revision):
            revision = model.revision
            self.context.use(model, self.recipe.seed + index)
            self.idle.see(model)
            alone = self._skipped(part, model)
            try:
                found = part.run(model, self.context)
            except (RecipeError, DataError, ContractViolation, WorkDirError):
                raise
            except Exception as error:
                kind = "" if isinstance(error, OnnxOptError) else f"{type(error).__name__}: "
                raise ContractViolation(f"pass {part.name} crashed: {kind}{error}") from error
            if model.revision != revision and not found.changed:
                found.change(None, "unreported", "changed the model without saying what")
            findings.add(found)
            declined[part.name] = found.declined  # what an earlier round declined may be done by now
            if alone is not None and found.changed and (touched := alone.touched(model)) is not None:
                raise ContractViolation(f"pass {part.name} touched {touched}; an override skips it")
        findings.notes += self.context.calibration.notes()
        findings.declined = [refusal for each in declined.values() for refusal in each]
        if findings.changed and self.verifier.unverified is not None:
            rewrites = self._compare_states(pass_, model)
            findings.notes.append(f"{pass_.name}: {rewrites.summary()}")
            findings.measures |= rewrites.counts()
        return findings

    def _compare_states(self, pass_: Pass, model: Model) -> Rewrites:
        """Where no session of the whole model is opened, what differs from the last good state is run by itself."""
        before, rng = load(self.workdir.last_state() or self.path), np.random.default_rng(self.recipe.seed)
        rewrites = Rewrites(self.context.shapes_of(before), self.context.evaluate, rng, contract_of(pass_))
        rewrites.compare(before, model)
        if rewrites.broken:
            raise ContractViolation(f"pass {pass_.name} broke its contract: {rewrites.broken[0]}")
        return rewrites

    def _skipped(self, part: Pass, model: Model) -> Skipped | None:
        """What a lossy pass must leave alone; None where it may touch all."""
        if isinstance(part.contract, Exact) or not any(override.skip for override in self.recipe.overrides):
            return None
        return skipped(model, self.context.skips)

    def _judge(
        self, pass_: Pass, candidate: Path, model: Model, before: Signature
    ) -> tuple[Verdict, Callable[[], None]]:
        may_change = any(part.changes_signature for part in (pass_, *parts(pass_)))
        if not may_change and model.signature != before:
            raise ContractViolation(f"pass {pass_.name} broke its contract: it changed the model's inputs or outputs")
        contract = contract_of(pass_)
        limits = self.recipe.limits.with_(pass_.limits)
        verdict, accept = self.verifier.judge(candidate, contract, guard=self._is_guarded(pass_))
        require(verdict, f"pass {pass_.name}")
        if isinstance(contract, Exact) and pass_.limits is None:
            limits = Limits(drift=limits.drift)  # the metric is looked at after lossy passes, and at the end
        self._check_limits(f"pass {pass_.name}", limits, candidate)
        return verdict, accept

    def _is_guarded(self, pass_: Pass) -> bool:
        """Whether nothing but the collapse guard says how far a pass may go."""
        unlimited = self.recipe.limits.with_(pass_.limits) == Limits()
        return isinstance(contract_of(pass_), Lossy) and unlimited and not self.settings.accept_loss

    def _check_limits(self, what: str, limits: Limits, candidate: Path) -> None:
        notes = []
        if limits.drift is not None:
            if self.verifier.unverified is not None:
                raise DataError(f"limits.drift cannot be measured: {self.verifier.unverified}")
            data, feeds = self.inputs.for_limits(self.recipe.verify.samples)
            found, batches = self.verifier.deployed(candidate, feeds)
            if found.broken:
                raise ContractViolation(f"{what} on {data}: {found.broken[0]}")
            if found.drift > limits.drift:
                raise ContractViolation(
                    f"{what} goes past limits.drift: {found.drift:.2g} on {data}, allowed {limits.drift:.2g}"
                )
            of = f"{batches} batch{'es'[: 2 * (batches != 1)]} of {data}"
            notes.append(f"limits.drift was looked at on {of}: {shown(found.drift)}, allowed {limits.drift:.2g}")
        if limits.metric_drop is not None:
            drop = self.measuring.metric_drop(candidate)
            if drop > limits.metric_drop:
                raise ContractViolation(
                    f"{what} goes past limits.metric_drop: {drop:.4f}, allowed {limits.metric_drop:.4f}"
                )
        self._within, self._limit_notes = (candidate, limits), notes

    def _check_end(self, state: Path) -> None:
        """Hold what is to be written to the run's limits, unless the pass that left it was."""
        path, held = self._within
        if state != self.path and (path != state or self.recipe.limits.with_(held) != held):
            self._check_limits("the run", self.recipe.limits, state)

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
            parts(pass_) * (3 if pass_.repeats else 1),
            before,
            self.inputs.feeds,
            self.worker,
            self.settings.reproduce,
            context,
            lossy_limit=limit,
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
        self._check_end(state)
        # Measured before anything is written: the output may take the input's place.
        metric, latency = self.measuring.metric(state), self.measuring.latency(state)
        for step in done[len(PREPARATION) :]:
            if step.outcome == "changed":
                model.record(step.history())
        self.context.use(model, self.recipe.seed)
        after = facts(model, self.context.cost)

        def describe(file_bytes: int | None, digest: str | None) -> Report:
            return Report(
                verified=self.verifier.unverified is None, status=status(self.inputs, self.verifier, done),
                before=before, after=replace(after, file_bytes=file_bytes, digest=digest), steps=done,
                drift=last(done, "drift"), deployed_drift=last(done, "deployed_drift"),
                drift_on=drift_on(self.inputs, self.verifier, done),
                metric=metric, latency=latency, memory=self.measuring.memory(),
                sizes={name: list(shape) for name, shape in self.inputs.sizes.items()}, data=self.inputs.describe(),
                recipe=self.used.resolved(), flags=[*self.used.flags(), *self.settings.flags()],
                digests=self.digests, versions=versions(),
                notes=[*self.inputs.notes, *self.verifier.notes, *self._notes(after), *slower(latency)],
                output=str(self.output.name) if self.output else None,
            )  # fmt: skip

        report = publish(
            model, self.output, self._folder, describe, external=self.external,
            write=self.output is not None and self.workdir.must_write(present_digest(self.output)),
        )  # fmt: skip
        return Result(load(self.output) if self.output is not None else load(embedded(model.ir)), report)

    @property
    def _folder(self) -> Path | None:
        """Where the report goes."""
        return self.settings.report or (self.output.parent if self.output else None)

    def _notes(self, after: Facts) -> list[str]:
        """What became of the limits, the target and the overrides that the recipe names, and of the report's name."""
        newest = self.recipe.target.max_opset
        notes = [*self._limit_notes, *self.idle.notes()]
        if not self.verifier.guarded and any(map(self._is_guarded, self.steps)):
            notes.append("the collapse guard had nothing to judge: it needs an output that differs among three samples")
        name = "report" if self._folder is None else report_name(self._folder, self.output)
        if name != "report":
            notes.append(f"report.json is not of this output, whose report is {name}.json")
        if newest is None or after.opset <= newest:
            return notes
        return [*notes, f"the output has opset {after.opset}, more than target.max_opset, {newest}"]

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


def _edits_only(pass_: Pass) -> bool:
    """Whether a pass is known to change models by edits alone, which are counted: ours are, others may do anything."""
    return all(type(part).__module__.startswith("onnxopt.passes.") for part in (pass_, *parts(pass_)))


def _batches(done: Sequence[Mapping[str, Any]]) -> int | None:
    """How many batches a killed run compared outputs on: the same go on, for drift is written into the file."""
    return next((record["verdict"]["batches"] or None for record in done if record.get("verdict")), None)
