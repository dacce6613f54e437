"""What no output of the model depends on: nodes, weights, functions, imports."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass

from onnxopt.analysis.structure import bodies
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.passing import Context, Findings, Pass

_FREE_OUTPUTS = frozenset({"Dropout", "GRU", "LSTM", "LayerNormalization", "MaxPool", "RNN"})
"""Operators whose optional outputs may be left out without a change of the others (BatchNormalization's may not)."""


class EliminateDead(Pass):
    """Remove nodes, weights, functions and imports that no output of the model depends on.

    Graph inputs stay, and so do weights that are graph inputs' defaults. Optional outputs that nobody reads are
    left blank, so that runtimes need not compute them.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        self._nodes(model, findings)
        self._weights(model, findings)
        before = len(findings.changes)
        self._outputs(model, findings)
        self._functions(model, findings)
        self._imports(model, findings)
        if len(findings.changes) > before:
            model.replace(model.ir)
        return findings

    def _nodes(self, model: Model, findings: Findings) -> None:
        dead = _dead_nodes(model)
        if not dead:
            return
        edit = Edit(self.name)
        edit.remove(*dead)
        model.apply(edit)
        for node in dead:
            findings.change(node.name, self.name, f"{node.op_type} removed: nobody reads what it makes")

    def _weights(self, model: Model, findings: Findings) -> None:
        unread = [value for value in model.weights() if _unread(model, value)]
        if not unread:
            return
        edit = Edit(self.name)
        for value in unread:
            edit.remove_weight(value)
            findings.change(value.name, self.name, "weight removed: nobody reads it")
        model.apply(edit)

    def _outputs(self, model: Model, findings: Findings) -> None:
        for node in model.nodes():
            if node.domain or node.op_type not in _FREE_OUTPUTS:
                continue
            idle = [v for v in node.outputs[_required(node) :] if v.name and not v.uses() and not v.is_graph_output()]
            for value in idle:
                findings.change(node.name, self.name, f"output {value.name} left out: nobody reads it")
                value.name = ""
            if idle:
                named = [index for index, value in enumerate(node.outputs) if value.name]
                node.resize_outputs(named[-1] + 1)

    def _functions(self, model: Model, findings: Findings) -> None:
        before = list(model.ir.functions)
        RemoveUnusedFunctionsPass()(model.ir)  # type: ignore[no-untyped-call]
        for key in before:
            if key not in model.ir.functions:
                findings.change("::".join(filter(None, key)), self.name, "function removed: nobody calls it")

    def _imports(self, model: Model, findings: Findings) -> None:
        used = {"", "ai.onnx", *(node.domain for node in model.nodes())}
        for function in model.ir.functions.values():
            used |= {function.domain, *function.opset_imports}
        for domain in [domain for domain in model.ir.opset_imports if domain not in used]:
            del model.ir.opset_imports[domain]
            findings.change(domain, self.name, "opset import removed: no operator is from it")


def _dead_nodes(model: Model) -> list[ir.Node]:
    """Nodes none of whose outputs is read by a node that lives, or by a graph; in no particular order."""
    readers: dict[ir.Value, int] = {}
    dead, gone = [], set()
    waiting = list(model.nodes())
    while waiting:
        node = waiting.pop()
        if node in gone or any(_is_read(value, readers) for value in node.outputs):
            continue
        dead.append(node)
        leaving = [inner for inner in _with_bodies(node) if inner not in gone]
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


def _with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    yield node
    for graph in bodies(node):
        yield from graph.all_nodes()


def _unread(model: Model, value: ir.Value) -> bool:
    """Whether a weight has no reader. From IR 4 on, one that is a graph input is part of what callers may use."""
    if value.uses() or value.is_graph_output():
        return False
    return not value.is_graph_input() or (model.ir.ir_version < 4 and value.graph is model.graph)


def _required(node: ir.Node) -> int:
    """How many outputs come before the optional ones."""
    return 0 if node.op_type in ("GRU", "LSTM", "RNN") else 1
