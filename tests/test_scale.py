"""A model of three gigabytes through the command line: little memory, little time, and the truth in the report."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.model import load

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

LAYERS, WIDTH = 48, 4096
"""So many square matrices of 64 MiB each."""


def large(folder: Path) -> Path:
    """Layers one after the other with weights in external data, all different, and nodes that do nothing between."""
    block = np.random.default_rng(0).standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5
    nodes, weights, last = [], [], "x"
    with (folder / "w.bin").open("wb") as file:
        for index in range(LAYERS):
            weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=block.shape, data_location=1)
            for key, value in (("location", "w.bin"), ("offset", file.tell()), ("length", block.nbytes)):
                weight.external_data.add(key=key, value=str(value))
            file.write(np.roll(block, index, axis=0).data)
            weights.append(weight)
            nodes.append(helper.make_node("Identity", [last], [f"same{index}"]))
            nodes.append(helper.make_node("MatMul", [f"same{index}", f"w{index}"], [f"m{index}"]))
            nodes.append(helper.make_node("Relu", [f"m{index}"], [f"r{index}"]))
            last = f"r{index}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "large", info[:1], info[1:], weights)
    path = folder / "large.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@dataclass
class Ran:
    """A finished command: what it printed, what it took.

    Attributes:
        own: most anonymous memory of the command's own process, in MB.
        child: the same of the processes that it started.
    """

    code: int
    out: str
    err: str
    seconds: float
    own: float
    child: float


def watched(*arguments: object) -> Ran:
    """Run the command line in a process of its own, and look at its memory and its children's all the while."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", "from onnxopt.cli import main; main()", *map(str, arguments)]
    start, own, child = time.monotonic(), 0.0, 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as ran:
        while ran.poll() is None:
            own = max(own, anonymous(ran.pid))
            child = max([child, *map(anonymous, children(ran.pid))])
            time.sleep(0.005)
        out, err = ran.communicate()
    return Ran(ran.returncode, out, err, time.monotonic() - start, own, child)


def anonymous(pid: int) -> float:
    """Anonymous memory of a process in MB; 0 when it is gone."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def children(pid: int) -> list[int]:
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []


def test_three_gigabytes_are_cleaned_and_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = large(tmp_path), tmp_path / "out" / "small.onnx"
    target.parent.mkdir()
    passes = ("-p", "clean", "-p", "quantize-weights:bits=4")
    ran = watched("run", source, "-o", target, *passes, "--verify", "structure")
    with capsys.disabled():
        print(f"\n{ran.seconds:.0f} s; anonymous memory {ran.own:.0f} MB, child {ran.child:.0f} MB", end=" ")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("UNVERIFIED")
    report = json.loads((target.parent / "report.json").read_text())
    assert report["status"].startswith("UNVERIFIED")
    assert report["verified"] is False
    [counts] = re.findall(r"^UNVERIFIED .* run by themselves: (\d+) of (\d+), not run: (\d+)$", ran.out, re.MULTILINE)
    run, all_, left = map(int, counts)
    assert run >= 8
    assert run + left == all_ == 2 * LAYERS + 1
    assert report["memory"]["worker_peak_bytes"] > 1e6 * ran.child > 0
    model = load(target)
    assert model.opset >= 21, "before, there are no weights of 4 bits"
    operators = [node.op_type for node in model.nodes()]
    assert operators.count("MatMul") == operators.count("DequantizeLinear") == LAYERS
    assert "Identity" not in operators
    assert sum(file.stat().st_size for file in target.parent.glob("small.onnx*")) < 0.15 * 3 * 2**30
    assert {file.name for file in target.parent.iterdir()} == {
        "small.onnx", "small.onnx.data", "report.json", "report.recipe.yaml",
    }  # fmt: skip
    assert ran.own < 1000
    assert ran.child < 1000
    assert ran.seconds < 90
