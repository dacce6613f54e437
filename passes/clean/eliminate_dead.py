"""What no output of the model depends on: nodes, weights, functions, imports."""

from collections.abc import Set
from itertools import chain
from typing import TypeAlias

import onnx_ir as ir

from onnxopt import carried
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.nodes import with_inner
from onnxopt.passing import Context, Findings, Pass

Values: TypeAlias = Set[ir.Value]

_FREE_OUTPUTS = frozenset({"Dropout", "GRU", "LSTM", "LayerNormalization", "MaxPool", "RNN"})
"""Operators whose optional outputs may be left out without a change of the others (BatchNormalization's may not)."""


class EliminateDead(Pass):
    """Remove nodes, weights, functions and imports that no output of the model depends on.

    Graph inputs stay, and so do weights that are graph inputs' defaults, and what training info names. Optional
    outputs that nobody reads are left blank, so that runtimes need not compute them.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        trained = _trained(model)
        for part in (self._nodes, self._weights, self._outputs, self._functions, self._imports):
            edit, before = Edit(self.name), len(findings.changes)
            part(model, trained, edit, findings)
            if len(findings.changes) > before:
                model.apply(edit)
        return findings

    def _nodes(self, model: Model, trained: Values, edit: Edit, findings: Findings) -> None:
        for node in _dead_nodes(model, trained):
            edit.remove(node)
            findings.change(node, self.name, f"{node.op_type} removed: nobody reads what it makes")

    def _weights(self, model: Model, trained: Values, edit: Edit, findings: Findings) -> None:
        for value in model.weights():
            if value not in trained and _unread(model, value):
                edit.remove_weight(value)
                findings.change(value.name, self.name, "weight removed: nobody reads it")

    def _outputs(self, model: Model, trained: Values, edit: Edit, findings: Findings) -> None:
        for node in model.nodes():
            if node.domain or node.op_type not in _FREE_OUTPUTS:
                continue
            for value in node.outputs[_required(node) :]:
                if value.name and not value.uses() and not value.is_graph_output() and value not in trained:
                    edit.leave_out(value)
                    findings.change(node, self.name, f"output {value.name} left out: nobody reads it")

    def _functions(self, model: Model, trained: Values, edit: Edit, findings: Findings) -> None:
        called = _called(model)
        for key in model.ir.functions:
            if key not in called:
                edit.drop_function(key)
                findings.change("::".join(filter(None, key)), self.name, "function removed: nobody calls it")

    def _imports(self, model: Model, trained: Values, edit: Edit, findings: Findings) -> None:
        used = {"", "ai.onnx", *(node.domain for node in model.nodes())}
        used.update(domain for domain, *_ in carried.training_calls(model.ir))
        for function in model.ir.functions.values():
            used |= {function.domain, *function.opset_imports}
        for domain in model.ir.opset_imports:
            if domain not in used:
                edit.drop_domain(domain)
                findings.change(domain, self.name, "opset import removed: no operator is from it")


def _trained(model: Model) -> Values:
    """The main graph's values that the training info names."""
    names = carried.training_names(model.ir)
    if not names:
        return frozenset()
    made = (value for node in model.graph for value in node.outputs)
    return frozenset(value for value in chain(made, model.graph.initializers.values()) if value.name in names)


def _called(model: Model) -> set[ir.OperatorIdentifier]:
    """Functions that the graph or the training info calls, directly or through others."""
    called: set[ir.OperatorIdentifier] = set()
    waiting = [node.op_identifier() for node in model.nodes()] + list(carried.training_calls(model.ir))
    while waiting:
        key = waiting.pop()
        if key not in called and key in model.ir.functions:
            called.add(key)
            waiting.extend(node.op_identifier() for node in model.ir.functions[key].all_nodes())
    return called


def _dead_nodes(model: Model, trained: Values) -> list[ir.Node]:
    """Nodes none of whose outputs is named by training or read by a graph or node that lives; in no special order."""
    readers: dict[ir.Value, int] = {}
    dead, gone = [], set()
    waiting = list(model.nodes())
    while waiting:
        node = waiting.pop()
        if node in gone or any(value in trained or _is_read(value, readers) for value in node.outputs):
            continue
        dead.append(node)
        leaving = [inner for inner in with_inner(node) if inner not in gone]
        gone.update(leaving)
        for value in (value for inner in leaving for value in inner.inputs if value is not None):
            if value not in readers:
                readers[value] = len(value.uses())
            readers[value] -= 1
            if not readers[value] and (producer := value.producer()) is not None:
                waiting.append(producer)
    return dead


def _is_read(value: ir.Value, readers: dict[ir.Value, int]) -> bool:
    return value.is_graph_output() or (readers[value] > 0 if value in readers else bool(value.uses()))


def _unread(model: Model, value: ir.Value) -> bool:
    """Whether a weight has no reader. From IR 4 on, one that is a graph input is part of what callers may use."""
    if value.uses() or value.is_graph_output():
        return False
    return not value.is_graph_input() or (model.ir.ir_version < 4 and value.graph is model.graph)


def _required(node: ir.Node) -> int:
    """How many outputs come before the optional ones."""
    return 0 if node.op_type in ("GRU", "LSTM", "RNN") else 1
