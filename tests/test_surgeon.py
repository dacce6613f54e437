"""The graphsurgeon view: nothing lost where nothing was touched, edits right, weights lazy."""

import runpy
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders import ELEMENT_TYPES, RARE, Sketch, of_type

differences = runpy.run_path(str(Path(__file__).with_name("semantic.py")))["differences"]

X = np.random.default_rng(0).standard_normal((3, 4), np.float32)


def run(model: Model, x: np.ndarray = X) -> list[Any]:
    proto = model.proto()
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})


@pytest.mark.parametrize("name", RARE)
def test_untouched(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, before = load(RARE[name]()), load(RARE[name]()).proto()
    with model.surgeon():
        pass
    assert differences(before, model.proto()) == []
    assert capsys.readouterr().out == ""


def test_untouched_zoo(zoo: Path) -> None:
    for path in zoo.glob("*.onnx"):
        model, before = load(path), load(path).proto()
        with model.surgeon():
            pass
        assert differences(before, model.proto()) == [], path.name


@pytest.mark.parametrize("storage", ["initializer", "constant"])
@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
def test_touched_values_survive(dtype: str, storage: str) -> None:
    if f"{dtype.lower()}-{storage}" not in RARE:
        pytest.skip("onnx has no such constant")
    model, before = load(of_type(dtype, storage)), load(of_type(dtype, storage)).proto()
    with model.surgeon() as graph:
        found = [t for t in graph.tensors().values() if isinstance(t, gs.Constant)]
        found += [v for node in graph.nodes for v in node.attrs.values() if isinstance(v, gs.Constant)]
        for constant in found:
            assert constant.values.size == constant.values.ravel().shape[0]
    assert differences(before, model.proto()) == []


@pytest.mark.parametrize(
    "name", ["metadata-everywhere", "doc-strings-everywhere", "quantization-annotation", "denotations"]
)
def test_a_change_elsewhere_keeps_annotations(name: str) -> None:
    model, before = load(RARE[name]()), load(RARE[name]()).proto()
    with model.surgeon() as graph:
        graph.nodes[0].attrs["extra"] = 1
    after = model.proto()
    assert [a.name for a in after.graph.node[0].attribute][-1] == "extra"
    attribute = next(a for a in after.graph.node[0].attribute if a.name == "extra")
    after.graph.node[0].attribute.remove(attribute)
    assert differences(before, after) == []


def test_exception_leaves_the_model() -> None:
    model = load(RARE["if-capturing"]())
    before, revision, graph_before = model.proto(), model.revision, model.graph

    def give_up() -> None:
        with model.surgeon() as graph:
            graph.nodes.clear()
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        give_up()
    assert model.graph is graph_before
    assert model.revision == revision
    assert differences(before, model.proto()) == []


def test_unwritable_graph_is_one_error() -> None:
    model = load(RARE["if-capturing"]())
    before = model.proto()
    with pytest.raises(ModelError, match="graphsurgeon cannot write"), model.surgeon() as graph:
        graph.nodes[0].attrs["bad"] = object()
    assert differences(before, model.proto()) == []


def mlp() -> Model:
    sketch = Sketch("mlp")
    hidden = sketch.node("MatMul", sketch.input("x", ["batch", 4]), sketch.random("w", 4, 5), outputs=["hidden"])
    sketch.output(sketch.node("Identity", sketch.node("Relu", hidden), outputs=["y"]), ["batch", 5])
    return load(sketch.model())


def test_edits_come_back() -> None:
    """New constant, removed node, renamed tensor, new output: numpy is the oracle."""
    model = mlp()
    w = next(model.weights()).const_value.numpy()  # type: ignore[union-attr]
    with model.surgeon() as graph:
        matmul, relu, identity = graph.nodes
        relu.outputs = identity.outputs
        graph.nodes.remove(identity)
        scaled = gs.Variable("scaled", np.float32, ["batch", 5])
        scale = gs.Node("Mul", inputs=[matmul.outputs[0], gs.Constant("two", np.float32([2]))], outputs=[scaled])
        graph.nodes.insert(1, scale)
        relu.inputs = [scaled]
        matmul.outputs[0].name = "renamed"
        matmul.outputs[0].dtype, matmul.outputs[0].shape = np.float32, ["batch", 5]
        graph.outputs.append(matmul.outputs[0])
        matmul.inputs[1].values = matmul.inputs[1].values[:, ::-1]
    assert [v.name for v in model.signature.outputs] == ["y", "renamed"]
    y, renamed = run(model)
    np.testing.assert_allclose(renamed, X @ w[:, ::-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y, np.maximum(2 * renamed, 0), rtol=1e-5)


@pytest.mark.parametrize("name", ["if-capturing", "loop", "nested-subgraphs"])
def test_edits_inside_subgraphs(name: str) -> None:
    """Doubling every MatMul weight, wherever it lies, is what doubling it in the message does."""
    model, expected = load(RARE[name]()), RARE[name]()
    with model.surgeon() as graph:
        seen: set[int] = set()
        for inner in [graph, *graph.subgraphs(recursive=True)]:
            for node in inner.nodes:
                if node.op == "MatMul" and id(node.inputs[1]) not in seen:
                    seen.add(id(node.inputs[1]))
                    node.inputs[1].values = node.inputs[1].values * 2
    _double(expected.graph)
    assert differences(load(expected).proto(), model.proto()) == []
    for mine, theirs in zip(run(model), run(load(expected)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def _double(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            _double(attribute.g)


def test_renamed_outer_weight_reaches_the_subgraph() -> None:
    model = load(RARE["if-capturing"]())
    expected = run(model)
    with model.surgeon() as graph:
        graph.tensors()["w"].name = "w_renamed"
    assert "w_renamed" in model.graph.initializers
    np.testing.assert_array_equal(run(model)[0], expected[0])


def test_reshaped_weight_that_is_an_input() -> None:
    model = load(RARE["initializers-as-inputs"]())
    with model.surgeon() as graph:
        for name, part in (("w", np.s_[:, :2]), ("b", np.s_[:2])):
            graph.tensors()[name].values = np.ascontiguousarray(graph.tensors()[name].values[part])
        graph.outputs[0].shape = ["batch", 2]
    assert [v.name for v in model.signature.inputs] == ["x"]
    assert run(model)[0].shape == (3, 2)


@pytest.mark.slow
def test_long_chain() -> None:
    names = ["x", *(f"t{i}" for i in range(20_000))]
    nodes = [helper.make_node("Relu", [a], [b]) for a, b in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, 1, ["n", 4]) for name in (names[0], names[-1])]
    model = load(helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:]), ir_version=10))
    with model.surgeon() as graph:
        graph.nodes[7].op = "Neg"
    assert [n.op_type for n in model.graph].count("Relu") == 19_999


@pytest.mark.slow
def test_memory(tmp_path: Path) -> None:
    """Anonymous memory of a child that edits 500 MB of weights through the view stays under 200 MB."""
    path = tmp_path / "m.onnx"
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(500 * 2**20)
    nodes, weights, last = [], [], "x"
    for i in range(125):
        weight = onnx.TensorProto(name=f"w{i}", data_type=1, dims=[1024, 1024], data_location=1)
        for key, value in (("location", "w.bin"), ("offset", i * 2**22), ("length", 2**22)):
            weight.external_data.add(key=key, value=str(value))
        weights.append(weight)
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"t{i}"]))
        last = f"t{i}"
    ends = [helper.make_tensor_value_info(name, 1, ["n", 1024]) for name in ("x", last)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights), ir_version=10), path)
    assert anonymous_memory(
        """
        from onnxopt.model import load
        model = load("m.onnx")
        with model.surgeon() as graph:
            graph.nodes[3].inputs[1].values[0, 0] = 1
        model.save("out.onnx")
        assert load("out.onnx").graph.initializers["w3"].const_value.numpy()[0, 0] == 1
        """, tmp_path) < 200  # fmt: skip


def anonymous_memory(code: str, folder: Path) -> float:
    """The most private memory, in MB, that a fresh process adds on top of what Python and the imports take."""
    script = textwrap.dedent("""
        import threading, time, re
        import numpy, onnx, onnx_ir, onnxopt.model, onnxopt.surgeon
        def anonymous():
            return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
        base, peak, done = anonymous(), 0.0, False
        def watch():
            global peak
            while not done:
                peak = max(peak, anonymous()); time.sleep(0.005)
        thread = threading.Thread(target=watch); thread.start()
        try:
            exec(CODE)
        finally:
            done = True; thread.join()
        print(peak - base)
    """).replace("CODE", repr(textwrap.dedent(code)))
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])
