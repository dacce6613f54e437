"""Random inputs of a run: which sizes they get, and what a run is known by."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt import inputs, load, recipe
from onnxopt.backends.worker import Worker
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
