"""The same samples in other batches: nothing lost, nothing read twice; digests and shapes that know of it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.data import Dataset, open_data

RNG = np.random.default_rng(0)


def opened(sign: Any, batches: list[tuple[int, int]], spec: Any = None) -> Dataset:
    """Batches of (rows, tokens), each of a float and an integer input, a scalar, labels and a mask."""
    signature = sign(ids=("INT64", ["N", "T"]), x=("FLOAT", ["N", 2]), rate=("FLOAT", []))
    start = 0
    found = []
    for rows, tokens in batches:
        number = np.arange(start, start + rows)
        found.append(
            {
                "ids": number[:, None] + np.arange(tokens) * 1000,
                "x": np.stack([number, -number], 1).astype(np.float32),
                "rate": np.float32(0.5),
                "label/y": number,
                "mask/pad": np.arange(tokens) <= number[:, None] % tokens,
            }
        )
        start += rows
    return open_data(found if spec is None else spec(found), signature, mask="pad")


def samples(data: Dataset) -> list[Any]:
    """All that belongs to each sample, in order."""
    found = []
    for index, batch in enumerate(data.batches()):
        assert batch.index == index
        assert batch.mask is not None
        sizes = {len(array) for array in (batch.feeds["ids"], batch.feeds["x"], batch.labels["y"], batch.mask)}
        assert sizes == {batch.samples}
        assert batch.mask.dtype == np.bool_
        rows = zip(batch.feeds["ids"], batch.feeds["x"], batch.labels["y"], batch.mask, strict=True)
        found += [
            (ids.tolist(), x.tolist(), int(y), mask.tolist(), float(batch.feeds["rate"])) for ids, x, y, mask in rows
        ]
    return found


SIZES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3)), min_size=1, max_size=6)


@given(batches=SIZES, rows=st.integers(0, 9), other=st.integers(1, 9), held=st.booleans(), few=st.integers(1, 20))
def test_the_same_samples_in_order(
    sign: Any, batches: list[tuple[int, int]], rows: int, other: int, held: bool, few: int
) -> None:
    data = opened(sign, batches)
    for part in (data, data.take(few), *data.split(0.3, 1)[: 1 + held]):
        cut = part.rebatched(rows)
        assert samples(cut) == samples(part)
        assert cut.samples == part.samples
        assert all(0 < batch.samples <= max(rows, 1) for batch in cut.batches())
        assert cut.rebatched(other).digest() == part.rebatched(other).digest(), "what was cut is cut anew"
        assert samples(cut.take(few)) == samples(part)[:few]
        assert cut.samples_digest() == part.samples_digest()
        if rows >= max(batch.samples for batch in data.batches()):
            assert cut.digest() == part.digest()
    assert (data.rebatched(rows).digest() == data.digest()) is (data.rebatched(rows).batch_count == data.batch_count)


@given(batches=SIZES, rows=st.integers(1, 9), few=st.integers(1, 20))
def test_largest_shapes(sign: Any, batches: list[tuple[int, int]], rows: int, few: int) -> None:
    data = opened(sign, batches)
    for part in (data, data.rebatched(rows), data.take(few), data.split(0.3, 1)[0].rebatched(rows)):
        shapes = [{name: array.shape for name, array in batch.feeds.items()} for batch in part.batches()]
        want = {name: tuple(np.max([each[name] for each in shapes], axis=0).tolist()) for name in shapes[0]}
        assert part.largest_shapes() == want


def test_largest_shapes_that_there_are_not(sign: Any) -> None:
    signature = sign(x=("FLOAT", None))
    data = open_data([{"x": np.zeros((2, 3), np.float32)}, {"x": np.zeros((2, 3, 4), np.float32)}], signature)
    assert data.largest_shapes() is None, "they differ in rank"
    assert data.take(1).largest_shapes() == {"x": (1, 3)}
    empty = open_data([{"x": np.zeros((2, 3), np.float32)}], sign(x=("FLOAT", [2, 3]))).split(0.5, 0)[1]
    assert empty.largest_shapes() is None


def test_nothing_is_read_for_shapes_and_digests(sign: Any) -> None:
    calls = []

    def source(found: list[Any]) -> Any:
        def batches() -> Iterator[Any]:
            calls.append(1)
            yield from found

        return batches

    data = opened(sign, [(4, 2), (3, 3)], source)
    surveyed = len(calls)
    cut = data.rebatched(2)
    assert (cut.samples, cut.batch_count, cut.largest_shapes()) == (7, 4, {"ids": (2, 3), "x": (2, 2), "rate": ()})
    assert cut.samples_digest() == data.samples_digest()
    assert len(calls) == surveyed


def test_a_batch_is_read_once_however_it_is_cut(sign: Any) -> None:
    asked = []

    def source(found: list[Any]) -> Any:
        def batches() -> Iterator[Any]:
            for index, batch in enumerate(found):
                asked.append(index)
                yield batch

        return batches

    data = opened(sign, [(6, 2), (5, 2), (6, 2)], source).rebatched(2)
    asked.clear()
    assert [batch.samples for batch in data.batches()] == [2, 2, 2, 2, 2, 1, 2, 2, 2]
    assert asked == [0, 1, 2]
    asked.clear()
    assert data.first().samples == 2
    assert asked == [0], "batches behind it are not read"


def test_batches_that_cannot_be_cut_stay(sign: Any) -> None:
    x = np.zeros((8, 3), np.float32)
    fixed = open_data({"x": x}, sign(x=("FLOAT", [4, 3]), outputs=[(4, 2)]))
    assert not fixed.divisible
    assert fixed.rebatched(2) is fixed
    assert open_data({"x": x}, sign(x=("FLOAT", ["N", 3]))).divisible


def test_labels_of_a_batch_go_with_every_piece(sign: Any) -> None:
    batch = {"x": np.zeros((4, 3), np.float32), "label/boxes": np.arange(10)}
    data = open_data([batch], sign(x=("FLOAT", ["N", 3]))).rebatched(2)
    assert [found.labels["boxes"].tolist() for found in data.batches()] == [list(range(10))] * 2


@given(batches=st.lists(st.integers(1, 5), min_size=1, max_size=5), size=st.integers(1, 9))
def test_a_digest_of_samples_however_they_were_written(sign: Any, batches: list[int], size: int) -> None:
    signature = sign(x=("FLOAT", ["N", 2]), word=("STRING", ["N"]), rate=("FLOAT", []))
    x = np.arange(2 * sum(batches), dtype=np.float32).reshape(-1, 2)
    word = np.array([("a", "b c", "")[i % 3] for i in range(len(x))])
    cuts = np.cumsum(batches)[:-1]
    parts = zip(np.split(x, cuts), np.split(word, cuts), strict=True)
    fed = open_data([{"x": a, "word": b, "rate": np.float32(2)} for a, b in parts], signature)
    plain = open_data({"x": x, "word": word, "rate": np.float32(2)}, signature, batch_size=size)
    assert fed.samples_digest() == plain.samples_digest()
    assert fed.split(0, 1)[0].samples_digest() != plain.samples_digest() or len(x) == 1
    for other in ({"x": x + 1}, {"word": np.roll(word, 1)}, {"rate": np.float32(3)}):
        changed = open_data({"x": x, "word": word, "rate": np.float32(2)} | other, signature)
        same = "word" in other and word.tolist() == np.roll(word, 1).tolist()
        assert (changed.samples_digest() == plain.samples_digest()) is same


def test_a_digest_of_samples_tells_shapes_apart(sign: Any) -> None:
    signature = sign(x=("FLOAT", ["N", "T"]))
    flat = np.arange(12, dtype=np.float32)
    shapes = [[(4, 3)], [(3, 4)], [(6, 2)], [(2, 3), (3, 2)], [(3, 2), (2, 3)]]
    data = []
    for each in shapes:
        ends = np.cumsum([np.prod(shape) for shape in each])[:-1]
        parts = np.split(flat, ends)
        data.append(open_data([{"x": p.reshape(s)} for p, s in zip(parts, each, strict=True)], signature))
    assert len({found.samples_digest() for found in data}) == len({found.digest() for found in data}) == len(shapes)


def test_digests_of_batches_that_cannot_be_cut(sign: Any) -> None:
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    two, four = (
        open_data({"x": x, "label/y": np.arange(8)}, sign(x=("FLOAT", [size, 3]), outputs=[(size, 2)]))
        for size in (2, 4)
    )
    assert two.samples_digest() != four.samples_digest()
    assert two.samples_digest() != two.split(0.3, 0)[0].samples_digest() != two.split(0.3, 0)[1].samples_digest()
    unlabelled = open_data({"x": x}, two.signature)
    assert unlabelled.samples_digest() == two.samples_digest(), "labels are no part of it"
    assert unlabelled.digest() != two.digest()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_parts_are_told_from_the_whole(sign: Any, rows: int) -> None:
    data = open_data({"x": np.zeros((20, 3), np.float32)}, sign(x=("FLOAT", ["N", 3]))).rebatched(rows)
    parts = [data, data.take(5), data.take(6), *data.split(0.2, 0), *data.split(0.2, 1)]
    assert len({part.samples_digest() for part in parts}) == len(parts)
