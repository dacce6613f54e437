"""Results come back from their file as they were, and cost no memory there."""

import os
import pickle
import runpy
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from onnxopt.calibration.results import LARGE, Stored, put, take
from onnxopt.errors import OnnxOptError
from onnxopt.statistics import (
    Accumulator,
    CoActivation,
    CrossGram,
    Gram,
    Histogram,
    Magnitude,
    MinMax,
    Moments,
    Sides,
)

PLACES = runpy.run_path(str(Path(__file__).with_name("test_places.py")))


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True)
class Nested:
    name: str
    number: float
    pair: Pair
    more: dict[str, Any]


def sent(stored: Stored[Any]) -> Stored[Any]:
    """As it comes out of a pipe."""
    data = pickle.dumps(stored)
    assert len(data) < 3 * LARGE
    found: Stored[Any] = pickle.loads(data)
    return found


def nested() -> Nested:
    rng = np.random.default_rng(0)
    pair = Pair(rng.normal(size=(50, 40)), np.asfortranarray(rng.normal(size=(30, 70))))
    more = {
        "half": rng.normal(size=5000).astype(ml_dtypes.bfloat16),
        "strided": rng.integers(0, 9, (80, 90))[::2, ::3],
        "small": np.arange(5),
        "scalar": np.array(3.5),
        "empty": np.empty((0, 7)),
        "texts": np.array(["a", "ü"], np.object_),
        "objects": np.array([None, "x", 3] * 200, np.object_),
        "wide": np.zeros(2000, "<U3"),
        "plain": [1, None, "x", 2.5],
    }
    return Nested("x", 1.5, pair, more)


def test_structures_of_all_kinds(tmp_path: Path) -> None:
    result = nested()
    stored = sent(put(result, tmp_path / "r.bin"))
    assert stored.nbytes == (tmp_path / "r.bin").stat().st_size
    found = take(stored)
    assert (found.name, found.number, found.more["plain"]) == ("x", 1.5, [1, None, "x", 2.5])
    assert type(found.pair) is Pair
    large = {"left": found.pair.left, "right": found.pair.right, **found.more}
    was = {"left": result.pair.left, "right": result.pair.right, **result.more}
    for name, array in large.items():
        if name != "plain":
            PLACES["assert_same"](array, was[name])
            mapped = was[name].nbytes > LARGE and name != "objects"
            assert array.flags.writeable != mapped, name
            assert array.flags.aligned
            assert not mapped or array.ctypes.data % 64 == 0


REQUESTS = [Gram(), Gram(groups=4), CrossGram(), MinMax(), Moments(None), Histogram(), Magnitude(), CoActivation()]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_results_of_statistics(request_: Accumulator[Any, Any], tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 1200)).astype(np.float32)
    state = request_.begin("x")
    state.update(Sides(rows, rows[:, :800]) if isinstance(request_, CrossGram) else rows)
    result = state.result()
    found = take(sent(put(result, tmp_path / "r.bin")))
    assert type(found) is type(result)
    for name, value in vars(result).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_an_array_that_is_there_twice_is_written_once(tmp_path: Path) -> None:
    array = np.arange(10**4)
    found = take(put((array, {"again": array}), tmp_path / "r.bin"))
    assert (tmp_path / "r.bin").stat().st_size == array.nbytes
    assert found[1]["again"].tolist() == found[0].tolist() == array.tolist()


class Fresh:
    """Its arrays are made one by one while it is pickled, and may come to lie where the last one was."""

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (), None, (np.full(1000, value) for value in range(20))


def test_arrays_that_exist_only_for_the_pickle(tmp_path: Path) -> None:
    found: Any = take(put(Fresh(), tmp_path / "r.bin"))
    assert [array[0] for array in found] == list(range(20))


def test_nothing_large_is_no_file(tmp_path: Path) -> None:
    stored = sent(put((1, np.arange(LARGE // 8)), tmp_path / "r.bin"))
    assert not (tmp_path / "r.bin").exists()
    assert stored.nbytes == 0
    assert take(stored)[1].tolist() == list(range(LARGE // 8))


def test_what_was_there_goes_but_its_views_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.bin"
    before = take(put(np.zeros(10**4), path))
    after = take(put(np.ones(10**4), path))
    assert path.stat().st_size == 8 * 10**4
    path.unlink()
    assert (before.sum(), after.sum()) == (0, 10**4)


def test_files_that_were_moved(tmp_path: Path) -> None:
    stored = put(np.ones(10**4), tmp_path / "r.bin")
    (tmp_path / "r.bin").rename(tmp_path / "s.bin")
    assert take(Stored[Any](tmp_path / "s.bin", stored.nbytes, stored.header)).sum() == 10**4


def test_memory(tmp_path: Path) -> None:
    """40 MB are written and mapped with next to nothing in memory; also what is not contiguous."""
    array = np.ones((2500, 4000), np.float32)
    result = Pair(array, array.T[::2])
    tracemalloc.start()
    found = take(put(result, tmp_path / "r.bin"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    assert found.left.sum() == 2 * found.right.sum() == 10**7


def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "r.bin"
    with PLACES["full_after"](10**5), pytest.raises(OnnxOptError, match=rf"^cannot write {path}: "):
        put(Pair(np.ones(5000), np.ones(10**5)), path)
    assert not path.exists()


def test_files_that_others_changed(tmp_path: Path) -> None:
    path = tmp_path / "r.bin"
    stored = put(np.ones(10**4), path)
    os.truncate(path, 10)
    with pytest.raises(OnnxOptError, match="has 10 bytes where 80000 were written"):
        take(stored)
    path.unlink()
    with pytest.raises(OnnxOptError, match=f"cannot read {path}"):
        take(stored)
