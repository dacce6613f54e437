"""Calls of model-local functions to the nodes of their bodies."""

from collections.abc import Container, Iterable, Mapping

import onnx
import onnx_ir as ir

from onnxopt import carried
from onnxopt.model import Model
from onnxopt.nodes import bodies
from onnxopt.passing import Context, Findings, Pass

OWN_DOMAIN = "ai.onnxopt"
"""Functions of this domain are operators of ours that carry their meaning with them; they stay calls."""


_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


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
        for key, why in refused.items():
            findings.decline("::".join(filter(None, key)), self.name, why)
        if not calls:
            return findings
        for key in wanted:
            _adopt_imports(functions[key], model)
            _own_outputs(functions[key])
        for call in calls:
            findings.change(call, self.name, f"the call of {call.domain}::{call.op_type} is its body")
        _inline(model, calls, wanted)
        model.replace(model.ir)
        return findings


def _refusals(model: Model) -> dict[ir.OperatorIdentifier, str]:
    """Functions that cannot be inlined, and why. What a function that stays calls has to stay too."""
    functions = model.ir.functions
    refused = dict.fromkeys(_circular(functions), "its calls lead back to it")
    imports = dict(model.ir.opset_imports)
    given = {
        node.op_identifier()
        for node in (*model.nodes(), *(node for function in functions.values() for node in function.all_nodes()))
        if any(attribute.type in _GRAPHS for attribute in node.attributes.values())
    }
    for key, function in functions.items():
        if key in given or any(attribute.type in _GRAPHS for attribute in function.attributes.values()):
            refused[key] = "it takes a graph as an attribute"
        elif why := _refusal(function, functions, imports):
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


def _inline(model: Model, calls: list[ir.Node], wanted: Container[ir.OperatorIdentifier]) -> None:
    """Put bodies in the place of calls, and of the calls in those bodies; in time linear in what comes out."""
    functions = model.ir.functions
    for call in calls:  # which grows
        function = functions[call.op_identifier()]
        call.resize_outputs(len(function.outputs))  # the body may read those that the call leaves out
        body = function.clone()
        inner = list(body.all_nodes())
        _set_attributes(inner, {**function.attributes, **call.attributes})
        _set_inputs(body, call)
        _set_names(body, inner, model)
        for node in inner:
            node.metadata_props.update(call.metadata_props | node.metadata_props)
        calls += [node for node in inner if node.op_identifier() in wanted]
        _put(body, call)
    staying = {key for key in functions if key not in wanted} | (carried.training_calls(model.ir) & functions.keys())
    needed = _reached(staying, functions)
    for key in {call.op_identifier() for call in calls} - needed:
        del functions[key]


def _reached(
    keys: Iterable[ir.OperatorIdentifier], functions: Mapping[ir.OperatorIdentifier, ir.Function]
) -> set[ir.OperatorIdentifier]:
    """The functions, and those that they call, directly or not."""
    found, waiting = set(keys), list(keys)
    while waiting:
        called = {node.op_identifier() for node in functions[waiting.pop()].all_nodes()} & functions.keys()
        waiting += called - found
        found |= called
    return found


def _set_attributes(nodes: Iterable[ir.Node], given: Mapping[str, ir.Attr]) -> None:
    """Resolve what refers to attributes of the function: the call's, or the default, or none."""
    for node in nodes:
        for name, attribute in tuple(node.attributes.items()):
            if not attribute.is_ref():
                continue
            found = given.get(attribute.ref_attr_name or "")
            if found is not None and found.value is not None:
                node.attributes[name] = ir.Attr(name, found.type, found.value)
            else:
                del node.attributes[name]


def _set_inputs(body: ir.Function, call: ir.Node) -> None:
    given = {own: call.inputs[at] if at < len(call.inputs) else None for at, own in enumerate(body.inputs)}
    for own, value in given.items():
        for user, at in own.uses():
            user.replace_input_with(at, value)


def _set_names(body: ir.Function, nodes: Iterable[ir.Node], model: Model) -> None:
    """Names that nothing else in the model has, in subgraphs too."""
    values = list[ir.Value]()
    for node in nodes:
        node.name = model.fresh_name(node.name or node.op_type)
        values += node.outputs
        for graph in bodies(node):
            values += (*graph.inputs, *graph.initializers.values())
    for value in values:
        if value.name or value.uses():  # an output without a name is one that the body leaves out
            value.name = model.fresh_name(value.name or "value")


def _put(body: ir.Function, call: ir.Node) -> None:
    """Move the body's nodes to the place of the call; its outputs become the call's."""
    outputs, nodes, graph = tuple(body.outputs), tuple(body), call.graph
    assert graph is not None
    body.outputs.clear()
    body.remove(nodes)
    graph.insert_before(call, nodes)
    for old, new in zip(call.outputs, outputs, strict=True):
        name = old.name
        new.type, new.shape = old.type or new.type, old.shape or new.shape
        new.doc_string = old.doc_string or new.doc_string
        new.metadata_props.update(old.metadata_props)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        if name:
            old.name, new.name = None, name
    graph.remove(call, safe=True)
