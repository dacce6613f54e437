"""Cones: what computes a value, and nothing else, is in its digest."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from onnxopt import models
from onnxopt.analysis import contents
from onnxopt.analysis.cones import Cones
from onnxopt.analysis.structure import ancestors
from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders import ON_DISK, RARE

Drawing: TypeAlias = tuple[int, list[tuple[str, int, int, float]]]

HEAD = '<ir_version: 10, opset_import: ["": 21, "org.example": 1]>'
SHIPPED = ("byte-gpt", "digits-cnn", "digits-transformer")


def parsed(text: str, head: str = HEAD) -> Model:
    return load(onnx.parser.parse_model(f"{head} {text}"))


def digests(model: Model) -> dict[str, str]:
    """Of all values of the main graph that have a name."""
    cones = Cones(model)
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    return {value.name: cones.digest(value) for value in values if value.name}


def of(text: str, head: str = HEAD) -> str:
    """The digest of the output y."""
    return digests(parsed(text, head))["y"]


@st.composite
def drawings(draw: st.DrawFn) -> Drawing:
    """A number of inputs, then nodes: operator, two earlier values that it reads, and a number for its weight."""
    inputs = draw(st.integers(1, 2))
    kinds = st.sampled_from(["Neg", "Add", "Weight", "Const", "Leaky", "If", "Split"])
    place, number = st.integers(0, 1000), st.sampled_from([0.25, 0.5, 0.75])
    return inputs, draw(st.lists(st.tuples(kinds, place, place, number), min_size=1, max_size=12))


def build(drawing: Drawing, names: str = "v", order: int = 0) -> onnx.ModelProto:
    """The model; all its values are called otherwise with other names, and come in another order with another one."""
    inputs, steps = drawing
    values = [f"x{i}" for i in range(inputs)]
    known, nodes, weights = list(values), [], []
    for at, (kind, a, b, number) in enumerate(steps):
        first, second, out = known[a % len(known)], known[b % len(known)], f"{names}{at}"
        nodes += _node(kind, first, second, number, out, weights)
        known.append(out)
    if order:
        nodes = [nodes[i] for i in np.random.default_rng(order).permutation(len(nodes))]
        weights.reverse()
    kind = helper.make_tensor_type_proto(1, [2])
    graph = helper.make_graph(
        nodes, names, [helper.make_value_info(name, kind) for name in values],
        [helper.make_value_info(known[-1], kind)], weights,
    )  # fmt: skip
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def _node(kind: str, a: str, b: str, number: float, out: str, weights: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    match kind:
        case "Neg":
            return [helper.make_node("Neg", [a], [out])]
        case "Add":
            return [helper.make_node("Add", [a, b], [out])]
        case "Leaky":
            return [helper.make_node("LeakyRelu", [a], [out], alpha=number)]
        case "Split":
            return [helper.make_node("Split", [a], [out, f"{out}_rest"], num_outputs=2)]
        case "Weight":
            weights.append(helper.make_tensor(f"{out}_w", 1, [2], [number, 1]))
            return [helper.make_node("Mul", [a, f"{out}_w"], [out])]
        case "Const":
            value = helper.make_tensor("", 1, [2], [number, 1])
            return [
                helper.make_node("Constant", [], [f"{out}_w"], value=value),
                helper.make_node("Mul", [a, f"{out}_w"], [out]),
            ]
        case _:
            info = helper.make_tensor_value_info(f"{out}_i", 1, [2])
            then = helper.make_graph([helper.make_node("Add", [a, b], [f"{out}_i"])], "t", [], [info])
            other = helper.make_graph([helper.make_node("Abs", [b], [f"{out}_i"])], "e", [], [info])
            flag = helper.make_tensor("", onnx.TensorProto.BOOL, [], [True])
            return [
                helper.make_node("Constant", [], [f"{out}_c"], value=flag),
                helper.make_node("If", [f"{out}_c"], [out], then_branch=then, else_branch=other),
            ]


@given(drawings(), st.integers(0, 3))
def test_names_and_order_of_nodes_do_not_matter(drawing: Drawing, order: int) -> None:
    one, other = digests(load(build(drawing))), digests(load(build(drawing, "another", order)))
    assert {name.replace("another", "v"): digest for name, digest in other.items()} == one


@given(drawings(), st.data())
def test_edits_show_downstream_and_nowhere_else(drawing: Drawing, data: st.DataObject) -> None:
    model = load(build(drawing))
    before = digests(model)
    node = data.draw(
        st.sampled_from([node for node in model.graph if node.op_type in ("Neg", "Add", "LeakyRelu", "Mul")] or [None])
    )
    if node is None:
        return
    changed = {value.name for value in _downstream(model, node)}
    _edit(model, node)
    after = digests(model)
    assert {name for name in before if after[name] != before[name]} == changed


def _downstream(model: Model, node: ir.Node) -> Iterator[ir.Value]:
    for each in model.graph:
        for value in each.outputs:
            if node in ancestors([value]):
                yield value


def _edit(model: Model, node: ir.Node) -> None:
    """Another weight, attribute or wiring, by the kind of node."""
    edit = Edit("test")
    if node.op_type == "LeakyRelu":
        edit.set_attribute(node, "alpha", 0.125)
    elif node.op_type == "Mul" and node.inputs[1] is not None and node.inputs[1].is_initializer():
        edit.replace_weight(node.inputs[1], np.float32([0.125, 1]))
    else:
        extra = edit.add_weight("extra", np.float32([3, 4]))
        edit.set_input(node, 0, extra)
    model.apply(edit)


@given(drawings(), st.data())
def test_updated_are_those_made_anew(drawing: Drawing, data: st.DataObject) -> None:
    """Whatever was asked for before, and of whatever is asked for after the contents of weights have changed."""
    model = load(build(drawing))
    values = [value for node in model.graph for value in node.outputs]
    cones, revision = Cones(model), model.revision
    for value in data.draw(st.lists(st.sampled_from(values))):
        cones.digest(value)
    weights = [value for value in model.graph.initializers.values() if value.uses()]
    for weight in data.draw(st.lists(st.sampled_from(weights))) if weights else []:
        edit = Edit("test")
        edit.replace_weight(weight, np.float32(data.draw(st.sampled_from(([1, 2], [3, 4])))))
        model.apply(edit)
    changed = model.contents_since(revision)
    assert changed is not None
    found, anew = cones.updated(changed), Cones(model)
    for value in data.draw(st.permutations(values)):
        assert found.digest(value) == anew.digest(value)


def test_updated_where_a_body_gives_out_its_weight() -> None:
    """Nothing reads it there, and what is around depends on it."""
    out = helper.make_tensor_value_info("o", 1, [2])
    bodies = [helper.make_graph([], name, [], [out], [helper.make_tensor("o", 1, [2], [1, 2])]) for name in "te"]
    flag = helper.make_tensor("flag", onnx.TensorProto.BOOL, [], [True])
    node = helper.make_node("If", ["flag"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, [2])], [flag])
    model = load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]))
    y, cones = model.graph.outputs[0], Cones(model)
    before = cones.digest(y)
    edit = Edit("test")
    edit.replace_weight(next(value for value in model.weights() if value.name == "o"), np.float32([3, 4]))
    model.apply(edit)
    changed = model.contents_since(0)
    assert changed
    assert cones.updated(changed).digest(y) == Cones(model).digest(y) != before


def test_a_downstream_edit_reads_no_weight_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(models.path("digits-cnn"))
    before = digests(model)
    monkeypatch.setattr(contents, "_feed", lambda tensor, update: pytest.fail("read again"))
    last = [node for node in model.graph if node.op_type == "Relu"][-1]
    edit = Edit("test")
    edit.set_attribute(last, "note", 3)
    model.apply(edit)
    after = digests(model)
    changed = [name for name in before if before[name] != after[name]]
    assert changed
    assert {last.outputs[0].name} <= set(changed) == {v.name for v in _downstream(model, last)}


@pytest.mark.parametrize("name", SHIPPED)
def test_copies_of_a_file_agree(name: str, tmp_path: Path) -> None:
    model = load(models.path(name))
    found = digests(model)
    assert digests(load(models.path(name))) == found
    for external in (False, True):
        model.save(tmp_path / "saved.onnx", external_data=external)
        assert digests(load(tmp_path / "saved.onnx")) == found


@pytest.mark.parametrize("name", sorted(RARE))
def test_rare_models_survive_saving(name: str, tmp_path: Path) -> None:
    model = load(RARE[name]())
    found = digests(model)
    assert digests(load(RARE[name]())) == found
    model.save(tmp_path / "saved.onnx")
    assert digests(load(tmp_path / "saved.onnx")) == found


@pytest.mark.parametrize("name", sorted(ON_DISK))
def test_models_with_data_files_survive_saving(name: str, tmp_path: Path) -> None:
    onnx.save(ON_DISK[name](tmp_path), tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx")
    found = digests(model)
    (tmp_path / "other").mkdir()
    model.save(tmp_path / "other" / "saved.onnx")
    assert digests(load(tmp_path / "other" / "saved.onnx")) == found


def test_values_of_a_zoo_of_models(zoo: Path) -> None:
    for path in sorted(zoo.glob("*.onnx")):
        assert digests(load(path)) == digests(load(path))


def test_digests_are_of_all_values_apart() -> None:
    found = digests(load(models.path("byte-gpt")))
    assert len(set(found.values())) == len(found)
    assert all(len(digest) == 64 for digest in found.values())


def _two(text: str, one: str, other: str) -> tuple[str, str]:
    return text.replace("@", one), text.replace("@", other)


REPEATED = "g (float[2] x) => (%s) { n = Constant <value_int = 3> ()  c = Constant <value = bool {1}> ()"

SAME = {
    "names": ("g (float[2] x) => (float[2] y) { a = Neg (x)  y = Abs (a) }",
              "h (float[2] x) => (float[2] y) { [n] b = Neg (x)  y = Abs (b) }"),
    "declared shape": _two("g (float[@] x) => (float[@] y) { y = Abs (x) }", "2", "N"),
    "Constant or initializer": (
        "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }",
        "g (float[2] x) => (float[2] y) { w = Constant <value = float[2] {1, 2}> ()  y = Add (x, w) }"),
    "a number or a tensor": (
        "g (float[2] x) => (float[2] y) { w = Constant <value_float = 2.0> ()  y = Add (x, w) }",
        "g (float[2] x) => (float[2] y) { w = Constant <value = float {2}> ()  y = Add (x, w) }"),
    "input left out at the end": ("g (float[2] x) => (float[2] y) { y = Clip (x, , ) }",
                                  "g (float[2] x) => (float[2] y) { y = Clip (x) }"),
    "downstream": ("g (float[2] x) => (float[2] y, float[2] z) { y = Abs (x)  z = Neg (y) }",
                   "g (float[2] x) => (float[2] y) { y = Abs (x) }"),
    "names in bodies": (
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] p) { p = Abs (x) },"
        " else_branch = e () => (float[2] q) { q = Neg (x) }> }",
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <else_branch = f () => (float[2] u) { u = Neg (x) },"
        " then_branch = s () => (float[2] v) { v = Abs (x)  w = Exp (v) }> }"),
    "names of a body's inputs": _two(
        REPEATED % "float[2] y" + " y = Loop (n, c, x) <body = b (int64 i, bool k, float[2] @) =>"
        " (bool o, float[2] r) { o = Identity (k)  r = Neg (@) }> }", "s", "other"),
}  # fmt: skip

OTHER = {
    "operator": ("g (float[2] x) => (float[2] y) { y = Abs (x) }", "g (float[2] x) => (float[2] y) { y = Neg (x) }"),
    "domain": ("g (float[2] x) => (float[2] y) { y = Abs (x) }",
               "g (float[2] x) => (float[2] y) { y = org.example.Abs (x) }"),
    "attribute": ("g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.5> (x) }",
                  "g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.25> (x) }"),
    "attribute left out": ("g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.01> (x) }",
                           "g (float[2] x) => (float[2] y) { y = LeakyRelu (x) }"),
    "type of an attribute": ("g (float[2] x) => (float[2] y) { y = org.example.F <a = 1> (x) }",
                             "g (float[2] x) => (float[2] y) { y = org.example.F <a = [1]> (x) }"),
    "texts": ('g (float[2] x) => (float[2] y) { y = org.example.F <a = ["ab", "c"]> (x) }',
              'g (float[2] x) => (float[2] y) { y = org.example.F <a = ["a", "bc"]> (x) }'),
    "order of inputs": ("g (float[2] x, float[2] z) => (float[2] y) { y = Sub (x, z) }",
                        "g (float[2] x, float[2] z) => (float[2] y) { y = Sub (z, x) }"),
    "which input is left out": ("g (float[2] x, float m) => (float[2] y) { y = Clip (x, m) }",
                                "g (float[2] x, float m) => (float[2] y) { y = Clip (x, , m) }"),
    "which output": ("g (float[2] x) => (float[1] y) { y, z = Split <num_outputs = 2> (x) }",
                     "g (float[2] x) => (float[1] y) { z, y = Split <num_outputs = 2> (x) }"),
    "number of outputs": ("g (float[6] x) => (float[N] y) { y, z = Split (x) }",
                          "g (float[6] x) => (float[N] y) { y, z, u = Split (x) }"),
    "input's name": ("g (float[2] x, float[2] z) => (float[2] y) { y = Abs (x) }",
                     "g (float[2] x, float[2] z) => (float[2] y) { y = Abs (z) }"),
    "input's element type": ("g (float[2] x) => (float[2] y) { y = Abs (x) }",
                             "g (double[2] x) => (double[2] y) { y = Abs (x) }"),
    "input that is a sequence": ("g (seq(float[2]) x) => (float[2] y) { y = org.example.F (x) }",
                                 "g (float[2] x) => (float[2] y) { y = org.example.F (x) }"),
    "weight": ("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }",
               "g (float[2] x) => (float[2] y) <float[2] w = {1, 3}> { y = Add (x, w) }"),
    "weight's shape": ("g (float[2] x) => (float[1,2] y) <float[1,2] w = {1, 2}> { y = Add (x, w) }",
                       "g (float[2] x) => (float[2,1] y) <float[2,1] w = {1, 2}> { y = Add (x, w) }"),
    "default of an input": ("g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }",
                            "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }"),
    "what a body reads": _two(
        "g (bool c, float[2] x, float[2] z) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] p)"
        " { p = Abs (@) }, else_branch = e () => (float[2] q) { q = Neg (x) }> }", "x", "z"),
    "a body's weight": _two(
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] p) <float[2] w = {@, 1}>"
        " { p = Add (x, w) }, else_branch = e () => (float[2] q) { q = Neg (x) }> }", "1", "2"),
    "which branch": _two(
        "g (bool c, float[2] x) => (float[2] y) { y = If (c) <@ = f () => (float[2] q) { q = Neg (x) }> }",
        "then_branch = t () => (float[2] p) { p = Abs (x) }, else_branch",
        "else_branch = t () => (float[2] p) { p = Abs (x) }, then_branch"),
    "which input of a body": _two(
        REPEATED % "float[2] y, float[2] z" + " y, z = Loop (n, c, x, x) <body = b (int64 i, bool k, float[2] s,"
        " float[2] t) => (bool o, float[2] r, float[2] u) { o = Identity (k)  r = Neg (@)  u = Neg (t) }> }", "s", "t"),
    "which body's input": _two(
        REPEATED % "float[2] y" + " y = Loop (n, c, x) <body = b (int64 i, bool k, float[2] s) => (bool o, float[2] r)"
        " { o = Identity (k)  r = Loop (n, c, s) <body = d (int64 j, bool l, float[2] t) => (bool p, float[2] u)"
        " { p = Identity (l)  u = Add (@, t) }> }> }", "s", "t"),
    "element type of a body's input": _two(
        REPEATED % "float[2] y" + " y = Loop (n, c, x) <body = b (int64 i, bool k, @[2] s) => (bool o, float[2] r)"
        " { o = Identity (k)  r = Neg (x) }> }", "float", "double"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAME)
def test_what_does_not_matter(what: str) -> None:
    one, other = SAME[what]
    assert of(one) == of(other)


@pytest.mark.parametrize("what", OTHER)
def test_what_matters(what: str) -> None:
    one, other = OTHER[what]
    assert of(one) != of(other)


def test_operator_sets_matter_where_they_are_used() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Abs (x) }"
    found = of(text)
    assert of(text, '<ir_version: 10, opset_import: ["": 21, "org.example": 7]>') == found
    assert of(text, '<ir_version: 10, opset_import: ["ai.onnx": 21]>') == found
    assert of(text, '<ir_version: 10, opset_import: ["": 20]>') != found


def test_before_ir_4_a_listed_weight_is_constant() -> None:
    text = "g (float[2] x%s) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }"
    old = '<ir_version: 3, opset_import: ["": 9]>'
    assert of(text % ", float[2] w", old) == of(text % "", old)


FUNCTION = """g (float[2] x) => (float[2] y) { y = org.example.f <scale = 2> (x) }
<domain: "org.example", opset_import: ["": %s]> f <scale> (a) => (b)
{ s = Constant <value_int: int = @scale> ()  t = Cast <to = 1> (s)  c = %s (a)  b = Mul (c, t) }"""


def test_functions_count_by_what_they_compute() -> None:
    found = of(FUNCTION % (21, "Abs"))
    assert of((FUNCTION % (21, "Abs")).replace("(a)", "(q)").replace("c =", "r =").replace("(c, t)", "(r, t)")) == found
    assert of(FUNCTION % (21, "Neg")) != found
    assert of(FUNCTION % (20, "Abs")) != found
    assert of((FUNCTION % (21, "Abs")).replace("scale = 2", "scale = 3")) != found
    assert of((FUNCTION % (21, "Abs")).replace("f <scale>", "f <scale: int = 4>")) != found


def test_functions_called_by_functions() -> None:
    text = """g (float[2] x) => (float[2] y) { y = org.example.f (x) }
    <domain: "org.example", opset_import: ["": 21, "org.example": 1]> f (a) => (b) { b = org.example.h (a) }
    <domain: "org.example", opset_import: ["": 21]> h (a) => (b) { b = %s (a) }"""
    assert of(text % "Abs") != of(text % "Neg")


def _attribute(content: object) -> str:
    proto = onnx.parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = org.example.F (x) }}")
    proto.graph.node[0].attribute.append(helper.make_attribute("a", content, doc_string="words"))
    return digests(load(proto))["y"]


def _sparse(number: float, name: str = "", dims: int = 4) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, 1, [2], [number, 2])
    return helper.make_sparse_tensor(values, helper.make_tensor(name, 7, [2], [0, 3]), [dims])


RICH: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "tensor": (lambda: helper.make_tensor("t", 1, [1], [1]), lambda: helper.make_tensor("t", 1, [1], [2])),
    "tensors": (lambda: [helper.make_tensor("t", 1, [1], [1])], lambda: [helper.make_tensor("t", 1, [1], [2])]),
    "sparse": (lambda: _sparse(1), lambda: _sparse(3)),
    "size of a sparse one": (lambda: _sparse(1), lambda: _sparse(1, dims=5)),
    "list of sparse ones": (lambda: [_sparse(1)], lambda: [_sparse(3)]),
    "bytes": (lambda: b"\xff\xfe", lambda: b"\xff\xfd"),
    "lists of bytes": (lambda: [b"a", b"\xff"], lambda: [b"b", b"\xff"]),
    "type": (lambda: helper.make_tensor_type_proto(1, [2]), lambda: helper.make_tensor_type_proto(7, [2])),
    "type of a map": (
        lambda: helper.make_map_type_proto(8, helper.make_tensor_type_proto(1, [])),
        lambda: helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, [])),
    ),
    "integers": (lambda: [1, -(2**63)], lambda: [1, 2**63 - 1]),
    "numbers": (lambda: [1.0, float("nan")], lambda: [1.0, float("inf")]),
}


@pytest.mark.parametrize("kind", RICH)
def test_attributes_of_all_kinds(kind: str) -> None:
    one, other = RICH[kind]
    assert _attribute(one()) == _attribute(one()) != _attribute(other())


@pytest.mark.parametrize("content", ["text", b"\xff"])
def test_doc_strings_do_not_matter(content: str | bytes) -> None:
    found = set()
    for words in ("some", "other"):
        proto = onnx.parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = org.example.F (x) }}")
        proto.graph.node[0].doc_string = proto.graph.doc_string = words
        proto.graph.node[0].attribute.append(helper.make_attribute("a", content, doc_string=words))
        proto.graph.node[0].metadata_props.add(key="k", value=words)
        found.add(digests(load(proto))["y"])
    assert len(found) == 1


def test_names_in_sparse_attributes_do_not_matter() -> None:
    assert _attribute(_sparse(1, "a")) == _attribute(_sparse(1, "b"))


@pytest.mark.parametrize("where", ["main", "around", "inside"])
def test_sparse_initializers_count_by_content(where: str) -> None:
    def built(number: float, name: str) -> str:
        if where != "main":
            proto = onnx.parser.parse_model(f"""{HEAD} g (bool c, float[4] x) => (float[4] y)
            {{ y = If (c) <then_branch = t () => (float[4] p) {{ p = Add (x, {name}) }},
                           else_branch = e () => (float[4] q) {{ q = Neg (x) }}> }}""")
            branch = next(a.g for a in proto.graph.node[0].attribute if a.name == "then_branch")
            graph = branch if where == "inside" else proto.graph
        else:
            proto = onnx.parser.parse_model(f"{HEAD} g (float[4] x) => (float[4] y) {{ y = Add (x, {name}) }}")
            graph = proto.graph
        graph.sparse_initializer.append(_sparse(number, name))
        return digests(load(proto))["y"]

    assert built(1, "w") == built(1, "v") != built(3, "w")


def test_single_precision_is_what_files_hold(tmp_path: Path) -> None:
    model = parsed("g (float[2] x) => (float[2] y) { y = LeakyRelu <alpha = 0.5> (x) }")
    edit = Edit("test")
    edit.set_attribute(next(iter(model.graph)), "alpha", 0.1)
    model.apply(edit)
    model.save(tmp_path / "m.onnx")
    assert digests(load(tmp_path / "m.onnx")) == digests(model)


def test_values_inside_subgraphs_have_none() -> None:
    model = parsed(SAME["names in bodies"][0])
    (then, _) = model.graph.subgraphs()
    with pytest.raises(ValueError, match="main graph"):
        Cones(model).digest(then.outputs[0])


def test_a_cycle_is_an_error() -> None:
    model = parsed("g (float[2] x) => (float[2] y) { a = Neg (x)  b = Abs (a)  y = Exp (b) }")
    first, second, _ = model.graph
    first.replace_input_with(0, second.outputs[0])
    with pytest.raises(ModelError, match="cycle"):
        Cones(model).digest(model.graph.outputs[0])


@pytest.mark.parametrize("shape", ["deep", "shared", "wide"])
def test_speed_of_large_graphs(shape: str) -> None:
    count = 20_000
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    weights = [ir.Value(name=f"w{i}", const_value=ir.Tensor(np.float32([i]))) for i in range(count)]
    nodes: list[ir.Node] = []
    for weight in weights:
        last = nodes[-1].outputs[0] if nodes and shape != "wide" else x
        nodes.append(ir.node("Add", [last, last if shape == "shared" else weight]))
    outputs = [node.outputs[0] for node in (nodes if shape == "wide" else nodes[-1:])]
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=weights, name="g", opset_imports={"": 21})
    model = Model(ir.Model(graph, ir_version=10))
    start = time.process_time()
    cones = Cones(model)
    found = {cones.digest(value) for value in outputs}
    assert len(found) == len(outputs)
    assert time.process_time() - start < 2
