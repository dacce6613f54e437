"""Parts of data: deterministic, disjoint, whole; and saving them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.data import Dataset, open_data
from onnxopt.errors import DataError


def numbered(sign: Any, batches: list[int], fixed: bool = False) -> Dataset:
    """Batches of so many rows; each sample, and its label, is its number."""
    numbers = np.arange(sum(batches), dtype=np.float32)[:, None]
    parts = np.split(numbers, np.cumsum(batches)[:-1])
    arrays = {f"feed{i:04d}/x": part for i, part in enumerate(parts)} | {"label/y": np.arange(sum(batches))}
    first = batches[0] if fixed else "N"
    return open_data(arrays, sign(x=("FLOAT", [first, 1]), outputs=[(first, 2)]))


def members(data: Dataset) -> list[int]:
    found = []
    for batch in data.batches():
        rows = batch.feeds["x"][:, 0].astype(int).tolist()
        assert batch.samples == len(rows)
        assert batch.labels["y"].tolist() == rows
        found += rows
    return found


@given(
    batches=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    fraction=st.floats(0.05, 0.6),
    seed=st.integers(0, 3),
    fixed=st.booleans(),
)
def test_a_split_is_disjoint_whole_and_repeatable(
    sign: Any, batches: list[int], fraction: float, seed: int, fixed: bool
) -> None:
    data = numbered(sign, [batches[0]] * len(batches) if fixed else batches, fixed)
    kept, held = data.split(fraction, seed)
    assert sorted(members(kept) + members(held)) == list(range(data.samples))
    assert members(kept) == sorted(members(kept))
    assert kept.samples == len(members(kept)) > 0
    again = data.split(fraction, seed)
    assert [part.digest() for part in again] == [kept.digest(), held.digest()]
    assert kept.digest() != data.digest() or not held.batch_count
    pieces = data.batch_count if fixed or fraction * data.batch_count >= 1 else data.samples
    assert (held.batch_count > 0) is (pieces > 1)


def test_held_back_samples_are_the_fraction(sign: Any) -> None:
    assert numbered(sign, [64]).split(0.2, 0)[1].samples == 13
    whole = numbered(sign, [8] * 10).split(0.2, 0)[1]
    assert [batch.samples for batch in whole.batches()] == [8, 8]
    assert members(numbered(sign, [64]).split(0.2, 0)[1]) != members(numbered(sign, [64]).split(0.2, 1)[1])


def test_parts_of_parts(sign: Any) -> None:
    data = numbered(sign, [10, 10])
    visible, _ = data.split(0.3, 0)
    a, b = visible.split(0.5, 1)
    assert sorted(members(a) + members(b)) == members(visible)
    assert members(visible.take(5)) == members(visible)[:5]
    assert members(visible.take(12)) == members(visible)[:12]


def test_take(sign: Any) -> None:
    data = numbered(sign, [4, 4, 4])
    assert members(data.take(6)) == [0, 1, 2, 3, 4, 5]
    assert members(data.take(99)) == list(range(12))
    assert data.take(99).digest() == data.digest()
    assert data.take(0).samples == 1
    assert members(numbered(sign, [4, 4, 4], fixed=True).take(5)) == list(range(8))


def test_an_empty_part_says_so(sign: Any) -> None:
    kept, held = numbered(sign, [4], fixed=True).split(0.2, 0)
    assert (kept.samples, held.samples, held.batch_count, list(held.batches())) == (4, 0, 0, [])
    with pytest.raises(DataError, match="this part of the data is empty"):
        held.first()


def test_save_and_open(sign: Any, tmp_path: Path) -> None:
    signature = sign(x=("FLOAT", ["N", 1]), text=("STRING", ["N"]), b=("BOOL", ["N"]))
    words = np.array(["a", "bc", "d"])
    batches = [
        {"x": np.full((n, 1), n, np.float32), "text": words[:n], "b": words[:n] == "a", "label/t": np.eye(n)}
        for n in (3, 1, 2)
    ]
    data = open_data(batches, signature)
    data.save(tmp_path / "all")
    assert open_data(tmp_path / "all", signature).digest() == data.digest()
    data.take(4).save(tmp_path / "some")
    assert open_data(tmp_path / "some", signature).samples == 4


def test_a_file_that_changes_is_caught(sign: Any, tmp_path: Path) -> None:
    signature = sign(x=("FLOAT", ["N", 1]))
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "0.npz", x=np.zeros((3, 1), np.float32))
    data = open_data(tmp_path / "a", signature)
    np.savez(tmp_path / "a" / "0.npz", x=np.zeros((2, 1), np.float32))
    with pytest.raises(DataError, match=r"0\.npz: 2 samples where there were 3 before"):
        data.first()


def test_digest_is_the_same_on_every_machine(sign: Any) -> None:
    data = open_data(
        {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "label/y": np.arange(4)}, sign(x=("FLOAT", ["N", 3]))
    )
    assert data.digest() == "394b7f9c3bc7d849fe91e7cc7b16a4157b051a8ca62556d0a0c4d2399679bbef"
    assert data.samples_digest() == "43a87b070caea2d31748cbc47c0d17aacf2a8aa0c49a3e4647c3418c90a1678b"
