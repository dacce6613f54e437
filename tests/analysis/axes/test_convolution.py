"""Convolutions: which channels go together, and that they can go."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxopt.analysis.axes import Channels, channel_ids, groups
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch

Check = Callable[..., Channels]


def _between(
    sketch: Sketch, x: str, channels: int, *, groups: int = 1, rows: int | None = None, transposed: bool = False
) -> str:
    rows = rows or channels
    shape = (channels, rows // groups, 3, 3) if transposed else (rows, channels // groups, 3, 3)
    weight, bias = sketch.random("middle.weight", *shape), sketch.random("middle.bias", rows)
    return sketch.node("ConvTranspose" if transposed else "Conv", x, weight, bias, group=groups, pads=[1, 1, 1, 1])


def _model(channels: int, **options: object) -> onnx.ModelProto:
    """1x1, what is tested, 1x1; an activation in between."""
    sketch = Sketch()
    x = sketch.input("image", ("batch", 3, 6, 5))
    x = sketch.node(
        "Relu",
        sketch.node("Conv", x, sketch.random("first.weight", channels, 3, 1, 1), sketch.random("first.bias", channels)),
    )
    x = sketch.node("Relu", _between(sketch, x, channels, **options))  # type: ignore[arg-type]
    rows = int(options.get("rows") or channels)  # type: ignore[call-overload]
    x = sketch.node("Conv", x, sketch.random("last.weight", 4, rows, 1, 1))
    sketch.output(x, ("batch", 4, None, None))
    return sketch.model()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("channels", "options", "units"),
    [
        (8, {}, [8, 8]),
        (8, {"rows": 5}, [8, 5]),
        (8, {"groups": 8}, [8]),
        (8, {"groups": 8, "rows": 16}, [8]),
        (8, {"groups": 2}, [4, 4]),
        (12, {"groups": 3, "rows": 6}, [4, 2]),
        (12, {"groups": 6, "rows": 18}, [6]),
    ],
)
def test_channels(
    channels: int, options: dict[str, int], units: list[int], transposed: bool, assert_exact: Check
) -> None:
    model = _model(channels, **options, transposed=transposed)
    feeds = {"image": np.random.default_rng(1).normal(size=(2, 3, 6, 5)).astype(np.float32)}
    found = groups(assert_exact(model, feeds))
    assert [len(group.units) for group in found] == units
    assert {group.kind for group in found} == {"conv"}


def test_input_and_output_channels_stay() -> None:
    channels = channel_ids(load(_model(8)))
    named = {member.weight.root.name: member.place for group in groups(channels) for member in group.members}
    assert named["first.weight"] == 0
    assert named["last.weight"] == 1
