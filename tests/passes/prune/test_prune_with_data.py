"""prune-channels with calibration data: budgets that are met, order by what is lost, repair; and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnxopt.analysis.cost import cost
from onnxopt.analysis.shapes import infer
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.errors import DataError, ModelError, OnnxOptError, RecipeError
from onnxopt.model import Model, load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.passing import Findings, make
from onnxopt.serialization import to_proto
from tests.passes.prune.test_prune_channels import close, network, ran, widths

Array = npt.NDArray[Any]

_SIZES = {"image": (1, 3, 5, 5)}


def data_for(model: Model, count: int = 64, seed: int = 5) -> Dataset:
    rng = np.random.default_rng(seed)
    return open_data({"image": rng.standard_normal((count, 3, 5, 5)).astype(np.float32)}, model.signature)


def pruned(proto: onnx.ModelProto, samples: int = 64, **options: Any) -> tuple[Model, Findings]:
    model = load(proto)
    context = RunContext(model, sizes=_SIZES, calibration=data_for(model, samples) if samples else None)
    return model, make("prune-channels", options).run(model, context)


def macs(model: Model) -> int:
    return cost(model, infer(model, _SIZES)).macs


def apart(model: Model, proto: onnx.ModelProto) -> float:
    """Relative squared error on inputs that nobody saw."""
    feeds = next(data_for(model, 64, seed=99).rebatched(64).batches()).feeds
    (a,), (b,) = ran(model, feeds), ran(proto, feeds)
    return float(np.sum((a - b) ** 2) / np.sum((b - b.mean(0)) ** 2))


def doubled(width: int) -> onnx.ModelProto:
    """A network in which every channel and neuron has a twin: half of them can go without any loss."""
    sketch = Sketch()
    rng = np.random.default_rng(0)

    def twins(*shape: int) -> Array:
        array = rng.standard_normal((shape[0] // 2, *shape[1:])).astype(np.float32)
        return np.concatenate([array, array])[rng.permutation(shape[0])]

    x = sketch.input("image", ("batch", 3, 5, 5))
    first = sketch.node("Conv", x, sketch.weight("a", twins(width, 3, 3, 3)), pads=[1, 1, 1, 1])
    x = sketch.node("Relu", first)
    x = sketch.node("Conv", x, sketch.weight("b", twins(width, width, 3, 3)), pads=[1, 1, 1, 1], strides=[2, 2])
    x = sketch.node("Flatten", sketch.node("Tanh", x))
    x = sketch.node("Sigmoid", sketch.node("Gemm", x, sketch.weight("c", 0.2 * twins(width, width * 9)), transB=1))
    sketch.output(sketch.node("Gemm", x, sketch.random("d", 4, width), transB=1), ("batch", 4))
    return sketch.model()


def test_what_is_redundant_goes_without_loss() -> None:
    proto = doubled(16)
    model, findings = pruned(proto, samples=1024, ratio=0.5, round_to=1)
    assert set(widths(model).values()) == {8}
    assert findings.measures["layers_refitted"] == 3
    assert apart(model, proto) < 1e-4
    bare, _ = pruned(proto, samples=0, ratio=0.5, round_to=1)
    assert apart(bare, proto) > 1e-2


@pytest.mark.parametrize("options", [
    {"keep_macs": 0.5}, {"keep_params": 0.6}, {"keep_macs": 0.5, "allocation": "uniform"},
    {"keep_macs": 0.4, "allocation": "global"}, {"keep_macs": 0.5, "allocation": "isomorphic"},
    {"keep_macs": 0.5, "importance": "swaps"},
])  # fmt: skip
def test_budgets_are_met(options: dict[str, Any]) -> None:
    proto = network((16, 24), (20,))
    model, _ = pruned(proto, round_to=1, **options)
    before = load(proto)
    option, share = next((key, value) for key, value in options.items() if key.startswith("keep"))
    counts = (macs(model), macs(before)) if option == "keep_macs" else tuple(
        sum(value.const_value.size for value in each.weights() if value.const_value is not None)
        for each in (model, before)
    )  # fmt: skip
    assert 0.85 * share < counts[0] / counts[1] <= share * (1.001 if option == "keep_macs" else 1.02)


def test_the_same_twice() -> None:
    one, two = (pruned(network((16, 24), (20,), norm=True), keep_macs=0.5)[0] for _ in range(2))
    assert to_proto(one.ir).SerializeToString() == to_proto(two.ir).SerializeToString()


@pytest.mark.parametrize("proto", [network((16, 24), (20,)), network((24,), (24, 16), depthwise=True)])
def test_repair_helps_on_inputs_that_nobody_saw(proto: onnx.ModelProto) -> None:
    errors = [
        apart(pruned(proto, 256, ratio=0.4, round_to=1, repair=repair)[0], proto)
        for repair in ("none", "bias", "least-squares")
    ]
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.6 * errors[0]


def test_elimination_beats_magnitude() -> None:
    proto = network((16, 24), (24,))
    by_data, by_weights = (
        apart(pruned(proto, 256, ratio=0.4, round_to=1, importance=each)[0], proto)
        for each in ("elimination", "magnitude")
    )
    assert by_data < by_weights


@pytest.mark.parametrize("importance", [
    "magnitude", "lamp", "geometric-median", "random", "wanda", "flap", "energy", "elimination", "swaps",
])  # fmt: skip
def test_every_importance_runs_and_keeps_the_widths(importance: str) -> None:
    model, _ = pruned(network((16,), (20,)), ratio=0.5, round_to=1, importance=importance)
    assert widths(model) == {"conv0": 8, "dense0": 10}


def test_gradients_of_the_users(tmp_path: Path) -> None:
    proto = network((), (20,))
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    gradients = {name: np.zeros_like(array) for name, array in weights.items()}
    gradients["last"][:, 7:13] = 1.0 / weights["last"][:, 7:13]  # what the loss hangs on
    path = tmp_path / "gradients.npz"
    np.savez(path, **gradients)
    model, _ = pruned(proto, ratio=0.7, importance="taylor", gradients=str(path), repair="none")
    kept = next(value for value in model.weights() if value.name == "last").const_value
    assert kept is not None
    assert np.array_equal(kept.numpy(), weights["last"][:, 7:13])
    np.savez(path, last=np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match=r"'last' of shape \[2, 2\]: the weight has \[4, 20\]"):
        pruned(proto, ratio=0.7, importance="taylor", gradients=str(path))
    with pytest.raises(ValueError, match="gradients go together"):
        make("prune-channels", {"ratio": 0.5, "importance": "taylor"})


def refused(proto: onnx.ModelProto, error: type[OnnxOptError], match: str, samples: int = 64, **options: Any) -> None:
    model = load(proto)
    before = to_proto(model.ir).SerializeToString()
    context = RunContext(model, sizes=_SIZES, calibration=data_for(model, samples) if samples else None)
    with pytest.raises(error, match=match):
        make("prune-channels", options).run(model, context)
    assert to_proto(model.ir).SerializeToString() == before


def test_what_cannot_be_done_is_told_and_nothing_touched() -> None:
    proto = network((16, 24), (20,))
    refused(proto, RecipeError, r"keep_macs of 0.0001 cannot be reached: the least that can be kept is", keep_macs=1e-4)
    refused(proto, DataError, "elimination needs calibration data", 0, ratio=0.5, importance="elimination")
    refused(proto, DataError, "least-squares needs calibration data", 0, ratio=0.5, repair="least-squares")
    refused(proto, DataError, "distortion needs calibration data", 0, keep_macs=0.5, allocation="distortion")
    refused(proto, DataError, r"rows of calibration data, and \d+ are needed", 4, ratio=0.5, importance="elimination")
    refused(proto, RecipeError, "latency cannot be measured here", keep_latency=0.5)


def test_weights_that_are_no_numbers() -> None:
    proto = network((16,), (20,))
    weight = next(each for each in proto.graph.initializer if each.name == "dense0")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[3, 4] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "dense0"))
    for options in ({"importance": "magnitude", "repair": "none"}, {"importance": "elimination"}):
        refused(proto, ModelError, "dense0.* NaN or infinity", ratio=0.5, **options)


def test_too_few_samples_fall_back_where_nobody_insists() -> None:
    model, findings = pruned(network((16,), (20,)), samples=4, ratio=0.5, round_to=1)
    assert widths(model) == {"conv0": 8, "dense0": 10}
    assert any("rows of calibration data" in each for each in findings.notes)


def test_constant_units_go_first_and_are_made_up_for_once() -> None:
    proto = network((16,), (20,))
    weight = next(each for each in proto.graph.initializer if each.name == "conv0")
    array = onnx.numpy_helper.to_array(weight).copy()
    array[:8] = 0  # their bias is all that they give
    weight.CopyFrom(onnx.numpy_helper.from_array(array, "conv0"))
    model, _ = pruned(proto, ratio=0.5, round_to=1, kinds=("conv",))
    feeds = next(data_for(model, 8, seed=9).batches()).feeds
    assert widths(model)["conv0"] == 8
    assert close(ran(model, feeds), ran(proto, feeds), 2e-3)


@pytest.mark.parametrize("samples", [0, 64])
def test_a_file_whose_nodes_are_not_sorted(samples: int) -> None:
    proto = network((16, 24), (20,))
    turned = onnx.ModelProto.FromString(proto.SerializeToString())
    turned.graph.ClearField("node")
    turned.graph.node.extend(reversed(proto.graph.node))
    (one, first), (two, second) = (pruned(each, samples, keep_macs=0.5, round_to=1) for each in (proto, turned))
    assert first.changes
    assert sorted(each.what for each in first.changes) == sorted(each.what for each in second.changes)
    feeds = next(data_for(one, 8, seed=9).batches()).feeds
    two.ir.graph.sort()
    assert close(ran(two, feeds), ran(one, feeds), 1e-4)
