"""Repair of what is special: addends, narrow types, many columns, and what it tells of the rest."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passing import Findings, make
from tests.passes.prune.test_prune_channels import ran

Array = npt.NDArray[Any]


def image(seed: int, count: int, *shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(dtype)


def pruned(proto: onnx.ModelProto, x: Array, **options: Any) -> tuple[Model, Findings]:
    model = load(proto)
    context = RunContext(model, calibration=open_data({"x": x}, model.signature))
    return model, make("prune-channels", options).run(model, context)


def far(model: Model, proto: onnx.ModelProto, x: Array) -> float:
    a, b = (np.asarray(ran(each, {"x": x})[0], np.float64) for each in (model, proto))
    return float(np.sum((a - b) ** 2) / np.sum((b - b.mean(0)) ** 2))


def test_what_a_gemm_adds_is_added_once() -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 8))
    hidden = sketch.node("Relu", sketch.node("Gemm", x, sketch.random("a", 32, 8), transB=1))
    shift = sketch.weight("five", np.full(6, 5, np.float32))
    added = sketch.node("Add", sketch.node("MatMul", x, sketch.random("c", 8, 6)), shift)
    sketch.output(sketch.node("Gemm", hidden, sketch.random("w", 6, 32), added, transB=1), ("batch", 6))
    proto, data, fresh = sketch.model(), image(1, 512, 8), image(2, 256, 8)
    model, findings = pruned(proto, data, ratio=0.5)
    bare, _ = pruned(proto, data, ratio=0.5, repair="none")
    assert findings.measures["layers_refitted"] == 1
    assert far(model, proto, fresh) < 0.5 * far(bare, proto, fresh)


def test_no_other_addition_stays_behind() -> None:
    """A layer whose addend is no bias gets one addition, a layer that is left alone gets none."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 8))
    hidden = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("a", 8, 32)))
    added = sketch.node("MatMul", x, sketch.random("c", 8, 6))
    sketch.output(sketch.node("Gemm", hidden, sketch.random("w", 32, 6), added), ("batch", 6))
    model, _ = pruned(sketch.model(), image(1, 512, 8), ratio=0.5)
    assert sorted(node.op_type for node in model.nodes()) == ["Add", "Gemm", "MatMul", "MatMul", "Relu"]


def test_what_cannot_be_refitted_keeps_its_form() -> None:
    """Too few rows for anything: no bias that would be zeros."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 8))
    hidden = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("a", 8, 32)))
    sketch.output(sketch.node("MatMul", hidden, sketch.random("w", 32, 6)), ("batch", 6))
    proto = sketch.model()
    model = load(proto)
    context = RunContext(model, calibration=open_data({"x": image(1, 64, 8)}, model.signature))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxopt.pruning.repair._replace", _refuse)
        findings = make("prune-channels", {"ratio": 0.5, "importance": "magnitude"}).run(model, context)
    assert any("not refitted: refused" in each.why for each in findings.declined)
    assert [node.op_type for node in model.nodes()] == ["MatMul", "Relu", "MatMul"]


def _refuse(*_: Any) -> None:
    raise ModelError("refused")


def test_constant_units_behind_a_layer_that_gets_a_bias() -> None:
    """What constants gave is made up for by an addition, behind which the next layer reads what it read."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 12))
    hidden = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("a", 12, 32)))
    weight = sketch.normal(32, 24).astype(np.float32)
    weight[:, :5] = 0
    middle = sketch.node("MatMul", hidden, sketch.weight("b", weight))
    sketch.output(sketch.node("MatMul", middle, sketch.random("w", 24, 6)), ("batch", 6))
    proto, data, fresh = sketch.model(), image(1, 512, 12), image(2, 256, 12)
    model, findings = pruned(proto, data, ratio=0.5)
    bare, _ = pruned(proto, data, ratio=0.5, repair="none")
    assert findings.measures["layers_refitted"] == 2
    assert not any("dense model in part" in each.why for each in findings.declined)
    assert far(model, proto, fresh) < 0.5 * far(bare, proto, fresh)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("stride", "side"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3), (3, 2)])
def test_transposed_convolutions(stride: int, side: int, groups: int, bias: bool) -> None:
    """With strides an output is summed over few of the taps, and over which depends on where it is."""
    sketch = Sketch()
    x = sketch.input("x", ("batch", 3, 8, 8))
    first = sketch.node("Conv", x, sketch.random("a", 48, 3, 3, 3), sketch.random("ab", 48), pads=[1, 1, 1, 1])
    parts = [sketch.random("w", 48, 8, side, side), *([sketch.random("wb", 8 * groups)] if bias else [])]
    out = sketch.node("ConvTranspose", sketch.node("Relu", first), *parts, group=groups, strides=[stride] * 2)
    sketch.output(out, ("batch", 8 * groups, "height", "width"))
    proto, data, fresh = sketch.model(), image(1, 64, 3, 8, 8), image(2, 32, 3, 8, 8)
    found = {
        repair: far(pruned(proto, data, ratio=0.5, repair=repair)[0], proto, fresh)
        for repair in ("none", "bias", "least-squares")
    }
    assert found["bias"] < found["none"]
    assert found["least-squares"] < 0.75 * found["bias"]


@pytest.mark.parametrize("channels", [300, 200])
def test_a_layer_that_gets_narrow_enough_for_taps_apart(channels: int) -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 3, 6, 6))
    x = sketch.node("Relu", sketch.node("Conv", x, sketch.random("a", channels, 3, 3, 3), pads=[1, 1, 1, 1]))
    sketch.output(sketch.node("Conv", x, sketch.random("w", 4, channels, 3, 3)), ("batch", 4, 4, 4))
    proto, data, fresh = sketch.model(), image(1, 96, 3, 6, 6), image(2, 32, 3, 6, 6)
    model, findings = pruned(proto, data, ratio=0.3, round_to=1)
    bare, _ = pruned(proto, data, ratio=0.3, round_to=1, repair="none")
    assert findings.measures["layers_refitted"] == 1
    assert far(model, proto, fresh) < 0.5 * far(bare, proto, fresh)


def test_weights_that_would_leave_the_range_of_their_type_stay() -> None:
    rng = np.random.default_rng(0)
    sketch = Sketch()
    x = sketch.input("x", ("batch", 8), onnx.TensorProto.FLOAT16)
    small, large = (np.clip(rng.standard_normal(shape), -1, 1) for shape in ((32, 8), (8, 32)))
    hidden = sketch.node("Gemm", x, sketch.weight("a", (1e-4 * small).astype(np.float16)), transB=1)
    last = sketch.weight("w", (64000 * large).astype(np.float16))
    out = sketch.node("Gemm", sketch.node("Relu", hidden), last, transB=1)
    sketch.output(out, ("batch", 8), onnx.TensorProto.FLOAT16)
    proto, data = sketch.model(), image(1, 512, 8, dtype=np.float16)
    model, findings = pruned(proto, data, ratio=0.6)
    bare, _ = pruned(proto, data, ratio=0.6, repair="none")
    assert findings.measures["layers_bias_only"] == 1
    assert far(model, proto, data) < far(bare, proto, data)


@pytest.mark.parametrize("kind", ["batch", "shared", "einsum"])
def test_what_is_not_refitted_is_told(kind: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", ("batch", 4, 5, 8))
    hidden = sketch.node("Relu", sketch.node("MatMul", x, sketch.random("a", 8, 32)))
    if kind == "batch":
        out = sketch.node("MatMul", hidden, sketch.random("w", 4, 32, 6))
    elif kind == "einsum":
        out = sketch.node("Einsum", hidden, sketch.random("w", 32, 6), equation="bcsi,io->bcso")
    else:
        weight, other = sketch.random("w", 32, 6), sketch.node("Tanh", hidden)
        out = sketch.node("MatMul", hidden, weight)
        out = sketch.node("Add", out, sketch.node("MatMul", other, weight))
    sketch.output(out, ("batch", 4, 5, 6))
    proto = sketch.model()
    _, findings = pruned(proto, image(1, 16, 4, 5, 8), ratio=0.3)
    told = {each.node for each in findings.declined if each.why.startswith("not refitted")}
    assert told == {node.name for node in proto.graph.node if "w" in node.input}
