"""Timing tables: what is written is what is read; a model at a size stands once."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from onnxopt.backends.target import Target
from onnxopt.backends.timing_table import Timing, TimingTable
from onnxopt.errors import DataError, ModelError

MODEL = "ab" * 32
OTHER = "cd" * 32


def table(**target: object) -> TimingTable:
    return TimingTable(target=Target(name="cpu", isa="avx2", threads=4, onnxruntime="1.23", **target), cores=8)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["t.yaml", "t.json", "t"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    timings = [Timing.of(MODEL, {"x": (1, 8), "a:b": ()}, 0.00123456, 7), Timing.of(OTHER, {}, 2, 1)]
    written = table().with_timings(timings)
    written.write(tmp_path / name)
    read = TimingTable.read(tmp_path / name)
    assert read == written
    assert [each.median_ms for each in read.timings] == [1.235, 2000]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_model_at_a_size_stands_once() -> None:
    first = table().with_timings([Timing.of(MODEL, {"x": (1,), "y": (2,)}, 1, 1), Timing.of(MODEL, {"x": (2,)}, 2, 1)])
    second = first.with_timings([Timing.of(MODEL, {"y": (2,), "x": (1,)}, 3, 1), Timing.of(OTHER, {"x": (2,)}, 4, 1)])
    assert [each.median_ms for each in second.timings] == [3000, 2000, 4000]
    assert len(first.timings) == 2


def test_same_target() -> None:
    assert table().same_target(table().with_timings([Timing.of(MODEL, {}, 1, 1)]))
    assert not table().same_target(table(max_opset=21))
    assert not table().same_target(table().model_copy(update={"cores": 4}))


def test_host_names_nothing_but_what_makes_times_differ() -> None:
    host = TimingTable.host(3).model_dump()
    assert set(host) == {"version", "target", "cores", "timings"}
    assert host["target"] == Target.host().model_dump() | {"threads": 3}


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{version: 1}", "{version: 1, target: cpu, cores: 0}", "{version: 1, target: cpu, cores: 1, host: a}",
     "{version: 1, target: cpu, cores: 1, timings: [{model: a, shapes: {}, median_ms: 1, runs: 1}]}", "a: [",
     "[" * 9999],
)  # fmt: skip
def test_what_is_no_table(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(DataError, match=r"t\.yaml is no timing table"):
        TimingTable.read(tmp_path / "t.yaml")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read timing table"):
        TimingTable.read(tmp_path / "t.yaml")
    with pytest.raises(ModelError, match="cannot write"):
        table().write(tmp_path / "no" / "t.yaml")


def test_medians_are_positive() -> None:
    with pytest.raises(ValidationError):
        Timing.of(MODEL, {}, 0, 1)
