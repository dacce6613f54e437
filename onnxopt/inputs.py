"""Which data a run uses for what: calibration for passes, held-back samples for the guard, evaluation for limits."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.data import Dataset, open_data, synthetic
from onnxopt.model import Model
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
        guard: held-back calibration batches.
        sizes: input name -> shape, which dynamic axes take for MACs and latency.
        synthetic: whether the feeds are random numbers.
        notes: what a reader of the report should know.
    """

    calibration: Dataset | None
    evaluation: Dataset | None
    feeds: Sequence[Feed]
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
        return {k: {"name": d.name, "samples": d.samples} for k, d in named.items() if d} | {"synthetic": self.synthetic}


def gather(
    model: Model,
    recipe: Recipe,
    data: Any,
    evaluation: Any,
    shapes: Mapping[str, tuple[int, ...]] | None,
    allow_code: bool,
) -> Inputs:
    """Open and check all data of a run.

    Raises:
        DataError: data that cannot be read or do not fit the model.
    """
    signature = model.signature
    wanted = (
        data if data is not None else recipe.data.calibration,
        evaluation if evaluation is not None else recipe.data.evaluation,
    )
    calibration, evaluated = (
        None
        if spec is None
        else open_data(spec, signature, allow_code=allow_code, shapes=shapes, bounds=index_bounds(model))
        for spec in wanted
    )
    source = calibration or evaluated
    notes = [f"{d.name}: {note}" for d in (calibration, evaluated) if d for note in d.notes]
    if source is None:
        rng = np.random.default_rng(recipe.seed)
        source = synthetic(signature, shapes, index_bounds(model), recipe.verify.samples, rng)
        notes.append("no data were given: outputs were compared on random inputs")
    visible, guard = source, []
    if calibration is not None and not calibration.is_synthetic:
        visible, held_back = calibration.split(HELD_BACK, seed=recipe.seed)
        guard = _feeds(held_back, _GUARD_SAMPLES)
        if not guard:
            notes.append("too few calibration samples to hold any back: no collapse guard")
    feeds = _feeds(visible, recipe.verify.samples)
    sizes = dict(shapes or {}) or {name: np.shape(array) for name, array in feeds[0].items()}
    return Inputs(visible if calibration else None, evaluated, feeds, guard, sizes, source.is_synthetic, notes)


def _feeds(dataset: Dataset, samples: int) -> list[Feed]:
    return [batch.feeds for batch in dataset.take(samples).batches()] if dataset.samples else []
