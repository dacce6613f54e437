"""Quantized operators: channels are those of the floats that they stand for."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from onnxopt.analysis.axes import Channels, channel_ids, groups, lost_to
from onnxopt.context import RunContext
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.passing import parts

Check = Callable[..., Channels]
MICROSOFT = "com.microsoft"
MODELS = Path(__file__).parents[3] / "models"
INPUTS, WIDTH = 3, 12


class Drawn(Sketch):
    """A sketch with quantized tensors."""

    def __init__(self, opset: int = 21) -> None:
        super().__init__(opset=opset, ir_version=10)
        self.domains[MICROSOFT] = 1

    def codes(self, name: str, *shape: int, dtype: Any = np.int8) -> str:
        """A weight of integers."""
        info = np.iinfo(dtype)
        return self.weight(name, self.rng.integers(max(info.min, -120), min(info.max, 120), shape).astype(dtype))

    def scale(self, name: str, *shape: int, by: float = 0.02) -> str:
        """Positive scales."""
        return self.weight(name, ((1 + self.rng.random(shape, np.float32)) * by).astype(np.float32))

    def point(self, name: str, value: int = 117, dtype: Any = np.uint8) -> str:
        """A zero point."""
        return self.weight(name, np.asarray(value, dtype))

    def quantized(self, x: str, name: str = "x") -> tuple[str, str, str]:
        """A tensor in 8 bits, its scale and its zero point."""
        scale, zero = self.scale(f"{name}.scale", by=0.05), self.point(f"{name}.zero")
        return self.node("QuantizeLinear", x, scale, zero), scale, zero

    def microsoft(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node of ONNX Runtime's own."""
        return self.node(op, *inputs, domain=MICROSOFT, **attributes)


Middle = Callable[[Drawn, str], str]


def _images(middle: Middle, opset: int = 21, last: int = WIDTH, images: int = 4) -> onnx.ModelProto:
    """A convolution to 12 channels, what is tested, a convolution."""
    sketch = Drawn(opset)
    x = sketch.input("x", ("batch", INPUTS, 6, 6))
    x = sketch.node("Conv", x, sketch.random("first", WIDTH, INPUTS, 1, 1), sketch.random("first.bias", WIDTH))
    x = middle(sketch, x)
    x = sketch.node("Conv", x, sketch.random("last", 4, last, 1, 1))
    sketch.output(x, ("batch", 4, None, None))
    return sketch.model()


def _rows(middle: Middle, opset: int = 21, last: int = WIDTH) -> onnx.ModelProto:
    """A product with 12 columns, what is tested, a product."""
    sketch = Drawn(opset)
    x = sketch.input("x", ("batch", 5, INPUTS))
    x = sketch.node("MatMul", x, sketch.random("first", INPUTS, WIDTH))
    x = middle(sketch, x)
    sketch.output(sketch.node("MatMul", x, sketch.random("last", last, 4)), ("batch", 5, 4))
    return sketch.model()


def _feeds(proto: onnx.ModelProto) -> dict[str, Any]:
    shape = [dim.dim_value or 2 for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(1).normal(size=shape).astype(np.float32)}


def _units(channels: Channels) -> list[int]:
    assert lost_to(channels, "needs-rule") == 0
    found = groups(channels)
    assert all(group.exact for group in found)
    return sorted(len(group.units) for group in found)


def _dequantized(sketch: Drawn, x: str, scale: str, zero: str) -> str:
    return sketch.node("DequantizeLinear", x, scale, zero)


def _qlinear_conv(sketch: Drawn, x: str, rows: int = 8, groups: int = 1, *, last: bool = False) -> str:
    x, scale, zero = sketch.quantized(sketch.node("Transpose", x, perm=[0, 2, 3, 1]) if last else x)
    weight = sketch.codes("weight", rows, WIDTH // groups, 3, 3)
    encoded = [sketch.scale("weight.scale", rows), sketch.weight("weight.zero", np.zeros(rows, np.int8))]
    out = [sketch.scale("y.scale", by=0.5), sketch.point("y.zero", 100)]
    bias = sketch.codes("bias", rows, dtype=np.int32)
    inputs = [x, scale, zero, weight, *encoded, *out, bias]
    attributes = {"group": groups, "pads": [1, 1, 1, 1]}
    if last:
        x = sketch.microsoft("QLinearConv", *inputs, channels_last=1, **attributes)
        x = sketch.node("Transpose", x, perm=[0, 3, 1, 2])
    else:
        x = sketch.node("QLinearConv", *inputs, **attributes)
    return _dequantized(sketch, x, *out)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("rows", "groups_", "units"), [(8, 1, [8, 12]), (12, 12, [12]), (6, 2, [3, 6]), (12, 6, [6])])
def test_qlinear_conv(rows: int, groups_: int, units: list[int], last: bool, check: Check) -> None:
    proto = _images(lambda sketch, x: _qlinear_conv(sketch, x, rows, groups_, last=last), last=rows)
    assert _units(check(proto, _feeds(proto))) == units


@pytest.mark.parametrize(("rows", "groups_", "units"), [(8, 1, [8, 12]), (12, 12, [12]), (6, 2, [3, 6])])
def test_dynamic_quantization_and_conv_integer(rows: int, groups_: int, units: list[int], check: Check) -> None:
    def middle(sketch: Drawn, x: str) -> str:
        names = [sketch.fresh(each) for each in ("codes", "scale", "zero")]
        sketch.node("DynamicQuantizeLinear", x, outputs=names)
        weight = sketch.codes("weight", rows, WIDTH // groups_, 3, 3)
        zero = sketch.weight("weight.zero", np.asarray(3, np.int8))
        x = sketch.node("ConvInteger", names[0], weight, names[2], zero, group=groups_)
        x = sketch.node("Mul", sketch.node("Cast", x, to=TensorProto.FLOAT), names[1])
        return sketch.node("Add", x, sketch.random("bias", 1, rows, 1, 1))

    proto = _images(middle, last=rows)
    assert _units(check(proto, _feeds(proto))) == units


def _integers(sketch: Drawn, x: str) -> str:
    names = [sketch.fresh(each) for each in ("codes", "scale", "zero")]
    sketch.node("DynamicQuantizeLinear", x, outputs=names)
    zero = sketch.codes("weight.zero", 7)
    x = sketch.node("MatMulInteger", names[0], sketch.codes("weight", WIDTH, 7), names[2], zero)
    return sketch.node("Mul", sketch.node("Cast", x, to=TensorProto.FLOAT), names[1])


def _qlinear_matmul(sketch: Drawn, x: str) -> str:
    weight = [sketch.codes("weight", WIDTH, 7), sketch.scale("weight.scale", 7), sketch.codes("weight.zero", 7)]
    out = [sketch.scale("y.scale", by=0.5), sketch.point("y.zero", 100)]
    return _dequantized(sketch, sketch.node("QLinearMatMul", *sketch.quantized(x), *weight, *out), *out)


def _dynamic_matmul(sketch: Drawn, x: str) -> str:
    weight = [sketch.codes("weight", WIDTH, 7), sketch.scale("weight.scale", 7), sketch.codes("weight.zero", 7)]
    return sketch.microsoft("DynamicQuantizeMatMul", x, *weight, sketch.random("bias", 7))


def _matmul_to_float(sketch: Drawn, x: str) -> str:
    x, scale, zero = sketch.quantized(x)
    weight, by, points = sketch.codes("weight", WIDTH, 7), sketch.scale("by", 7), sketch.codes("points", 7)
    bias = sketch.random("bias", 7)
    return sketch.microsoft("MatMulIntegerToFloat", x, weight, scale, by, zero, points, bias)


def _qgemm(sketch: Drawn, x: str, *, turned: bool = False, floats: bool = False) -> str:
    rows = sketch.node("Reshape", x, sketch.weight("flat", np.array([-1, WIDTH])))
    weight = sketch.codes("weight", *((7, WIDTH) if turned else (WIDTH, 7)))
    encoded = [sketch.scale("weight.scale", 7), sketch.weight("weight.zero", np.zeros(7, np.int8))]
    bias = sketch.codes("bias", 7, dtype=np.int32)
    out = [] if floats else [sketch.scale("y.scale", by=0.5), sketch.point("y.zero", 100)]
    y = sketch.microsoft("QGemm", *sketch.quantized(rows), weight, *encoded, bias, *out, transB=int(turned))
    y = y if floats else _dequantized(sketch, y, *out)
    return sketch.node("Reshape", y, sketch.weight("back", np.array([-1, 5, 7])))


@pytest.mark.parametrize(
    "middle",
    [
        _integers,
        _qlinear_matmul,
        _dynamic_matmul,
        _matmul_to_float,
        _qgemm,
        lambda sketch, x: _qgemm(sketch, x, turned=True),
        lambda sketch, x: _qgemm(sketch, x, floats=True),
    ],
)
def test_products(middle: Middle, check: Check) -> None:
    proto = _rows(middle, last=7)
    assert _units(check(proto, _feeds(proto))) == [7, WIDTH]


def _combined(op: str) -> Middle:
    def middle(sketch: Drawn, x: str) -> str:
        a = sketch.quantized(x)
        b = sketch.codes("constant", WIDTH, 1, 1, dtype=np.uint8), sketch.scale("b.scale"), sketch.point("b.zero", 60)
        out = [sketch.scale("y.scale", by=0.1), sketch.point("y.zero", 50)]
        return _dequantized(sketch, sketch.microsoft(op, *a, *b, *out), *out)

    return middle


def _unary(op: str, **attributes: Any) -> Middle:
    def middle(sketch: Drawn, x: str) -> str:
        out = [sketch.scale("y.scale"), sketch.point("y.zero", 50)]
        return _dequantized(sketch, sketch.microsoft(op, *sketch.quantized(x), *out, **attributes), *out)

    return middle


def _pooled_last(op: str, **attributes: Any) -> Middle:
    def middle(sketch: Drawn, x: str) -> str:
        x = _unary(op, channels_last=1, **attributes)(sketch, sketch.node("Transpose", x, perm=[0, 2, 3, 1]))
        return sketch.node("Transpose", x, perm=[0, 3, 1, 2])

    return middle


@pytest.mark.parametrize(
    "middle",
    [
        _combined("QLinearAdd"),
        _combined("QLinearMul"),
        _unary("QLinearSigmoid"),
        _unary("QLinearLeakyRelu", alpha=0.1),
        _unary("QLinearAveragePool", kernel_shape=[2, 2]),
        _unary("QLinearGlobalAveragePool"),
        _pooled_last("QLinearAveragePool", kernel_shape=[2, 2]),
        _pooled_last("QLinearGlobalAveragePool"),
        _unary("QLinearSoftmax", axis=3, opset=13),
    ],
)
def test_elementwise_and_pooling(middle: Middle, check: Check) -> None:
    proto = _images(middle)
    assert _units(check(proto, _feeds(proto))) == [WIDTH]


def test_qlinear_add_makes_a_residual_stream(check: Check) -> None:
    def middle(sketch: Drawn, x: str) -> str:
        a = sketch.quantized(x)
        b = sketch.quantized(sketch.node("Conv", x, sketch.random("branch", WIDTH, WIDTH, 1, 1)), "b")
        out = [sketch.scale("y.scale", by=0.1), sketch.point("y.zero", 50)]
        return _dequantized(sketch, sketch.microsoft("QLinearAdd", *a, *b, *out), *out)

    proto = _images(middle)
    (group,) = groups(check(proto, _feeds(proto)))
    assert (len(group.units), group.kind) == (WIDTH, "residual")


def test_qlinear_concat(check: Check) -> None:
    def middle(sketch: Drawn, x: str) -> str:
        a = sketch.quantized(x)
        b = sketch.quantized(sketch.node("Conv", x, sketch.random("branch", 5, WIDTH, 1, 1)), "b")
        out = [sketch.scale("y.scale", by=0.1), sketch.point("y.zero", 50)]
        return _dequantized(sketch, sketch.microsoft("QLinearConcat", *out, *a, *b, axis=1), *out)

    proto = _images(middle, last=WIDTH + 5)
    assert _units(check(proto, _feeds(proto))) == [5, WIDTH]


def test_a_distribution_over_channels_keeps_them() -> None:
    channels = channel_ids(load(_images(_unary("QLinearSoftmax", axis=1, opset=13))))
    assert not groups(channels)
    assert lost_to(channels, "needs-rule") == 0


@pytest.mark.parametrize(("opset", "units"), [(12, []), (13, [WIDTH])])
def test_softmax_of_an_older_opset_is_one_over_all_axes_behind(opset: int, units: list[int]) -> None:
    assert _units(channel_ids(load(_images(_unary("QLinearSoftmax", axis=0, opset=opset))))) == units


@pytest.mark.parametrize("domain", ["", MICROSOFT])
def test_encoding_by_axis(domain: str, check: Check) -> None:
    """A weight with a scale for each of its rows, activations with one each channel."""

    def middle(sketch: Drawn, x: str) -> str:
        by, points = sketch.scale("by", WIDTH, by=0.05), sketch.codes("points", WIDTH)
        x = sketch.node("QuantizeLinear", x, by, points, domain=domain, axis=1)
        x = sketch.node("DequantizeLinear", x, by, points, domain=domain, axis=-3 if not domain else 1)
        codes, scale = sketch.codes("weight", 7, WIDTH, 3, 3), sketch.scale("weight.scale", 7)
        zero = sketch.weight("weight.zero", np.zeros(7, np.int8))
        weight = sketch.node("DequantizeLinear", codes, scale, zero, domain=domain, axis=0)
        bias = sketch.codes("bias", 7, dtype=np.int32), sketch.scale("bias.scale", 7)
        return sketch.node("Conv", x, weight, sketch.node("DequantizeLinear", *bias, axis=0))

    proto = _images(middle, last=7)
    found = groups(check(proto, _feeds(proto)))
    assert [len(group.units) for group in found] == [WIDTH, 7]
    assert {group.kind for group in found} == {"conv"}


@pytest.mark.parametrize(
    ("inner", "block", "units"),
    [
        (96, 32, [3, 7]),  # whole blocks
        (80, 32, [1, 2, 7]),  # the last one is short
        (96, 96, [7, 96]),  # one scale for all
    ],
)
@pytest.mark.parametrize("dtype", [TensorProto.INT8, TensorProto.UINT4])
def test_blocks(inner: int, block: int, units: list[int], dtype: int, check: Check) -> None:
    sketch = Drawn()
    x = sketch.node("MatMul", sketch.input("x", ("batch", 5, INPUTS)), sketch.random("first", INPUTS, inner))
    info = np.iinfo(np.int8) if dtype == TensorProto.INT8 else np.iinfo(np.uint8)
    values = sketch.rng.integers(0, 15 if info.min == 0 else 100, (inner, 7))
    points = sketch.rng.integers(0, 15, (-(-inner // block), 7))
    codes = sketch.weight("weight", helper.make_tensor("weight", dtype, values.shape, values.reshape(-1).tolist()))
    scale = sketch.scale("weight.scale", *points.shape)
    zero = sketch.weight("zero", helper.make_tensor("zero", dtype, points.shape, points.reshape(-1).tolist()))
    weight = sketch.node("DequantizeLinear", codes, scale, zero, axis=0, block_size=block)
    sketch.output(sketch.node("MatMul", sketch.node("MatMul", x, weight), sketch.random("last", 7, 4)), [None] * 3)
    proto = sketch.model()
    assert _units(check(proto, _feeds(proto))) == units


@pytest.mark.parametrize(
    ("inner", "points", "units"),
    [
        (96, "", [3, 7]),
        (96, "whole", [3, 7]),
        (128, "packed", [2, 7]),  # a byte holds the zero points of two blocks
        (80, "", [1, 2, 7]),
        (32, "", [7]),  # a single block stays
        (64, "packed", [7]),
        (96, "flat", [7]),
    ],
)
def test_packed_product(inner: int, points: str, units: list[int], check: Check) -> None:
    sketch = Drawn()
    x = sketch.node("MatMul", sketch.input("x", ("batch", 5, INPUTS)), sketch.random("first", INPUTS, inner))
    blocks, rows = -(-inner // 32), 7
    flat = (rows * blocks,) if points == "flat" else (rows, blocks)
    inputs = [x, sketch.codes("weight", rows, blocks, 16, dtype=np.uint8), sketch.scale("scale", *flat)]
    if points == "packed":
        inputs.append(sketch.codes("zero", rows, blocks // 2, dtype=np.uint8))
    elif points == "whole":
        inputs.append(sketch.weight("zero", sketch.rng.integers(0, 15, (rows, blocks)).astype(np.float32)))
    else:
        inputs.append("")
    y = sketch.microsoft(
        "MatMulNBits", *inputs, "", sketch.random("bias", rows), K=inner, N=rows, bits=4, block_size=32
    )
    sketch.output(sketch.node("MatMul", y, sketch.random("last", rows, 4)), [None] * 3)
    proto = sketch.model()
    assert _units(check(proto, _feeds(proto))) == units


@pytest.mark.parametrize(("packed", "points", "units"), [(False, False, [3]), (True, False, [4]), (True, True, [2])])
def test_packed_rows(packed: bool, points: bool, units: list[int], check: Check) -> None:
    """Rows of 96 or 128 columns in blocks of 32, of which zero points are two to a byte."""
    sketch = Drawn()
    width = 128 if packed else 96
    codes = sketch.rng.integers(0, 15, (9, width))
    if packed:
        data = sketch.weight("table", (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8))
    else:
        data = sketch.weight("table", helper.make_tensor("t", TensorProto.UINT4, codes.shape, codes.reshape(-1)))
    inputs = [data, sketch.input("rows", ("batch", 5), TensorProto.INT64), sketch.scale("scale", 9, width // 32)]
    if points:
        inputs.append(sketch.codes("zero", 9, width // 64, dtype=np.uint8))
    y = sketch.microsoft("GatherBlockQuantized", *inputs, block_size=32, bits=4, quantize_axis=1, gather_axis=0)
    sketch.output(sketch.node("MatMul", y, sketch.random("last", width, 4)), [None] * 3)
    feeds = {"rows": np.random.default_rng(1).integers(0, 9, (2, 5))}
    assert _units(check(sketch.model(), feeds)) == units


@pytest.mark.parametrize("middle", [_integers, _dynamic_matmul])
def test_a_range_over_two_axes_that_may_lose_entries(middle: Middle, check: Check) -> None:
    """Removed rows count as little for the range as removed columns do."""
    sketch = Drawn()
    x = sketch.node("MatMul", sketch.random("rows", 8, 5), sketch.input("x", ("batch", 5, INPUTS)))
    x = sketch.node("MatMul", x, sketch.random("columns", INPUTS, WIDTH))
    x = sketch.node("Mul", x, sketch.weight("uneven", np.geomspace(0.01, 9, WIDTH).astype(np.float32)))
    x = middle(sketch, x)
    sketch.output(sketch.node("MatMul", sketch.random("last", 4, 8), x), [None] * 3)
    proto = sketch.model()
    assert _units(check(proto, _feeds(proto))) == [8, WIDTH]


@pytest.mark.parametrize("op", ["DequantizeLinear", "Cast"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_bias_that_only_happens_to_be_that_of_another_layer(
    op: str, behind: bool, check: Check, removing: SimpleNamespace
) -> None:
    """Exporters keep one vector where layers' biases are equal: that binds nothing, whatever is done to it first."""

    def middle(sketch: Drawn, x: str) -> str:
        if op == "Cast":
            made = sketch.node("Cast", sketch.weight("bias", sketch.normal(WIDTH).astype(np.float16)), to=1)
        else:
            scale, points = sketch.scale("by", WIDTH), sketch.weight("points", np.zeros(WIDTH, np.int32))
            made = sketch.node("DequantizeLinear", sketch.codes("bias", WIDTH, dtype=np.int32), scale, points, axis=0)
        for layer in range(3):
            bias = sketch.node("Identity", made) if behind and layer else made
            x = sketch.node("Conv", x, sketch.random(f"weight{layer}", WIDTH, WIDTH, 1, 1), bias)
        return x

    proto = _images(middle)
    channels = check(proto, _feeds(proto))
    assert _units(channels) == [WIDTH] * 4
    found = {group.name: group.units for group in groups(channels)}
    some = removing.without(proto, found["weight1"][:4])
    assert sum(node.op_type == op for node in some.nodes()) == 2
    all_ = removing.without(proto, [unit for layer in range(3) for unit in found[f"weight{layer}"][: layer + 1]])
    made = [node for node in all_.nodes() if node.op_type == op]
    assert sorted(node.inputs[0].shape[0] for node in made) == [9, 10, 11]
    assert {value.name for value in all_.weights()}.isdisjoint({"bias", "by", "points"})


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self._left = [{name: rng.normal(size=shape).astype(np.float32)} for _ in range(2)]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def _counts(channels: Channels) -> Counter[tuple[str, int, int]]:
    """What groups are, how many units they have, and parameters a unit: scales are none."""
    assert lost_to(channels, "needs-rule") == 0
    return Counter((group.kind, len(group.units), group.parameters) for group in groups(channels))


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("layout", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_statically_quantized_model_has_the_groups_of_its_original(
    layout: QuantFormat, by_row: bool, tmp_path: Path, assert_exact: Check
) -> None:
    original, quantized = MODELS / "digits_cnn.onnx", tmp_path / "quantized.onnx"
    options = {"quant_format": layout, "per_channel": by_row}
    quantize_static(original, quantized, _Batches("images", (2, 1, 8, 8)), **options)
    feeds = {"images": np.random.default_rng(3).normal(size=(2, 1, 8, 8)).astype(np.float32)}
    found = assert_exact(onnx.load(quantized), feeds)
    assert _counts(found) == _counts(channel_ids(load(original)))


def _totals(channels: Channels) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for group in groups(channels):
        counts[group.kind] += len(group.units)
    return dict(counts)


@pytest.mark.parametrize(("block", "by"), [(None, 1), (16, 16)])
def test_layers_that_we_quantize_have_the_groups_of_their_originals(block: int | None, by: int) -> None:
    """By column all of them; in blocks, inputs of a layer leave so many at a time, and heads are as large as blocks."""
    model = load(MODELS / "digits_transformer.onnx")
    before = _totals(channel_ids(model))
    for part in parts(QuantizeWeights(bits=8, block_size=block)):
        part.run(model, RunContext(model))
    after = _totals(channel_ids(model))
    assert any(node.op_type == "DequantizeLinear" for node in model.nodes())
    assert after == {kind: count if kind == "heads" else count // by for kind, count in before.items()}
