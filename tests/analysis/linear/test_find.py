"""What is a layer and what is not: biases, subgraphs, reasons, long chains."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.analysis.linear import find_linears, linears
from onnxopt.model import Model, load
from onnxopt.models import builders
from onnxopt.models.builders import Sketch

BIASED = {
    "matmul-bias-after", "matmul-bias-before", "matmul-bias-row", "matmul-bias-scalar", "matmul-bias-one",
    "matmul-bias-read-twice", "matmul-left-bias-column", "matmul-batched-bias", "gemm-left-bias-column",
    "gemm-c-scalar", "gemm-c-one", "gemm-c-vector", "gemm-c-row", "gemm-alpha-beta", "gemm-beta-zero",
    "conv-2d-pointwise", "conv-transpose-3d",
}  # fmt: skip
ADDENDS = {"gemm-left-bias-row", "gemm-c-column", "gemm-c-full", "gemm-c-computed"}


@pytest.mark.parametrize("form", sorted(set(builders.FORMS) - {"matmul-vector", "matmul-left-vector"}))
def test_bias(form: str) -> None:
    (layer,) = linears(load(builders.linear(form)))
    biased = form in BIASED or (form.startswith("conv") and form.endswith("-bias"))
    assert (layer.bias is not None) == biased
    assert (layer.addend is not None) == (form in ADDENDS)
    vector = layer.bias_vector()
    assert (vector is not None) == biased
    assert vector is None or vector.shape == (layer.groups * layer.out_features,)


def test_facts_of_a_convolution() -> None:
    (layer,) = linears(load(builders.linear("conv-2d-strided")))
    geometry = layer.geometry
    assert geometry is not None
    assert (geometry.kernel, geometry.strides, geometry.dilations) == ((3, 2), (2, 1), (1, 2))
    assert (geometry.pads, geometry.auto_pad) == ((0, 1, 2, 0), "NOTSET")
    assert (layer.groups, layer.out_features, layer.in_features, layer.taps) == (1, 6, 4, 6)
    (grouped,) = linears(load(builders.linear("conv-transpose-2d-grouped")))
    assert (grouped.groups, grouped.out_features, grouped.in_features, grouped.taps) == (2, 3, 2, 9)


def unknown_rank(form: str) -> Model:
    """The form behind a Reshape to a shape that only the caller knows: the rank of x is not known."""
    proto = builders.linear(form)
    x = proto.graph.input[0].name
    reshape = helper.make_node("Reshape", [x, "shape"], [f"{x}_reshaped"])
    for node in proto.graph.node:
        node.input[:] = [f"{x}_reshaped" if name == x else name for name in node.input]
    proto.graph.node.insert(0, reshape)
    proto.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [None]))
    del proto.graph.value_info[:]
    return load(proto)


def test_unknown_rank_leaves_only_what_is_certain() -> None:
    (plain,) = linears(unknown_rank("matmul-bias-after"))
    assert plain.bias is not None
    assert plain.can_be_matmul() is None
    for form in ("matmul-bias-row", "matmul-left-bias-column", "matmul-batched-bias"):
        (layer,) = linears(unknown_rank(form))
        assert layer.bias is None
        assert layer.y is layer.node.outputs[0]
    (left,) = linears(unknown_rank("matmul-left"))
    assert "rank" in (left.can_be_matmul() or "")


@pytest.mark.parametrize("known", [True, False])
def test_a_bias_that_gives_a_vector_another_axis_is_none(known: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", [4])
    if not known:
        x = sketch.node("Reshape", x, sketch.input("shape", [None], TensorProto.INT64))
    y = sketch.node("MatMul", x, sketch.random("w", 4, 5))
    sketch.output(sketch.node("Add", y, sketch.random("b", 1, 5), outputs=["y"]), None)
    (layer,) = linears(load(sketch.model()))
    assert layer.bias is None


def test_product_that_others_see_has_no_bias() -> None:
    proto = builders.linear("matmul-bias-after")
    product = next(node for node in proto.graph.node if node.op_type == "MatMul").output[0]
    proto.graph.output.append(helper.make_tensor_value_info(product, TensorProto.FLOAT, ["batch", 3, 5]))
    (layer,) = linears(load(proto))
    assert layer.bias is None


def test_one_output_feature_does_not_take_a_wide_bias() -> None:
    sketch = Sketch()
    y = sketch.node("MatMul", sketch.input("x", ["batch", 4]), sketch.random("w", 4, 1))
    sketch.output(sketch.node("Add", y, sketch.random("b", 5), outputs=["y"]), None)
    (layer,) = linears(load(sketch.model()))
    assert layer.bias is None


def test_layers_of_subgraphs() -> None:
    model = load(builders.RARE["if-capturing"]())
    layers = linears(model)
    assert len(layers) == 3
    outer = next(layer for layer in layers if layer.node.graph is model.graph)
    assert {user.graph for user, _ in outer.weight.sharers} != {model.graph}
    assert outer.weight.is_shared
    assert [layer.weight.is_shared for layer in layers].count(False) == 1


def test_old_files_list_weights_as_inputs() -> None:
    (layer,) = linears(load(builders.linear("matmul", "as-input")))
    assert layer.weight.overridable
    (layer,) = linears(load(builders.linear("matmul", "raw")))
    assert not layer.weight.overridable


def product_of(draw: Callable[[Sketch], tuple[str, ...]], op: str = "MatMul") -> onnx.ModelProto:
    sketch = Sketch(opset=21, ir_version=10)
    sketch.output(sketch.node(op, *draw(sketch), outputs=["y"]), None)
    return sketch.model()


REASONS: dict[str, tuple[str, Callable[[Sketch], tuple[str, ...]], str]] = {
    "activations": (
        "MatMul", lambda s: (s.input("x", [4, 4]), s.node("Relu", s.input("z", [4, 4]))), "operands are activations"
    ),
    "constants": ("MatMul", lambda s: (s.random("a", 2, 2), s.random("b", 2, 2)), "both operands are constants"),
    "computed": (
        "Gemm", lambda s: (s.input("x", [4, 4]), s.node("Relu", s.random("w", 4, 4))), "is computed by Relu"
    ),
    "from chance": (
        "MatMul", lambda s: (s.input("x", [4, 4]), s.node("RandomNormal", shape=[4, 4])), "operands are activations"
    ),
    "integers": (
        "MatMul", lambda s: (s.input("x", [4, 4], TensorProto.INT32), s.weight("w", np.ones((4, 4), np.int32))), "INT32"
    ),
    "weight given": ("Conv", lambda s: (s.input("x", [1, 4, 7]), s.input("w", [6, 4, 3])), "is an input of the graph"),
    "conv of activations": (
        "Conv", lambda s: (s.input("x", [1, 4, 7]), s.node("Relu", s.input("w", [6, 4, 3]))), "is computed by Relu"
    ),
    "constant image": ("Conv", lambda s: (s.random("x", 1, 4, 7), s.random("w", 6, 4, 3)), "operands are constants"),
    "empty": ("MatMul", lambda s: (s.input("x", [4, 0]), s.random("w", 0, 3)), "is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_declined_with_reason(name: str) -> None:
    op, draw, why = REASONS[name]
    layers, declined = find_linears(load(product_of(draw, op)))
    assert layers == []
    assert why in declined[0].why
    assert declined[0].node == f"{op}_node"


def test_other_domains_are_not_looked_at() -> None:
    sketch = Sketch()
    sketch.domains["custom"] = 1
    sketch.output(sketch.node("MatMul", sketch.input("x", [4, 4]), sketch.random("w", 4, 4), domain="custom"), None)
    assert find_linears(load(sketch.model())) == ([], [])


def chained(steps: int, layers: int) -> onnx.ModelProto:
    """A chain of that many Identity nodes behind a weight, with layers reading along its whole length."""
    nodes, x, every = [], "x", steps // layers
    for count in range(1, steps + 1):
        nodes.append(helper.make_node("Identity", [f"w{count - 1}"], [f"w{count}"], name=f"identity_{count}"))
        if count % every == 0:
            nodes.append(helper.make_node("MatMul", [x, f"w{count}"], [f"y{count}"], name=f"matmul_{count}"))
            x = f"y{count}"
    graph = helper.make_graph(
        nodes,
        "chained",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w0")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def test_long_chains() -> None:
    model = load(chained(20_000, 2))
    first, last = linears(model)
    assert len(last.weight.steps) == 20_000
    assert np.array_equal(first.matrix(), last.matrix())
    assert {user for user, _ in first.weight.sharers} == {first.node, last.node}
    model.apply(last.replaced(last.matrix()))
    assert linears(model)[1].weight.steps == ()
    assert sum(node.op_type == "Identity" for node in model.nodes()) == 10_000


def test_time_is_linear_in_nodes() -> None:
    def seconds(size: int) -> float:
        model = load(chained(size, size))
        start = time.perf_counter()
        assert len(linears(model)) == size
        return time.perf_counter() - start

    # 16 times the nodes: a quadratic search would take 256 times as long.
    assert seconds(8000) < 64 * max(seconds(500), 0.005)


def test_reading_gives_mappings_back(tmp_path: Path) -> None:
    onnx.save(builders.ON_DISK["external-gemm-trans-b"](tmp_path), tmp_path / "model.onnx")
    (layer,) = linears(load(tmp_path / "model.onnx"))
    matrix = layer.matrix()
    tensor = layer.weight.source.root.tensor
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    matrix += 1
    assert not np.array_equal(layer.matrix(), matrix)
    looking = tensor.numpy()
    assert np.array_equal(layer.matrix() + 1, matrix)
    assert np.array_equal(looking[None] + 1, matrix)
