"""`onnxopt bench MODEL...`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from onnxopt import reading
from onnxopt.backends import machine
from onnxopt.backends.jobs import latency
from onnxopt.backends.timing import Latency, Ratio
from onnxopt.backends.timing_table import TimingTable
from onnxopt.backends.worker import Worker
from onnxopt.models.builders import Sketch

Cli = Callable[..., Any]
Tiny = Callable[..., onnx.ModelProto]

QUICK = ("--seconds", "0.05")


@pytest.fixture
def pair(folder: Path, tiny: Tiny) -> Path:
    """`tiny.onnx` and `wide.onnx`, which takes the same input."""
    onnx.save(tiny(80), "wide.onnx")
    return folder


def found(cli: Cli, *arguments: object) -> dict[str, Any]:
    ran = cli("bench", *arguments, *QUICK, "--json")
    assert (ran.code, ran.err) == (0, "")
    content: dict[str, Any] = json.loads(ran.out, parse_constant=pytest.fail)
    return content


def test_what_is_measured(cli: Cli, pair: Path) -> None:
    result = found(cli, "tiny.onnx", "wide.onnx", "--data", "x.npz", "--threads", "2")
    assert (result["samples"], result["sizes"], result["threads"]) == (8, {"x": [8, 8]}, 2)
    assert [each["file"] for each in result["files"]] == ["tiny.onnx", "wide.onnx"]
    for each in result["files"]:
        assert 0 < each["p50_ms"] <= each["p95_ms"] <= each["p99_ms"]
        assert each["load_seconds"] > 0
        assert each["digest"] == reading.digest(Path(each["file"]))
        assert each["file_bytes"] == Path(each["file"]).stat().st_size
    assert result["files"][0]["ratio_quartiles"] == [1, 1]


def test_figures(cli: Cli, pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Throughput is of samples, ratios are of paired runs and to the first file, the time budget is a file's."""
    budgets = []

    def called(self: Worker, job: Any, *args: Any, **named: Any) -> Any:
        if job is not latency:
            return real(self, job, *args, **named)
        budgets.append(named["seconds"])
        return [Latency(s, 2 * s, 3 * s, 1.25 * s, 7, Ratio(s, s / 2, s * 2)) for s in (0.5, 0.25)]

    real = Worker.call
    monkeypatch.setattr(Worker, "call", called)
    arguments = ("bench", "tiny.onnx", "wide.onnx", "--shape", "x:5,8", "--seconds", "3")
    second = json.loads(cli(*arguments, "--json").out)["files"][1]
    assert budgets == [6]
    assert [second[key] for key in ("p50_ms", "p95_ms", "p99_ms", "runs")] == [250, 500, 750, 7]
    assert second["samples_per_second"] == pytest.approx(5 / 0.3125)
    assert (second["ratio"], second["ratio_quartiles"]) == (0.25, [0.125, 0.5])
    out = cli(*arguments).out
    assert out.startswith("random inputs: x [5, 8], 5 samples a run, 1 thread\n")
    assert re.search(r"^wide\.onnx .* 250 +500 +750 +16 +7 +x0\.250 +x0\.125 \.\. x0\.500$", out, re.MULTILINE)


def test_memory_is_the_models_own(spawn: Cli, folder: Path) -> None:
    """A small file's peak is small, whatever comes before it; a large file's holds its weights and its run."""
    sketch = Sketch()
    x = sketch.input("x", ["n", 8])
    sketch.output(sketch.node("MatMul", x, sketch.random("w", 8, 1_000_000), outputs=["y"]), ["n", 1_000_000])
    onnx.save(sketch.model(), "large.onnx")
    files = found(spawn, "large.onnx", "large.onnx", "tiny.onnx", "--shape", "x:8,8")["files"]
    if files[0]["peak_bytes"] is None:
        pytest.skip("the system does not tell what memory a process takes")
    assert min(each["peak_bytes"] for each in files[:2]) > 50_000_000  # weights of 32 MB, output of 32 MB
    assert files[2]["peak_bytes"] < 10_000_000


def test_one_file(cli: Cli, folder: Path) -> None:
    (only,) = found(cli, "tiny.onnx")["files"]
    assert only["ratio"] == 1


@pytest.mark.parametrize(
    ("type_", "name", "shape", "part"),
    [
        (onnx.TensorProto.FLOAT, "z", ["n", 8], "different inputs: ['x'] and ['z']"),
        (onnx.TensorProto.DOUBLE, "x", ["n", 8], "different inputs: 'x' is float32 [n, 8] and float64 [n, 8]"),
        (onnx.TensorProto.FLOAT, "x", [3, 8], "odd.onnx: input 'x' takes float32 [3, 8], the others run on [2, 8]"),
        (onnx.TensorProto.FLOAT, "x", ["n", 8, 1], "odd.onnx: input 'x' takes float32 [n, 8, 1]"),
    ],
    ids=["name", "type", "size", "rank"],
)
def test_other_inputs(cli: Cli, folder: Path, type_: int, name: str, shape: list[Any], part: str) -> None:
    value = onnx.helper.make_tensor_value_info(name, type_, shape)
    out = onnx.helper.make_tensor_value_info("y", type_, shape)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", [name], ["y"])], "odd", [value], [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), "odd.onnx")
    line = cli("bench", "tiny.onnx", "odd.onnx", *QUICK).refusal(3)
    assert part in line
    assert "odd.onnx" in line


def test_sizes_may_be_named(cli: Cli, folder: Path) -> None:
    model = onnx.load("tiny.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, "fixed.onnx")
    assert found(cli, "tiny.onnx", "fixed.onnx", "--shape", "x:3,8")["sizes"] == {"x": [3, 8]}


def test_refusals(cli: Cli, folder: Path) -> None:
    assert "no.onnx" in cli("bench", "tiny.onnx", "no.onnx").refusal(3)
    assert "--shape" in cli("bench", "tiny.onnx", "--data", "x.npz", "--shape", "x:3,8").refusal(2)
    assert "--seconds" in cli("bench", "tiny.onnx", "--seconds", "0").refusal(2)
    assert "MODEL" in cli("bench").refusal(2)
    model = onnx.load("tiny.onnx")
    model.graph.node[0].domain = "acme.ops"
    model.opset_import.append(onnx.helper.make_opsetid("acme.ops", 1))
    onnx.save(model, "custom.onnx")
    assert "acme.ops" in cli("bench", "tiny.onnx", "custom.onnx", *QUICK).refusal(3)


@pytest.mark.parametrize("name", ["table.yaml", "table.json"])
def test_table(cli: Cli, pair: Path, name: str) -> None:
    first = found(cli, "tiny.onnx", "--table", name)
    again = found(cli, "wide.onnx", "tiny.onnx", "--shape", "x:3,8", "--table", name)
    last = found(cli, "tiny.onnx", "--table", name)
    text = (pair / name).read_text()
    content = json.loads(text) if name.endswith("json") else yaml.safe_load(text)
    assert content["target"]["threads"] == 1
    assert content["cores"] == machine.cores()
    tiny, wide = (reading.digest(Path(path)) for path in ("tiny.onnx", "wide.onnx"))
    rows = {(row["model"], tuple(row["shapes"]["x"])): row["median_ms"] for row in content["timings"]}
    assert rows == {
        (tiny, (2, 8)): pytest.approx(last["files"][0]["p50_ms"], rel=1e-3),
        (wide, (3, 8)): pytest.approx(again["files"][0]["p50_ms"], rel=1e-3),
        (tiny, (3, 8)): pytest.approx(again["files"][1]["p50_ms"], rel=1e-3),
    }
    assert first["files"][0]["digest"] == tiny
    assert TimingTable.read(pair / name).model_dump(mode="json", exclude_none=True) == content


def test_table_of_another_target(cli: Cli, folder: Path) -> None:
    assert found(cli, "tiny.onnx", "--table", "t.yaml")
    before = (folder / "t.yaml").read_bytes()
    line = cli("bench", "tiny.onnx", "--threads", "2", "--table", "t.yaml", *QUICK).refusal(3)
    assert "threads 1" in line
    assert "here" in line
    assert (folder / "t.yaml").read_bytes() == before


@pytest.mark.parametrize("content", ["x: [", "3", "", "version: 2", "\udcff", "a: 1"])
def test_table_that_is_none(cli: Cli, folder: Path, content: str) -> None:
    (folder / "t.yaml").write_bytes(content.encode(errors="surrogateescape"))
    assert "t.yaml is no timing table" in cli("bench", "tiny.onnx", "--table", "t.yaml", *QUICK).refusal(3)


def test_table_that_cannot_be_written(cli: Cli, folder: Path) -> None:
    assert "no/t.yaml" in cli("bench", "tiny.onnx", "--table", "no/t.yaml", *QUICK).refusal(3)
    assert "is a folder" in cli("bench", "tiny.onnx", "--table", ".", *QUICK).refusal(3)


def test_random_inputs_are_of_sizes_that_the_model_takes(cli: Cli, folder: Path) -> None:
    sketch = Sketch()
    x = sketch.input("x", [None, None])
    window = sketch.node("Slice", x, *(sketch.weight(n, np.array([v])) for n, v in zip("sea", (0, 40, 1), strict=True)))
    sketch.output(sketch.node("MatMul", window, sketch.random("w", 40, 3)), [None, 3])
    onnx.save(sketch.model(), "long.onnx")
    assert found(cli, "long.onnx")["sizes"] == {"x": [2, 64]}
