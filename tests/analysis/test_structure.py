"""Walking graphs and reading constants."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.analysis.structure import ancestors, constant_array, constant_tensor, reads, topological

CONTROL = """<ir_version: 10, opset_import: ["": 21]>
g (float[2] x, bool c) => (float[2] y) {
  a = Neg(x)
  y = If (c) <then_branch = t () => (float[2] u) { u = Add(a, x) },
              else_branch = e () => (float[2] v) {
                v = If (c) <then_branch = tt () => (float[2] p) { p = Relu(a) },
                            else_branch = ee () => (float[2] q) { q = Abs(x) }> }>
}"""


def _graph(edges: list[tuple[int, int]], count: int) -> ir.Graph:
    """One Sum a node, reading a common input and the outputs of the nodes that edges come from."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    nodes = [ir.node("Sum", [x, *([None] * count)], name=f"n{i}") for i in range(count)]
    for source, target in edges:
        nodes[target].replace_input_with(source + 1, nodes[source].outputs[0])
    return ir.Graph([x], [], nodes=nodes, name="g", opset_imports={"": 21})


@st.composite
def orders(draw: st.DrawFn) -> tuple[int, list[int], list[tuple[int, int]]]:
    """A number of nodes, an order that holds among them, and pairs of nodes."""
    count = draw(st.integers(1, 12))
    node = st.integers(0, count - 1)
    return count, draw(st.permutations(range(count))), draw(st.lists(st.tuples(node, node)))


@given(orders())
def test_topological_puts_each_node_after_what_it_reads(case: tuple[int, list[int], list[tuple[int, int]]]) -> None:
    count, rank, pairs = case
    edges = [(a, b) if rank[a] < rank[b] else (b, a) for a, b in pairs if a != b]
    order = [int((node.name or "")[1:]) for node in topological(_graph(edges, count))]
    assert sorted(order) == list(range(count))
    assert all(order.index(a) < order.index(b) for a, b in edges)
    if all(a < b for a, b in edges):
        assert order == list(range(count))


def test_topological_keeps_the_nodes_of_a_cycle() -> None:
    order = [node.name for node in topological(_graph([(0, 1), (1, 0), (2, 1)], 3))]
    assert order == ["n2", "n0", "n1"]


def test_topological_sees_what_subgraphs_read() -> None:
    graph = ir.from_onnx_text(CONTROL).graph
    nodes = list(graph)
    unsorted = ir.GraphView(graph.inputs, graph.outputs, nodes=list(reversed(nodes)))
    assert [n.op_type for n in unsorted] == ["If", "Neg"]
    assert [n.op_type for n in topological(unsorted)] == ["Neg", "If"]  # type: ignore[arg-type]


def test_reads_of_control_flow() -> None:
    node = list(ir.from_onnx_text(CONTROL).graph)[1]
    assert {value.name for value in reads(node)} == {"c", "a", "x", "u", "v", "p", "q"}


def test_ancestors_are_what_it_takes() -> None:
    graph = _graph([(0, 1), (1, 3), (2, 4), (3, 4)], 5)
    nodes = list(graph)
    assert {n.name for n in ancestors([nodes[3].outputs[0]])} == {"n0", "n1", "n3"}
    assert {n.name for n in ancestors([nodes[4].outputs[0], graph.inputs[0]])} == {"n0", "n1", "n2", "n3", "n4"}


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1.5, 2.0}", np.array([1.5, 2], np.float32)),
        ("value_float = 1.5", np.array(1.5, np.float32)),
        ("value_floats = [1.5, 2.0]", np.array([1.5, 2], np.float32)),
        ("value_int = 7", np.array(7, np.int64)),
        ("value_ints = [7, -1]", np.array([7, -1], np.int64)),
        ('value_string = "ab"', np.array(b"ab")),
        ('value_strings = ["ab", "c"]', np.array([b"ab", b"c"])),
    ],
)
def test_constant_array_reads_every_form_as_the_runtime_does(attribute: str, expected: np.ndarray) -> None:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> g () => (k) {{ k = Constant<{attribute}>() }}')
    found = constant_array(model.graph.outputs[0])
    assert found is not None
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_constant_array_of_what_is_no_constant() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [onnx.helper.make_tensor_value_info("x", 1, [2])],
        [onnx.helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    model = ir.from_proto(onnx.helper.make_model(graph))
    assert constant_array(None) is None
    assert constant_array(model.graph.inputs[0]) is None
    assert constant_array(model.graph.outputs[0]) is None
    assert constant_tensor(ir.node("Constant", []).outputs[0]) is None


def test_constant_array_of_initializers_of_types_that_numpy_lacks() -> None:
    for dtype in (ir.DataType.INT4, ir.DataType.UINT2, ir.DataType.BFLOAT16):
        tensor = ir.Tensor(np.array([1, 0, 1], dtype.numpy()), dtype=dtype, name="w")
        value = ir.Value(name="w", const_value=tensor)
        ir.Graph([], [], nodes=[], initializers=[value], name="g")
        found = constant_array(value)
        assert found is not None
        assert found.astype(np.float32).tolist() == [1, 0, 1]
