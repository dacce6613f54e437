"""What tests of the engine measure it by: sessions of whole models that give out every value, and numpy."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.backends.sessions import SessionMode, open_session, run
from onnxopt.context import RunContext
from onnxopt.data import Dataset
from onnxopt.model import Model, load
from onnxopt.serialization import to_proto
from onnxopt.statistics import MinMax, Stat

NUMBERS = {"float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"}


def parsed(text: str, seed: int = 0, scale: float = 1.0) -> Model:
    """A model of onnx's text form, whose declared values without a content (`<float[6,8] w>`) become random weights."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    made = {name for node in proto.graph.node for name in node.output}
    for info in [info for info in proto.graph.value_info if info.name not in made]:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        content = (scale * rng.standard_normal(shape)).astype(dtype)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(content, info.name))
        proto.graph.value_info.remove(info)
    return load(proto)


def names_of(model: Model) -> list[str]:
    """Values of the main graph: what is fed, and what nodes make."""
    inputs = [value.name for value in model.graph.inputs if not value.is_initializer()]
    return [*inputs, *(value.name for node in model.graph for value in node.outputs if value.name)]


def values(model: Model, data: Dataset, names: Iterable[str]) -> dict[str, list[Any]]:
    """What a session of the whole model makes of every batch, by name of the value."""
    proto = onnx.ModelProto.FromString(to_proto(model.ir).SerializeToString())
    given = {info.name for info in (*proto.graph.input, *proto.graph.output)}
    known = {value.name: value for node in model.graph for value in node.outputs}
    for name in (name for name in names if name not in given):
        kind = known[name].type
        shapeless = ir.Value(name=name, type=kind)
        proto.graph.output.append(
            ir.serde.serialize_value(shapeless) if kind is not None else onnx.helper.make_empty_tensor_value_info(name)
        )
    session = open_session(proto.SerializeToString(), SessionMode.REFERENCE)
    found: dict[str, list[Any]] = {name: [] for name in names}
    for batch in data.batches():
        made = {**batch.feeds, **run(session, batch.feeds)}
        for name, each in found.items():
            each.append(made.get(name))
    return found


def rows(arrays: Sequence[Any], axis: int = -1) -> np.ndarray:
    """All rows of some batches, float64 [rows, channels]."""
    moved = [np.moveaxis(np.asarray(each, np.float64), axis, -1) for each in arrays]
    return np.concatenate([each.reshape(-1, each.shape[-1]) for each in moved])


def ranges(found: dict[str, list[Any]]) -> dict[str, tuple[float, float]]:
    """Name -> smallest and largest number; of what holds real numbers at all."""
    result = {}
    for name, arrays in found.items():
        if all(isinstance(each, np.ndarray) and each.dtype.name in NUMBERS for each in arrays):
            flat = np.concatenate([each.reshape(-1).astype(np.float64) for each in arrays])
            if flat.size:
                result[name] = float(flat.min()), float(flat.max())
    return result


def looked(found: Any, stat: Stat[Any]) -> tuple[float, float]:
    return float(found[stat].low), float(found[stat].high)


def check(
    model: Model, data: Dataset, *cuts: Sequence[str] | None, without: Sequence[str] = (), **context: Any
) -> int:  # fmt: skip
    """Ranges of all values, collected at once and stage by stage on both sides, are those of the whole model.

    Gives the number of stages; what has no range, among it the values `without`, says why.
    """
    names = names_of(model)
    found = values(model, data, [name for name in names if name not in without])
    expected = ranges(found)
    stats = {name: Stat(name, MinMax()) for name in names}
    found = RunContext(model, calibration=data, **context).collect(stats.values())
    for name, range_ in expected.items():
        assert looked(found, stats[name]) == pytest.approx(range_, rel=1e-6, abs=1e-6), name
    assert all(found.why(stats[name]) for name in names if name not in expected)
    count = 0
    for chosen in cuts:
        seen: dict[str, tuple[float, float]] = {}
        for stage in RunContext(model, calibration=data, **context).stages(chosen):
            count += 1
            here = [name for name in names if name not in seen and stage.sees(name)]
            for side in ("dense", "current"):
                found = stage.collect([Stat(name, MinMax(), side=side) for name in here])
                for name in here:
                    stat = Stat(name, MinMax(), side=side)
                    if name in expected:
                        assert looked(found, stat) == pytest.approx(expected[name], rel=1e-6, abs=1e-6), (name, side)
                    else:
                        assert found.why(stat)
                    seen[name] = expected.get(name, (0, 0))
        assert seen.keys() == set(names)
    return count
