"""What is constant behind operators that compute: element by element, over windows, along axes."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxopt.analysis.axes.patterns import Given, Open, Pattern, effect, level, numbers
from onnxopt.analysis.axes.windows import Windows
from onnxopt.analysis.symbols.rules import normalized

_INFERS_SINCE = 7
"""Before this opset BatchNormalization computes the statistics of its input, unless it is told not to."""

_HALF = 16
"""Bits of the narrowest type whose numbers are taken for those that they were cast from, but for rounding."""


@effect(
    "Abs", "Add", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Log", "Max", "Mean", "Min", "Mish", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu",
)  # fmt: skip
def _elementwise(given: Given) -> Pattern:
    """The operator itself, by onnx's own evaluator."""
    patterns = {at: given.pattern(at) for at, value in enumerate(given.node.inputs) if value is not None}
    result = _evaluated(given, {at: pattern.astype(np.float32) for at, pattern in patterns.items()})
    for pattern in patterns.values():
        result = np.where(np.isnan(pattern), np.nan, result)
    return np.where(np.isinf(result), np.nan, result)


@effect("Mul", starts=True)
def _product(given: Given) -> Pattern:
    """What is multiplied with 0 is 0, whatever it is."""
    left, right = given.pattern(0), given.pattern(1)
    with np.errstate(over="ignore", invalid="ignore"):
        result = (left.astype(np.float32) * right.astype(np.float32)).astype(np.float64)
    result = np.where((left == 0) | (right == 0), 0.0, result)
    return np.where(np.isinf(result) | np.isinf(left) | np.isinf(right), np.nan, result)


@effect("Cast")
def _cast(given: Given) -> Pattern:
    dtype = ir.DataType(given.known.integer("to", 0))
    source = given.known.fact(0).dtype
    if not dtype.is_floating_point() or dtype.bitwidth < _HALF or not (source and source.is_floating_point()):
        raise Open("no number as it was")
    with np.errstate(over="ignore"):
        result = given.pattern(0).astype(dtype.numpy()).astype(np.float64)
    return np.where(np.isinf(result), np.nan, result)


@effect("BatchNormalization", starts=True)
def _normalized(given: Given) -> Pattern:
    x = given.pattern(0)
    parts = [given.constant(index) for index in range(1, 5)]
    used = any(value.uses() or value.is_graph_output() for value in given.node.outputs[1:])
    trains = given.known.integer("training_mode", 0) or given.known.opset < _INFERS_SINCE
    if used or trains or not given.known.integer("spatial", 1) or x.ndim < 2 or any(part is None for part in parts):
        raise Open("statistics that are computed")
    scale, shift, mean, variance = (_along(part, x.ndim) for part in parts)
    spread = np.sqrt(variance + given.node.attributes.get_float("epsilon", 1e-5))
    return np.where(scale == 0, shift, (x - mean) / spread * scale + shift)


@effect("InstanceNormalization", starts=True)
def _centred(given: Given) -> Pattern:
    """What is the same at all places is 0 without its mean."""
    x, parts = given.pattern(0), (given.constant(1), given.constant(2))
    if any(part is None for part in parts):
        raise Open("scales that are computed")
    scale, shift = (_along(part, x.ndim) for part in parts)
    flat = ~np.isnan(level(x, range(2, x.ndim)))
    return np.where(flat | (scale == 0), shift, np.nan)


def _along(part: npt.NDArray[Any] | None, rank: int) -> Pattern:
    """A vector of one number a channel, broadcast against [N, C, ...]."""
    assert part is not None
    found: Pattern = part.astype(np.float64).reshape((1, -1) + (1,) * (rank - 2))
    return found


@effect("MaxPool")
def _largest(given: Given) -> list[Pattern]:
    """What lies beyond the border is never the largest."""
    x = given.pattern(0)
    return [level(x, range(2, x.ndim))]


@effect("AveragePool")
def _average(given: Given) -> Pattern:
    x = given.pattern(0)
    windows = Windows.of(given.node, given.node.attributes["kernel_shape"].as_ints())
    rounded_up = given.known.integer("ceil_mode", 0) != 0
    flat = level(x, range(2, x.ndim))
    if not rounded_up and not (windows.padded and given.known.integer("count_include_pad", 0)):
        return flat
    zero = np.where(flat == 0, 0.0, np.nan)
    if rounded_up:
        return zero
    try:
        sizes = numbers(given.shape(0)[2:])
        wide = given.stretched(x, 0, range(2, x.ndim))
    except Open:
        return zero
    total = np.zeros(())
    for _, view in windows.views(wide, sizes):
        total = total + view
    return total / prod(windows.kernel)


@effect("LpPool", "GlobalLpPool")
def _norm(given: Given) -> Pattern:
    x = given.pattern(0)
    return np.where(level(x, range(2, x.ndim)) == 0, 0.0, np.nan)


@effect("GlobalAveragePool")
def _mean_of_all(given: Given) -> Pattern:
    x = given.pattern(0)
    found: Pattern = x.mean(tuple(range(2, x.ndim)), keepdims=True)
    return found


@effect("GlobalMaxPool")
def _largest_of_all(given: Given) -> Pattern:
    x = given.pattern(0)
    found: Pattern = x.max(tuple(range(2, x.ndim)), keepdims=True)
    return found


_REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "ReduceMax": np.max, "ReduceMean": np.mean, "ReduceMin": np.min, "ReduceSum": np.sum,
}  # fmt: skip


@effect("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
def _reduced(given: Given) -> Pattern:
    x, known = given.pattern(0), given.known
    listed = known.numbers(1, "axes") if known.given(1, "axes") else []
    if listed is None:
        raise Open("reduced over axes that are not known")
    if not listed and known.integer("noop_with_empty_axes", 0):
        return x
    places = {normalized(place, x.ndim) for place in listed} or set(range(x.ndim))
    if given.node.op_type == "ReduceSum":
        x = given.stretched(x, 0, places)
    found: Pattern = _REDUCTIONS[given.node.op_type](x, axis=tuple(places), keepdims=bool(known.integer("keepdims", 1)))
    return found


@effect("Resize", "Upsample")
def _resized(given: Given) -> Pattern:
    """Between equal numbers every way to interpolate finds the same; beyond the border one makes up its own."""
    if given.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Open("numbers beyond the border")
    x, value = given.pattern(0), given.node.inputs[0]
    before = given.channels.of(value) if value is not None else None
    behind = given.channels.of(given.node.outputs[0])
    if before is None or behind is None:
        raise Open("a rank is unknown")
    pairs = enumerate(zip(before, behind, strict=True))
    return level(x, [place for place, (old, new) in pairs if old is not new])


def _evaluated(given: Given, arrays: Mapping[int, npt.NDArray[np.float32]]) -> Pattern:
    node = given.node
    names = [f"x{index}" if index in arrays else "" for index in range(len(node.inputs))]
    proto = onnx.helper.make_node(node.op_type, names, ["y"])
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = onnx.helper.make_graph([proto], "one", inputs, [output])
    whole = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", given.known.opset)])
    try:
        with np.errstate(all="ignore"):
            (result,) = ReferenceEvaluator(whole).run(None, {f"x{index}": array for index, array in arrays.items()})
    except Exception as error:  # it knows fewer operators and versions than there are, and fails in any way
        raise Open(f"{node.op_type} cannot be evaluated") from error
    found: Pattern = np.asarray(result, np.float64)
    if found.ndim != len(given.shape_out()):
        raise Open("another rank than stated")
    return found
