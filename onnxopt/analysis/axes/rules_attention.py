"""Attention as one operator: the units are heads, where they share keys and values groups of heads.

What is inside a head, its size and the angles by which it is turned, stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxopt.analysis.axes.axis import Axes, Axis, size_of
from onnxopt.analysis.axes.patch import Patch
from onnxopt.analysis.axes.rules import Call, rewrite, rule
from onnxopt.analysis.axes.rules_matmul import Operand, multiplied
from onnxopt.analysis.symbols.rules import MICROSOFT

_HEAD = "the size of what is removed whole: a head"
_GROUP = "the heads that share keys and values"
_TOKENS = "the tokens that are attended to"
_PACKED = "queries, keys and values side by side"


@dataclass(frozen=True)
class Heads:
    """An axis of heads, its entries units.

    Attributes:
        units: heads, or groups of them.
        group: heads of a group; none where a unit is a head.
        size: of a head.
    """

    units: Axis
    group: Axis
    size: Axis

    @property
    def axis(self) -> Axis:
        """The heads."""
        return self.units + self.group

    @property
    def flat(self) -> Axis:
        """The heads, each with all that is in it."""
        return self.units + self.group + self.size


def _heads(call: Call, axis: Axis, units: int, group: int = 1) -> Heads:
    """The heads that an axis is made of, one behind the other."""
    outer, size = call.apart(axis, units * group, _int(axis) // (units * group))
    call.hold(size, _HEAD)
    return _grouped(call, outer, size, units, group)


def _grouped(call: Call, heads: Axis, size: Axis, units: int, group: int) -> Heads:
    """Heads as groups: those of one unit stay together, unless there is no more than one unit."""
    if group == 1 or units == 1:
        return Heads(heads, (), size)
    outer, inner = call.apart(heads, units, group)
    call.hold(inner, _GROUP)
    return Heads(outer, inner, size)


def _int(axis: Axis) -> int:
    size = size_of(axis)
    if not isinstance(size, int):
        raise ValueError("heads whose number is open")
    return size


def _parts(call: Call, axes: Axes, place: int, sizes: Sequence[int]) -> list[Axis]:
    """Queries, keys and values that lie side by side along one axis."""
    starts = np.cumsum([0, *sizes])
    return [
        call.taken(axes, place, np.arange(start, start + size), _PACKED)[place]
        for start, size in zip(starts, sizes, strict=False)
    ]


def _attended(call: Call, queries: Heads, keys: Heads, values: Heads) -> None:
    """The three have the same units; where all share one head of keys and values, the units are heads of queries."""
    for other in (keys, values):
        if other.units and queries.units:
            call.unite(queries.units, other.units)
    call.tag(queries.units, "kv-groups" if queries.group else "heads")


def _of_heads(call: Call, index: int, place: int, heads: Axis) -> None:
    """An optional input of which one axis, of size 1 maybe, stands for heads; the others stay."""
    for at, axis in enumerate(call.axes(index) or ()):
        if at != place:
            call.hold(axis, _TOKENS)
        elif axis:
            call.unite(heads, axis)


def _cache(call: Call, output: int, batch: Axis, heads: Heads) -> None:
    """The keys or values that an operator hands on: [batch, heads, tokens, size]."""
    call.give((batch, heads.axis, _all_tokens(call, output, 2), heads.size), output)


def _scores(call: Call, output: int, batch: Axis, heads: Heads, rows: Axis) -> None:
    """How much each token counts for each: [batch, heads, rows, tokens]."""
    call.give((batch, heads.axis, rows, _all_tokens(call, output, 3)), output)


def _all_tokens(call: Call, output: int, place: int) -> Axis:
    """The axis of an output, if there is such, along which earlier tokens and those at hand are."""
    shape = call.out(output).shape if output < len(call.node.outputs) else None
    return call.length(call.known.space.fresh() if shape is None else shape[place], _TOKENS)


def _tokens(call: Call, *axes: Axis) -> None:
    for axis in axes:
        call.hold(axis, _TOKENS)


@rule("Attention", domain=MICROSOFT)
@rule("QAttention", domain=MICROSOFT)
def _projected(call: Call) -> None:
    """One matrix makes queries, keys and values: [width, heads and all that is in them, three times]."""
    quantized = call.node.op_type == "QAttention"
    x, weight = call.axes(0), call.parameter(1)
    count = call.integer("num_heads", 0)
    if x is None or weight is None or len(x) != 3 or len(weight) != 2 or not count:
        for index in range(len(call.node.inputs)):
            call.hold_input(index, "attention to a tensor of unknown rank", "needs-rule")
        return
    _tokens(call, x[1])
    sizes = call.node.attributes.get_ints("qkv_hidden_sizes", []) or [_int(weight[1]) // 3] * 3
    zeros = (6, 7) if quantized else (None, None)
    made = multiplied(call, Operand.of(0, x, zero=zeros[0]), Operand.of(1, weight, zero=zeros[1]))
    assert made is not None
    queries, keys, values = (_heads(call, part, count) for part in _parts(call, made, 2, sizes))
    for index in (2, 4, 7) if quantized else (2,):
        beside = call.parameter(index)
        if beside and beside[0]:
            call.unite(weight[1], beside[0])
    _attended(call, queries, keys, values)
    past = call.axes(8 if quantized else 4)
    if past is not None:
        _tokens(call, past[0], past[3], past[4])
        call.unite(values.units, past[2])
    if not quantized:
        _of_heads(call, 5, 1, values.axis)
    call.give((x[0], x[1], values.flat))
    call.give((call.length(2, _PACKED), x[0], values.axis, _all_tokens(call, 1, 3), values.size), 1)


@rewrite("Attention", "QAttention", domain=MICROSOFT)
def _projected_heads(patch: Patch) -> None:
    count = _left(patch, "num_heads")
    sizes = patch.node.attributes.get_ints("qkv_hidden_sizes", [])
    if sizes:
        patch.set_attribute("qkv_hidden_sizes", [size // patch.integer("num_heads", 1) * count for size in sizes])
    patch.set_attribute("num_heads", count)


def _left(patch: Patch, attribute: str) -> int:
    """How many heads are left of those that an attribute tells, by what is left of the result."""
    return patch.integer(attribute, 1) * patch.size_out(0, 2) // _int(patch.axes_out()[2])


@dataclass(frozen=True)
class _Inputs:
    """Where an operator has the inputs that others have elsewhere."""

    bias: int
    scores: int
    past: int


_MULTI_HEAD = {
    "MultiHeadAttention": _Inputs(bias=3, scores=5, past=6),
    "DecoderMaskedMultiHeadAttention": _Inputs(bias=10, scores=4, past=5),
}


@rule("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def _multi_head(call: Call) -> None:
    inputs, count = _MULTI_HEAD[call.node.op_type], call.integer("num_heads", 1)
    q, k, v = (call.axes(index) for index in range(3))
    if q is None or (call.has(1) and k is None) or (call.has(2) and v is None):
        for index in range(len(call.node.inputs)):
            call.hold_input(index, "attention to a tensor of unknown rank", "needs-rule")
        return
    _tokens(call, *(axes[2 if len(axes) == 4 else 1] for axes in (q, k, v) if axes is not None))
    queries, keys, values = _separated(call, q, k, v, count)
    _attended(call, queries, keys, values)
    for axes in (k, v):
        if axes is not None:
            call.unite(q[0], axes[0])
    bias = call.axes(inputs.bias)
    if bias is not None:
        sizes = [_int(heads.flat) for heads in (queries, keys, values)]
        for heads, part in zip((queries, keys, values), _parts(call, bias, 0, sizes), strict=True):
            call.unite(heads.units, _heads(call, part, count).units)
    _of_heads(call, inputs.scores, 1, queries.axis)
    for index, heads in ((inputs.past, keys), (inputs.past + 1, values)):
        _past(call, index, q[0], heads)
    call.give((q[0], q[1], values.flat))
    _cache(call, 1, q[0], keys)
    _cache(call, 2, q[0], values)
    _scores(call, 3, q[0], queries, q[1])


def _separated(call: Call, q: Axes, k: Axes | None, v: Axes | None, count: int) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values from tensors that may hold one or several of them."""
    if k is None and len(q) == 3:
        third = _int(q[2]) // 3
        queries, keys, values = (_heads(call, part, count) for part in _parts(call, q, 2, [third] * 3))
        return queries, keys, values
    if k is None:  # [batch, tokens, heads, 3, size]
        return (_inner(call, q),) * 3
    queries = _heads(call, q[2], count)
    if v is None:  # [batch, tokens, heads, 2, size]
        return queries, _inner(call, k), _inner(call, k)
    keys, values = (
        _heads(call, axes[2], count) if len(axes) == 3 else _held(call, axes[1], axes[3]) for axes in (k, v)
    )
    return queries, keys, values


def _inner(call: Call, axes: Axes) -> Heads:
    call.hold(axes[3], _PACKED)
    return _held(call, axes[2], axes[4])


def _held(call: Call, heads: Axis, size: Axis) -> Heads:
    call.hold(size, _HEAD)
    return Heads(heads, (), size)


def _past(call: Call, index: int, batch: Axis, heads: Heads) -> None:
    """Keys or values of earlier tokens: [batch, heads, tokens, size]."""
    axes = call.axes(index)
    if axes is not None:
        _tokens(call, axes[2], axes[3])
        call.unite(batch, axes[0])
        call.unite(heads.axis, axes[1])


@rewrite("MultiHeadAttention", "DecoderMaskedMultiHeadAttention", domain=MICROSOFT)
def _multi_head_count(patch: Patch) -> None:
    patch.set_attribute("num_heads", _left(patch, "num_heads"))


@rule("GroupQueryAttention", domain=MICROSOFT)
def _group_query(call: Call) -> None:
    """Groups of query heads, each with a head of keys and one of values."""
    heads, groups = call.integer("num_heads", 1), call.integer("kv_num_heads", 1)
    q, k, v = (call.axes(index) for index in range(3))
    if q is None or (call.has(1) and (k is None or v is None)):
        for index in range(len(call.node.inputs)):
            call.hold_input(index, "attention to a tensor of unknown rank", "needs-rule")
        return
    if k is None or v is None:
        size = _int(q[2]) // (heads + 2 * groups)
        flat = _parts(call, q, 2, [heads * size, groups * size, groups * size])
    else:
        flat = [q[2], k[2], v[2]]
    _tokens(call, *(axes[1] for axes in (q, k, v) if axes is not None))
    queries = _heads(call, flat[0], groups, heads // groups)
    keys, values = (_heads(call, axis, groups) for axis in flat[1:])
    _attended(call, queries, keys, values)
    for index, each in ((3, keys), (4, values)):
        _past(call, index, q[0], each)
    for index in (5, 6, 7, 8, 9, 12, 13, 14, 15):
        call.hold_input(index, _HEAD)
    _of_heads(call, 10, 1, queries.axis)
    _of_heads(call, 11, 0, queries.axis)
    call.give((q[0], q[1], queries.flat))
    _cache(call, 1, q[0], keys)
    _cache(call, 2, q[0], values)
    _scores(call, 3, q[0], queries, q[1])


@rewrite("GroupQueryAttention", domain=MICROSOFT)
def _group_query_count(patch: Patch) -> None:
    patch.set_attribute("num_heads", _left(patch, "num_heads"))
    if patch.integer("kv_num_heads", 1) > 1:
        patch.set_attribute("kv_num_heads", _left(patch, "kv_num_heads"))


@rule("Attention")
def _attention(call: Call) -> None:
    """The standard's: heads as an axis of their own, [batch, heads, tokens, size], or [batch, tokens, heads * size]."""
    found = [call.axes(index) for index in range(3)]
    known = [axes for axes in found if axes is not None]
    if len(known) < 3:
        for index in range(len(call.node.inputs)):
            call.hold_input(index, "attention to a tensor of unknown rank", "needs-rule")
        return
    q, k, v = known
    groups = _int(k[1]) if len(k) == 4 else call.integer("kv_num_heads", 1)
    heads = _int(q[1]) if len(q) == 4 else call.integer("q_num_heads", 1)
    queries, keys, values = (
        _standard(call, axes, groups, group) for axes, group in ((q, heads // groups), (k, 1), (v, 1))
    )
    _attended(call, queries, keys, values)
    for axes in known:
        call.unite(q[0], axes[0])
    _masked(call, queries)
    for index, each in ((4, keys), (5, values)):
        _past(call, index, q[0], each)
    rows = q[-2] if len(q) == 4 else q[1]
    apart = (q[0], queries.axis, rows, values.size)
    call.give(apart if len(q) == 4 else (q[0], rows, queries.axis + values.size))
    _cache(call, 1, q[0], keys)
    _cache(call, 2, q[0], values)
    _scores(call, 3, q[0], queries, rows)


def _standard(call: Call, axes: Axes, groups: int, group: int) -> Heads:
    if len(axes) == 3:
        _tokens(call, axes[1])
        return _heads(call, axes[2], groups, group)
    _tokens(call, axes[2])
    call.hold(axes[3], _HEAD)
    return _grouped(call, axes[1], axes[3], groups, group)


def _masked(call: Call, queries: Heads) -> None:
    """A mask is aligned at its last axes with the scores [batch, heads, rows, tokens]."""
    mask = call.axes(3)
    if mask is None:
        return
    for place, axis in enumerate(reversed(mask)):
        if place == 2 and axis:
            call.unite(queries.axis, axis)
        elif place != 2:
            call.hold(axis, _TOKENS)


@rewrite("Attention")
def _attention_count(patch: Patch) -> None:
    for index, name in ((0, "q_num_heads"), (1, "kv_num_heads")):
        axes = patch.axes(index)
        if len(axes) == 3:
            patch.set_attribute(name, patch.integer(name, 1) * patch.size(index, 2) // _int(axes[2]))


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain=MICROSOFT)
def _rotary(call: Call) -> None:
    """Heads [batch, heads, tokens, size] or [batch, tokens, heads * size], each turned by the same angles."""
    x = call.axes(0)
    for index in range(1, len(call.node.inputs)):
        call.hold_input(index, "the angles by which what is in a head is turned")
    if x is None:
        return
    if len(x) == 4:
        call.hold(x[3], _HEAD)
        call.give(x)
        return
    heads = _heads(call, x[2], _count(call, _int(x[2])))
    call.give((x[0], x[1], heads.flat))


def _count(call: Call, width: int) -> int:
    """How many heads there are: told, or as many as fit the angles."""
    told = call.integer("num_heads", 0)
    if told:
        return told
    angles = call.known.shape(2 if call.node.domain == MICROSOFT else 1)
    if angles is None or not isinstance(angles[-1], int):
        raise ValueError("heads whose number is open")
    return width // (2 * angles[-1])


@rewrite("RotaryEmbedding")
@rewrite("RotaryEmbedding", domain=MICROSOFT)
def _rotary_count(patch: Patch) -> None:
    told, axes = patch.integer("num_heads", 0), patch.axes(0)
    if told and len(axes) == 3:
        patch.set_attribute("num_heads", told * patch.size(0, 2) // _int(axes[2]))
