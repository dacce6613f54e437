"""Random inputs of a run: which sizes they get, and what a run is known by."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt import inputs, load, recipe
from onnxopt.backends.worker import Worker
from onnxopt.errors import DataError
from onnxopt.model import Model
from onnxopt.models.builders import Sketch

RECIPE = recipe.build({"passes": ["clean"], "verify": {"samples": 4}})


@pytest.fixture
def long(tmp_path: Path) -> Path:
    """A model that takes 40 samples or more: [batch, samples], none of them named."""
    sketch = Sketch()
    x = sketch.input("x", [None, None])
    window = sketch.node("Slice", x, *(sketch.weight(n, np.array([v])) for n, v in zip("sea", (0, 40, 1), strict=True)))
    sketch.output(sketch.node("MatMul", window, sketch.random("w", 40, 3)), [None, 3])
    onnx.save(sketch.model(), tmp_path / "long.onnx")
    return tmp_path / "long.onnx"


def gathered(model: Model, data: object = None, shapes: dict[str, tuple[int, ...]] | None = None) -> inputs.Inputs:
    return inputs.gather(model, RECIPE, data, None, shapes, allow_code=False)


def test_what_a_model_takes(long: Path) -> None:
    with Worker() as worker:
        runs = inputs.takes(worker, long, seconds=60)
        assert runs({"x": np.ones((2, 40), np.float32)})
        assert not runs({"x": np.ones((2, 39), np.float32)})
        assert not runs({"x": np.ones((2, 40), np.float64)})
        assert not inputs.takes(worker, long, seconds=0)({"x": np.ones((2, 40), np.float32)})


@pytest.mark.parametrize("data", [None, "synthetic"])
def test_other_sizes(long: Path, data: object) -> None:
    model = load(long)
    given = gathered(model, data)
    assert given.sizes == {"x": (2, 16)}
    other = inputs.resized(given, model, RECIPE, lambda feeds: feeds["x"].shape[1] >= 40)
    assert other is not None
    assert other.synthetic
    assert other.sizes == {"x": (2, 64)}
    assert [np.shape(feed["x"]) for feed in other.feeds] == [(2, 64)] * len(given.feeds)
    assert (other.calibration is None) is (data is None)
    assert other.digest() == given.digest(), "a run is known by what was given"
    assert "on these: x [2, 64]" in other.notes[-1]
    assert inputs.resized(given, model, RECIPE, lambda feeds: False) is None


def test_shapes_that_are_given_make_another_run(long: Path) -> None:
    model = load(long)
    digests = {gathered(model, shapes=shapes).digest() for shapes in (None, {"x": (2, 50)}, {"x": (3, 50)})}
    assert len(digests) == 3
    named = gathered(model, shapes={"x": (2, 30)})
    assert inputs.resized(named, model, RECIPE, lambda feeds: True) is None, "there is nothing left to try"


def test_data_make_another_run(long: Path) -> None:
    model = load(long)
    arrays = [{"x": np.full((8, 50), value, np.float32)} for value in (1, 2)]
    digests = {gathered(model, data).digest() for data in (None, "synthetic", *arrays)}
    assert len(digests) == 4


def test_the_first_calibration_sample(long: Path) -> None:
    model = load(long)
    arrays = {"x": np.random.default_rng(0).standard_normal((8, 50)).astype(np.float32)}
    sample = gathered(model, arrays).sample()
    assert sample is not None
    assert sample["x"].shape == (1, 50)
    assert any(np.array_equal(sample["x"][0], row) for row in arrays["x"])
    assert gathered(model).sample() is None
    assert gathered(model, "synthetic").sample() is None
    judged = inputs.gather(model, RECIPE, None, arrays, None, allow_code=False)
    assert judged.sample() is None, "passes see no evaluation data"


@pytest.fixture
def padded() -> Model:
    """A model of token ids and which of them are real: [batch, tokens]."""
    sketch = Sketch()
    ids, real = (sketch.input(name, ["n", "t"], onnx.TensorProto.INT64) for name in ("ids", "real"))
    sketch.output(sketch.node("Mul", ids, real, outputs=["y"]), ["n", "t"], onnx.TensorProto.INT64)
    return load(sketch.model())


IDS = np.arange(40).reshape(10, 4)
REAL = np.arange(4) <= np.arange(10)[:, None] % 4


def of_masks(model: Model, data: object, mask: str | None = None) -> tuple[inputs.Inputs, list[str]]:
    """What a run gets, and its notes that speak of masks."""
    made = recipe.build({"passes": ["clean"], "data": {"mask": mask} if mask else {}})
    given = inputs.gather(model, made, data, data if isinstance(data, dict) else None, None, allow_code=False)
    return given, [note for note in given.notes if "mask" in note]


def test_what_may_be_padding_is_told(padded: Model) -> None:
    arrays = {"ids": IDS, "real": REAL.astype(int)}
    given, notes = of_masks(padded, arrays)
    assert notes == ["data: nothing but 0 and 1 in input 'real': if that marks padding, name it as data.mask"]
    assert given.calibration is not None
    assert given.calibration.first().mask is None
    assert of_masks(padded, {"ids": IDS, "real": np.ones_like(IDS)})[1] == []
    assert of_masks(padded, "synthetic")[1] == []
    assert of_masks(padded, arrays | {"mask/pad": REAL})[1] == [
        "data: 'mask/pad' not looked at: to leave padding out of statistics, name a mask as data.mask", *notes
    ]  # fmt: skip


@pytest.mark.parametrize("mask", ["real", "pad"])
def test_the_mask_is_the_calibration_data_s(padded: Model, mask: str) -> None:
    given, notes = of_masks(padded, {"ids": IDS, "real": REAL.astype(int), "mask/pad": REAL}, mask)
    assert notes == []
    assert given.calibration is not None
    assert given.evaluation is not None
    assert (given.calibration.mask, given.evaluation.mask) == (mask, None)
    assert given.calibration.samples == 8
    for batch in given.calibration.batches():
        assert batch.mask is not None
        np.testing.assert_array_equal(batch.mask, batch.feeds["real"] == 1)
    assert given.digest() != of_masks(padded, {"ids": IDS, "real": REAL.astype(int), "mask/pad": REAL})[0].digest()


@pytest.mark.parametrize("data", [None, "synthetic"])
def test_a_mask_for_nothing_is_told(padded: Model, data: object) -> None:
    assert of_masks(padded, data, "pad")[1] == ["the padding mask 'pad' is not used: there are no calibration data"]


def test_a_mask_that_is_not_there(padded: Model) -> None:
    with pytest.raises(DataError, match=r"'paid' is neither an input of the model nor .* did you mean 'pad'"):
        of_masks(padded, {"ids": IDS, "real": IDS, "mask/pad": REAL}, "paid")
