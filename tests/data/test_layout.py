"""How samples become batches, for models with and without a batch axis."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.data import open_data
from onnxopt.data.layout import batch_rows
from onnxopt.errors import DataError


def arange(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def shapes(data: Any) -> list[list[tuple[int, ...]]]:
    return [[array.shape for array in batch.feeds.values()] for batch in data.batches()]


def test_a_fixed_batch_of_one(sign: Any) -> None:
    data = open_data({"x": arange(3, 2, 4, 4)}, sign(x=("FLOAT", [1, 2, "H", "W"]), outputs=[(1, 10)]))
    assert shapes(data) == [[(1, 2, 4, 4)]] * 3
    assert data.samples == 3


def test_a_fixed_batch_drops_what_does_not_fill_it(sign: Any) -> None:
    data = open_data({"x": arange(7, 4), "label/y": np.arange(7)}, sign(x=("FLOAT", [3, 4]), outputs=[(3, 10)]))
    assert shapes(data) == [[(3, 4)]] * 2
    assert (data.samples, data.labels["y"].tolist()) == (6, [0, 1, 2, 3, 4, 5])
    assert data.notes == ("the last 1 samples do not fill the model's batch of 3: left out",)


def test_less_than_a_fixed_batch(sign: Any) -> None:
    with pytest.raises(DataError, match="data: 2 samples do not fill one batch of the model's 3"):
        open_data({"x": arange(2, 4)}, sign(x=("FLOAT", [3, 4])))


def test_one_axis_more_is_one_feed_a_row(sign: Any) -> None:
    data = open_data({"x": arange(5, 80, 7), "label/y": np.arange(5)}, sign(x=("FLOAT", [80, "T"]), outputs=[("T", 9)]))
    assert shapes(data) == [[(80, 7)]] * 5
    assert data.samples == 5
    np.testing.assert_array_equal([batch.labels["y"] for batch in data.batches()], np.arange(5)[:, None])


def test_inputs_of_rank_0_are_fed_row_by_row(sign: Any) -> None:
    assert shapes(open_data({"x": arange(3)}, sign(x=("FLOAT", [])))) == [[()]] * 3


def test_one_value_for_a_rank_0_input_goes_with_every_batch(sign: Any) -> None:
    data = open_data({"x": arange(12, 4), "rate": np.int64(16000)}, sign(x=("FLOAT", ["N", 4]), rate=("INT64", [])))
    assert shapes(data) == [[(8, 4), ()], [(4, 4), ()]]
    assert (data.samples, int(data.first().feeds["rate"])) == (12, 16000)


def test_labels_alone_can_count_samples(sign: Any) -> None:
    data = open_data({"rate": np.int64(3), "label/y": np.arange(3)}, sign(rate=("INT64", [])))
    assert [batch.labels["y"].tolist() for batch in data.batches()] == [[0], [1], [2]]


def test_rows_and_whole_feeds_together(sign: Any) -> None:
    state = sign(x=("FLOAT", ["N", 4]), h=("FLOAT", [2, "N", 8]))
    data = open_data({"x": arange(3, 4), "h": arange(3, 2, 1, 8)}, state)
    assert shapes(data) == [[(1, 4), (2, 1, 8)]] * 3
    np.testing.assert_array_equal(data.first().feeds["h"], arange(3, 2, 1, 8)[0])


def test_fixed_sizes_that_cannot_be_served_together(sign: Any) -> None:
    with pytest.raises(DataError, match=r"fixes first axes of 'a' 2, 'b' 3, they cannot be cut alike; use names feed"):
        open_data({"a": arange(6, 1), "b": arange(6, 1)}, sign(a=("FLOAT", [2, 1]), b=("FLOAT", [3, 1])))
    with pytest.raises(DataError, match="fixes first axes of 'a' 2, other arrays hold one feed a row"):
        open_data({"a": arange(6, 1), "b": arange(6, 1, 1)}, sign(a=("FLOAT", [2, 1]), b=("FLOAT", [1, 1])))


@given(samples=st.integers(1, 40), size=st.integers(1, 12), fixed=st.booleans())
def test_batches_are_the_samples_in_order(sign: Any, samples: int, size: int, fixed: bool) -> None:
    signature = sign(x=("FLOAT", [size if fixed else "N", 2]), outputs=[(size if fixed else "N", 1)])
    x = arange(samples, 2)
    if fixed and samples < size:
        with pytest.raises(DataError, match="do not fill one batch"):
            open_data({"x": x}, signature)
        return
    data = open_data({"x": x}, signature, batch_size=size)
    fed = np.concatenate([batch.feeds["x"] for batch in data.batches()])
    kept = samples - samples % size if fixed else samples
    np.testing.assert_array_equal(fed, x[:kept])
    assert data.samples == kept == sum(batch.samples for batch in data.batches())
    assert {len(batch.feeds["x"]) for batch in list(data.batches())[:-1]} <= {size}


@pytest.mark.parametrize(
    ("inputs", "outputs", "sizes", "expected"),
    [
        ({"x": ["N", 3]}, [("N", 1)], {"x": (4, 3)}, (4, True)),
        ({"x": [None, 3]}, [None], {"x": (4, 3)}, (4, True)),
        ({"x": ["N", 3], "z": ["N", "T"]}, [("N",)], {"x": (4, 3), "z": (4, 9)}, (4, True)),
        ({"x": ["N", 3], "z": []}, [()], {"x": (4, 3), "z": ()}, (4, True)),
        ({"x": ["N", 3]}, [(2, "N", 8), ("N", 1)], {"x": (4, 3)}, (4, True)),  # with an LSTM's state
        ({"x": ["T", "T"]}, [("T",)], {"x": (4, 4)}, (1, False)),
        ({"x": ["N", 3], "z": ["M", 3]}, [("N",)], {"x": (4, 3), "z": (4, 3)}, (1, False)),
        ({"x": ["N", 3], "z": [2, 3]}, [("N",)], {"x": (2, 3), "z": (2, 3)}, (1, False)),
        ({"x": ["T", 3]}, [(1, 10)], {"x": (4, 3)}, (1, False)),
        ({"x": [4, 3]}, [(4, 10)], {"x": (4, 3)}, (4, False)),
        ({"x": [80, "T"]}, [("T", 10)], {"x": (80, 7)}, (1, False)),
        ({"x": []}, [()], {"x": ()}, (1, False)),
        ({}, [()], {}, (1, False)),
    ],
)
def test_how_many_samples_a_batch_holds(
    sign: Any, inputs: dict[str, Any], outputs: Any, sizes: dict[str, Any], expected: tuple[int, bool]
) -> None:
    signature = sign(outputs=outputs, **{name: ("FLOAT", dims) for name, dims in inputs.items()})
    assert batch_rows(signature, {name: np.zeros(shape) for name, shape in sizes.items()}) == expected
