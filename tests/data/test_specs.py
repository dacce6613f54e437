"""All forms of data: the same batches, labels and digest however they are given."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.data import Dataset, open_data
from onnxopt.errors import DataError, RecipeError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3)).astype(np.float32)
IDS = RNG.integers(0, 9, (20, 4))
Y = np.arange(20)
SPANS = [(0, 8), (8, 16), (16, 20)]


@pytest.fixture
def signature(sign: Any) -> Any:
    return sign(x=("FLOAT", ["N", 3]), ids=("INT64", ["N", 4]))


def feeds() -> Iterator[dict[str, Any]]:
    for start, stop in SPANS:
        yield {"x": X[start:stop], "ids": IDS[start:stop], "label/y": Y[start:stop]}


def feed_names() -> dict[str, Any]:
    named = {f"feed{i:04d}/{k}": v for i, f in enumerate(feeds()) for k, v in f.items() if k != "label/y"}
    return named | {"label/y": Y}


def forms(folder: Path) -> dict[str, Any]:
    plain: dict[str, Any] = {"x": X, "ids": IDS, "label/y": Y}
    np.savez(folder / "plain.npz", **plain)
    np.savez_compressed(folder / "compressed.npz", **plain)
    np.savez(folder / "fortran.npz", **{name: array.copy("F") for name, array in plain.items()})
    np.savez(folder / "big.npz", **{name: array.astype(array.dtype.newbyteorder(">")) for name, array in plain.items()})
    np.savez_compressed(folder / "feeds.npz", **feed_names())
    (folder / "batches").mkdir()
    for index, batch in enumerate(feeds()):
        np.savez(folder / "batches" / f"b{index}.npz", **batch)
    (folder / "batches" / "notes.txt").write_text("no batch")
    paths = ("plain.npz", "compressed.npz", "fortran.npz", "big.npz", "feeds.npz", "batches")
    return {
        **{name: folder / name for name in paths},
        "dict": plain,
        "dict of feeds": feed_names(),
        "list": list(feeds()),
        "function": feeds,
        "iterator": feeds(),
    }


def assert_whole(data: Dataset) -> None:
    batches = list(data.batches())
    assert [batch.samples for batch in batches] == [8, 8, 4]
    assert [batch.index for batch in batches] == [0, 1, 2]
    assert [list(batch.feeds) for batch in batches] == [["x", "ids"]] * 3
    for name, want in (("x", X), ("ids", IDS)):
        got = np.concatenate([batch.feeds[name] for batch in batches])
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(data.labels["y"], Y)


def test_every_form_gives_the_same(tmp_path: Path, signature: Any) -> None:
    digests = set()
    for name, spec in forms(tmp_path).items():
        data = open_data(spec, signature)
        assert_whole(data)
        assert_whole(data)  # a second pass
        assert (data.samples, data.batch_count, data.label_names, data.is_synthetic) == (20, 3, ("y",), False), name
        assert data.notes == ()
        digests.add(data.digest())
    assert len(digests) == 1


def test_digest_is_of_contents(signature: Any) -> None:
    plain: dict[str, Any] = {"x": X, "ids": IDS, "label/y": Y}
    digest = open_data(plain, signature).digest()
    for name in plain:
        other = dict(plain)
        other[name] = plain[name].copy()
        other[name][13] += 1
        assert open_data(other, signature).digest() != digest
    assert open_data(plain, signature, batch_size=5).digest() != digest


def test_batch_size_of_a_symbolic_axis(signature: Any) -> None:
    data = open_data({"x": X, "ids": IDS}, signature, batch_size=7)
    assert [batch.samples for batch in data.batches()] == [7, 7, 6]
    assert open_data({"x": X[:3], "ids": IDS[:3]}, signature).first().samples == 3


def test_a_dataset_is_data(signature: Any, sign: Any) -> None:
    data = open_data({"x": X, "ids": IDS}, signature)
    assert open_data(data, signature) is data
    with pytest.raises(DataError, match="was opened for a model with other inputs"):
        open_data(data, sign(x=("FLOAT", ["N", 3])))


def test_relative_paths_start_at_the_base(tmp_path: Path, signature: Any) -> None:
    np.savez(tmp_path / "a.npz", x=X, ids=IDS)
    assert open_data("a.npz", signature, base=tmp_path).samples == 20


@pytest.fixture
def module(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "batches_of_mine.py").write_text(
        "import numpy as np\n"
        "number = 3\n"
        "def batches():\n"
        "    for i in range(3):\n"
        "        yield {'x': np.full((2, 3), i, np.float32)}\n"
        "def broken():\n"
        "    yield {'x': np.zeros((2, 3), np.float32)}\n"
        "    raise KeyError('lost')\n"
        "def lists():\n"
        "    return [[1, 2]]\n"
    )
    yield tmp_path
    sys.modules.pop("batches_of_mine", None)


def test_module_function_needs_leave(module: Path, sign: Any) -> None:
    signature = sign(x=("FLOAT", ["N", 3]))
    with pytest.raises(RecipeError, match=r"'batches_of_mine:batches' would run code .*--allow-code"):
        open_data("batches_of_mine:batches", signature, base=module)
    assert "batches_of_mine" not in sys.modules
    path = list(sys.path)
    data = open_data("batches_of_mine:batches", signature, base=module, allow_code=True)
    assert data.samples == 6
    assert [float(batch.feeds["x"][0, 0]) for batch in data.batches()] == [0, 1, 2]
    assert sys.path == path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("batches_of_mine:absent", "module 'batches_of_mine' has no 'absent'"),
        ("not_a_module:f", "no module 'not_a_module' installed or in"),
        ("batches_of_mine:number", "is no function but int"),
        ("batches_of_mine:broken", "broken, batch 1: your code failed: KeyError: 'lost'"),
        ("batches_of_mine:lists", "lists, batch 0: a list, not a dict"),
    ],
)
def test_bad_functions(module: Path, sign: Any, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(spec, sign(x=("FLOAT", ["N", 3])), base=module, allow_code=True)


def test_a_function_that_changes_is_caught(sign: Any) -> None:
    lengths = iter([3, 2])

    def batches() -> list[dict[str, Any]]:
        return [{"x": X[:2]}] * next(lengths)

    data = open_data(batches, sign(x=("FLOAT", ["N", 3])))
    with pytest.raises(DataError, match="batch 2 is gone; a function must give the same batches"):
        list(data.batches())


def test_files_and_functions_travel_to_other_processes(module: Path, sign: Any) -> None:
    signature = sign(x=("FLOAT", ["N", 3]))
    np.savez_compressed(module / "a.npz", x=X)
    for spec in (module / "a.npz", "batches_of_mine:batches"):
        data = open_data(spec, signature, base=module, allow_code=True)
        copy = pickle.loads(pickle.dumps(data.split(0.4, 1)[0]))
        for a, b in zip(copy.batches(), data.split(0.4, 1)[0].batches(), strict=True):
            np.testing.assert_array_equal(a.feeds["x"], b.feeds["x"])


def test_labels_per_batch_or_per_row_of_a_feed(sign: Any) -> None:
    one = sign(x=("FLOAT", [2, 3]), outputs=[("M", 5)])  # the output's first axis does not say that 2 is the batch
    arrays = {"feed0000/x": X[:2], "feed0001/x": X[2:4], "label/a": np.arange(2), "label/b": np.arange(4)}
    data = open_data(arrays, one)
    assert data.samples == 2
    assert [(b.labels["a"].tolist(), b.labels["b"].tolist()) for b in data.batches()] == [([0], [0, 1]), ([1], [2, 3])]


def test_labels_that_fit_nowhere_are_left_out_with_a_note(sign: Any) -> None:
    data = open_data({"feed0000/x": X[:2], "label/y": np.arange(2), "label/boxes": Y}, sign(x=("FLOAT", ["N", 3])))
    assert data.label_names == ("y",)
    assert data.notes == ("label/boxes has 20 entries for 2 samples in 1 batches: not used",)


def test_feeds_are_in_the_order_of_their_numbers(sign: Any) -> None:
    arrays = {f"feed{i}/x": np.full((1, 3), i, np.float32) for i in (10, 9, 100)}
    data = open_data(arrays, sign(x=("FLOAT", ["N", 3])))
    assert [batch.feeds["x"][0, 0] for batch in data.batches()] == [9, 10, 100]


def test_inputs_may_be_called_like_labels_and_feeds(sign: Any) -> None:
    signature = sign(**{"label/x": ("FLOAT", ["N", 3]), "feed0/x": ("FLOAT", ["N", 3])})
    data = open_data({"label/x": X, "feed0/x": X, "label/y": Y}, signature)
    assert (data.samples, data.label_names) == (20, ("y",))
    assert list(data.first().feeds) == ["label/x", "feed0/x"]


def test_ragged_labels_stay_with_their_batches(sign: Any) -> None:
    batches = [{"x": X[:1], "label/t": np.zeros((1, n), int)} for n in (2, 5)]
    data = open_data(batches, sign(x=("FLOAT", ["N", 3])))
    assert [batch.labels["t"].shape for batch in data.batches()] == [(1, 2), (1, 5)]
    with pytest.raises(DataError, match="label 't' differs in shape between batches"):
        _ = data.labels


def test_a_label_that_some_batches_lack_is_none(sign: Any) -> None:
    data = open_data([{"x": X[:1], "label/t": Y[:1]}, {"x": X[:1]}], sign(x=("FLOAT", ["N", 3])))
    assert data.label_names == ()


def test_a_model_without_inputs_runs_once(sign: Any) -> None:
    assert [batch.feeds for batch in open_data([{}], sign()).batches()] == [{}]


@pytest.mark.parametrize("spec", [3, None, 1.5])
def test_what_is_no_data(spec: Any, sign: Any) -> None:
    with pytest.raises(DataError, match="data cannot be a"):
        open_data(spec, sign(x=("FLOAT", ["N", 3])))
