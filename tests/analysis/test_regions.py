"""Regions: a part of a model, run by itself, gives what it gives inside the whole."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxopt import models
from onnxopt.analysis.regions import around, region_inputs, region_model, region_outputs
from onnxopt.model import Model, load
from onnxopt.models.builders import RARE

plain = runpy.run_path(str(Path(__file__).parents[1] / "semantic.py"))["plain"]

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def parsed(text: str) -> Model:
    return load(onnx.parser.parse_model(f"{HEAD} {text}"))


def run(model: Model, feeds: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(model.proto().SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def everything(model: Model, feeds: dict[str, Any]) -> dict[str, Any]:
    """All values of the main graph in one run."""
    whole = load(model.proto())
    named = {value.name for value in whole.graph.outputs}
    for node in whole.graph:
        whole.graph.outputs.extend(v for v in node.outputs if v.name and v.name not in named)
    return feeds | run(whole, feeds)


def check(model: Model, nodes: list[ir.Node], values: dict[str, Any]) -> None:
    border = (*region_inputs(nodes), *region_outputs(nodes))
    types = {v.name: (ir.DataType.from_numpy(values[v.name].dtype), values[v.name].shape) for v in border if v.name}
    small = load(region_model(model, nodes, types).proto())
    onnx.checker.check_model(small.proto(), full_check=True)
    assert [v.name for v in small.graph.inputs] == [v.name for v in region_inputs(nodes)]
    found = run(small, {v.name: values[v.name] for v in region_inputs(nodes) if v.name})
    assert list(found) == [v.name for v in region_outputs(nodes)]
    for name, array in found.items():
        np.testing.assert_allclose(array, values[name], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def whole() -> tuple[Model, dict[str, Any]]:
    model = load(models.path("digits-transformer"))
    rng = np.random.default_rng(0)
    return model, everything(model, {"images": rng.random((2, 1, 8, 8), np.float32)})


@given(data=st.data())
def test_any_neighbourhood_computes_what_it_does_within(
    whole: tuple[Model, dict[str, Any]], data: st.DataObject
) -> None:
    model, values = whole
    nodes = list(model.graph)
    start, size = data.draw(st.sampled_from(nodes)), data.draw(st.integers(1, 12))
    near = {node for _, node in zip(range(size), around(start), strict=False)}
    check(model, [node for node in nodes if node in near], values)


def test_weights_are_shared_and_not_inputs() -> None:
    model = load(models.path("digits-cnn"))
    node = next(iter(model.graph))
    small = region_model(model, [node], {})
    assert [v.name for v in small.graph.inputs] == ["images"]
    weight = node.inputs[1]
    assert weight is not None
    assert small.graph.initializers[weight.name or ""].const_value is weight.const_value


def test_subgraphs_bring_what_they_capture() -> None:
    model = parsed("""g (bool c, float[2] x) => (float[2] y) <float[2] w = {3, 4}>
    { a = Neg (x)
      b = If (c) <then_branch = t () => (float[2] p) { q = Mul (a, w)  p = Abs (q) },
                  else_branch = e () => (float[2] r) { r = Identity (x) }>
      y = Exp (b) }""")
    node = next(n for n in model.graph if n.op_type == "If")
    assert [v.name for v in region_inputs([node])] == ["c", "a", "x"]
    assert [v.name for v in region_outputs([node])] == ["b"]
    for flag in (True, False):
        values = everything(model, {"c": np.array(flag), "x": np.array([1, -2], np.float32)})
        check(model, [node], values)


def test_values_read_by_outer_and_inner_nodes_are_outputs() -> None:
    model = parsed("""g (bool c, float[2] x) => (float[2] y)
    { a = Neg (x)  d = Abs (a)
      y = If (c) <then_branch = t () => (float[2] p) { p = Abs (d) },
                  else_branch = e () => (float[2] r) { r = Identity (x) }>
    }""")
    nodes = list(model.graph)
    assert [v.name for v in region_outputs(nodes[:2])] == ["d"]
    assert [v.name for v in region_outputs(nodes)] == ["y"]


def test_graph_outputs_stay_outputs_though_read_inside() -> None:
    model = parsed("g (float[2] x) => (float[2] a, float[2] y) { a = Neg (x)  y = Abs (a) }")
    assert [v.name for v in region_outputs(model.graph)] == ["a", "y"]


def test_a_graph_output_that_is_a_weight_of_a_body() -> None:
    model = parsed("""g (bool c, float[2] x) => (float[2] y) <float[2] w = {3, 4}>
    { y = If (c) <then_branch = t () => (float[2] p) <float[2] p = {5, 6}> { }, else_branch = e () => (float[2] r)
      { r = Identity (w) }> }""")
    values = everything(model, {"c": np.array(True), "x": np.array([1, 2], np.float32)})
    check(model, list(model.graph), values)


def test_around_walks_outwards_and_does_not_recurse() -> None:
    chain = " ".join(f"v{i + 1} = Neg (v{i})" for i in range(3000))
    model = parsed(f"g (float[2] v0) => (float[2] v3000) {{ {chain} }}")
    nodes = list(model.graph)
    walk = list(around(nodes[1500]))
    place = {node: at for at, node in enumerate(nodes)}
    assert len(walk) == 3000
    assert [abs(place[node] - 1500) for node in walk[:5]] == [0, 1, 1, 2, 2]


def _opaque_attributes() -> dict[str, onnx.AttributeProto]:
    """Attributes that onnx-ir cannot hold."""
    tensor, index = numpy_helper.from_array(np.float32([1, 2])), numpy_helper.from_array(np.int64([0, 3]))
    sparse = onnx.helper.make_sparse_tensor(tensor, index, [4])
    floats = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    contents = {
        "sparse": sparse, "sparses": [sparse], "map": onnx.helper.make_map_type_proto(onnx.TensorProto.STRING, floats),
        "bytes": b"\xff\xfe", "lists": [b"a", b"\xff"],
    }  # fmt: skip
    return {name: onnx.helper.make_attribute(name, content) for name, content in contents.items()}


def _mysterious() -> onnx.ModelProto:
    """Such attributes on a node of the main graph and on two of a branch inside a branch."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "org.example" : 1]>
    g (bool c, float[2] x) => (float[2] y)
    { a = org.example.Mystery (x)
      b = If (c) <then_branch = t () => (float[2] p) {
          p = If (c) <then_branch = tt () => (float[2] q) { o = org.example.Mystery (x) q = org.example.Mystery (o) },
                      else_branch = te () => (float[2] r) { r = Neg (x) }> },
        else_branch = e () => (float[2] s) { s = Abs (x) }>
      y = Add (a, b) }""")
    inner = proto.graph.node[1].attribute[0].g.node[0].attribute[0].g.node
    opaque = _opaque_attributes()
    proto.graph.node[0].attribute.extend(opaque.values())
    inner[0].attribute.extend([opaque["sparse"], opaque["map"]])
    inner[1].attribute.extend([opaque["bytes"], opaque["lists"]])
    return proto


@pytest.mark.parametrize("name", [*RARE, "mysterious"])
def test_nodes_come_along_with_all_that_they_say(name: str) -> None:
    proto = _mysterious() if name == "mysterious" else RARE[name]()
    model = load(proto)
    whole, part = model.proto(), region_model(model, list(model.graph), {}).proto()
    assert list(map(plain, part.graph.node)) == list(map(plain, whole.graph.node))
    again = model.proto()
    assert again.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)


def test_weights_of_a_branch_come_along_from_their_file(tmp_path: Path) -> None:
    weight = np.float32([3, 4])
    model = parsed("""g (bool c, float[2] x) => (float[2] y)
    { y = If (c) <then_branch = t () => (float[2] p) <float[2] w = {0, 0}> { p = Add (x, w) },
                  else_branch = e () => (float[2] r) { r = Identity (x) }> }""")
    (graph,) = [graph for graph in model.graph.subgraphs() if graph.initializers]
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    graph.initializers["w"].const_value = ir.ExternalTensor(
        "w.bin", 0, weight.nbytes, ir.DataType.FLOAT, shape=ir.Shape([2]), name="w", base_dir=tmp_path
    )
    region = region_model(model, list(model.graph), {})
    (copy,) = [graph for graph in region.graph.subgraphs() if graph.initializers]
    assert copy.initializers["w"].const_value is not None
    np.testing.assert_array_equal(copy.initializers["w"].const_value.numpy(), weight)
