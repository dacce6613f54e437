"""What branches and loops compute, carry and collect though nobody reads it."""

from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from onnxopt.analysis.structure import reads
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import bodies, label
from onnxopt.passing import Context, Findings, Pass

_FIRST_SCAN_WITHOUT_BATCH = 9
"""Opset from which on Scan has no batch axis and no sequence lengths."""


class PruneBodies(Pass):
    """Remove outputs of If, Loop and Scan that nobody reads, with what computes them inside.

    A state that a loop hands on unchanged is read from outside; one that nobody reads afterwards and that feeds only
    itself goes.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        waiting = list(model.graph)
        while waiting:
            node = waiting.pop()  # later nodes and what is inside first: they may have been the only readers
            if node.op_type in _PRUNERS and not node.domain and any(map(_is_read, node.outputs)):
                for what in _PRUNERS[node.op_type](model, node, findings):
                    findings.change(label(node), self.name, what)
            waiting += (inner for body in bodies(node) for inner in body)
        if findings.changed:
            model.replace(model.ir)
        return findings


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _prune_branches(model: Model, node: ir.Node, findings: Findings) -> Iterator[str]:
    unread = {index for index, value in enumerate(node.outputs) if not _is_read(value)}
    if not unread:
        return
    for body in bodies(node):
        _drop(body.outputs, unread)
        _remove_others(model, body, _needed(body, body.outputs, {}))
    yield from _told("output", unread)
    _drop_outputs(node, unread)


@dataclass(frozen=True)
class _Iteration:
    """A Loop or Scan: where states stand among the inputs and outputs of the node and of its body.

    Attributes:
        node: the Loop or Scan.
        body: what runs in each iteration.
        states: how many states there are; among the node's outputs they come first.
        first_input: of the node, that is a state.
        first_given: input of the body that is a state.
        first_result: output of the body that is a state.
    """

    node: ir.Node
    body: ir.Graph
    states: int
    first_input: int
    first_given: int
    first_result: int

    def initial(self, state: int) -> ir.Value | None:
        """The state before the first iteration."""
        return self.node.inputs[self.first_input + state]

    def given(self, state: int) -> ir.Value:
        """The state as an iteration gets it."""
        return self.body.inputs[self.first_given + state]

    def result(self, state: int) -> ir.Value:
        """The state as an iteration leaves it."""
        return self.body.outputs[self.first_result + state]


def _prune_loop(model: Model, node: ir.Node, findings: Findings) -> Iterator[str]:
    loop = _Iteration(node, node.attributes["body"].as_graph(), len(node.inputs) - 2, 2, 2, 1)
    yield from _prune_iteration(model, loop, findings)


def _prune_scan(model: Model, node: ir.Node, findings: Findings) -> Iterator[str]:
    if model.opset < _FIRST_SCAN_WITHOUT_BATCH:
        return
    states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    yield from _prune_iteration(model, _Iteration(node, node.attributes["body"].as_graph(), states, 0, 0, 0), findings)


_PRUNERS = {"If": _prune_branches, "Loop": _prune_loop, "Scan": _prune_scan}


def _prune_iteration(model: Model, loop: _Iteration, findings: Findings) -> Iterator[str]:
    fixed = set()
    for state in range(loop.states):
        initial = loop.initial(state)
        if initial is None or not _never_changes(loop, state):
            continue
        edit = Edit("prune-bodies")
        edit.rewire(loop.given(state), initial)
        edit.rewire(loop.node.outputs[state], initial)
        try:
            model.apply(edit)
        except ModelError as error:
            findings.decline(label(loop.node), "prune-bodies", str(error))
            continue
        fixed.add(state)
        yield f"state {state} never changes; its readers read {initial.name}"
    if any(map(_is_read, loop.node.outputs)):
        yield from _drop_unread(model, loop, fixed)


def _never_changes(loop: _Iteration, state: int) -> bool:
    """Whether each iteration hands the state on as it is. As another output of the body it needs to be its own."""
    given, result = loop.given(state), loop.result(state)
    while result is not given:
        node = result.producer()
        if node is None or node.op_type != "Identity" or node.domain or node.inputs[0] is None:
            return False
        result = node.inputs[0]
    return sum(value is given for value in loop.body.outputs) == (loop.result(state) is given)


def _drop_unread(model: Model, loop: _Iteration, fixed: Set[int]) -> Iterator[str]:
    """Take out states that nothing but themselves depends on, and collected values that nobody reads."""
    outputs, states = loop.node.outputs, range(loop.states)
    unread = {index for index, value in enumerate(outputs) if not _is_read(value)}
    wanted = [v for i, v in enumerate(loop.body.outputs) if i - loop.first_result not in unread]
    needed = _needed(loop.body, wanted, {loop.given(state): loop.result(state) for state in states})
    dropped = {index for index in unread if index >= loop.states or loop.given(index) not in needed}
    if not dropped:
        return
    gone = {state for state in states if state in dropped}
    _drop(loop.body.outputs, {index + loop.first_result for index in dropped})
    _remove_others(model, loop.body, needed)
    _drop(loop.body.inputs, {state + loop.first_given for state in gone})
    for name in ("scan_output_axes", "scan_output_directions"):
        if name in loop.node.attributes:
            entries = enumerate(loop.node.attributes.get_ints(name, []), loop.states)
            loop.node.attributes[name] = ir.AttrInt64s(
                name, [entry for index, entry in entries if index not in dropped]
            )
    _drop_inputs(loop.node, {state + loop.first_input for state in gone})
    _drop_outputs(loop.node, dropped)
    yield from _told("state", gone - fixed)
    yield from _told("collected output", dropped - gone)


def _needed(body: ir.Graph, wanted: Iterable[ir.Value], states: Mapping[ir.Value, ir.Value]) -> Set[ir.Value | ir.Node]:
    """The nodes of a body that some values depend on, with all values that these read.

    Args:
        body: the graph; what it reads from outside is not followed.
        wanted: the values.
        states: what an iteration gets -> what the iteration before left for it.
    """
    inside = set(body.all_nodes())
    found: set[ir.Value | ir.Node] = set()
    waiting = list(wanted)
    while waiting:
        value = waiting.pop()
        if value in found:
            continue
        found.add(value)
        if value in states:
            waiting.append(states[value])
        node = value.producer()
        if node in inside and node not in found:
            found.add(node)
            waiting += reads(node)
    return found


def _remove_others(model: Model, body: ir.Graph, needed: Set[ir.Value | ir.Node]) -> None:
    edit = Edit("prune-bodies")
    edit.remove(*(node for node in body if node not in needed))
    model.apply(edit)


def _drop(values: MutableSequence[ir.Value], indices: Set[int]) -> None:
    """Take entries out of a graph's list of inputs or outputs."""
    kept = [value for index, value in enumerate(values) if index not in indices]
    values.clear()
    values.extend(kept)


def _drop_inputs(node: ir.Node, indices: Set[int]) -> None:
    kept = [value for index, value in enumerate(node.inputs) if index not in indices]
    for index, value in enumerate(kept):
        node.replace_input_with(index, value)
    node.resize_inputs(len(kept))


def _drop_outputs(node: ir.Node, indices: Set[int]) -> None:
    """Take outputs out, which nobody reads; those behind them move up, with their names."""
    kept = [value for index, value in enumerate(node.outputs) if index not in indices]
    for place, value in zip(node.outputs, kept, strict=False):
        if place is not value:
            _move(value, place)
    node.resize_outputs(len(kept))


def _move(value: ir.Value, place: ir.Value) -> None:
    """Let another output of the same node be this value."""
    for user, index in tuple(value.uses()):
        user.replace_input_with(index, place)
    if value.is_graph_output():
        assert value.graph is not None
        outputs = [place if output is value else output for output in value.graph.outputs]
        value.graph.outputs.clear()
        value.graph.outputs.extend(outputs)
    place.name, place.type, place.shape, place.doc_string = value.name, value.type, value.shape, value.doc_string
    place.metadata_props.clear()
    place.metadata_props.update(value.metadata_props)
    place.meta.clear()
    place.meta.update(value.meta)


def _told(what: str, indices: Iterable[int]) -> Iterator[str]:
    for index in sorted(indices):
        yield f"{what} {index} removed: nobody reads it"
