"""Padding that the next operator can do itself."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols.indexing import pads
from onnxopt.analysis.symbols.rules import only_numbers
from onnxopt.model import Model
from onnxopt.passes.known import Known, input_of, int_of, ints_of, made_by, read_once, text_of
from onnxopt.passes.rewriting import Outcome, Put, Rules, rewrite
from onnxopt.passing import Context, Findings, Pass


class MergePads(Pass):
    """Merge Pad nodes with a Pad, a convolution or a pooling behind them, where these can pad alike.

    A convolution pads by zeros. An average pads by zeros that count, a maximum by what is below every number: it
    takes zeros over only behind a Relu.
    """

    def run(self, model: Model, context: Context) -> Findings:
        return rewrite(model, RULES, self.name)


@dataclass(frozen=True)
class _Padding:
    """What a Pad with constants does.

    Attributes:
        source: what it pads.
        begins: entries put before, an axis.
        ends: entries put behind.
        number: what they are.
    """

    source: ir.Value
    begins: tuple[int, ...]
    ends: tuple[int, ...]
    number: float

    def spatial(self) -> list[int] | None:
        """The pads as convolutions write them; None where other axes are padded, too."""
        if any((*self.begins[:2], *self.ends[:2])) or min((*self.begins, *self.ends)) < 0 or len(self.begins) < 3:
            return None
        return [*self.begins[2:], *self.ends[2:]]


def _padding(node: ir.Node | None, known: Known) -> _Padding | None:
    if node is None or node.inputs[0] is None or text_of(node, "mode", "constant") != "constant":
        return None
    amounts, number = pads(known.call(node)), _filler(node, known)
    if not amounts or number is None:
        return None
    begins, ends = (only_numbers(side) for side in zip(*amounts, strict=True))
    return None if begins is None or ends is None else _Padding(node.inputs[0], tuple(begins), tuple(ends), number)


def _filler(node: ir.Node, known: Known) -> float | None:
    """The number that a Pad pads by; None where it is not known, or no float is it."""
    if known.model.opset < 11:
        value = node.attributes.get("value")
        return 0.0 if value is None else value.as_float()
    given = input_of(node, 2)
    array = known.array(given)
    if given is None or array is None:
        return 0.0 if given is None else None
    exact = array.dtype.kind not in "iu" or bool(np.all(np.abs(array.astype(object)) <= 2**53))
    return float(array.ravel()[0]) if array.size == 1 and array.dtype.kind not in "cb" and exact else None


def _pads(node: ir.Node, known: Known) -> Outcome:
    inner = made_by(node.inputs[0], "Pad")
    first, then = _padding(inner, known), _padding(node, known)
    if inner is None or first is None or then is None or not read_once(inner.outputs[0]):
        return None
    if len(first.begins) != len(then.begins) or not _alike(first.number, then.number):
        return None
    if min((*first.begins, *first.ends, *then.begins, *then.ends)) < 0:
        return None
    begins, ends = (np.add(a, b).tolist() for a, b in ((first.begins, then.begins), (first.ends, then.ends)))
    what = f"two Pad nodes are one: {begins} before, {ends} behind"
    if known.model.opset < 11:
        return Put("Pad", [first.source], {**node.attributes, "pads": [*begins, *ends]}, what)
    filler = input_of(node, 2)
    pads = np.array([*begins, *ends], np.int64)
    return Put("Pad", [first.source, pads, *([] if filler is None else [filler])], node.attributes, what)


def _alike(a: float, b: float) -> bool:
    return a == b or (np.isnan(a) and np.isnan(b))


def _own_pads(node: ir.Node, count: int) -> list[int] | None:
    """What the operator pads by itself; None where it depends on sizes."""
    mode = text_of(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID"):
        return None
    return [0] * count if mode == "VALID" else ints_of(node, "pads") or [0] * count


def _padded(node: ir.Node, known: Known) -> tuple[_Padding, list[int], list[int]] | None:
    """The padding before an operator: as a whole, as spatial pads, and what the operator pads itself."""
    padding = _padding(made_by(node.inputs[0], "Pad"), known)
    more = None if padding is None else padding.spatial()
    own = None if more is None else _own_pads(node, len(more))
    return None if padding is None or more is None or own is None or len(own) != len(more) else (padding, more, own)


def _instead(node: ir.Node, padding: _Padding, pads: list[int], **attributes: int) -> Put:
    kept = {name: attribute for name, attribute in node.attributes.items() if name not in ("auto_pad", "pads")}
    what = f"{node.op_type} pads by {pads} itself"
    return Put(node.op_type, [padding.source, *node.inputs[1:]], {**kept, "pads": pads, **attributes}, what)


def _convolution(node: ir.Node, known: Known) -> Outcome:
    found = _padded(node, known)
    if found is None:
        return None
    padding, more, own = found
    if padding.number != 0:
        return f"the Pad before it pads by {padding.number}, not by 0"
    return _instead(node, padding, np.add(more, own).tolist())


def _average(node: ir.Node, known: Known) -> Outcome:
    found = _padded(node, known)
    if found is None or known.model.opset < 7 or found[0].number != 0:
        return None
    padding, more, own = found
    if any(own) and not int_of(node, "count_include_pad", 0):
        return "its own padding does not count in its averages, that of the Pad before it does"
    pads = np.add(more, own).tolist()
    return _instead(node, padding, pads, count_include_pad=1) if _within(node, pads) else None


def _maximum(node: ir.Node, known: Known) -> Outcome:
    found = _padded(node, known)
    if found is None:
        return None
    padding, more, own = found
    dtype = known.dtype(padding.source)
    lowest = dtype in _LOWEST and padding.number <= _LOWEST[dtype]
    if not lowest and not (padding.number == 0 and made_by(padding.source, "Relu") is not None):
        return None
    pads = np.add(more, own).tolist()
    return _instead(node, padding, pads) if _within(node, pads) else None


_LOWEST = {
    ir.DataType.FLOAT: float(np.finfo(np.float32).min), ir.DataType.FLOAT16: float(np.finfo(np.float16).min),
    ir.DataType.DOUBLE: float(np.finfo(np.float64).min),
}  # fmt: skip


def _within(node: ir.Node, pads: list[int]) -> bool:
    """Whether every window has entries of the input, as runtimes demand of a pooling."""
    kernel, dilations = ints_of(node, "kernel_shape"), ints_of(node, "dilations") or []
    plain = set(dilations) <= {1} and not int_of(node, "ceil_mode", 0)
    return kernel is not None and plain and all(pad < size for pad, size in zip(pads, kernel * 2, strict=True))


RULES: Rules = {"AveragePool": [_average], "Conv": [_convolution], "MaxPool": [_maximum], "Pad": [_pads]}
