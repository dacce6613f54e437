"""Random graphs of the operators that clean-up passes look at, with an axis of unknown size."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

_N = 1009
"""Stands for the unknown size: a prime that divides nothing else."""

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Chain:
    """A graph that grows by random nodes, each on what is there; shapes are kept track of."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {"x": (_N, 3, 4), "z": (2, 1, 6)}

    def constant(self, array: Any) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def put(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], f"n{len(self.nodes)}", **attributes))
        self.shapes[name] = shape
        return name

    def grow(self) -> None:
        """Put one random node, on one of the last values more often than on others."""
        names = list(self.shapes)
        value = self.draw(st.sampled_from([*names, *names[-2:] * 3]))
        _PUT[self.draw(st.sampled_from(sorted(_PUT)))](self, value, self.shapes[value])

    def model(self, count: int) -> onnx.ModelProto:
        made = list(self.shapes)[2:]
        outputs = self.draw(st.lists(st.sampled_from(made), min_size=1, max_size=count, unique=True))
        info = [_info(name, self.shapes[name]) for name in ("x", "z")]
        out = [_info(name, self.shapes[name]) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", info, out, self.weights)
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    dims = [("N" if size == _N else None) if size % _N == 0 else size for size in shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


def _elementwise(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    op = chain.draw(st.sampled_from(["Relu", "Neg", "Abs", "Identity", "Floor", "Ceil", "Sign", "Dropout"]))
    chain.put(op, [value], shape)


def _clip(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    low, high = (chain.draw(st.sampled_from(ends)) for ends in ([None, -1.0, 0.0, 0.25], [None, 0.5, 6.0]))
    chain.put("Clip", [value, *("" if end is None else chain.constant(np.float32(end)) for end in (low, high))], shape)


def _binary(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    op = chain.draw(st.sampled_from(["Add", "Sub", "Mul", "Div"]))
    number = chain.draw(st.sampled_from([0.0, 1.0, 0.5, 3.0, -1.5] if op in ("Add", "Sub") else [1.0, 0.5, -3.0]))
    widths: list[tuple[int, ...]] = [(), (1,), (shape[-1],) if shape and shape[-1] % _N else (1,)]
    size = chain.draw(st.sampled_from(widths)) if shape else ()
    constant = chain.constant(np.full(size, number, np.float32))
    swapped = op in ("Add", "Mul") and chain.draw(st.booleans())
    chain.put(op, [constant, value] if swapped else [value, constant], shape)


def _twice(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    others = [name for name, other in chain.shapes.items() if other == shape]
    chain.put(chain.draw(st.sampled_from(["Add", "Mul"])), [value, chain.draw(st.sampled_from(others))], shape)


def _transpose(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    perm = chain.draw(st.permutations(range(len(shape))))
    if perm:
        chain.put("Transpose", [value], tuple(shape[axis] for axis in perm), perm=perm)


def _reshape(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    """Neighbouring axes are merged or split, or all are given anew with zeros for those that stay."""
    kind = chain.draw(st.sampled_from(["merge", "split", "same"]))
    new, axis = list(shape), chain.draw(st.integers(0, max(len(shape) - 1, 0)))
    if kind == "merge" and axis + 1 < len(shape):
        new[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    elif kind == "split" and new:
        divisors = [d for d in range(1, 13) if new[axis] % d == 0]
        divisor = chain.draw(st.sampled_from(divisors))
        new[axis : axis + 1] = chain.draw(st.permutations([divisor, new[axis] // divisor]))
    unknown = [place for place, size in enumerate(new) if size % _N == 0]
    kept = [place for place in unknown if place < len(shape) and new[place] == shape[place]]
    if len(unknown) - len(kept) > 1:
        return
    written = [0 if place in kept else -1 if place in unknown else size for place, size in enumerate(new)]
    chain.put("Reshape", [value, chain.constant(np.int64(written))], tuple(new))


def _flatten(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    axis = chain.draw(st.integers(0, len(shape)))
    chain.put("Flatten", [value], (math.prod(shape[:axis]), math.prod(shape[axis:])), axis=axis)


def _unsqueeze(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    axis = chain.draw(st.integers(0, len(shape)))
    if len(shape) < 6:
        chain.put("Unsqueeze", [value, chain.constant(np.int64([axis]))], (*shape[:axis], 1, *shape[axis:]))


def _squeeze(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    if 1 in shape:
        axis = chain.draw(st.sampled_from([axis for axis, size in enumerate(shape) if size == 1]))
        new = (*shape[:axis], *shape[axis + 1 :])
        chain.put("Squeeze", [value, chain.constant(np.int64([axis - chain.draw(st.booleans()) * len(shape)]))], new)


def _slice(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    axes = [axis for axis, size in enumerate(shape) if size % _N and size > 1]
    if not axes:
        return
    axis = chain.draw(st.sampled_from(axes))
    start, end = (chain.draw(st.sampled_from(c)) for c in ([0, 1, -shape[axis]], [shape[axis], 2**63 - 1, 2]))
    step = chain.draw(st.sampled_from([1, 2]))
    new = (*shape[:axis], len(range(shape[axis])[start:end:step]), *shape[axis + 1 :])
    if 0 not in new:
        given = [chain.constant(np.int64([number])) for number in (start, end, axis, step)]
        chain.put("Slice", [value, *given], new)


def _concat(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    axes = [axis for axis, size in enumerate(shape) if size % _N and size < 20]
    if axes:
        axis, count = chain.draw(st.sampled_from(axes)), chain.draw(st.integers(1, 2))
        new = (*shape[:axis], shape[axis] * count, *shape[axis + 1 :])
        chain.put("Concat", [value] * count, new, axis=axis)


def _cast(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    middle = chain.draw(st.sampled_from([TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32]))
    chain.put("Cast", [chain.put("Cast", [value], shape, to=middle)], shape, to=TensorProto.FLOAT)
    del chain.shapes[f"v{len(chain.nodes) - 2}"]


def _pad(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    ends = [chain.draw(st.integers(0, 1)) if size % _N and size < 20 else 0 for size in shape * 2]
    new = tuple(size + a + b for size, a, b in zip(shape, ends[: len(shape)], ends[len(shape) :], strict=True))
    if shape:
        number = [chain.constant(np.float32(2))] if chain.draw(st.booleans()) else []
        chain.put("Pad", [value, chain.constant(np.int64(ends)), *number], new)


def _repeat(chain: Chain, value: str, shape: tuple[int, ...]) -> None:
    ones = chain.constant(np.int64([1] * len(shape)))
    chain.put(chain.draw(st.sampled_from(["Expand", "Tile"])), [value, ones], shape)


_PUT: dict[str, Callable[[Chain, str, tuple[int, ...]], None]] = {
    "binary": _binary, "cast": _cast, "clip": _clip, "concat": _concat, "elementwise": _elementwise,
    "flatten": _flatten, "pad": _pad, "repeat": _repeat, "reshape": _reshape, "slice": _slice, "squeeze": _squeeze,
    "transpose": _transpose, "twice": _twice, "unsqueeze": _unsqueeze,
}  # fmt: skip


@pytest.fixture(scope="session")
def random_chain() -> Callable[[Draw], onnx.ModelProto]:
    """Given hypothesis's draw: a random graph on two inputs, the first of unknown size along its first axis."""

    def make(draw: Draw) -> onnx.ModelProto:
        chain = Chain(draw)
        count = draw(st.integers(1, 14))
        while len(chain.nodes) < count:
            chain.grow()
        return chain.model(3)

    return make


@pytest.fixture(scope="session")
def chain_feeds() -> list[dict[str, Any]]:
    """Two samples for such a graph, of different size."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 1, 6)).astype(np.float32)
    return [{"x": rng.standard_normal((n, 3, 4)).astype(np.float32) * 2, "z": z} for n in (2, 5)]
