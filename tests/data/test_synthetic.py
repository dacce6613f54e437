"""Random inputs: shapes, ranges, and that they repeat."""

import pickle
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.data import Dataset, fitting, open_data, synthetic
from onnxopt.data.synthetic import LEAST, input_shapes
from onnxopt.errors import DataError


def make(signature: Any, shapes: Any = None, bounds: Any = None, samples: int = 4) -> Dataset:
    return synthetic(signature, shapes, bounds, samples, np.random.default_rng(0))


def test_symbols_have_one_size_everywhere(sign: Any) -> None:
    signature = sign(
        x=("FLOAT", ["N", 3, "T"]), m=("BOOL", ["N", "T"]), p=("FLOAT", ["N", 2, "P", 4]), a=("INT64", ["N", "P + T"])
    )
    assert input_shapes(signature, {}) == {"x": (2, 3, 16), "m": (2, 16), "p": (2, 2, 16, 4), "a": (2, 32)}
    given = input_shapes(signature, {"x": (1, 3, 7), "p": (1, 2, 5, 4)})
    assert given == {"x": (1, 3, 7), "m": (1, 7), "p": (1, 2, 5, 4), "a": (1, 12)}


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        (["N", None], (2, 16)),
        ([None, 4], (2, 4)),
        (["T", "T"], (2, 2)),
        (["N", "2 * N - 1"], (2, 3)),
        (["N", "(N + 5) // 2"], (2, 3)),
        (["N", "unk__12"], (2, 16)),
        (["N", "N // 0"], (2, 16)),
        (["N", "N - 9"], (2, 16)),
        (["N", "__import__('os')"], (2, 16)),
        (["N", "1" * 10_000], (2, 16)),
        ([], ()),
    ],
)
def test_sizes(sign: Any, dims: Any, shape: Any) -> None:
    assert input_shapes(sign(x=("FLOAT", dims)), {}) == {"x": shape}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": (2, 4)}, r"input 'x' takes float32 \[N, 3\], the shape given is \[2, 4\]"),
        ({"x": (3,)}, "the shape given is"),
        ({"X": (2, 3)}, "a shape for 'X', which is no tensor input of the model, which has 'x'"),
    ],
)
def test_shapes_that_do_not_fit(sign: Any, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(sign(x=("FLOAT", ["N", 3])), given)


def test_an_unknown_rank_must_be_given(sign: Any) -> None:
    signature = sign(x=("FLOAT", None))
    with pytest.raises(DataError, match=r"input 'x' has an unknown rank; give its shape \(--shape x:1,2,3\)"):
        make(signature)
    assert make(signature, {"x": (5, 1)}).first().feeds["x"].shape == (5, 1)


def test_ranges(sign: Any) -> None:
    signature = sign(
        x=("FLOAT", [1, 10_000]), ids=("INT64", [1, 10_000]), mask=("INT32", [1, 10_000]), image=("UINT8", [1, 10_000]),
        flag=("BOOL", [1, 10_000]), small=("INT4", [1, 100]), huge=("UINT64", [1, 100]), scalar=("INT64", []),
    )  # fmt: skip
    data = make(signature, bounds={"ids": (3, 17), "huge": (0, 2**64), "scalar": (4, 4)}, samples=1)
    feeds = data.first().feeds
    assert abs(feeds["x"].mean()) < 0.05
    assert abs(feeds["x"].std() - 1) < 0.05
    assert np.unique(feeds["ids"]).tolist() == list(range(3, 18))
    assert np.unique(feeds["mask"]).tolist() == [0, 1]
    assert np.unique(feeds["image"]).tolist() == list(range(256))
    assert 0.4 < feeds["flag"].mean() < 0.6
    assert (feeds["small"].astype(int).min(), feeds["small"].astype(int).max()) == (-8, 7)
    assert feeds["scalar"] == 4
    assert {name: array.dtype for name, array in feeds.items()} == {
        info.name: info.dtype.numpy() for info in signature.inputs
    }


@pytest.mark.parametrize("dtype", [dtype.name for dtype in ir.DataType if dtype != ir.DataType.UNDEFINED])
def test_every_dtype(sign: Any, dtype: str) -> None:
    for dims in ([], ["N", 3]):
        array = make(sign(x=(dtype, dims))).first().feeds["x"]
        assert array.shape == tuple(2 if dim == "N" else dim for dim in dims)


def test_inputs_that_are_no_tensors_are_left_out() -> None:
    from onnxopt.model import Signature, ValueInfo

    signature = Signature((ValueInfo("x", ir.DataType.FLOAT, (1,)), ValueInfo("s", None, None)), ())
    assert list(make(signature).first().feeds) == ["x"]


def test_it_repeats_and_says_what_it_is(sign: Any) -> None:
    signature = sign(x=("FLOAT", ["N", 3]))
    data = make(signature, samples=5)
    assert (data.is_synthetic, data.name, data.batch_count, data.samples) == (True, "synthetic data", 3, 6)
    first, second = (batch.feeds["x"] for batch in list(data.batches())[:2])
    assert not np.array_equal(first, second)
    assert data.digest() == make(signature, samples=5).digest() == pickle.loads(pickle.dumps(data)).digest()
    assert open_data("synthetic", signature, seed=1).digest() != open_data("synthetic", signature, seed=2).digest()
    assert open_data("synthetic", signature, samples=3, shapes={"x": (3, 3)}).samples == 3
    np.testing.assert_array_equal(data.split(0.4, 0)[1].first().feeds["x"].shape, (2, 3))


def test_a_model_without_inputs(sign: Any) -> None:
    assert [batch.feeds for batch in make(sign(), samples=1).batches()] == [{}]


def tried(
    signature: Any, given: Any = None, fits: Any = lambda shapes: False, lengths: Any = None
) -> tuple[list[Any], Any]:
    """The shapes that `fitting` tries, one after another, and what it gives."""
    seen: list[Any] = []

    def runs(feeds: Any) -> bool:
        seen.append({name: array.shape for name, array in feeds.items()})
        return bool(fits(seen[-1]))

    return seen, fitting(signature, given, None, runs, lengths)


def test_the_first_sizes_that_a_model_takes(sign: Any) -> None:
    signature = sign(x=("FLOAT", [None, "T"]), state=("FLOAT", [2, None, 8]), again=("INT64", ["T"]))
    seen, found = tried(signature, fits=lambda s: s["x"][1] >= 200 and s["state"][1] == s["x"][0] == 1)
    assert found == seen[-1] == {"x": (1, 224), "state": (2, 1, 8), "again": (224,)}
    assert {"x": (2, 16), "state": (2, 16, 8), "again": (16,)} not in seen, "the default, which was tried before"
    assert {"x": (2, 16), "state": (2, 2, 8), "again": (16,)} in seen
    assert all(shapes["x"][1] == shapes["again"][0] for shapes in seen), "one symbol, one size"
    assert [shapes["x"][1] for shapes in seen] == sorted(shapes["x"][1] for shapes in seen)
    assert len({str(shapes) for shapes in seen}) == len(seen)


def test_other_lengths_leave_nothing_out(sign: Any) -> None:
    signature = sign(x=("FLOAT", [None, "T"]), y=("FLOAT", ["T", 2]))
    seen, found = tried(signature, fits=lambda s: s["x"] == (2, 16), lengths=(3, 16, 5))
    assert found == seen[-1] == {"x": (2, 16), "y": (16, 2)}
    assert [shapes["x"] for shapes in seen] == [(2, 3), (1, 3), (2, 16)]
    assert tried(sign(x=("FLOAT", [2, 3])), lengths=(3, 8)) == ([{"x": (2, 3)}], None)
    assert all(length > 1 for length in LEAST), "softmax over one entry hides what it reads"


def test_sizes_that_are_given_stay(sign: Any) -> None:
    signature = sign(x=("FLOAT", ["N", "T"]), y=("FLOAT", [None, 3]))
    seen, found = tried(signature, {"x": (7, 5)})
    assert found is None
    assert [shapes["y"] for shapes in seen] == [(1, 3)]
    assert {shapes["x"] for shapes in seen} == {(7, 5)}


def test_nothing_is_tried_where_nothing_is_open(sign: Any) -> None:
    assert tried(sign(x=("FLOAT", [2, 3]), n=("INT64", []))) == ([], None)


def test_huge_inputs_are_not_tried(sign: Any) -> None:
    seen, _ = tried(sign(x=("FLOAT", [None, None, None, None])))
    assert max(np.prod(shapes["x"]) for shapes in seen) <= 2**24
    assert (2, 128, 128, 128) in [shapes["x"] for shapes in seen]
