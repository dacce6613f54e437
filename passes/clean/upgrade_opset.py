"""A newer operator set, by onnx's converter.

The converter sees a skeleton: weights are typed inputs of it, so that it never holds one. What it does not carry
(metadata, doc strings, names, types other than tensors) is put back from the graph as it was.
"""

import logging
import re
from collections.abc import Iterator

import onnx
import onnx.version_converter
import onnx_ir as ir
from pydantic import Field, field_validator

from onnxopt import reading, serialization
from onnxopt.analysis.structure import constant_array
from onnxopt.model import Model
from onnxopt.nodes import bodies
from onnxopt.passes.clean import become_weights
from onnxopt.passing import Context, Findings, Pass, Target

logger = logging.getLogger(__name__)

_RESIZE_STATES_ITS_GRID = 11
"""From this opset on Resize says how coordinates are mapped; its default differs from what was meant before."""

_HARDMAX_HAS_ONE_AXIS = 13
"""From this opset on; before, it looked for the one largest element behind the axis."""


class UpgradeOpset(Pass):
    """Convert the model to a newer version of the standard operators.

    Raises the IR version where that opset needs it. A model that is there already is left alone. It stops at the
    newest opset that the target loads.
    """

    to: int = Field(21, gt=0, description="version of the standard operator set")

    @field_validator("to")
    @classmethod
    def _known(cls, to: int) -> int:
        newest = onnx.defs.onnx_opset_version()
        if to > newest:
            raise ValueError(f"the installed onnx {onnx.__version__} knows operator sets up to {newest}")
        return to

    def unfit(self, target: Target) -> str | None:
        newest = target.max_opset
        if newest is None or "to" not in self.model_fields_set or self.to <= newest:
            return None
        return f"to: {self.to} is more than target.max_opset, {newest}"

    def run(self, model: Model, context: Context) -> Findings:
        newest = context.target.max_opset
        if newest is None or self.to <= newest or model.opset >= self.to:
            return self._upgrade(model)
        findings = Findings()
        findings.decline(model.graph.name, self.name, f"opset {self.to} is more than target.max_opset, {newest}")
        findings.add(self.model_copy(update={"to": newest})._upgrade(model))
        return findings

    def _upgrade(self, model: Model) -> Findings:
        findings = Findings()
        opset, ir_version = model.opset, model.ir.ir_version
        if opset >= self.to:
            return findings
        where = model.graph.name
        if why := _obstacle(model, self.to):
            findings.decline(where, self.name, why)
            return findings
        ir_needed = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", self.to)])
        try:
            graph = _converted(model, self.to, max(ir_version, ir_needed))
        except Exception as error:  # the converter is C++ and raises whatever its assertions are
            logger.debug("the converter's complaint", exc_info=True)
            findings.decline(where, self.name, f"onnx cannot convert opset {opset} to {self.to}: {_plain(error)}")
            return findings
        if [v.name for v in graph.outputs] != [v.name for v in model.graph.outputs]:
            findings.decline(where, self.name, "onnx's converter renames outputs of this model")
            return findings
        made = self._take_over(model, graph, max(ir_version, ir_needed))
        findings.change(where, self.name, f"opset {opset} became {self.to}, IR {ir_version} {model.ir.ir_version}")
        findings.measures["nodes_rewritten"] = len(made)
        return findings

    def _take_over(self, model: Model, graph: ir.Graph, ir_version: int) -> list[ir.Node]:
        """Put the converted graph in place of the old one; the nodes that the converter brought in."""
        old, opset = model.graph, model.opset
        _restore_weights(model, graph)
        made = _restore(old, graph)
        graph.opset_imports.clear()
        graph.opset_imports.update({key: v for key, v in old.opset_imports.items() if key != "ai.onnx"} | {"": self.to})
        if opset < _RESIZE_STATES_ITS_GRID <= self.to:
            _keep_grids(graph)
        model.ir.graph = graph
        model.ir.ir_version = ir_version
        for node in made:
            node.name = None  # the converter gives all parts of a node its name; runtimes want one of each
        model.replace(model.ir)
        for node in made:
            node.name = model.fresh_name(node.op_type)
        constants = {n.outputs[0]: n.attributes["value"].as_tensor() for n in made if n.op_type == "Constant"}
        if constants:
            become_weights(model, self.name, constants, [node for node in made if node.op_type == "Constant"])
        return made


def _obstacle(model: Model, to: int) -> str | None:
    if not model.opset:
        return "the model does not say which opset it uses"
    if model.ir.functions:
        return "the model has functions, whose bodies would stay at the old opset; inline-functions comes first"
    overlooked = any(node.op_type == "Hardmax" and not node.domain for node in model.nodes())
    if overlooked and model.opset < _HARDMAX_HAS_ONE_AXIS <= to:
        return f"Hardmax changed its meaning in opset {_HARDMAX_HAS_ONE_AXIS}, and onnx's converter overlooks it"
    return None


def _converted(model: Model, to: int, ir_version: int) -> ir.Graph:
    """The main graph at another opset, weights as inputs."""
    tensors: list[ir.TensorProtocol] = []
    proto = serialization.with_stubs(model.ir, tensors)
    _weights_to_inputs(proto.graph)
    for stub in _tensors(proto.graph):
        if (at := serialization.stub_index(stub)) is not None:
            name = stub.name
            stub.CopyFrom(ir.serde.serialize_tensor(tensors[at]))
            stub.name = name
    proto.ClearField("training_info")
    converted = onnx.version_converter.convert_version(proto, to)
    converted.ir_version = ir_version
    onnx.checker.check_model(converted)
    return reading.from_proto(converted).graph


def _weights_to_inputs(graph: onnx.GraphProto) -> None:
    listed = {value.name for value in graph.input}
    dense = [(tensor.name, tensor.data_type, tensor.dims) for tensor in graph.initializer]
    sparse = [(tensor.values.name, tensor.values.data_type, tensor.dims) for tensor in graph.sparse_initializer]
    for name, dtype, shape in (*dense, *sparse):
        if name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
    graph.ClearField("initializer")
    graph.ClearField("sparse_initializer")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors of the graph and its subgraphs: initializers and attributes of nodes."""
    waiting = [graph]
    while waiting:
        graph = waiting.pop()
        yield from graph.initializer
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
            waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _restore_weights(model: Model, graph: ir.Graph) -> None:
    """Make weights of the inputs that stand for them. Before IR 4 weights had to be inputs, too; no longer."""
    inputs = {value.name: value for value in graph.inputs}
    callers = [v for v in model.graph.inputs if not (v.is_initializer() and model.ir.ir_version < 4)]
    graph.inputs.clear()
    graph.inputs.extend(inputs[value.name] for value in callers)
    for name, old in model.graph.initializers.items():
        _annotate(inputs[name], old)
        inputs[name].const_value = old.const_value
        graph.initializers.add(inputs[name])


def _restore(old: ir.Graph, new: ir.Graph) -> list[ir.Node]:
    """Put back what the converter does not carry, subgraphs included; the nodes that the old graph has not."""
    new.name, new.doc_string = old.name, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    nodes = {value.name: node for node in old for value in node.outputs if value.name}
    values = {value.name: value for node in old for value in node.outputs}
    values |= {value.name: value for value in (*old.inputs, *old.initializers.values())}
    made = []
    for node in new:
        before = next((nodes[value.name] for value in node.outputs if value.name in nodes), None)
        for value in node.outputs:
            _annotate(value, values.get(value.name))
        if before is None:
            made.append(node)
            continue
        node.name, node.doc_string = before.name, before.doc_string
        node.metadata_props.update(before.metadata_props)
        for old_body, new_body in zip(bodies(before), bodies(node), strict=False):
            made += _restore(old_body, new_body)
    for value in (*new.inputs, *new.initializers.values()):
        if (known := values.get(value.name)) is not None:
            _annotate(value, known)
            value.const_value = known.const_value
    return made


def _annotate(value: ir.Value, known: ir.Value | None) -> None:
    """Declare of a value what was declared before: what the converter infers may be wrong."""
    value.type = None if known is None else known.type
    value.shape = None if known is None or known.shape is None else known.shape.copy()
    if known is not None:
        value.doc_string = known.doc_string
        value.metadata_props.update(known.metadata_props)
        value.meta.update(known.meta)


def _keep_grids(graph: ir.Graph) -> None:
    """State the coordinates that Upsample and Resize had before opset 11; onnx's converter does not."""
    for node in graph.all_nodes():
        if node.op_type != "Resize" or node.domain or "coordinate_transformation_mode" in node.attributes:
            continue
        node.attributes["coordinate_transformation_mode"] = ir.AttrString(
            "coordinate_transformation_mode", "asymmetric"
        )
        if node.attributes.get_string("mode", "nearest") == "nearest":
            mode = "ceil" if _shrinks(node) else "floor"
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", mode)


def _shrinks(resize: ir.Node) -> bool:
    """Whether known scales make a picture smaller; runtimes rounded up then."""
    scales = constant_array(resize.inputs[2]) if len(resize.inputs) > 2 else None
    return scales is not None and bool((scales < 1).any())


def _plain(error: Exception) -> str:
    """A C++ assertion's message without the place in its source."""
    return re.sub(r"^\S+:\d+: .*? failed: ", "", str(error).strip().split("\n")[0])
