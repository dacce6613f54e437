"""From a torch module to an ONNX file that speaks of the model alone.

torch's exporter records source lines, paths of the machine and its own bookkeeping in the file, names folded
weights `val_22`, and folds batch normalization away. What ships should be small, reproducible and readable.
"""

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

_SCOPES = "pkg.torch.onnx.name_scopes"
_LARGEST_FOLDED = 2**26
_LARGEST_SHARED = 16
_RULES = (
    rules.materialize_reshape_shape_rule,
    rules.remove_optional_bias_from_conv_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
)


def export(
    module: nn.Module,
    example: Mapping[str, Tensor],
    path: Path,
    *,
    outputs: Sequence[str],
    dynamic: Mapping[str, Mapping[int, Any]],
    opset: int = 18,
) -> None:
    """Write `module` in inference mode as one ONNX file, weights inside.

    Constants are folded, batch normalization stays. Nodes are named after the modules that made them, weights
    after their parameters, also where they are stored transposed.

    Args:
        module: its forward takes the inputs in the order of `example`.
        example: a tensor per input name; dimensions that are dynamic should be at least 2.
        path: the file to write.
        outputs: names of the outputs, in order.
        dynamic: per input, its symbolic dimensions by axis: names, or `torch.export.Dim` where there is a range.
        opset: version of the default operator set.

    Raises:
        torch.onnx.OnnxExporterError: torch cannot export the module, or finds that a dynamic dimension is fixed.
    """
    program = torch.onnx.export(
        module.eval(),
        tuple(example.values()),
        dynamo=True,
        optimize=False,
        verbose=False,
        opset_version=opset,
        input_names=list(example),
        output_names=list(outputs),
        dynamic_shapes=tuple(dict(dynamic.get(name, {})) for name in example),
    )
    assert program is not None
    model = program.model
    _tidy(model)
    _name_nodes(model, {name for name, _ in module.named_modules()})
    _name_weights(model, module)
    strip(model)
    ir.save(model, path)


def strip(model: ir.Model) -> None:
    """Remove every doc string and all metadata: of the model, its graphs, functions, nodes, values and tensors."""
    for part in _documented(model):
        part.metadata_props.clear()
        part.doc_string = None


def _documented(model: ir.Model) -> Iterator[Any]:
    yield model
    graphs: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in graphs:
        yield graph
        yield from graph
        weights = list(graph.initializers.values()) if isinstance(graph, ir.Graph) else []
        yield from (weight.const_value for weight in weights if weight.const_value is not None)
        yield from (*graph.inputs, *weights, *(value for node in graph for value in node.outputs))


def _tidy(model: ir.Model) -> None:
    """What torch's own optimization does, less the rules that fold batch normalization away.

    Only short constants are shared: weights that happen to be equal stay apart.
    """
    passes.InlinePass()(model)
    optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=_LARGEST_FOLDED, output_size_limit=_LARGEST_FOLDED
    )
    for step in (
        rewriter.RewritePass(_RULES),
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(size_limit=_LARGEST_SHARED),
        passes.CommonSubexpressionEliminationPass(),
        passes.NameFixPass(),
    ):
        step(model)


def _name_nodes(model: ir.Model, modules: set[str]) -> None:
    """`blocks.0.attention/MatMul`, then `blocks.0.attention/MatMul_1`, ..."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        owner = max((scope for scope in scopes if scope in modules), key=len, default="")
        stem = f"{owner}/{node.op_type}" if owner else node.op_type
        node.name = f"{stem}_{seen[stem]}" if seen[stem] else stem
        seen[stem] += 1


def _name_weights(model: ir.Model, module: nn.Module) -> None:
    """Names come by content, since folding a transposition into a weight loses its own."""
    known: dict[bytes, str] = {}
    for name, tensor in module.named_parameters():
        array = tensor.detach().numpy()
        for form in (array, array.T):
            known.setdefault(_digest(form), name)
    for value in list(model.graph.initializers.values()):
        assert value.const_value is not None
        parameter = known.get(_digest(value.const_value.numpy()))
        if parameter is not None and parameter not in model.graph.initializers:
            value.name = parameter


def _digest(array: npt.NDArray[Any]) -> bytes:
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).digest()
