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


ROWS = np.random.default_rng(1).standard_normal((50, 50)).astype(np.float32)


def test_what_no_pass_sees_is_compared_first(long: Path) -> None:
    given = gathered(load(long), {"x": ROWS[:10]})
    assert (given.kinds, given.rows, given.unseen) == (["held-back", "calibration"], [2, 2], 1)
    assert given.calibration is not None
    seen = np.concatenate([batch.feeds["x"] for batch in given.calibration.batches()])
    assert not any((row == seen).all(axis=1).any() for row in given.feeds[0]["x"])
    assert all((row == seen).all(axis=1).any() for row in given.feeds[1]["x"])
    np.testing.assert_array_equal(given.first["x"], seen[: len(given.first["x"])])
    assert given.compared_on(2) == "4 samples of calibration data"
    assert (given.drift_on(2), given.drift_on(1)) == ("2 held-back calibration samples",) * 2


def test_evaluation_data_come_before_all_others(long: Path) -> None:
    model = load(long)

    def both(calibration: object, evaluation: object) -> inputs.Inputs:
        return inputs.gather(model, RECIPE, calibration, evaluation, None, allow_code=False)

    assert both({"x": ROWS[:30]}, {"x": ROWS[30:]}).kinds == ["evaluation"]
    few = both({"x": ROWS[:30]}, {"x": ROWS[30:31]})
    assert (few.kinds[0], set(few.kinds[1:]), few.unseen) == ("evaluation", {"held-back"}, len(few.feeds))
    assert few.compared_on(few.unseen) == "1 sample of evaluation data and 3 samples of calibration data"
    assert few.drift_on(few.unseen) == "1 sample of evaluation data and 3 held-back calibration samples"
    drawn = both("synthetic", {"x": ROWS})
    assert (drawn.kinds, drawn.synthetic) == (["evaluation"], False)


def test_what_the_guard_judges_by(long: Path) -> None:
    model = load(long)

    def guard(calibration: int, evaluation: int) -> list[float]:
        given = [{"x": ROWS[part]} if ROWS[part].size else None
                 for part in (slice(calibration), slice(calibration, calibration + evaluation))]  # fmt: skip
        found = inputs.gather(model, RECIPE, *given, None, allow_code=False)
        return [row[0] for feed in found.guard for row in feed["x"]]

    assert guard(0, 0) == []
    assert guard(0, 20) == ROWS[:20, 0].tolist()
    assert guard(5, 20) == ROWS[5:25, 0].tolist(), "one held-back sample decides nothing"
    assert len(guard(20, 20)) == 4
    assert set(guard(20, 20)) <= set(ROWS[:20, 0].tolist())


def test_samples_that_are_all_the_same_are_told(long: Path) -> None:
    def notes(data: object) -> list[str]:
        return [note for note in gathered(load(long), data).notes if "are the same" in note]

    same = np.repeat(ROWS[:1], 12, axis=0)
    assert notes({"x": same})[0].startswith("data: all 12 samples are the same")
    assert notes([{"x": same[:1]}] * 3)
    assert notes({"x": np.concatenate([same, ROWS[1:2]])}) == []
    assert notes({"x": same[:1]}) == []
    assert notes({"x": ROWS}) == []


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


def test_a_mask_of_tokens_that_the_model_has_not_is_told(padded: Model, long: Path) -> None:
    whole = np.ones((10, 3), bool)
    arrays = {"ids": IDS, "real": REAL.astype(int), "mask/three": whole, "mask/four": REAL, "mask/one": whole[:, 0]}
    told = [of_masks(padded, arrays, mask)[1] for mask in ("three", "four", "real", "one")]
    assert told == [
        ["data: the padding mask 'three' has 3 tokens a sample, and no value of the model has so many: it leaves out "
         "samples without any token, and nothing else"], [], [], [],
    ]  # fmt: skip


def test_a_mask_that_is_not_there(padded: Model) -> None:
    with pytest.raises(DataError, match=r"'paid' is neither an input of the model nor .* did you mean 'pad'"):
        of_masks(padded, {"ids": IDS, "real": IDS, "mask/pad": REAL}, "paid")
