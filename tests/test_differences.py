"""What differs between two graphs, found by the names of values."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from onnxopt.differences import Differences, Part
from onnxopt.model import Model, load

CHAIN = "{ a = Neg (x)  b = Abs (a)  c = Mul (b, w)  d = Neg (c)  y = Abs (d) }"


def model(body: str, opset: int = 17, weights: str = "float[2] w = {1, 2}", functions: str = "") -> Model:
    head = f'<ir_version: 8, opset_import: ["" : {opset}, "local" : 1]>'
    return load(onnx.parser.parse_model(f"{head} g (float[2] x) => (float[2] y) <{weights}> {body} {functions}"))


def pieces(old: Model, new: Model) -> list[tuple[str, str]]:
    """The values that the old and the new nodes of each piece make."""
    return made(Differences(old, new).pieces)


def made(parts: Sequence[Part]) -> list[tuple[str, str]]:
    return [(names(part.old), names(part.new)) for part in parts]


def names(nodes: Sequence[ir.Node]) -> str:
    return " ".join(value.name or "" for node in nodes for value in node.outputs)


def test_equal_graphs() -> None:
    other = model(CHAIN)
    for node in other.nodes():
        node.name, node.doc_string = "another", "words"
        node.metadata_props["key"] = "value"
    assert pieces(model(CHAIN), other) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (CHAIN.replace("b = Abs", "b = Relu"), [("b", "b")]),
        (CHAIN.replace("a = Neg", "a = Cos").replace("y = Abs", "y = Sin"), [("a", "a"), ("y", "y")]),
        (CHAIN.replace("b = Abs", "b = Relu").replace("c = Mul", "c = Add"), [("b", "b"), ("c", "c")]),
        ("{ b = Abs (x)  c = Mul (b, w)  d = Neg (c)  y = Abs (d) }", [("a b", "b")]),
        (CHAIN.replace("b = Abs (a)", "i = Abs (a)  b = Identity (i)"), [("b", "i b")]),
    ],
)
def test_pieces_are_cut_at_the_values_that_both_make(body: str, expected: Any) -> None:
    assert pieces(model(CHAIN), model(body)) == expected


def test_weights_make_their_readers_differ() -> None:
    assert pieces(model(CHAIN), model(CHAIN, weights="float[2] w = {1, 3}")) == [("c", "c")]
    renamed = model(CHAIN.replace("w)", "v)"), weights="float[2] v = {1, 2}")
    assert pieces(model(CHAIN), renamed) == []
    integers = model(CHAIN.replace("w)", "v)"), weights="int64[2] v = {1, 2}")
    assert pieces(model(CHAIN), integers) == [("c", "c")]


def test_constant_nodes_are_as_good_as_weights() -> None:
    by_node = "{ w2 = Constant <value = float[2] {1, VALUE}> ()  " + CHAIN[2:].replace("w)", "w2)")
    assert pieces(model(CHAIN), model(by_node.replace("VALUE", "2"))) == []
    assert pieces(model(CHAIN), model(by_node.replace("VALUE", "3"))) == [("c", "c")]


def test_large_weights_are_compared_by_name() -> None:
    def large(name: str, last: float) -> Model:
        found = model(CHAIN.replace("w)", f"{name})"), weights=f"float[2] {name} = {{1, 2}}")
        array = np.ones((20_000, 2), np.float32)
        array[-1, -1] = last
        found.graph.initializers[name].const_value = ir.Tensor(array, name=name)
        return found

    assert pieces(large("w", 2), large("w", 2)) == []
    assert pieces(large("w", 2), large("w", 3)) == [("c", "c")]
    assert pieces(large("w", 2), large("v", 2)) == [("c", "c")]
    assert pieces(large("w", 2), model(CHAIN)) == [("c", "c")]


def test_what_subgraphs_read_differs_by_name_and_content() -> None:
    """A subgraph reads u and v by their names, here each holds what the other held."""
    body = "{ k = Cast <to = 9> (q)  y = If (k) <then_branch = t () => (float[2] r) { r = Sub (u, v) }, "
    body += "else_branch = e () => (float[2] s) { s = Neg (x) }> }"
    old, swapped = (
        model(body, weights=f"float q = {{1}}, float[2] u = {{{u}}}, float[2] v = {{{v}}}")
        for u, v in (("1, 2", "3, 4"), ("3, 4", "1, 2"))
    )
    assert pieces(old, swapped) == [("y", "y")]
    assert pieces(old, model(body, weights="float q = {1}, float[2] u = {1, 2}, float[2] v = {3, 4}")) == []


def test_sparse_constants_differ_by_what_they_hold() -> None:
    def sparse(value: float) -> Model:
        proto = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Add (x, k) }'
        )
        dense = onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [1], [value])
        places = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [1])
        tensor = onnx.helper.make_sparse_tensor(dense, places, [2])
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["k"], sparse_value=tensor))
        return load(proto)

    assert pieces(sparse(1), sparse(1)) == []
    assert pieces(sparse(1), sparse(2)) == [("k", "k")]


def test_the_same_words_may_mean_something_else() -> None:
    """Mul changed in opset 14, Neg and Abs did not; functions change by their bodies, and those of others they call."""
    assert pieces(model(CHAIN, opset=13), model(CHAIN, opset=14)) == [("c", "c")]
    body = "{ a = local.f (x)  y = Mul (a, w) }"
    head = '<domain: "local", opset_import: ["" : 17, "local" : 1]>'
    functions = [f"{head} f (a) => (b) {{ b = {op} (a) }}" for op in ("Neg", "Abs")]
    old, new = (model(body, functions=function) for function in functions)
    assert pieces(old, new) == [("a", "a")]
    inner = [
        f"{head} h (a) => (b) {{ b = {op} (a) }} {head} f (a) => (b) {{ b = local.h (a) }}" for op in ("Neg", "Abs")
    ]
    old, new = (model(body, functions=function) for function in inner)
    assert pieces(old, new) == [("a", "a")]
    assert pieces(old, model(body, functions=inner[0])) == []


def test_weights_of_the_same_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    large = model(CHAIN)
    large.graph.initializers["w"].const_value = ir.Tensor(np.ones((20_000, 2), np.float32), name="w")
    large.save(path, external_data=True)
    old, new = load(path), load(path)
    assert isinstance(old.graph.initializers["w"].const_value, ir.ExternalTensor)
    monkeypatch.setattr(ir.ExternalTensor, "tobytes", lambda self: pytest.fail("read"))
    assert pieces(old, new) == []


def test_pieces_enlarged_by_their_readers_and_what_lies_between() -> None:
    """The first piece, and the last where it is near enough."""
    old = model(CHAIN)
    found = Differences(old, model(CHAIN.replace("a = Neg", "a = Cos").replace("d = Neg", "d = Sin")))
    first, last = found.pieces
    assert made(found.enlarged([first], [], 8)) == [("a b", "a b")]
    assert made(found.enlarged([first], [last], 8)) == [("a b c d y", "a b c d y")]
    assert made(found.enlarged([first], [last], 1)) == [("a b", "a b")]
    assert made(found.enlarged([first, last], [], 1)) == [("a b", "a b"), ("d y", "d y")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "f y"), ({"both": True}, "c f y"), ({"both": True, "deep": True}, "a b c e f y"), ({"behind": 2}, "c f y")],
)
def test_parts_are_widened_until_both_sides_read_the_same(options: Any, expected: str) -> None:
    old = "{ a = Neg (x)  b = Abs (a)  c = Sin (b)  e = Cos (a)  f = Sin (e)  y = Mul (c, w) }"
    found = Differences(model(old), model(old.replace("Mul (c,", "Mul (f,")))
    (piece,) = found.pieces
    widened = found.widened(piece, **options)
    assert (names(widened.old), names(widened.new)) == (expected, expected)


def test_no_more_is_taken_in_than_the_part_is_worth() -> None:
    chain = "".join(f"v{i + 1} = Neg (v{i}) " for i in range(100))
    old = f"{{ v0 = Neg (x) {chain} z = Cos (x)  y = Mul (z, w) }}"
    found = Differences(model(old), model(old.replace("Mul (z,", "Mul (v100,")))
    (piece,) = found.pieces
    assert len(found.widened(piece, deep=True).new) == 1 + 17


def test_long_chains() -> None:
    chain = "".join(f"v{i + 1} = OP (v{i}) " for i in range(5000))
    old, new = (model(f"{{ v0 = Neg (x) {chain.replace('OP', op)} y = Mul (v5000, w) }}") for op in ("Neg", "Abs"))
    found = Differences(old, new)
    assert len(found.pieces) == 5000
    assert all(len(piece.old) == len(piece.new) == 1 for piece in found.pieces)
    (whole,) = found.enlarged(found.pieces, [], 8)
    assert len(whole.old) == len(whole.new) == 5001


def test_many_equal_nodes_take_time_in_proportion() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] v0) => (float[2] v20000) <float[2] w = {1, 2}> { }'
    )
    for i in range(20_000):
        proto.graph.node.add(op_type="Add", input=[f"v{i}", "w"], output=[f"v{i + 1}"])
    old, new = load(proto), load(proto)
    started = time.process_time()
    assert pieces(old, new) == []
    assert time.process_time() - started < 3
