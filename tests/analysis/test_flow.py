"""The main graph in numbers: what depends on what, what carries data, where the weights are."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.analysis.flow import Flow, flow
from onnxopt.model import Model, load

HEAD = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3, "org.example": 1]>'


def parsed(text: str, head: str = HEAD) -> Model:
    return load(onnx.parser.parse_model(f"{head} {text}"))


def names(data: Flow, which: list[bool]) -> set[str | None]:
    return {value.name for value, holds in zip(data.values, which, strict=True) if holds}


def test_numbers() -> None:
    data = flow(
        parsed("""g (float[4] x, bool c) => (float[2] y, float[2] z) <float[2] w = {1, 2}>
        { y, a = Split <num_outputs = 2> (x)
          z = If (c) <then_branch = t () => (float[2] p) { p = Mul (a, w) },
                      else_branch = e () => (float[2] q) { q = Identity (y) }> }""")
    )
    assert [value.name for value in data.values] == ["x", "c", "y", "a", "z"]
    assert data.makers == [-1, -1, 0, 0, 1]
    assert data.outputs == [range(2, 4), range(4, 5)]
    assert [sorted(each) for each in data.needs] == [[0], [1, 2, 3]] == [sorted(each) for each in data.data]


def test_weights_that_are_listed_as_inputs_are_none() -> None:
    data = flow(parsed("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }"))
    assert [value.name for value in data.values] == ["x", "y"]


def test_sizes_carry_no_data() -> None:
    data = flow(
        parsed("""g (float[N] x, bool c) => (float[N] y, float[N] f)
        { s = Shape (x)  t = Cast <to = 1> (s)  k = Constant <value_float = 1.0> ()  m = Neg (k)  y = Add (x, t)
          o = If (c) <then_branch = a () => (int64[1] p) { p = Shape (x) },
                      else_branch = b () => (int64[1] q) { q = Size (x) }>
          f = Add (t, m) }""")
    )
    assert names(data, data.carries) == {"x", "c", "y", "o"}
    assert names(data, data.fed) == {"x", "c", "s", "t", "y", "o", "f"}
    at = next(at for at, node in enumerate(data.nodes) if node.op_type == "If")
    assert [data.values[value].name for value in data.data[at]] == ["c"]
    assert {data.values[value].name for value in data.needs[at]} == {"c", "x"}


def test_an_operator_that_is_called_shape_elsewhere_is_another() -> None:
    data = flow(parsed("g (float[2] x) => (float[2] y) { y = org.example.Shape (x) }"))
    assert names(data, data.carries) == {"x", "y"}


@pytest.mark.parametrize(
    ("body", "tensors"),
    [
        ("s = SequenceConstruct (x, x)  y = ConcatFromSequence <axis = 0> (s)", {"y"}),
        ("s = SequenceConstruct (x)  t = Identity (s)  i = Constant <value_int = 0> ()  y = SequenceAt (t, i)",
         {"i", "y"}),
        ("s = SplitToSequence (x)  t = org.example.F (s)  y = Abs (x)", {"y"}),
        ("s = Optional (x)  t = OptionalGetElement (s)  y = Abs (t)", {"y"}),
        ("s = org.example.f (x)  y = Abs (x)", {"y"}),
        ("s = org.example.F (x)  y = ai.onnx.ml.Normalizer (s)", {"s", "y"}),
        ("s = ai.onnx.ml.ZipMap (x)  y = Abs (x)", {"y"}),
    ],
)  # fmt: skip
def test_what_may_be_no_tensor(body: str, tensors: set[str]) -> None:
    function = '<domain: "org.example", opset_import: ["": 21]> f (a) => (b) { b = SequenceConstruct (a) }'
    data = flow(parsed(f"g (float[2] x) => (float[N] y) {{ {body} }} {function}"))
    assert names(data, data.tensor) == {"x"} | tensors


def test_what_values_are_declared_to_be_counts() -> None:
    data = flow(
        parsed("""g (float[2] x) => (float[2] y) <seq(float[2]) s, float[2] t>
        { s = org.example.F (x)  o = Optional (x)  t = OptionalGetElement (o)  y = Abs (t) }""")
    )
    assert names(data, data.tensor) == {"x", "t", "y"}


def _with_weights(nodes: list[ir.Node], weights: list[ir.Value], x: ir.Value) -> Flow:
    graph = ir.Graph([x], nodes[-1].outputs, nodes=nodes, initializers=weights, name="g", opset_imports={"": 21})
    return flow(Model(ir.Model(graph, ir_version=10)))


@pytest.mark.parametrize(
    ("op", "shape", "dtype", "weighs"),
    [
        ("MatMul", (4, 3), np.float32, True), ("MatMul", (4, 1), np.float32, True), ("Add", (4, 1), np.float32, False),
        ("Add", (1, 4, 3), np.float32, True), ("Mul", (4,), np.float32, False), ("Mul", (), np.float32, False),
        ("Add", (4, 3), np.int64, False), ("Where", (4, 3), np.bool_, False), ("MatMul", (4, 3), np.int8, True),
    ],
)  # fmt: skip
def test_what_counts_as_a_weight_matrix(op: str, shape: tuple[int, ...], dtype: type, weighs: bool) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="w", const_value=ir.Tensor(np.ones(shape, dtype)))
    assert _with_weights([ir.node(op, [x, weight])], [weight], x).weighs == [weighs]


def test_bytes_of_a_shared_weight_count_once() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="w", const_value=ir.Tensor(np.ones((4, 4), np.float32)))
    first = ir.node("MatMul", [x, weight])
    data = _with_weights([first, ir.node("MatMul", [first.outputs[0], weight])], [weight], x)
    assert data.bytes == [64, 0]
    assert data.weighs == [True, True]


def test_weights_of_bodies_count_for_their_node() -> None:
    data = flow(
        parsed("""g (bool c, float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 2, 3, 4}>
        { y = If (c) <then_branch = t () => (float[1,2] p) { p = MatMul (x, w) },
                      else_branch = e () => (float[1,2] q) <float[2,2] v = {1, 2, 3, 4}> { q = MatMul (x, v) }> }""")
    )
    assert (data.bytes, data.weighs) == ([32], [True])
