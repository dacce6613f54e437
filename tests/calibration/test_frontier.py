"""What is appended comes back, from either process and side, and is gone after its last use."""

import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from onnxopt.calibration.frontier import Frontier
from onnxopt.calibration.places import read, write
from onnxopt.errors import OnnxOptError
from onnxopt.statistics import Side

PLACES = runpy.run_path(str(Path(__file__).with_name("test_places.py")))
arrays, assert_same, full_after = PLACES["arrays"], PLACES["assert_same"], PLACES["full_after"]

SIDES: tuple[Side, Side] = ("dense", "current")


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.exists() else 0


class Frontiers(RuleBasedStateMachine):
    """Any sequence of steps against lists in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "frontier"
        self.frontier = Frontier(self.path)
        self.lists: dict[tuple[Side, str], list[Any]] = {}
        self.most = 0

    sides = st.sampled_from(SIDES)
    values = st.sampled_from(["a", "a/b:0", "x" * 300])

    def shared(self, side: Side, value: str) -> bool:
        dense = self.lists.get(("dense", value))
        return side == "current" and dense is not None and dense is self.lists.get(("current", value))

    @rule(side=sides, value=values, array=arrays(), elsewhere=st.booleans())
    def append(self, side: Side, value: str, array: Any, elsewhere: bool) -> None:
        if self.shared(side, value):
            with pytest.raises(ValueError, match="append to that"):
                self.frontier.append(side, value, array)
            return
        if elsewhere:
            self.frontier.admit(side, value, write(self.frontier.path(side, value), array))
        else:
            self.frontier.append(side, value, array)
        self.lists.setdefault((side, value), []).append(array)
        self.most = max(self.most, on_disk(self.path))

    @rule(value=values)
    def share(self, value: str) -> None:
        if ("current", value) in self.lists:
            with pytest.raises(ValueError, match="already"):
                self.frontier.share(value)
        else:
            self.lists["current", value] = self.lists.setdefault(("dense", value), [])
            self.frontier.share(value)

    @precondition(lambda self: self.lists)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.lists)))
        del self.lists[key]
        self.frontier.drop(*key)

    @rule()
    def close(self) -> None:
        self.frontier.close()
        self.lists.clear()
        assert not self.path.exists()

    @invariant()
    def all_there(self) -> None:
        for side in SIDES:
            for value in ("a", "a/b:0", "x" * 300):
                held = self.lists.get((side, value), [])
                assert self.frontier.batches(side, value) == len(held)
                for batch, array in enumerate(held):
                    assert_same(self.frontier.read(side, value, batch), array)
        assert self.frontier.nbytes == on_disk(self.path)
        assert self.frontier.peak_bytes == self.most

    def teardown(self) -> None:
        self.folder.cleanup()


TestFrontiers = Frontiers.TestCase
TestFrontiers.settings = settings(max_examples=60, stateful_step_count=15)


def test_a_value_is_a_file_until_its_last_use(tmp_path: Path) -> None:
    with Frontier(tmp_path / "f") as frontier:
        frontier.share("x")
        for batch in range(3):
            frontier.append("dense", "x", np.full(100, batch))
        assert len(list((tmp_path / "f").iterdir())) == 1
        frontier.drop("dense", "x")
        assert frontier.read("current", "x", 2)[0] == 2
        held = frontier.read("current", "x", 1)
        frontier.drop("current", "x")
        assert not list((tmp_path / "f").iterdir())
        assert held.sum() == 100
        assert frontier.nbytes == 0
        assert frontier.peak_bytes == 2 * 832 + 800  # batches begin at multiples of 64
        with pytest.raises(KeyError):
            frontier.drop("current", "x")
        with pytest.raises(KeyError):
            frontier.read("current", "x", 0)
    assert not (tmp_path / "f").exists()


def test_written_by_another_process(tmp_path: Path) -> None:
    """It gets a path and gives a place."""
    code = (
        "import sys, pickle, pathlib, numpy as np; from onnxopt.calibration.places import write\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "sys.stdout.buffer.write(pickle.dumps([write(path, np.full((2, n), n, np.float16)) for n in range(4)]))"
    )
    with Frontier(tmp_path / "f") as frontier:
        command = [sys.executable, "-c", code, str(frontier.path("dense", "x"))]
        for place in pickle.loads(subprocess.run(command, check=True, capture_output=True).stdout):
            frontier.admit("dense", "x", place)
        found = [read(frontier.place("dense", "x", batch)) for batch in range(frontier.batches("dense", "x"))]
    assert [array.shape for array in found] == [(2, n) for n in range(4)]
    assert all((array == n).all() for n, array in enumerate(found))


def test_leftovers_of_a_killed_process_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    left = Frontier(tmp_path)
    left.append("dense", "x", np.ones(100))
    (tmp_path / "state.json").touch()
    Frontier(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_of_others_stays(tmp_path: Path) -> None:
    with Frontier(tmp_path) as frontier:
        frontier.append("dense", "x", np.ones(100))
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f")
    frontier.append("dense", "x", np.ones(100))
    with full_after(10**5), pytest.raises(OnnxOptError, match=r"^cannot write .*: .*; make room there"):
        frontier.append("current", "y", np.ones(10**5))
    assert not (tmp_path / "f").exists()
    assert (frontier.nbytes, frontier.batches("dense", "x")) == (0, 0)


def test_memory(tmp_path: Path) -> None:
    """200 MB pass through while this process holds one batch of 4 MB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")

    def anonymous() -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        return 1024 * int(line.split()[1])

    before, most, total = anonymous(), 0, 0.0
    with Frontier(tmp_path / "f") as frontier:
        for batch in range(50):
            frontier.append("dense", "x", np.full((1000, 1000), batch, np.float32))
            most = max(most, anonymous())
        views = [frontier.read("dense", "x", batch) for batch in range(50)]
        total = sum(float(view[::100].sum()) for view in views)
        most = max(most, anonymous())
        assert frontier.nbytes == on_disk(tmp_path / "f") == 200 * 10**6
    assert total == sum(range(50)) * 10**4
    assert most - before < 20 << 20
