"""Values, standard errors and paired differences, streamed over batches."""

import math
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.errors import DataError, ModelError
from onnxopt.evaluate import Metric, MetricConfig, Score, evaluate, paired_difference

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5)).astype(np.float32)
Y = np.where(RNG.random(60) < 0.7, X.argmax(1), 2)


def bind(data: Any, **options: Any) -> Metric:
    return MetricConfig.model_validate(options).bind(data)


def same(feeds: Any) -> dict[str, Any]:
    return {"y": feeds["x"]}


def noisy(feeds: Any) -> dict[str, Any]:
    return {"y": feeds["x"] + 0.5 * np.sin(100 * feeds["x"])}


@pytest.fixture
def data(dataset: Any) -> Any:
    return dataset([{"x": X[i:j], "label/t": Y[i:j]} for i, j in ((0, 25), (25, 50), (50, 60))])


def test_top1(data: Any) -> None:
    score = evaluate(same, data, bind(data, kind="top1"))
    right = X.argmax(1) == Y
    assert score.value == pytest.approx(right.mean())
    assert score.samples == 60
    assert score.per_sample is not None
    np.testing.assert_allclose(score.per_sample, right, atol=1e-12)
    assert score.stderr == pytest.approx(right.std(ddof=1) / math.sqrt(60))
    assert evaluate(same, data, bind(data, kind="topk", k=5)).value == 1


KINDS = ["top1", "topk", "perplexity", "bits_per_byte", "relative_l2", "cosine", "sqnr"]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_do_not_matter(dataset: Any, data: Any, kind: str) -> None:
    whole = dataset([{"x": X, "label/t": Y}])
    a, b = (evaluate(noisy, d, bind(d, kind=kind), same) for d in (data, whole))
    assert a.value == pytest.approx(b.value)
    assert a.stderr == pytest.approx(b.stderr)


@pytest.mark.parametrize("kind", KINDS)
def test_standard_errors_are_those_of_resampling(dataset: Any, kind: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 5)).astype(np.float32) * rng.uniform(0.5, 2, (400, 1)).astype(np.float32)
    y = np.where(rng.random(400) < 0.6, x.argmax(1), 1)

    def score(rows: Any) -> Score:
        drawn = dataset([{"x": x[rows], "label/t": y[rows]}])
        return evaluate(noisy, drawn, bind(drawn, kind=kind, **({"k": 2} if kind == "topk" else {})), same)

    found = score(np.arange(400))
    assert found.per_sample is not None
    assert found.per_sample.mean() == pytest.approx(found.value)
    boots = [score(rng.integers(0, 400, 400)).value for _ in range(150)]
    assert found.stderr == pytest.approx(np.std(boots), rel=0.25)


def test_comparisons(data: Any) -> None:
    b = X + 0.5 * np.sin(100 * X)
    relative = np.linalg.norm((b - X).astype(float)) / np.linalg.norm(X.astype(float))
    l2, cosine, sqnr = (evaluate(noisy, data, bind(data, kind=k), same) for k in ("relative_l2", "cosine", "sqnr"))
    assert l2.value == pytest.approx(relative)
    assert sqnr.value == pytest.approx(-20 * math.log10(relative))
    angles = (b * X).sum(1) / np.linalg.norm(b, axis=1) / np.linalg.norm(X, axis=1)
    assert cosine.value == pytest.approx(angles.mean())


def test_an_exact_copy(data: Any) -> None:
    for kind, best in (("relative_l2", 0), ("cosine", 1), ("sqnr", math.inf)):
        metric = bind(data, kind=kind)
        score = evaluate(same, data, metric, same)
        assert score.value == best
        assert metric.drop(score.value, score.value) == 0
    zero = evaluate(lambda f: {"y": 0 * f["x"]}, data, bind(data, kind="relative_l2"), lambda f: {"y": 0 * f["x"]})
    assert (zero.value, zero.stderr) == (0, 0)
    assert evaluate(same, data, bind(data, kind="relative_l2"), lambda f: {"y": 0 * f["x"]}).value == math.inf


def test_comparing_needs_an_original(data: Any) -> None:
    with pytest.raises(DataError, match="metric cosine compares with the original model, and none was given"):
        evaluate(same, data, bind(data, kind="cosine"))


def test_language_models(dataset: Any) -> None:
    ids = RNG.integers(0, 7, (6, 9))
    table = RNG.standard_normal((7, 7))
    data = dataset([{"ids": ids[:4]}, {"ids": ids[4:]}])

    def run(feeds: Any) -> dict[str, Any]:
        return {"y": table[feeds["ids"]]}

    logs = table - np.log(np.exp(table).sum(1, keepdims=True))
    nats = -logs[ids[:, :-1], ids[:, 1:]].mean()
    assert evaluate(run, data, bind(data, kind="perplexity", shift=1)).value == pytest.approx(math.exp(nats))
    bits = evaluate(run, data, bind(data, kind="bits_per_byte", shift=1))
    assert bits.value == pytest.approx(nats / math.log(2))
    assert bits.samples == 6
    two = -logs[ids[:, :-2], ids[:, 2:]].mean()
    assert evaluate(run, data, bind(data, kind="perplexity", shift=2)).value == pytest.approx(math.exp(two))
    labelled = dataset([{"ids": ids, "label/next": np.where(np.arange(9) < 8, np.roll(ids, -1, 1), -100)}])
    assert evaluate(run, labelled, bind(labelled, kind="perplexity")).value == pytest.approx(math.exp(nats))


def test_sequences_without_a_batch_axis(dataset: Any) -> None:
    ids, table = RNG.integers(0, 7, 9), RNG.standard_normal((7, 7))
    data = dataset([{"ids": ids}])
    score = evaluate(lambda f: {"y": table[f["ids"]]}, data, bind(data, kind="perplexity", shift=1))
    logs = table - np.log(np.exp(table).sum(1, keepdims=True))
    assert score.value == pytest.approx(math.exp(-logs[ids[:-1], ids[1:]].mean()))
    assert (score.samples, score.stderr) == (1, None)


def test_classes_on_another_axis(dataset: Any) -> None:
    maps, targets = RNG.standard_normal((2, 4, 3, 3)), RNG.integers(0, 4, (2, 3, 3))
    data = dataset([{"x": np.zeros((2, 1), np.float32), "label/t": targets}])
    score = evaluate(lambda f: {"y": maps}, data, bind(data, kind="top1", axis=1))
    assert score.value == pytest.approx((maps.argmax(1) == targets).mean())


@pytest.mark.parametrize(
    ("output", "label", "options", "message"),
    [
        ((4, 3), (4, 2), {}, "label 't' int64 [4, 2] does not fit output 'y' [4, 3]: one class number a row"),
        ((2, 3), (4,), {}, "label 't' int64 [4] does not fit output 'y' [2, 3]"),
        ((4,), (4,), {}, "does not fit output 'y' [4]"),
        ((4, 1), (4,), {}, "axis -1 of output 'y' has no 2 classes"),
        ((), (4,), {}, "output 'y' [] has no axis -1"),
        ((4, 3), (4,), {"axis": 2}, "output 'y' [4, 3] has no axis 2"),
        ((4, 1, 3), (4, 1), {"kind": "perplexity", "shift": 1}, "leaves nothing to predict after a shift of 1"),
    ],
)
def test_labels_that_do_not_fit(dataset: Any, output: Any, label: Any, options: Any, message: str) -> None:
    data = dataset([{"x": np.zeros((4, 1), np.float32), "label/t": np.zeros(label, np.int64)}])
    with pytest.raises(DataError) as caught:
        evaluate(lambda f: {"y": np.zeros(output)}, data, bind(data, **({"kind": "top1"} | options)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 9]), "label 't' int64 [2] holds class 9, output 'y' has 5"),
        (np.array([-1, -100]), "label 't' holds no valid target"),
        (np.array([0.0, 1.0]), "label 't' float64 [2] does not fit"),
    ],
)
def test_labels_that_are_no_classes(dataset: Any, labels: Any, message: str) -> None:
    data = dataset([{"x": X[:2], "label/t": labels}])
    with pytest.raises(DataError) as caught:
        evaluate(same, data, bind(data, kind="top1"))
    assert message in str(caught.value)


def test_samples_without_a_valid_target_do_not_count(dataset: Any) -> None:
    data = dataset([{"x": X, "label/t": np.where(np.arange(60) < 40, Y, -1)}])
    score, first = evaluate(same, data, bind(data, kind="top1")), X[:40].argmax(1) == Y[:40]
    assert score.samples == 40
    assert score.stderr == pytest.approx(first.std(ddof=1) / math.sqrt(40))


def test_outputs_that_are_wrong(data: Any) -> None:
    with pytest.raises(ModelError, match="metric top1: the model gave no output 'y'"):
        evaluate(lambda f: {}, data, bind(data, kind="top1"))
    with pytest.raises(ModelError, match=r"output 'y' has shape \[25, 4\], the original's \[25, 5\]"):
        evaluate(lambda f: {"y": f["x"][:, :4]}, data, bind(data, kind="cosine"), same)


def test_an_empty_part(dataset: Any) -> None:
    data = dataset([{"x": X[:1], "label/t": Y[:1]}])
    with pytest.raises(DataError, match="metric top1: data has no batches"):
        evaluate(same, data.split(0.2, 0)[1], bind(data, kind="top1"))


def test_state_goes_from_batch_to_batch(dataset: Any) -> None:
    steps = [{"x": np.full((1, 1), i, np.float32), "h": np.full((1, 1), 100, np.float32)} for i in (1, 2, 3)]
    data = dataset(steps, ("y", "state"))
    seen: list[float] = []

    def run(feeds: Any) -> dict[str, Any]:
        seen.append(float(feeds["h"][0, 0]))
        return {"y": feeds["x"], "state": feeds["h"] + feeds["x"]}

    def original(feeds: Any) -> dict[str, Any]:
        return {"y": feeds["x"] + feeds["h"] - feeds["h"], "state": feeds["h"] * 2}

    metric = bind(data, kind="relative_l2", output="y", state={"h": "state"})
    assert evaluate(run, data, metric, original).value == 0
    assert seen == [100, 101, 103]
    assert [batch.feeds["h"][0, 0] for batch in data.batches()] == [100] * 3
    with pytest.raises(ModelError, match="gave no output 'state' for input 'h'"):
        evaluate(lambda f: {"y": f["x"]}, data, metric, original)


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "judge_of_mine.py").write_text(
        "import numpy as np\n"
        "def mean(outputs, feeds, labels):\n    return float((outputs['y'].argmax(1) == labels['t']).mean())\n"
        "def each(outputs, feeds, labels):\n    return outputs['y'].argmax(1) == labels['t']\n"
        "def table(outputs, feeds, labels):\n    return feeds['x']\n"
        "def broken(outputs, feeds, labels):\n    return labels['absent']\n"
    )
    yield tmp_path
    sys.modules.pop("judge_of_mine", None)


def test_functions(module: Path, data: Any) -> None:
    def score(name: str) -> Score:
        config = MetricConfig.model_validate({"kind": f"judge_of_mine:{name}"})
        metric = config.bind(data, allow_code=True, base=module)
        return evaluate(same, data, pickle.loads(pickle.dumps(metric)))

    exact = evaluate(same, data, bind(data, kind="top1"))
    each, mean = score("each"), score("mean")
    assert each.value == pytest.approx(exact.value)
    assert each.stderr == pytest.approx(exact.stderr)
    assert mean.value == pytest.approx(exact.value)
    assert mean.samples == 3
    with pytest.raises(DataError, match=r"give a number, or one a sample; not shape \[25, 5\]"):
        score("table")
    with pytest.raises(DataError, match="judge_of_mine:broken: your code failed: KeyError: 'absent'"):
        score("broken")


def test_paired_differences_are_sharper(data: Any) -> None:
    metric = bind(data, kind="perplexity")
    slightly = evaluate(lambda f: {"y": f["x"] * np.float32(1.01)}, data, metric)
    before = evaluate(same, data, metric)
    difference, error = paired_difference(before, slightly)
    assert difference == pytest.approx(slightly.value - before.value)
    assert error is not None
    assert before.stderr is not None
    assert 0 < error < before.stderr / 10
    assert paired_difference(before, before) == (0, 0)
    top = bind(data, kind="top1")
    a, b = evaluate(same, data, top), evaluate(noisy, data, top)
    assert a.per_sample is not None
    assert b.per_sample is not None
    difference, error = paired_difference(a, b)
    changes = b.per_sample - a.per_sample
    assert difference == pytest.approx(changes.mean())
    assert error == pytest.approx(changes.std(ddof=1) / math.sqrt(60))


def test_what_cannot_be_paired(data: Any) -> None:
    score = evaluate(same, data, bind(data, kind="top1"))
    with pytest.raises(DataError, match="scores of 60 and 3 samples cannot be paired"):
        paired_difference(score, Score(0.5, 3, None, None))
    difference, error = paired_difference(score, Score(score.value + 1, 60, None, None))
    assert difference == pytest.approx(1)
    assert error is None


@pytest.mark.parametrize(
    ("kind", "before", "after", "drop"),
    [
        ("top1", 0.9, 0.85, 0.05),
        ("top1", 0.85, 0.9, -0.05),
        ("top1", 0.9, math.nan, math.inf),
        ("perplexity", 10, 11, 0.1),
        ("perplexity", 10, 9, -0.1),
        ("perplexity", 10, math.inf, math.inf),
        ("bits_per_byte", 2, math.nan, math.inf),
        ("bits_per_byte", 0, 0, 0),
        ("bits_per_byte", 0, 1, math.inf),
        ("relative_l2", 0, 0.05, 0.05),
        ("relative_l2", 0, math.nan, math.inf),
        ("cosine", 1, 0.98, 0.02),
        ("sqnr", math.inf, 40, 0.01),
        ("sqnr", math.inf, math.inf, 0),
    ],
)
def test_drops(data: Any, kind: str, before: float, after: float, drop: float) -> None:
    assert bind(data, kind=kind).drop(before, after) == pytest.approx(drop)


def test_a_broken_original_has_no_drop(data: Any) -> None:
    with pytest.raises(DataError, match="metric perplexity of the original is nan: its drop is undefined"):
        bind(data, kind="perplexity").drop(math.nan, 3)
