"""Matrix products, with what is added to them, in the form of fewest nodes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxopt.analysis.linear.steps import FLOATS
from onnxopt.analysis.structure import constant_array
from onnxopt.analysis.symbols.facts import Shape
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.passes.clean import is_constant
from onnxopt.passes.known import Known
from onnxopt.passing import Context, Findings, Pass

_FIRST_THAT_BROADCASTS, _FIRST_WITHOUT_ADDEND = 7, 11
"""Opsets of Gemm: C broadcasts by itself, C may be left out."""


class FuseGemm(Pass):
    """Make MatMul and Add of matrices a Gemm, and Transpose before a product one of its attributes.

    Products of more axes stay MatMul and Add, which runtimes execute as fast, unless Reshape stands on both sides:
    then Gemm between them saves a node. Where those only take the leading axes apart and together again, they go.
    """

    def run(self, model: Model, context: Context) -> Findings:
        work = _Work(model, self.name, Known(model))
        if model.opset < _FIRST_THAT_BROADCASTS:
            return work.findings
        waiting = list(model.nodes())[::-1]
        while waiting:
            node = waiting.pop()
            for rule in () if node.domain or node in work.gone else _RULES.get(node.op_type, ()):
                if made := rule(work, node):
                    waiting += made
                    break
        return work.findings


@dataclass
class _Work:
    """One run of the pass.

    Attributes:
        known: what holds at all sizes of dynamic axes, whatever the file declares of inner values.
        gone: nodes that were replaced.
        reshaped: values of which nothing is known any more.
    """

    model: Model
    rule: str
    known: Known
    findings: Findings = field(default_factory=Findings)
    gone: set[ir.Node] = field(default_factory=set)
    reshaped: set[ir.Value] = field(default_factory=set)

    def dims(self, value: ir.Value) -> Shape | None:
        """Shape of a value: sizes, and expressions of the sizes of inputs; None for an unknown rank."""
        return None if value in self.reshaped else self.known.dims(value)

    def replace(self, old: list[ir.Node], new: list[ir.Node], what: str, edit: Edit | None = None) -> None:
        """Put nodes in the place of others, of which the last one gives the result; names stay."""
        edit = edit or Edit(self.rule)
        before, after = old[-1].outputs[0], new[-1].outputs[0]
        after.type, after.shape, after.doc_string = before.type, before.shape, before.doc_string
        after.metadata_props.update(before.metadata_props)
        name = before.name
        self.findings.change(old[0], self.rule, what)
        edit.insert(new, before=old[-1])
        edit.rewire(before, after)
        edit.remove(*old)
        self.model.apply(edit)
        if not after.is_graph_output():
            after.name = name
        self.gone.update(old)
        self.known.inherit(after, before)


def _reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The only reader of a value, where it is of that kind and in the same graph."""
    uses = tuple(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0][0]
    return node if node.op_type == op_type and not node.domain and node.graph is value.graph else None


def _maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes a value for one reader alone, where it is of that kind."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != op_type or node.domain:
        return None
    return node if len(value.uses()) == 1 and not value.is_graph_output() else None


@dataclass
class _Product:
    """alpha * A B + beta * C of matrices, either of them turned."""

    operands: list[ir.Value]
    turned: list[bool]
    attributes: dict[str, Any]
    addend: ir.Value | None
    old: list[ir.Node]

    def dims(self, work: _Work) -> tuple[Any, Any]:
        """Rows and columns of the result."""
        sizes = [(None, None) if (dims := work.dims(v)) is None or len(dims) != 2 else dims for v in self.operands]
        return sizes[0][1 if self.turned[0] else 0], sizes[1][0 if self.turned[1] else 1]


def _fuse(work: _Work, node: ir.Node) -> list[ir.Node]:
    """Let a product of matrices take in the Transposes before it and the Add behind it."""
    product = _product(work, node)
    if product is None or not (_take_transposes(product, node) | _take_add(work, product, node)):
        return []
    if product.addend is None and work.model.opset < _FIRST_WITHOUT_ADDEND:
        return []
    for name, turned in zip(("transA", "transB"), product.turned, strict=True):
        product.attributes.pop(name, None)
        if turned:
            product.attributes[name] = 1
    inputs = [*product.operands, *([] if product.addend is None else [product.addend])]
    gemm = ir.node("Gemm", inputs, product.attributes, name=node.name, metadata_props=dict(node.metadata_props))
    what = " and ".join(sorted({old.op_type for old in product.old if old is not node}))
    work.replace(product.old, [gemm], f"{what} became part of the {node.op_type}, a Gemm")
    return [gemm]


def _product(work: _Work, node: ir.Node) -> _Product | None:
    operands = [value for value in node.inputs[:2] if value is not None]
    if node.op_type == "Gemm":
        turned = [bool(node.attributes.get_int(name, False)) for name in ("transA", "transB")]
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        return _Product(operands, turned, attributes, node.inputs[2] if len(node.inputs) > 2 else None, [node])
    beside = [_maker(value, "Transpose") for value in operands] + [_reader(node.outputs[0], "Add")]
    if not any(beside):
        return None
    if any((dims := work.dims(value)) is None or len(dims) != 2 for value in operands):
        return None
    if work.known.dtype(operands[0]) not in FLOATS:
        return None
    if any(_is_dequantized(value) for value in operands):
        work.findings.decline(node, work.rule, "its weight is stored quantized, which runtimes compute with in MatMul")
        return None
    return _Product(operands, [False, False], {}, None, [node])


def _is_dequantized(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in ("Transpose", "Cast", "Identity") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _take_transposes(product: _Product, node: ir.Node) -> bool:
    taken = False
    for index, value in enumerate(product.operands):
        transpose = _maker(value, "Transpose")
        while transpose is not None and transpose.graph is node.graph and transpose.inputs[0] is not None:
            if list(transpose.attributes.get_ints("perm", [1, 0])) != [1, 0]:
                break
            product.operands[index], product.turned[index] = transpose.inputs[0], not product.turned[index]
            product.old.insert(0, transpose)
            taken, transpose = True, _maker(transpose.inputs[0], "Transpose")
    return taken


def _take_add(work: _Work, product: _Product, node: ir.Node) -> bool:
    add = _reader(node.outputs[0], "Add")
    if add is None or product.addend is not None:
        return False
    addend = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    assert addend is not None
    dims, sizes = work.dims(addend), product.dims(work)
    fits = dims is not None and len(dims) <= 2
    for size, full in zip((dims or ())[::-1], sizes[::-1], strict=False):
        fits = fits and (size == 1 or (size is not None and size == full))
    if not fits:
        why = f"{addend.name}, which is added, is not known to be a vector or a matrix of the product's size"
        work.findings.decline(add, work.rule, why)
        return False
    product.addend = addend
    product.attributes.pop("beta", None)
    product.old.append(add)
    return True


def _between_reshapes(work: _Work, node: ir.Node) -> list[ir.Node]:
    """Reshape, MatMul, Add, Reshape: the first can make a matrix for Gemm as well."""
    x, weight = node.inputs[:2]
    first, add = _maker(x, "Reshape"), _reader(node.outputs[0], "Add")
    last = None if add is None else _reader(add.outputs[0], "Reshape")
    if first is None or add is None or last is None or x is None or weight is None or first.graph is not node.graph:
        return []
    addend = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    dims, shape = work.dims(x) or (), _sizes(work, weight)
    if shape is None or len(dims) < 3 or not _is_row(work, addend, shape[1]) or _is_dequantized(weight):
        return []
    if work.known.dtype(x) not in FLOATS:
        return []
    present, target = _constant(work, last.inputs[1]), _target(work, last, (*dims[:-1], shape[1]))
    if present is None or target is None or last.inputs[0] is not add.outputs[0]:
        return []
    edit, graph = Edit(work.rule), node.graph
    assert isinstance(graph, ir.Graph)
    rows = edit.add_weight(f"{x.name}_rows", np.array([-1, shape[0]], np.int64), graph)
    edit.set_input(first, 1, rows)
    edit.set_attribute(first, "allowzero", None)
    if not np.array_equal(target, present):
        edit.set_input(last, 1, edit.add_weight(f"{last.outputs[0].name}_shape", target, graph))
    gemm = ir.node("Gemm", [x, weight, addend], name=node.name, metadata_props=dict(node.metadata_props))
    work.replace([node, add], [gemm], "MatMul and Add between Reshapes became Gemm", edit)
    x.shape, gemm.outputs[0].shape = ir.Shape([None, shape[0]]), ir.Shape([None, shape[1]])
    work.reshaped.update((x, gemm.outputs[0]))
    return [gemm]


def _target(work: _Work, reshape: ir.Node, dims: Shape) -> npt.NDArray[np.int64] | None:
    """What a Reshape asks for, without references to the axes of its input; None where that is not known.

    Args:
        work: the run.
        reshape: the node.
        dims: shape of its input.
    """
    target = _constant(work, reshape.inputs[1])
    if target is None or reshape.attributes.get_int("allowzero", False):
        return target
    target = target.copy()
    for axis in np.flatnonzero(target == 0):
        size = dims[axis] if axis < len(dims) else None
        if not isinstance(size, int) or not size:
            return None
        target[axis] = size
    return target


def _constant(work: _Work, value: ir.Value | None) -> npt.NDArray[Any] | None:
    if value is None or (value.is_initializer() and not is_constant(work.model, value)):
        return None
    return constant_array(value)


def _without_reshapes(work: _Work, node: ir.Node) -> list[ir.Node]:
    """Reshape, Gemm, Reshape: where only leading axes are taken together and apart again, MatMul does it with them."""
    x, weight = node.inputs[:2]
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    first, last = _maker(x, "Reshape"), _reader(node.outputs[0], "Reshape")
    shape = None if weight is None else _sizes(work, weight)
    if first is None or last is None or shape is None or first.graph is not node.graph or first.inputs[0] is None:
        return []
    if any(node.attributes.get_int(name, False) for name in ("transA", "transB")):
        return []
    if any(node.attributes.get_float(name, 1.0) != 1 for name in ("alpha", "beta")):
        return []
    before, after = work.dims(first.inputs[0]) or (), work.dims(last.outputs[0]) or ()
    same = len(before) > 1 and after == (*before[:-1], shape[1]) and before[-1] == shape[0]
    if not same or last.inputs[0] is not node.outputs[0]:
        return []
    if addend is not None and not _is_row(work, addend, shape[1]):
        return []
    made = [ir.node("MatMul", [first.inputs[0], weight], name=node.name, metadata_props=dict(node.metadata_props))]
    if addend is not None:
        made.append(ir.node("Add", [made[0].outputs[0], addend], name=f"{node.name or 'product'}_add"))
    work.replace([first, node, last], made, "Reshape before and behind Gemm became MatMul's own axes")
    return made


def _sizes(work: _Work, weight: ir.Value) -> tuple[int, int] | None:
    """Shape of a matrix of known size."""
    match work.dims(weight):
        case (int(rows), int(columns)) if rows and columns:
            return rows, columns
    return None


def _is_row(work: _Work, value: ir.Value | None, columns: int) -> bool:
    """Whether a value adds the same to each row of a matrix."""
    return value is not None and work.dims(value) in ((columns,), (1, columns), (1,), ())


_RULES: dict[str, tuple[Callable[[_Work, ir.Node], list[ir.Node]], ...]] = {
    "Gemm": (_fuse, _without_reshapes),
    "MatMul": (_fuse, _between_reshapes),
}
