"""Identity nodes, whose readers can as well read the input."""

import onnx_ir as ir

from onnxopt import carried
from onnxopt.edit import Edit
from onnxopt.model import Model
from onnxopt.passes.rewriting import root
from onnxopt.passing import Context, Findings, Pass


class EliminateIdentity(Pass):
    """Remove Identity nodes.

    One stays where a graph output needs a node of its own: when it repeats a graph input, a weight, another
    output, or a value from outside of a branch or loop.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        replaced = self._replacements(model, findings)
        if not replaced:
            return findings
        edit, shapes = Edit(self.name), dict[ir.Value, ir.Shape | None]()
        for value in replaced:
            node, source = value.producer(), root(value, replaced)
            assert node is not None
            edit.rewire(value, source)
            edit.remove(node)
            findings.change(node, self.name, f"readers of {value.name} read {source.name}")
            if source.shape is None and source.producer() is not None and not source.is_graph_output():
                shapes[source] = None if value.is_graph_output() else shapes.get(source, value.shape)
        for source, shape in shapes.items():
            if shape is not None:
                edit.declare_shape(source, shape)
        model.apply(edit)
        return findings

    def _replacements(self, model: Model, findings: Findings) -> dict[ir.Value, ir.Value]:
        """Output of an Identity -> what its readers read instead."""
        replaced: dict[ir.Value, ir.Value] = {}
        outputs: set[ir.Value] = set()
        trained = carried.training_names(model.ir)
        for node in model.nodes():
            if node.op_type != "Identity" or node.domain or node.inputs[0] is None:
                continue
            value, source = node.outputs[0], root(node.inputs[0], replaced)
            if value.name in trained and value.graph is model.graph:
                findings.decline(node, self.name, "training info names its output")
                continue
            if value.is_graph_output() and (
                source.is_graph_output() or source in outputs or not _made_beside(source, value)
            ):
                continue
            if None not in (value.dtype, source.dtype) and value.dtype != source.dtype:
                why = f"{value.name} is declared {value.dtype}, its source {source.name} {source.dtype}"
                findings.decline(node, self.name, why)
                continue
            if value.is_graph_output():
                outputs.add(source)
            replaced[value] = source
        return replaced


def _made_beside(source: ir.Value, value: ir.Value) -> bool:
    """Whether a node of the graph that `value` is an output of makes `source`."""
    return source.producer() is not None and source.graph is value.graph
