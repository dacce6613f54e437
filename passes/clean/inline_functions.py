"""Calls of model-local functions to the nodes of their bodies."""

from collections.abc import Container, Iterable, Mapping

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from onnxopt.analysis.structure import bodies
from onnxopt.model import Model
from onnxopt.passing import Context, Findings, Pass

OWN_DOMAIN = "ai.onnxopt"
"""Functions of this domain are operators of ours that carry their meaning with them; they stay calls."""


class InlineFunctions(Pass):
    """Replace calls of model-local functions by the bodies, nested calls included.

    Functions of domain `ai.onnxopt` stay. A function written for another opset than the model's is inlined
    when every operator in it means the same in both.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        functions = model.ir.functions
        refused = _refusals(model)
        wanted = {key for key in functions if key not in refused and key[0] != OWN_DOMAIN}
        calls = [node for node in model.nodes() if node.op_identifier() in wanted]
        inner = [node for function in functions.values() for node in function.all_nodes()]
        for key, why in refused.items():
            findings.decline("::".join(filter(None, key)), self.name, why)
        if not calls:
            return findings
        for key in wanted:
            _adopt_imports(functions[key], model)
            _own_outputs(functions[key])
        for call in (*calls, *(node for node in inner if node.op_identifier() in wanted)):
            _complete_outputs(call, len(functions[call.op_identifier()].outputs))
        for call in calls:
            findings.change(call.name, self.name, f"the call of {call.domain}::{call.op_type} is its body")
        notes = {name: value.metadata_props for call in calls for value in call.outputs if (name := value.name)}
        InlinePass(criteria=lambda function: function.identifier() in wanted)(model.ir)
        _rename_duplicates(model, notes)
        model.replace(model.ir)
        return findings


def _refusals(model: Model) -> dict[ir.OperatorIdentifier, str]:
    """Functions that cannot be inlined, and why. What a function that stays calls has to stay too."""
    functions = model.ir.functions
    refused = dict.fromkeys(_circular(functions), "its calls lead back to it")
    imports = dict(model.ir.opset_imports)
    for key, function in functions.items():
        if why := _refusal(function, functions, imports):
            refused[key] = why
        else:
            imports = {**function.opset_imports, **imports}
    waiting = list(refused)
    while waiting:
        caller = waiting.pop()
        for node in functions[caller].all_nodes():
            if (key := node.op_identifier()) in functions and key not in refused:
                refused[key] = f"{caller[0]}::{caller[1]}, which stays, calls it"
                waiting.append(key)
    return {key: why for key, why in refused.items() if key[0] != OWN_DOMAIN}


def _refusal(
    function: ir.Function, functions: Container[ir.OperatorIdentifier], imports: Mapping[str, int]
) -> str | None:
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in function.attributes.values()):
        return "it takes a graph as an attribute"
    for node in function.all_nodes():
        if node.op_identifier() in functions:
            continue
        version, here = function.opset_imports.get(node.domain), imports.get(node.domain)
        if version is None or here is None or version == here:
            continue
        if _since(node, version) is None or _since(node, version) != _since(node, here):
            return f"{node.op_type} means one thing at opset {version} of the function, another at the model's {here}"
    return None


def _since(node: ir.Node, version: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(node.op_type, version, node.domain).since_version)
    except onnx.defs.SchemaError:
        return None


def _circular(functions: dict[ir.OperatorIdentifier, ir.Function]) -> Iterable[ir.OperatorIdentifier]:
    """Functions on or above a circle of calls: what is left when leaves are taken off again and again."""
    calls = {
        key: {node.op_identifier() for node in function.all_nodes()} & functions.keys()
        for key, function in functions.items()
    }
    while leaves := {key for key, called in calls.items() if not called}:
        calls = {key: called - leaves for key, called in calls.items() if key not in leaves}
    return calls


def _adopt_imports(function: ir.Function, model: Model) -> None:
    """Let the function import what the model imports; `_refusal` has seen that nothing changes its meaning."""
    for domain in function.opset_imports:
        function.opset_imports[domain] = model.ir.opset_imports.setdefault(domain, function.opset_imports[domain])


def _own_outputs(function: ir.Function) -> None:
    """Give each output a node of its own.

    An output that is an input, or is listed twice, would rename the caller's tensors when it is inlined.
    """
    seen = set()
    for index, value in enumerate(function.outputs):
        if value.producer() is None or value in seen:
            identity = ir.node("Identity", [value])
            identity.outputs[0].name = f"{value.name}_out{index}"
            identity.outputs[0].type, identity.outputs[0].shape = value.type, value.shape
            function.append(identity)
            function.outputs[index] = identity.outputs[0]
        seen.add(value)


def _complete_outputs(call: ir.Node, count: int) -> None:
    """Give a call all outputs: the body may read those that the call leaves out."""
    call.resize_outputs(count)
    for value in call.outputs:
        value.name = value.name or None


def _rename_duplicates(model: Model, notes: dict[str, dict[str, str]]) -> None:
    """Make value names unique over all graphs where inlined bodies brought in names that others have."""
    model.replace(model.ir)
    taken = {value.name for value in (*model.graph.inputs, *model.graph.outputs)} | set(model.graph.initializers)
    for node in model.nodes():
        inner = [value for graph in bodies(node) for value in (*graph.inputs, *graph.initializers.values())]
        for value in (*node.outputs, *inner):
            main = value.graph is model.graph and (value.is_graph_output() or value.is_graph_input())
            if not main and value.name and value.name in taken:
                value.name = model.fresh_name(value.name)
            taken.add(value.name)
            value.metadata_props.update(notes.get(value.name or "", {}))
