"""Every operator whose multiply-accumulates are counted, and whose channels can go, tells what they fall with."""

import onnx
import onnx_ir as ir
import pytest

from onnxopt.analysis.axes import channel_ids
from onnxopt.analysis.axes.axis import size_of
from onnxopt.analysis.axes.rules import RULES, Key
from onnxopt.analysis.macs import has_macs
from onnxopt.model import load
from onnxopt.models.builders.sketch import Sketch
from onnxopt.pruning.products import Sizes, has_products, products

UNCOUNTED = {
    ("com.microsoft", name) for name in ("DecoderMaskedMultiHeadAttention", "NhwcConv", "NhwcFusedConv")
}  # fmt: skip
"""They multiply, but how often is not counted."""


@pytest.mark.parametrize("operator", [each for each in RULES if has_macs(ir.Node(*each, inputs=[]))], ids="::".join)
def test_no_operator_is_left_out(operator: Key) -> None:
    assert has_products(operator) == (operator not in UNCOUNTED)


def product_of(
    op: str, inputs: list[tuple[int, ...]], domain: str = "", **attributes: object
) -> list[tuple[tuple[object, ...], int]]:
    """The sizes of the axes of each part, and its share, of an operator all of whose inputs are fed."""
    sketch = Sketch()
    sketch.domains[domain] = sketch.domains.get(domain, 1) if domain else 18
    names = [sketch.input(f"x{at}", shape) for at, shape in enumerate(inputs)]
    sketch.output(sketch.node(op, *names, domain=domain, **attributes), None)
    model = load(sketch.model())
    channels, node = channel_ids(model), next(iter(model.graph))
    sizes = Sizes(model, {f"x{at}": shape for at, shape in enumerate(inputs)})
    found = products(node, channels, sizes)
    return [(tuple(size_of(axis) for axis in each.axes), each.share) for each in found]


def test_the_sizes_of_all_axes_multiplied_are_what_is_counted() -> None:
    assert product_of("MatMul", [(5, 2, 3), (3, 4)]) == [((5, 2, 4, 3), 1)]
    assert product_of("Gemm", [(3, 2), (3, 4)], transA=1) == [((2, 4, 3), 1)]
    assert product_of("Gemm", [(2, 3), (4, 3)], transB=1) == [((2, 4, 3), 1)]
    assert product_of("FusedMatMul", [(5, 3, 2), (5, 3, 4)], "com.microsoft", transA=1) == [((5, 2, 4, 3), 1)]
    moved = product_of("FusedMatMul", [(3, 5, 2), (5, 3, 4)], "com.microsoft", transA=1, transBatchA=1)
    assert [sizes[-1] for sizes, _ in moved] == [3]
    assert product_of("Einsum", [(2, 3), (3, 4)], equation="ij,jk->ik") == [((2, 3, 4), 1)]
    for shapes in ([(1, 3), (5, 3)], [(5, 3), (1, 3)]):
        assert product_of("Einsum", shapes, equation="ij,ij->i") == [((5, 3), 1)]


def test_parts_weigh_what_they_count() -> None:
    """Steps and batch times all of W, and times all of R."""
    weights = [(1, 12, 5), (1, 12, 3)]
    assert product_of("LSTM", [(7, 2, 5), *weights], hidden_size=3) == [
        ((7, 2, 1, 12, 5), 60), ((7, 2, 1, 12, 3), 36),
    ]  # fmt: skip
    projection, attention = product_of("Attention", [(2, 5, 6), (6, 36)], "com.microsoft", num_heads=3)
    assert projection[1] * attention[0][0] == 6 * 36 * 2
    assert attention[1] == 5 * 24


def test_what_is_not_known_is_left_out() -> None:
    assert product_of("Relu", [(2, 3)]) == []
    sketch = Sketch()
    x = sketch.node("MatMul", sketch.input("x", None), sketch.input("y", None))  # type: ignore[arg-type]
    sketch.output(x, None)
    model = load(onnx.ModelProto.FromString(sketch.model().SerializeToString()))
    assert products(next(iter(model.graph)), channel_ids(model), Sizes(model, {"x": None})) == ()
