"""What a node is called, and what lies inside it."""

import onnx_ir as ir
import pytest

from onnxopt.nodes import bodies, inner_graphs, label, with_inner

NESTED = """<ir_version: 10, opset_import: ["": 21]>
g (float[2] x, bool c) => (float[2] y) {
  y = If (c) <then_branch = t () => (float[2] u) { u = Neg(x) },
              else_branch = e () => (float[2] v) {
                v = If (c) <then_branch = tt () => (float[2] p) { p = Relu(x) },
                            else_branch = ee () => (float[2] q) { q = Abs(x) }> }>
}"""


@pytest.mark.parametrize(
    ("name", "outputs", "expected"),
    [("n", ["y"], "n"), ("", ["y"], "y"), (None, ["", "z"], "z"), ("", [""], "Split"), ("", [], "Split")],
)
def test_a_node_is_called_by_its_name_its_output_or_its_operator(
    name: str | None, outputs: list[str], expected: str
) -> None:
    node = ir.Node("", "Split", [], outputs=[ir.Value(name=output) for output in outputs], name=name)
    assert label(node) == expected


def test_what_lies_inside_a_node() -> None:
    node = next(iter(ir.from_onnx_text(NESTED).graph))
    assert [body.name for body in bodies(node)] == ["t", "e"]
    assert sorted(body.name or "" for body in inner_graphs(node)) == ["e", "ee", "t", "tt"]
    assert sorted(inner.op_type for inner in with_inner(node)) == ["Abs", "If", "If", "Neg", "Relu"]


def test_an_attribute_that_a_function_is_given_is_no_body() -> None:
    attribute = ir.RefAttr("then_branch", "branch", ir.AttributeType.GRAPH)
    node = ir.Node("", "If", [], [attribute], num_outputs=1)
    assert list(bodies(node)) == []
    assert list(with_inner(node)) == [node]
