"""Which data a run uses for what: calibration for passes, held-back samples for the guard, evaluation for limits."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.data import Batch, Dataset, open_data, synthetic
from onnxopt.data.validate import describe, fits, nearest
from onnxopt.errors import DataError
from onnxopt.model import Model, Signature
from onnxopt.recipe import Recipe

Feed = Mapping[str, Any]

HELD_BACK = 0.2
"""Share of the calibration samples that no pass sees."""

_GUARD_SAMPLES = 64


@dataclass(frozen=True)
class Inputs:
    """Everything that a run feeds to models.

    Attributes:
        calibration: what passes may look at; None without data.
        evaluation: what limits and reports look at; None without data.
        feeds: batches that verification compares outputs on.
        rows: how many samples each of them holds.
        guard: held-back calibration batches.
        sizes: input name -> shape, which dynamic axes take for MACs and latency.
        synthetic: whether the feeds are random numbers.
        notes: what a reader of the report should know.
    """

    calibration: Dataset | None
    evaluation: Dataset | None
    feeds: Sequence[Feed]
    rows: Sequence[int]
    guard: Sequence[Feed]
    sizes: Mapping[str, tuple[int, ...]]
    synthetic: bool
    notes: Sequence[str]

    def digest(self) -> str:
        """Digest of all data, so that a resumed run is known to be the same run."""
        total = hashlib.sha256()
        for part in (self.calibration, self.evaluation):
            total.update((part.digest() if part else "none").encode())
        for name, shape in sorted(self.sizes.items()):
            total.update(f"{name}{shape}".encode())
        return total.hexdigest()

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
    signature = model.signature
    _check_shapes(signature, shapes or {})

    def opened(given: Any, of_recipe: str | None) -> Dataset | None:
        spec = of_recipe if given is None else given
        if spec is None:
            return None
        if isinstance(spec, str) and not spec:
            raise DataError("data: an empty name; give an .npz, a folder of .npz, module:function or synthetic")
        allowed = allow_code or given is not None
        return open_data(spec, signature, allow_code=allowed, shapes=shapes, bounds=index_bounds(model))

    calibration = opened(data, recipe.data.calibration)
    evaluated = opened(evaluation, recipe.data.evaluation)
    source = calibration or evaluated
    notes = [f"{d.name}: {note}" for d in (calibration, evaluated) if d for note in d.notes]
    if source is None:
        rng = np.random.default_rng(recipe.seed)
        source = synthetic(signature, shapes, index_bounds(model), recipe.verify.samples, rng)
        notes.append("no data were given: outputs were compared on random inputs")
    visible, guard = source, []
    if calibration is not None and not calibration.is_synthetic:
        visible, held_back = calibration.split(HELD_BACK, seed=recipe.seed)
        guard = [batch.feeds for batch in _batches(held_back, _GUARD_SAMPLES)]
        if not guard:
            notes.append("too few calibration samples to hold any back: no collapse guard")
    batches = _batches(visible, 1 if recipe.verify.level == "sample" else recipe.verify.samples)
    feeds, rows = [batch.feeds for batch in batches], [batch.samples for batch in batches]
    sizes = {name: np.shape(array) for name, array in feeds[0].items()} | dict(shapes or {})
    return Inputs(visible if calibration else None, evaluated, feeds, rows, guard, sizes, source.is_synthetic, notes)


def _batches(dataset: Dataset, samples: int) -> list[Batch]:
    return list(dataset.take(samples).batches()) if dataset.samples else []


def _check_shapes(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Sizes that are only used for counting must fit as well as those that random inputs are drawn with."""
    inputs = {info.name: info for info in signature.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise DataError(f"a shape for {name!r}, which is no input of the model{nearest(name, inputs)}")
        if not fits(inputs[name], shape):
            raise DataError(f"input {name!r} takes {describe(inputs[name])}, the shape given is {list(shape)}")
