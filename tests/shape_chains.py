"""Random graphs that compute with sizes, built node by node beside the results that the runtime gives for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

INPUTS = {"x": ("a", "b", 4), "y": ("a", "c"), "z": ("c", 3)}
SIZES: tuple[dict[str, int], ...] = ({"a": 2, "b": 3, "c": 5}, {"a": 1, "b": 4, "c": 1}, {"a": 7, "b": 6, "c": 2})
OPSET = 18

_TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Chain:
    """A graph in the making.

    Attributes:
        values: name -> what it is at each of the sizes.
        nodes: in the order in which they came.
        weights: constants that nodes read.
    """

    values: dict[str, list[np.ndarray]] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, kind: str, rank: int | None = None, most: int = 10**9) -> list[str]:
        """Values of a kind (f, i, b) and a rank, of no more elements than `most`."""
        found = []
        for name, arrays in self.values.items():
            fits = all(array.size <= most and (rank is None or array.ndim == rank) for array in arrays)
            if arrays[0].dtype.kind == kind and fits:
                found.append(name)
        return found

    def weight(self, value: Any, dtype: Any = np.int64) -> str:
        """A constant."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def add(self, op: str, inputs: Sequence[str], **attributes: Any) -> str | None:
        """A node, if the runtime can run it at all sizes and nothing becomes large; an input "" says that it cannot."""
        if "" in inputs:
            return None
        name = f"v{len(self.nodes)}"
        node = helper.make_node(op, list(inputs), [name], f"n{len(self.nodes)}", **attributes)
        known = {**{each: [array] * len(SIZES) for each, array in self.weights.items()}, **self.values}
        results = _run(node, [{each: known[each][at] for each in inputs} for at in range(len(SIZES))])
        if results is None or any(result.size > 4096 for result in results):
            return None
        self.nodes.append(node)
        self.values[name] = results
        return name

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """The graph as a model."""
        info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in INPUTS.items()]
        made = [helper.make_tensor_value_info(each, _TYPES[self.values[each][0].dtype.kind],
                [f"{each}_{axis}" for axis in range(self.values[each][0].ndim)]) for each in outputs]  # fmt: skip
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", info, made, weights)
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])


def _run(node: onnx.NodeProto, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray] | None:
    inputs = [helper.make_tensor_value_info(name, _TYPES[array.dtype.kind], [None] * array.ndim)
              for name, array in feeds[0].items()]  # fmt: skip
    graph = helper.make_graph([node], "g", inputs, [helper.make_empty_tensor_value_info(node.output[0])])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])
    try:
        model = onnx.shape_inference.infer_shapes(model)
        session = ort.InferenceSession(model.SerializeToString(), options())
        return [session.run(None, feed)[0] for feed in feeds]
    except Exception:  # the runtime's, of many types
        return None


def options() -> ort.SessionOptions:
    """A silent session without optimizations."""
    made = ort.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = 1
    made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return made


def feeds(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Inputs at some sizes."""
    rng = np.random.default_rng(0)
    shapes = {name: [sizes.get(dim, dim) for dim in dims] for name, dims in INPUTS.items()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def chain(draw: Draw, steps: int) -> Chain:
    """A random graph of so many attempts at a node."""
    made = Chain()
    for name in INPUTS:
        made.values[name] = [feeds(sizes)[name] for sizes in SIZES]
    for _ in range(steps):
        made_before = len(made.nodes)
        draw(st.sampled_from(_STEPS))(made, draw)
        if len(made.nodes) == made_before:
            made.add("Shape", [draw(st.sampled_from(made.of("f")))])
    return made


def _shape(made: Chain, draw: Draw) -> None:
    start = draw(st.sampled_from([None, 0, 1, -1]))
    made.add("Shape", [draw(st.sampled_from(made.of("f")))], **({} if start is None else {"start": start}))


def _entry(made: Chain, draw: Draw) -> None:
    vectors = made.of("i", 1)
    if vectors:
        index = draw(st.sampled_from([0, 1, -1, [0], [1, 0], [-1]]))
        made.add("Gather", [draw(st.sampled_from(vectors)), made.weight(index)])


def _arithmetic(made: Chain, draw: Draw) -> None:
    numbers = made.of("i", most=8)
    if numbers:
        op = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Add", "Sub", "Mul"]))
        constant = made.weight(draw(st.sampled_from([1, 2, 3, 4, -1, -2, 7, [2], 0])))
        pair = [draw(st.sampled_from(numbers)), draw(st.sampled_from([*numbers, constant, constant]))]
        made.add(op, pair if op in ("Div", "Mod") or draw(st.booleans()) else pair[::-1])


def _unary(made: Chain, draw: Draw) -> None:
    numbers = made.of("i", most=64)
    if numbers:
        made.add(draw(st.sampled_from(["Neg", "Abs", "Identity"])), [draw(st.sampled_from(numbers))])


def _compare(made: Chain, draw: Draw) -> None:
    numbers = made.of("i")
    if numbers:
        op = draw(st.sampled_from(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]))
        constant = made.weight(draw(st.sampled_from([0, -1, 1, 2])))
        made.add(op, [draw(st.sampled_from(numbers)), draw(st.sampled_from([*numbers, constant]))])


def _logic(made: Chain, draw: Draw) -> None:
    flags = made.of("b")
    if flags:
        op = draw(st.sampled_from(["And", "Or", "Not", "Xor"]))
        made.add(op, [draw(st.sampled_from(flags)) for _ in range(1 if op == "Not" else 2)])


def _where(made: Chain, draw: Draw) -> None:
    flags, kind = made.of("b"), draw(st.sampled_from("if"))
    if flags and made.of(kind):
        made.add("Where", [draw(st.sampled_from(flags)), *(draw(st.sampled_from(made.of(kind))) for _ in range(2))])


def _cast(made: Chain, draw: Draw) -> None:
    values = [*made.of("i"), *made.of("b")]
    if values:
        made.add("Cast", [draw(st.sampled_from(values))], to=draw(st.sampled_from([1, 7, 9])))


def _concat(made: Chain, draw: Draw) -> None:
    kind, rank = draw(st.sampled_from([("i", 1), ("i", 1), ("i", 2), ("f", 2), ("f", 3)]))
    values = made.of(kind, rank)
    if values:
        count = draw(st.integers(1, 3))
        parts = [draw(st.sampled_from(values)) for _ in range(count)]
        if kind == "i" and rank == 1:
            parts.append(made.weight(draw(st.sampled_from([[-1], [1], [2, 3]]))))
        made.add("Concat", parts, axis=draw(st.integers(-rank, rank - 1)))


def _slice(made: Chain, draw: Draw) -> None:
    values = [*made.of("f"), *made.of("i")]
    name = draw(st.sampled_from([each for each in values if made.values[each][0].ndim]))
    rank = made.values[name][0].ndim
    numbers = [each for each in made.of("i", 1) if all(array.size == 1 for array in made.values[each])]
    bounds = [*(made.weight([number]) for number in (0, 1, -1, 2, 2**63 - 1, -(2**63))), *numbers]
    step = draw(st.sampled_from([1, 1, 1, 2, -1]))
    inputs = [name, draw(st.sampled_from(bounds)), draw(st.sampled_from(bounds))]
    made.add("Slice", [*inputs, made.weight([draw(st.integers(0, rank - 1))]), made.weight([step])])


def _rearrange(made: Chain, draw: Draw) -> None:
    values = [*made.of("f"), *made.of("i"), *made.of("b")]
    name = draw(st.sampled_from(values))
    rank = made.values[name][0].ndim
    op = draw(st.sampled_from(["Unsqueeze", "Squeeze", "Transpose", "Flatten", "Unsqueeze"]))
    if op == "Transpose":
        if not rank:
            return
        made.add(op, [name], perm=draw(st.permutations(range(rank))))
    elif op == "Flatten":
        made.add(op, [name], axis=draw(st.integers(0, rank)))
    elif rank < 5:
        made.add(op, [name, made.weight([draw(st.integers(-rank, rank))])])


def _reshape(made: Chain, draw: Draw) -> None:
    name = draw(st.sampled_from([*made.of("f"), *made.of("i")]))
    targets = [*made.of("i", 1), *(made.weight(each) for each in ([-1], [0, -1], [-1, 4], [0, 0, -1], [2, -1]))]
    made.add("Reshape", [name, draw(st.sampled_from(targets))], allowzero=draw(st.sampled_from([0, 0, 1])))


def _own_sizes(made: Chain, draw: Draw) -> None:
    """As exporters write it: sizes one by one, joined again."""
    name = draw(st.sampled_from([each for each in made.of("f") if made.values[each][0].ndim]))
    rank = made.values[name][0].ndim
    shape = made.add("Shape", [name])
    parts = [made.add("Gather", [shape, made.weight([axis])]) for axis in range(rank)] if shape else []
    parts = [draw(st.sampled_from([part, made.weight([-1])])) if axis == 0 else part for axis, part in enumerate(parts)]
    joined = made.add("Concat", [part for part in parts if part], axis=0)
    if joined:
        made.add(draw(st.sampled_from(["Reshape", "Expand"])), [name, joined])


def _repeat(made: Chain, draw: Draw) -> None:
    name = draw(st.sampled_from([*made.of("f"), *made.of("i"), *made.of("b")]))
    op = draw(st.sampled_from(["Expand", "Tile"]))
    rank = made.values[name][0].ndim
    ones = made.weight([1] * rank)
    made.add(op, [name, draw(st.sampled_from([*made.of("i", 1), ones]))])


def _fill(made: Chain, draw: Draw) -> None:
    shapes = made.of("i", 1)
    if shapes:
        value = draw(
            st.sampled_from([np.int64([3]), np.float32([0]), np.bool_([True]), np.int64([1]), np.float32([1])])
        )
        made.add("ConstantOfShape", [draw(st.sampled_from(shapes))], value=numpy_helper.from_array(value))


def _range(made: Chain, draw: Draw) -> None:
    numbers = made.of("i", 0)
    if numbers:
        constants = [made.weight(number) for number in (0, 1, -2)]
        start = draw(st.sampled_from([*constants, *numbers]))
        step = made.weight(draw(st.sampled_from([1, 1, 2, -1])))
        made.add("Range", [start, draw(st.sampled_from(numbers)), step])


def _reduce(made: Chain, draw: Draw) -> None:
    numbers = made.of("i", 1)
    if numbers:
        op = draw(st.sampled_from(["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"]))
        inputs = [draw(st.sampled_from(numbers))]
        if op == "ReduceSum":
            inputs.append(made.weight([0]))
        else:
            made.add(op, inputs, axes=[0], keepdims=draw(st.integers(0, 1)))
            return
        made.add(op, inputs, keepdims=draw(st.integers(0, 1)))


def _combine(made: Chain, draw: Draw) -> None:
    values = made.of("f")
    made.add(draw(st.sampled_from(["Add", "Mul", "MatMul"])), [draw(st.sampled_from(values)) for _ in range(2)])


def _rows(made: Chain, draw: Draw) -> None:
    data = [each for each in (*made.of("f"), *made.of("i")) if made.values[each][0].ndim]
    if made.of("i"):
        made.add("Gather", [draw(st.sampled_from(data)), draw(st.sampled_from(made.of("i")))], axis=0)


def _counters(made: Chain, draw: Draw) -> None:
    """Counters along axes of a matrix, put together to look its elements up, as exporters write masks."""
    name = draw(st.sampled_from([*made.of("f", 2), *made.of("i", 2), *made.of("b", 2)]))
    axes = [[1, 2], [0, 1]] if draw(st.booleans()) else [[1], [0]]
    ranges = []
    for axis in (0, 1):
        size = made.add("Gather", [made.add("Shape", [name]) or "", made.weight(axis)])
        start = made.weight(draw(st.sampled_from([0, 0, 0, 1, -1])))
        counter = made.add("Range", [start, size or "", made.weight(1)])
        lone = made.add("Unsqueeze", [counter or "", made.weight(axes[axis][:1])])
        more = [made.weight([each]) for each in axes[axis][1:]]
        ranges.append(made.add("Unsqueeze", [lone or "", *more]) if more else lone)
    if None in ranges:
        return
    rows, columns = (each or "" for each in ranges)
    op = draw(st.sampled_from(["Max", "Sub", "LessOrEqual", "GatherND", "GatherND", "Gather", "Mul"]))
    if op in ("GatherND", "Gather"):
        full = made.add("Shape", [made.add("Max", [rows, columns]) or ""])
        parts = [made.add("Expand", [part, full or ""]) for part in (rows, columns)]
        if op == "GatherND":
            lone = [made.add("Unsqueeze", [part or "", made.weight([-1])]) for part in parts]
            index = made.add("Concat", [each or "" for each in lone], axis=-1)
            made.add("GatherND", [name, index or ""])
        else:
            width = made.add("Gather", [made.add("Shape", [name]) or "", made.weight(1)])
            place = made.add("Add", [made.add("Mul", [rows, width or ""]) or "", columns])
            flat = made.add("Reshape", [name, made.weight([-1])])
            made.add("Gather", [flat or "", place or ""])
        return
    both = made.add(op, [rows, columns])
    if both and op != "LessOrEqual":
        made.add(
            draw(st.sampled_from(["Equal", "GreaterOrEqual", "Less"])), [both, made.weight(draw(st.integers(-1, 1)))]
        )


def _masked(made: Chain, draw: Draw) -> None:
    """A mask of one number, and what it does to a tensor."""
    name = draw(st.sampled_from([each for each in made.of("f") if made.values[each][0].ndim]))
    rank = made.values[name][0].ndim
    shape = made.add("Shape", [name]) or ""
    flags = made.of("b")
    if flags and draw(st.booleans()):
        mask: str | None = draw(st.sampled_from(flags))
    else:
        lone = made.add("ConstantOfShape", [made.weight([1] * rank)], value=numpy_helper.from_array(np.bool_([True])))
        mask = made.add("Expand", [lone or "", shape])
    for _ in range(draw(st.integers(0, 2))):
        other = draw(st.sampled_from([*made.of("b"), mask or ""]))
        mask = made.add(draw(st.sampled_from(["And", "Or"])), [mask or "", other]) or mask
    numbers = [made.weight(number, np.float32) for number in (0, 1, [-5])]
    picked = [draw(st.sampled_from(numbers)) for _ in range(2)]
    chosen = made.add("Where", [mask or "", *picked])
    made.add(draw(st.sampled_from(["Add", "Mul", "Sub"])), [name, chosen or ""])


def _merged(made: Chain, draw: Draw) -> None:
    """Axes merged, transposed, parted again."""
    tensors = made.of("f", 3)
    if not tensors:
        return
    name = draw(st.sampled_from(tensors))
    shape = made.add("Shape", [name])
    sizes = [made.add("Gather", [shape or "", made.weight([axis])]) or "" for axis in range(3)]
    first = draw(st.booleans())
    merged = [made.weight([-1]), sizes[2]] if first else [sizes[0], made.weight([-1])]
    flat = made.add("Reshape", [name, made.add("Concat", merged, axis=0) or ""])
    turned = made.add("Transpose", [flat or ""], perm=[1, 0])
    order = draw(st.sampled_from([[2, 0, 1], [1, 2, 0], [0, 1, 2]]))
    made.add("Reshape", [turned or "", made.add("Concat", [sizes[axis] for axis in order], axis=0) or ""])


_STEPS = (
    _shape, _entry, _arithmetic, _unary, _compare, _logic, _where, _cast, _concat, _slice, _rearrange, _reshape,
    _own_sizes, _repeat, _fill, _range, _reduce, _combine, _rows, _arithmetic, _concat, _entry, _reshape, _slice,
    _counters, _masked, _merged, _counters, _masked, _merged,
)  # fmt: skip
