"""Sizes computed at run time that the graph already settles, and nodes that do nothing at those sizes.

Shapes are followed as expressions of the inputs' open axes, so what is found holds for all of their sizes and open
axes stay open. One walk finds all of it, one edit carries it out.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxopt.analysis.symbols import Affine, Element, Fact, Polynomial, Symbols, symbols
from onnxopt.analysis.symbols.arguments import constant_arguments, reshape_target
from onnxopt.analysis.symbols.facts import Array, Shape
from onnxopt.analysis.symbols.repeats import repeated, stretched_from
from onnxopt.analysis.symbols.stretching import BROADCASTS, loose_values
from onnxopt.analysis.symbols.views import LAYS_OUT, View, inserted_axes, laid_out_from, view
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.nodes import bodies
from onnxopt.passing import Context, Findings, Pass

_MOST_BYTES = 256
"""A weight up to this size takes no more of a file than the node that computes it."""

_ROUNDS = 8
"""Walks at most: what nothing reads any more may have kept other nodes from being replaced."""

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Recurrent operators: their inputs that are taken as zero when they are left out."""


class FoldShapes(Pass):
    """Replace computed sizes by constants, and drop what repeats its input.

    Reshape targets become constants with 0 and -1, slices end at the end, an Expand before a broadcast goes, equal
    shape computations are shared. Axes without a fixed size stay so.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        for _ in range(_ROUNDS):
            findings.declined.clear()
            plan = _Plan(model, symbols(model), self.name, findings)
            for node in plan.live:
                plan.visit(node)
            if not plan.carry_out():
                break
        return findings


@dataclass
class _Plan:
    """What is to be done, collected node by node.

    Attributes:
        replaced: value -> what its readers read instead, which is replaced by nothing itself.
        inputs: (node, index) -> what is to be read there.
        shrunk: values that, as planned, may have size 1 where they were found to repeat.
    """

    model: Model
    symbols: Symbols
    rule: str
    findings: Findings
    replaced: dict[ir.Value, ir.Value] = field(default_factory=dict)
    inputs: dict[tuple[ir.Node, int], ir.Value | None] = field(default_factory=dict)
    shrunk: set[ir.Value] = field(default_factory=set)
    _weights: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = field(default_factory=dict)
    _known: dict[Hashable, list[ir.Value]] = field(default_factory=dict)
    _outputs: set[ir.Value] = field(default_factory=set)
    _made: dict[ir.Value, Fact] = field(default_factory=dict)
    _new: list[tuple[ir.Node, ir.Node]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._edit = Edit(self.rule)
        self._around: dict[ir.Graph | ir.Function | None, set[ir.Graph | ir.Function | None]]
        self._around = {self.model.graph: {self.model.graph}}
        self._parents = {body: node for node in self.symbols.order for body in bodies(node)}
        for body, node in reversed(self._parents.items()):
            self._around[body] = {body, *self._around[node.graph]}
        found = self._reached()
        self.live = [node for node in self.symbols.order if node in found]
        self._loose = loose_values(self.symbols, self.live)

    def visit(self, node: ir.Node) -> None:
        """Plan what is to become of a node."""
        if any(True for _ in bodies(node)) or node.domain not in ("", "ai.onnx"):
            return
        value, fact = node.outputs[0], self._fact(node.outputs[0])
        given_less = any(each in self.shrunk or self._root(each) in self.shrunk for each in node.inputs if each)
        if not given_less and self._repeats(node, fact):
            return
        for output in node.outputs:
            self._fold(node, output)
        if value in self.replaced or (value in self._loose and self._shrink(node, fact)):
            return
        if given_less:
            self.shrunk.update({value} & self._loose)
        elif not self._lay_out(node, fact):
            self._give_constants(node, fact)
            self._leave_out_states(node)

    def carry_out(self) -> bool:
        """Apply all of it, and take out the nodes that nothing needs any more; whether there was anything to do."""
        repaired = self._repair()
        if not self.replaced and not self.inputs and not repaired:
            return False
        for value, new in self.replaced.items():
            self._edit.rewire(value, new)
        for (node, index), given in self.inputs.items():
            self._edit.set_input(node, index, given)
        for value in sorted(self.shrunk.difference(self.replaced), key=lambda value: value.name or ""):
            self._edit.declare_shape(value, None)  # it may be smaller now than the model says
        live = self._reached()
        for made, before in self._new:
            if made in live:
                self._edit.insert([made], before=before)
            else:  # what read it was replaced, too
                for place in range(len(made.inputs)):
                    made.replace_input_with(place, None)
        for node in self.symbols.order:
            parent = self._parents.get(node.graph) if isinstance(node.graph, ir.Graph) else None
            if node not in live and (parent is None or parent in live):
                self._edit.remove(node)
        self.model.apply(self._edit)
        return True

    def _repair(self) -> bool:
        """Declare what is proven of values whose declared shapes cannot be: other passes look at those."""
        before = len(self.findings.changes)
        for node in self.live:
            for value in node.outputs:
                proven = self._fact(value).shape
                if proven is None or value.shape is None or value.is_graph_output() or value in self.replaced:
                    continue
                if _contradicts(value.shape, proven):
                    sizes = [size if isinstance(size, int) else None for size in proven]
                    self._edit.declare_shape(value, ir.Shape(sizes))
                    self.findings.change(node, self.rule, f"{value.name} was declared {value.shape}, which it is not")
        return len(self.findings.changes) > before

    def _fact(self, value: ir.Value | None) -> Fact:
        made = None if value is None else self._made.get(value)
        return self.symbols.of(value) if made is None else made

    def _root(self, value: ir.Value) -> ir.Value:
        return self.replaced.get(value, value)

    def _reached(self) -> set[ir.Node]:
        """The nodes that outputs depend on as planned."""
        found: set[ir.Node] = set()
        stack = [self._root(value) for value in self.model.graph.outputs]
        while stack:
            node = stack.pop().producer()
            if node is None or node in found:
                continue
            found.add(node)
            stack.extend(self._reads(node))
            for body in bodies(node):
                stack.extend(self._root(value) for value in body.outputs)
        return found

    def _reads(self, node: ir.Node) -> Iterator[ir.Value]:
        for index, value in enumerate(node.inputs):
            read = self.inputs.get((node, index), value)
            if read is not None:
                yield self._root(read)

    def _repeats(self, node: ir.Node, fact: Fact) -> bool:
        """Let readers of a node that repeats its input read that; False where it does not, or an output needs it."""
        index = repeated(self.symbols.call(node), fact)
        source = node.inputs[index] if index is not None else None
        return source is not None and self._drop(node, self._root(source))

    def _drop(self, node: ir.Node, source: ir.Value) -> bool:
        value = node.outputs[0]
        if any(other.uses() or other.is_graph_output() for other in node.outputs[1:]):
            return False
        if None not in (value.dtype, source.dtype) and value.dtype != source.dtype:
            return False
        if value.is_graph_output():
            made_here = source.producer() is not None and source.graph is value.graph
            if not made_here or source.is_graph_output() or source in self._outputs:
                self.findings.decline(node, self.rule, f"the output {value.name} needs a node of its own")
                return False
            self._outputs.add(source)
        self._replace(node, value, source, f"{node.op_type} changes nothing, readers read {source.name}")
        return True

    def _shrink(self, node: ir.Node, fact: Fact) -> bool:
        """Let readers that broadcast anyway read what a node repeats."""
        value, number = node.outputs[0], fact.uniform
        if isinstance(number, int | float) and fact.dtype is not None:
            weight = self._weight(value.name or "number", np.asarray(number, fact.dtype.numpy()))
            self._replace(node, value, weight, f"{node.op_type} gives {number} everywhere")
        elif node.op_type in BROADCASTS or node.op_type == "Expand":
            index = stretched_from(self.symbols.call(node), fact)
            source = node.inputs[index] if index is not None else None
            if source is None or not self._drop(node, self._root(source)):
                return False
        else:
            return False
        self.shrunk.add(value)
        return True

    def _lay_out(self, node: ir.Node, fact: Fact) -> bool:
        """Replace a node whose elements are another value's in another order by one node that says so."""
        call, first = self.symbols.call(node), node.inputs[0] if node.inputs else None
        found = view(call, self._fact, self._root)
        if found is None and node.op_type in LAYS_OUT and first is not None:
            source = laid_out_from(self._root(first), self._fact, self._root)
            computed = node.op_type == "Reshape" and self._is_computed(node.inputs[1])
            stuck = computed and not constant_arguments(call, fact)
            found = View(source, None) if stuck or source is not self._root(first) else None
        if found is None or fact.shape is None or found.source in self.shrunk:
            return False
        new = self._view_node(found, fact.shape)
        if not isinstance(new, ir.Node):
            return new is not None and self._drop(node, new)
        new.outputs[0].type, new.name = node.outputs[0].type, node.name
        self._new.append((new, node))
        self._made[new.outputs[0]] = fact
        what = f"{node.op_type} became {new.op_type} of {found.source.name}"
        self._replace(node, node.outputs[0], new.outputs[0], what)
        return True

    def _view_node(self, found: View, shape: Shape) -> ir.Node | ir.Value | None:
        """The one node that makes a view, or the viewed value itself; None where there is no such node."""
        source, known = found.source, self._fact(found.source).shape
        if found.order is not None:
            if found.order == tuple(range(len(found.order))):
                return source
            return ir.node("Transpose", [source], {"perm": list(found.order)})
        if known is None or known == shape:
            return None if known is None else source
        axes, target = inserted_axes(known, shape), reshape_target(known, shape)
        if axes is not None:
            if self.symbols.opset < 13:
                return ir.node("Unsqueeze", [source], {"axes": axes})
            return ir.node("Unsqueeze", [source, self._weight("axes", np.array(axes, np.int64))])
        if target is None or self.symbols.opset < 5:
            return None
        return ir.node("Reshape", [source, self._weight("reshape_1", np.array(target, np.int64))])

    def _fold(self, node: ir.Node, value: ir.Value) -> None:
        """Let readers of a value whose elements are known read a weight, or an equal value computed before."""
        fact = self._fact(value)
        if value.is_graph_output() or not value.uses() or fact.dtype is None or value.dtype not in (None, fact.dtype):
            return
        if fact.known and fact.content is not None:
            if fact.content.nbytes <= _MOST_BYTES:
                weight = self._weight(value.name or "size", fact.content)
                self._replace(node, value, weight, f"{node.op_type} gives {_brief(fact.content)} at all sizes")
            return
        key = _content_key(fact)
        if key is None:
            return
        equal = self._known.setdefault(key, [])
        earlier = next((each for each in equal if each.graph in self._around[value.graph]), None)
        if earlier is None and value not in self._loose:
            equal.append(value)
        elif earlier is not None:
            self._replace(node, value, self._root(earlier), f"{node.op_type} gives the same as {earlier.name}")

    def _give_constants(self, node: ir.Node, fact: Fact) -> None:
        found = constant_arguments(self.symbols.call(node), fact)
        found = {index: entries for index, entries in found.items() if self._is_computed(node.inputs[index])}
        for index, entries in found.items():
            dtype = self._fact(node.inputs[index]).dtype
            if dtype is None:
                continue
            weight = self._weight(f"{node.op_type.lower()}_{index}", np.array(entries, dtype.numpy()))
            self._set(node, index, weight, f"{node.op_type} takes {entries} at all sizes")
            if node.op_type == "Reshape" and 0 in entries and "allowzero" in node.attributes:
                self._edit.set_attribute(node, "allowzero", None)

    def _is_computed(self, value: ir.Value | None) -> bool:
        value = None if value is None else self._root(value)
        return value is not None and value.producer() is not None

    def _leave_out_states(self, node: ir.Node) -> None:
        """A recurrent operator starts from zero where it is given nothing else."""
        for place in _STATES.get(node.op_type, ()):
            value = node.inputs[place] if place < len(node.inputs) else None
            number = self._fact(value).uniform
            if value is not None and isinstance(number, float) and number == 0:
                self._set(node, place, None, "starts from zero, which needs no input")

    def _replace(self, node: ir.Node, value: ir.Value, new: ir.Value, what: str) -> None:
        self.replaced[value] = new
        self.findings.change(node.name, self.rule, what)

    def _set(self, node: ir.Node, index: int, new: ir.Value | None, what: str) -> None:
        self.inputs[node, index] = new
        self.findings.change(node.name, self.rule, what)

    def _weight(self, stem: str, content: Array) -> ir.Value:
        """A weight in the main graph; equal ones are one."""
        key = (content.dtype.str, content.shape, content.tobytes())
        if key not in self._weights:
            self._weights[key] = self._edit.add_weight(stem, np.array(content))
        return self._weights[key]


def _contradicts(declared: ir.Shape, proven: Shape) -> bool:
    """Whether a declared shape cannot be: another number of axes, or another size of one."""
    if len(declared) != len(proven):
        return True
    pairs = zip(declared, proven, strict=True)
    return any(isinstance(a, int) and a >= 0 and isinstance(b, int) and a != b for a, b in pairs)


def _content_key(fact: Fact) -> Hashable | None:
    """What equal tensors have in common; None where elements are not known."""
    if fact.content is not None:
        return fact.dtype, fact.content.shape, tuple(map(_key, fact.elements or ()))
    rule: Affine | None = fact.affine
    return None if rule is None else (fact.dtype, fact.shape, _key(rule.base), rule.steps)


def _key(value: Element) -> Hashable:
    return value if isinstance(value, Polynomial) else (type(value), repr(value))


def _brief(content: Array) -> str:
    return str(content.tolist()) if content.size <= 8 else f"{content.size} numbers"
