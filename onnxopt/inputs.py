"""Which data a run uses for what: calibration for passes, held-back samples for the guard, evaluation for limits."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.analysis.shapes import infer
from onnxopt.backends.jobs import run_batches
from onnxopt.backends.sessions import SessionMode
from onnxopt.backends.worker import Worker
from onnxopt.calibration.padding import counts_tokens
from onnxopt.data import Batch, Dataset, all_alike, fitting, likely_masks, open_data, synthetic
from onnxopt.data.validate import MASK, describe, fits, listed, nearest
from onnxopt.errors import DataError, OnnxOptError
from onnxopt.model import Model, Signature
from onnxopt.recipe import Recipe

Feed = Mapping[str, Any]

_COMPARED = {
    "evaluation": ("sample of evaluation data", "samples of evaluation data"),
    "calibration": ("sample of calibration data", "samples of calibration data"),
}
_DRIFTED = {
    "evaluation": _COMPARED["evaluation"],
    "held-back": ("held-back calibration sample", "held-back calibration samples"),
    "calibration": ("calibration sample that passes saw", "calibration samples that passes saw"),
}

HELD_BACK = 0.2
"""Share of the calibration samples that no pass sees."""

_GUARD_SAMPLES = 64
_FEWEST_JUDGED = 3
"""Fewer samples tell nothing of a collapse."""

Kind = Literal["evaluation", "held-back", "calibration", "synthetic"]
"""Whose a batch is; what no pass sees comes first. Held-back ones are of the calibration data, too."""

_UNSEEN: tuple[Kind, ...] = ("evaluation", "held-back")


@dataclass(frozen=True)
class Inputs:
    """Everything that a run feeds to models.

    Attributes:
        calibration: what passes may look at; None without data.
        evaluation: what limits and reports look at; None without data.
        feeds: batches that verification compares outputs on.
        rows: how many samples each of them holds.
        kinds: whose each of them is, in the order of `Kind`.
        first: what shapes, MACs and latency are looked at with: of data that passes see, if there are any.
        guard: batches for the collapse guard: held-back calibration samples, else inputs of evaluation data.
        sizes: input name -> shape, which dynamic axes take for MACs and latency.
        synthetic: whether the feeds are random numbers.
        notes: what a reader of the report should know.
        given: the shapes that the caller named.
    """

    calibration: Dataset | None
    evaluation: Dataset | None
    feeds: Sequence[Feed]
    rows: Sequence[int]
    kinds: Sequence[Kind]
    first: Feed
    guard: Sequence[Feed]
    sizes: Mapping[str, tuple[int, ...]]
    synthetic: bool
    notes: Sequence[str]
    given: Mapping[str, tuple[int, ...]]

    def digest(self) -> str:
        """Digest of all data that were given, so that a resumed run is known to be the same run.

        Random inputs follow from the model and the recipe, of which there are digests.
        """
        total = hashlib.sha256()
        for part in (self.calibration, self.evaluation):
            named = "none" if part is None else "synthetic" if part.is_synthetic else part.digest()
            total.update(named.encode())
        for name, shape in sorted(self.given.items()):
            total.update(f"{name}{shape}".encode())
        return total.hexdigest()

    def for_limits(self, samples: int) -> tuple[str, list[Feed]]:
        """What drift is held to its limit on, and its name: if possible data that no pass saw."""
        if self.evaluation is not None:
            batches = _batches(self.evaluation, samples)
            return f"{'synthetic ' * self.evaluation.is_synthetic}evaluation data", [batch.feeds for batch in batches]
        if self.guard:  # without evaluation data they are held-back ones
            return "held-back calibration samples", list(self.guard)
        return "synthetic data" if self.synthetic else "calibration samples that passes saw", list(self.feeds)

    @property
    def unseen(self) -> int:
        """How many of the feeds, the first ones, no pass sees: drift is measured on them, where there are any."""
        return sum(kind in _UNSEEN for kind in self.kinds)

    def compared_on(self, batches: int) -> str:
        """What outputs are compared on, in words, when so many of the feeds are."""
        whose = (kind if kind == "evaluation" else "calibration" for kind in self.kinds)
        return "synthetic data" if self.synthetic else self._counted(whose, batches, _COMPARED)

    def drift_on(self, batches: int) -> str:
        """What drift is measured on, in words, when so many of the feeds are compared."""
        of = min(batches, self.unseen or batches)
        return "synthetic data" if self.synthetic else self._counted(self.kinds, of, _DRIFTED)

    def _counted(self, kinds: Iterable[str], batches: int, words: Mapping[str, tuple[str, str]]) -> str:
        counts: dict[str, int] = {}
        for kind, rows in islice(zip(kinds, self.rows, strict=True), batches):
            counts[kind] = counts.get(kind, 0) + rows
        return " and ".join(f"{count} {words[kind][count != 1]}" for kind, count in counts.items())

    def sample(self) -> Feed | None:
        """The first calibration sample; None where there are none but random ones."""
        if self.calibration is None or self.calibration.is_synthetic or not self.calibration.samples:
            return None
        return self.calibration.take(1).first().feeds

    def describe(self) -> dict[str, Any]:
        """What the report says of the data."""
        named = {"calibration": self.calibration, "evaluation": self.evaluation}
        return {k: {"name": d.name, "samples": d.samples} for k, d in named.items() if d} | {
            "synthetic": self.synthetic
        }


def gather(
    model: Model,
    recipe: Recipe,
    data: Any,
    evaluation: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    allow_code: bool,
) -> Inputs:
    """Open and check all data of a run.

    Args:
        data, evaluation: in place of the recipe's; code that they name is the caller's own word, and runs.
        shapes: input name -> shape; of inputs that it leaves out, the first sample's.
        allow_code: whether the recipe's data may be `module:function`.

    Raises:
        DataError: data that cannot be read or do not fit the model, or a shape that does not.
        RecipeError: code that is not allowed.
    """
    check_shapes(model.signature, shapes or {})
    calibration = _opened(model, data, recipe.data.calibration, recipe.data.mask, shapes, allow_code)
    evaluated = _opened(model, evaluation, recipe.data.evaluation, None, shapes, allow_code)
    notes = [f"{d.name}: {note}" for d in (calibration, evaluated) if d for note in d.notes]
    notes += _mask_notes(model, calibration, recipe.data.mask)
    parts: dict[Kind, Dataset] = {}
    visible = calibration
    if evaluated is not None and not evaluated.is_synthetic:
        parts["evaluation"] = evaluated
    if calibration is not None and not calibration.is_synthetic:
        visible, parts["held-back"] = calibration.split(HELD_BACK, seed=recipe.seed)
        parts["calibration"] = visible
        notes += _notes_of_samples(calibration, parts["held-back"], evaluated)
    if not parts:
        parts["synthetic"] = calibration or evaluated or _drawn(model, recipe, shapes)
        if calibration is None and evaluated is None and recipe.verify.level != "structure":
            notes.append("no data were given: outputs were compared on random inputs")
    wanted = 1 if recipe.verify.level == "sample" else recipe.verify.samples
    compared = _compared(parts, wanted)
    first = _batches(next(reversed(parts.values())), wanted)[0].feeds
    sizes = {name: np.shape(array) for name, array in first.items()} | dict(shapes or {})
    return Inputs(
        visible, evaluated, [batch.feeds for _, batch in compared], [batch.samples for _, batch in compared],
        [kind for kind, _ in compared], first, _guard(parts), sizes, "synthetic" in parts, notes, dict(shapes or {}),
    )  # fmt: skip


def _drawn(model: Model, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]] | None) -> Dataset:
    rng = np.random.default_rng(recipe.seed)
    return synthetic(model.signature, shapes, index_bounds(model), recipe.verify.samples, rng)


def _compared(parts: Mapping[Kind, Dataset], wanted: int) -> list[tuple[Kind, Batch]]:
    """So many samples for comparing outputs; what passes see where the rest is not enough."""
    found: list[tuple[Kind, Batch]] = []
    for kind, dataset in parts.items():
        left = wanted - sum(batch.samples for _, batch in found)
        found += [(kind, batch) for batch in _batches(dataset, left)] if left > 0 else []
    return found


def _guard(parts: Mapping[Kind, Dataset]) -> list[Feed]:
    """Batches that no pass sees, for the collapse guard; nothing is chosen by them."""
    held_back, evaluation = parts.get("held-back"), parts.get("evaluation")
    enough = held_back is not None and held_back.samples >= _FEWEST_JUDGED
    chosen = held_back if enough or evaluation is None else evaluation
    return [] if chosen is None else [batch.feeds for batch in _batches(chosen, _GUARD_SAMPLES)]


def _notes_of_samples(calibration: Dataset, held_back: Dataset, evaluation: Dataset | None) -> list[str]:
    """What calibration samples cannot tell, because they are too few or all the same."""
    notes = []
    if not held_back.samples and evaluation is None:
        notes.append("too few calibration samples to hold any back: drift is measured on those that passes saw")
    if all_alike(calibration):
        notes.append(
            f"{calibration.name}: all {calibration.samples} samples are the same: what passes fit to them, and drift "
            "on them, tell nothing of other inputs"
        )
    return notes


def _opened(
    model: Model, given: Any, of_recipe: str | None, mask: str | None, shapes: Mapping[str, tuple[int, ...]] | None,
    allow_code: bool,
) -> Dataset | None:  # fmt: skip
    """The data that were given, else those that the recipe names; None where there are neither."""
    spec = of_recipe if given is None else given
    if spec is None:
        return None
    if isinstance(spec, str) and not spec:
        raise DataError("data: an empty name; give an .npz, a folder of .npz, module:function or synthetic")
    allowed = allow_code or given is not None
    bounds = index_bounds(model)
    return open_data(spec, model.signature, allow_code=allowed, mask=mask, shapes=shapes, bounds=bounds)


def _mask_notes(model: Model, calibration: Dataset | None, mask: str | None) -> list[str]:
    """Where padding may count because no mask is named, or a mask is named for nothing."""
    if calibration is None or calibration.is_synthetic:
        return [f"the padding mask {mask!r} is not used: there are no calibration data"] if mask is not None else []
    if calibration.mask is not None:
        return _misfit(model, calibration)
    notes = []
    if calibration.mask_names:
        aside = listed([MASK + name for name in calibration.mask_names])
        notes.append(f"{aside} not looked at: to leave padding out of statistics, name a mask as data.mask")
    if likely := likely_masks(calibration):
        which = "input" if len(likely) == 1 else "inputs"
        notes.append(f"nothing but 0 and 1 in {which} {listed(likely)}: if that marks padding, name it as data.mask")
    return [f"{calibration.name}: {note}" for note in notes]


def _misfit(model: Model, calibration: Dataset) -> list[str]:
    """A note on a mask of tokens that no value of a model has, by the first batch."""
    batch = calibration.first()
    if batch.mask is None or batch.mask.ndim != 2:
        return []
    shapes = infer(model, {name: np.shape(array) for name, array in batch.feeds.items()}, thorough=True)
    inputs = (value for value in model.graph.inputs if value.name != calibration.mask and not value.is_initializer())
    values = [*inputs, *(value for node in model.graph for value in node.outputs)]
    found = [shapes.concrete(value) for value in values if value.name and shapes.is_tensor(value) is not False]
    if any(shape is None or counts_tokens(batch.mask, shape) for shape in found):
        return []
    tokens = batch.mask.shape[1]
    return [
        f"{calibration.name}: the padding mask {calibration.mask!r} has {tokens} tokens a sample, and no value of the "
        "model has so many: it leaves out samples without any token, and nothing else"
    ]


def resized(inputs: Inputs, model: Model, recipe: Recipe, runs: Callable[[Feed], bool]) -> Inputs | None:
    """The same with random inputs of other sizes, on which the model runs; None where there are none.

    Args:
        inputs: random inputs (`Inputs.synthetic`) that the model does not take.
        model: the model.
        recipe: that the inputs were gathered for.
        runs: whether the model takes some inputs (`takes`).
    """
    shapes = fitting(model.signature, inputs.given, index_bounds(model), runs)
    if shapes is None:
        return None
    data, evaluation = (
        "synthetic" if part is not None and part.is_synthetic else part
        for part in (inputs.calibration, inputs.evaluation)
    )
    again = gather(model, recipe, data, evaluation, shapes, allow_code=True)
    changed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items() if shape != inputs.sizes.get(name))
    note = f"the original does not run on random inputs of the usual sizes, but on these: {changed}"
    return replace(again, given=inputs.given, notes=[*again.notes, note])


def takes(worker: Worker, path: Path, seconds: float) -> Callable[[Feed], bool]:
    """A function that tells whether a model runs on some inputs; after so many seconds it always says no."""
    deadline = time.monotonic() + seconds

    def runs(feeds: Feed) -> bool:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        try:
            worker.call(run_batches, str(path), SessionMode.REFERENCE, [dict(feeds)], timeout=left)
        except OnnxOptError:
            return False
        return True

    return runs


def _batches(dataset: Dataset, samples: int) -> list[Batch]:
    return list(dataset.take(samples).batches()) if dataset.samples else []


def check_shapes(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Sizes that are only used for counting must fit as well as those that random inputs are drawn with.

    Raises:
        DataError: a shape of no input, or one that its input does not take.
    """
    inputs = {info.name: info for info in signature.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise DataError(f"a shape for {name!r}, which is no input of the model{nearest(name, inputs)}")
        if not fits(inputs[name], shape):
            raise DataError(f"input {name!r} takes {describe(inputs[name])}, the shape given is {list(shape)}")
