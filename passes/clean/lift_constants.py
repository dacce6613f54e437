"""Constant nodes to initializers."""

from onnxopt.analysis.structure import constant_tensor
from onnxopt.model import Model
from onnxopt.passes.clean import become_weights
from onnxopt.passing import Context, Findings, Pass


class LiftConstants(Pass):
    """Turn Constant nodes into weights, so that all constants are found in one place.

    A Constant inside a branch or loop becomes a weight of that subgraph. One that makes a graph output stays.
    """

    def run(self, model: Model, context: Context) -> Findings:
        findings = Findings()
        tensors, nodes = {}, []
        for node in model.nodes():
            if node.op_type != "Constant" or node.domain or node.outputs[0].is_graph_output():
                continue
            tensor = constant_tensor(node.outputs[0])
            if tensor is None:
                form = next(iter(node.attributes), "nothing")
                findings.decline(node, self.name, f"it holds {form}, which no initializer can")
                continue
            tensors[node.outputs[0]] = tensor
            nodes.append(node)
            findings.change(node, self.name, f"its value is the weight {node.outputs[0].name}")
        if tensors:
            become_weights(model, self.name, tensors, nodes)
        return findings
