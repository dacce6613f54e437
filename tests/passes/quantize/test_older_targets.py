"""quantize-weights for a target that loads older opsets alone: a format that it has, or a reason."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.analysis.linear import find_linears
from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.backends.target import Target
from onnxopt.context import RunContext
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passes.quantize.quantize_weights import QuantizeWeights
from onnxopt.passing import Findings, parts

ROWS = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)


def source(opset: int, outputs: int = 64, *, batched: bool = False) -> onnx.ModelProto:
    sketch = Sketch(opset=opset)
    shape = (2, 64, outputs) if batched else (64, outputs)
    product = sketch.node("MatMul", sketch.input("x", ["n", 64]), sketch.random("w", *shape))
    sketch.output(product, [*shape[:-2], "n", outputs])
    return sketch.model()


def quantized(
    proto: onnx.ModelProto, newest: int, options: dict[str, Any]
) -> tuple[Model, Findings, list[ir.DataType | None]]:
    """What the pass with its parts leaves, what it says, and the types of the codes."""
    model, findings = load(proto), Findings()
    for part in parts(QuantizeWeights(**options)):
        findings.add(part.run(model, RunContext(model, target=Target(max_opset=newest))))
    onnx.checker.check_model(model.proto(), full_check=True)
    nodes = (node for node in model.graph if node.op_type == "DequantizeLinear")
    return model, findings, [node.inputs[0].dtype for node in nodes if node.inputs[0] is not None]


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize(
    ("newest", "options", "dtype", "note"),
    [
        (25, {"bits": 2}, ir.DataType.INT2, None),
        (24, {"bits": 2}, ir.DataType.INT4, "4 bit, block 32 in place of 2 bit, block 32, as that needs opset 25"),
        (21, {"bits": 4}, ir.DataType.INT4, None),
        (20, {"bits": 4}, ir.DataType.INT8, "8 bit, per column in place of 4 bit, block 32, as that needs opset 21"),
        (17, {"bits": 2}, ir.DataType.INT8, "8 bit, per column in place of 2 bit, block 32, as that needs opset 25"),
        (17, {"bits": 8}, ir.DataType.INT8, "8 bit, per column in place of 8 bit, block 32, as that needs opset 21"),
        (13, {"bits": 8, "block_size": None}, ir.DataType.INT8, None),
        (17, {"bits": 3, "symmetric": False}, ir.DataType.UINT8, "8 bit, per column, zero points in place of 3 bit, "),
    ],
)
def test_the_nearest_format(
    opset: int, newest: int, options: dict[str, Any], dtype: ir.DataType, note: str | None
) -> None:
    proto = source(opset)
    model, findings, types = quantized(proto, newest, options)
    assert types == [dtype]
    assert model.opset <= max(newest, opset)
    assert ([text.partition(": ")[2][: len(note)] for text in findings.notes] == [note]) if note else not findings.notes
    if note is not None:
        assert findings.notes[0].endswith(f"target.max_opset is {newest}")
    (before,), (after,) = (
        run(open_session(each.SerializeToString(), SessionMode.REFERENCE), {"x": ROWS}).values()
        for each in (proto, model.proto())
    )
    error = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    assert error < {ir.DataType.INT2: 0.9, ir.DataType.INT4: 0.15}.get(dtype, 0.02)


@pytest.mark.parametrize(
    ("newest", "options", "batched", "why"),
    [
        (12, {"bits": 8, "block_size": None}, False, "8 bit, per column needs opset 13, which is more than target.max"),
        (12, {"bits": 4}, False, "4 bit, block 32 needs opset 21, which is more than target.max_opset, 12"),
        (17, {"bits": 4}, True, "4 bit, block 32 needs opset 21, which is more than target.max_opset, 17"),
    ],
)
def test_none(newest: int, options: dict[str, Any], batched: bool, why: str) -> None:
    model, findings, types = quantized(source(11, batched=batched), newest, options)
    assert types == []
    assert model.opset <= newest
    (layer,) = find_linears(model)[0]
    assert [declined.why for declined in findings.declined if declined.node == layer.name][-1].startswith(why)


def test_two_bits_in_layers_that_onnx_runtime_gets_wrong() -> None:
    _, findings, types = quantized(source(17, outputs=62), 17, {"bits": 2})
    assert types == [ir.DataType.INT8]
    assert "8 bit, per column" in findings.notes[0]
