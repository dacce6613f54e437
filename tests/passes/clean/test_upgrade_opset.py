"""upgrade-opset: same outputs at the newer opset, nothing lost on the way, refusals with reasons."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pydantic
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.backends.target import Target
from onnxopt.context import RunContext
from onnxopt.errors import RecipeError
from onnxopt.model import Model, load
from onnxopt.passes.clean.upgrade_opset import UpgradeOpset
from onnxopt.recipe import build


def parsed(text: str) -> Model:
    return load(onnx.parser.parse_model(text))


def head(opset: int) -> str:
    return f'<ir_version: {3 if opset < 9 else 7}, opset_import: ["" : {opset}]>'


@pytest.mark.parametrize(
    ("opset", "inputs", "output", "body"),
    [
        (7, "float[2, 3] x, float[2, 3] z", "float[2, 3]", "y = Add(x, z)"),
        (7, "float[1, 2, 3, 3] x", "float[1, 2, 6, 6]", "y = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(x)"),
        (7, "float[1, 2, 3, 3] x", "float[1, 2, 7, 5]",
         'y = Upsample<mode = "linear", scales = [1.0, 1.0, 2.5, 1.7]>(x)'),
        (7, "float[2, 3] x", "float[4, 3]", "y = Pad<pads = [1, 0, 1, 0], value = 2.0>(x)"),
        (8, "float[2, 3, 4] x", "float[2, 3, 4]", "y = Softmax(x)"),
        (8, "float[2, 3, 4, 4] x", "float[2, 3, 4, 4]", "s = ReduceMean<axes = [0, 2, 3], keepdims = 0>(x) "
         "y = BatchNormalization(x, s, s, s, s)"),
        (9, "float[2, 3, 4] x", "float[2, 2, 4]", "y = Slice<axes = [1], starts = [1], ends = [3]>(x)"),
        (9, "float[2, 5] x", "float[2, 3]", "y, i = TopK<k = 3>(x)"),
        (9, "float[2, 3] x", "float[2, 3]", "y, m = Dropout<ratio = 0.3>(x)"),
        (10, "float[2, 3] x", "float[2, 3]", "y = Clip<min = -0.5, max = 0.5>(x)"),
        (10, "float[2, 3] x", "float[4, 3]", 'y = Pad<mode = "constant", pads = [1, 0, 1, 0], value = 2.0>(x)'),
        (10, "float[1, 2, 4, 4] x", "float[1, 2, 9, 6]",
         "s = Constant<value = float[4] {1, 1, 2.4, 1.6}>() y = Resize(x, s)"),
        (10, "float[1, 2, 5, 5] x", "float[1, 2, 3, 2]",
         "s = Constant<value = float[4] {1, 1, 0.6, 0.5}>() y = Resize(x, s)"),
        (10, "float[1, 2, 4, 4] x", "float[1, 2, 9, 6]",
         's = Constant<value = float[4] {1, 1, 2.4, 1.6}>() y = Resize<mode = "linear">(x, s)'),
        (11, "float[2, 3, 4] x", "float[3]", "y = ReduceSum<axes = [0, 2], keepdims = 0>(x)"),
        (11, "float[1, 3, 1] x", "float[3]", "y = Squeeze<axes = [0, 2]>(x)"),
        (11, "float[3] x", "float[1, 3, 1]", "y = Unsqueeze<axes = [0, 2]>(x)"),
        (11, "float[4, 3] x", "float[1, 3]", "y, z = Split<axis = 0, split = [1, 3]>(x)"),
        (11, "float[2, 3, 4] x", "float[2, 3, 4]", "y = LogSoftmax(x)"),
        (13, "float[2, 3, 4] x", "float[2, 1, 4]", "y = ReduceMax<axes = [1]>(x)"),
        (13, "float[4, 3] x", "float[2, 3]", "y, z = Split(x)"),
        (16, "float[1, 1, 4, 4] x, float[1, 2, 2, 2] g", "float[1, 1, 2, 2]",
         'y = GridSample<mode = "bilinear">(x, g)'),
        (17, "float[1, 2, 5] x", "float[1, 2, 2]", "y = AveragePool<kernel_shape = [2], strides = [2]>(x)"),
        (17, "float[2, 3] x", "float16[2, 3]", "y = Cast<to = 10>(x)"),
        (18, "float[2, 3] x", "float[2, 3]", "a = Shape(x) y = Reshape(x, a)"),
    ],
)  # fmt: skip
def test_operators_whose_form_changed(exact: Any, opset: int, inputs: str, output: str, body: str) -> None:
    model, findings = exact(
        f"{head(opset)} g ({inputs}) => ({output} y) {{ {body} }}", UpgradeOpset(to=21), tolerance=1e-6
    )
    assert (model.opset, model.ir.ir_version) == (21, 10)
    assert not findings.declined
    assert all(node.op_type != "Constant" or "Constant" in body for node in model.nodes())


@pytest.mark.parametrize("to", [13, 17, 19, 22])
def test_every_target(exact: Any, to: int) -> None:
    body = "a = Softmax<axis = 1>(x) y = ReduceSum<axes = [1], keepdims = 0>(a)"
    text = f"{head(9)} g (float[2, 3] x) => (float[2] y) {{ {body} }}"
    model, _ = exact(text, UpgradeOpset(to=to), tolerance=1e-6)
    assert model.opset == to
    assert model.ir.ir_version == helper.find_min_ir_version_for([helper.make_opsetid("", to)])


def test_weights_subgraphs_and_other_domains(exact: Any, ops: Any) -> None:
    text = """<ir_version: 7, opset_import: ["" : 11, "com.microsoft" : 1]>
        g (bool b, float[N, 1, 3] x) => (float[M, 3] y) <float[3] w = {1, 2, 3}> {
        a = Add(x, w)
        g = com.microsoft.Gelu(a)
        y = If(b)<then_branch = t () => (float[N, 3] p) <float[3] v = {4, 5, 6}> {
                      s = Squeeze<axes = [1]>(g) p = Mul(s, v) },
                  else_branch = e () => (float[1, 3] q) <float[3] v = {7, 8, 9}> {
                      s = ReduceSum<axes = [0], keepdims = 0>(g) q = Add(s, v) }> }"""
    feeds = [{"b": np.array(b), "x": np.float32([[[1, 2, 3]], [[4, 5, 6]]])} for b in (True, False)]
    source = parsed(text)
    tensors = [value.const_value for value in source.weights()]
    model, _ = exact(source, UpgradeOpset(to=18), feeds)
    after = [value.const_value for value in model.weights()]
    assert all(any(tensor is other for other in after) for tensor in tensors), "weights are neither read nor copied"
    assert ops(model) == ["Add", "Gelu", "If", "Squeeze", "Mul", "ReduceSum", "Add"]
    assert dict(model.ir.opset_imports) == {"": 18, "com.microsoft": 1}
    assert [set(graph.initializers) >= {"v"} for graph in model.graph.subgraphs()] == [True, True]


def test_nothing_is_lost() -> None:
    model = parsed(f"""{head(9)} g (float[N, 3] x) => (float[N, 3] y, float[N] z)
        <float[3] w = {{1, 2, 3}}, float[N, 3] t> {{
        [first] t = Add(x, w)
        [second] y = Softmax<axis = 1>(t)
        [third] z = ReduceSum<axes = [1], keepdims = 0>(y) }}""")
    first, second, third = model.nodes()
    for thing in (model.graph, first, second, third, first.outputs[0], *model.graph.inputs, *model.graph.outputs):
        thing.metadata_props["key"] = f"of {thing.name}"
        thing.doc_string = f"about {thing.name}"
    model.graph.initializers["w"].metadata_props["key"] = "of w"
    model.ir.metadata_props["author"], model.ir.producer_name = "somebody", "tool"
    tensor, signature = model.graph.initializers["w"].const_value, model.signature
    UpgradeOpset(to=17).run(model, RunContext(model))
    first, second, third = model.nodes()
    for thing in (model.graph, first, second, third, first.outputs[0], *model.graph.inputs, *model.graph.outputs):
        assert thing.metadata_props == {"key": f"of {thing.name}"}
        assert thing.doc_string == f"about {thing.name}"
    assert [node.name for node in (first, second, third)] == ["first", "second", "third"]
    assert model.graph.initializers["w"].metadata_props == {"key": "of w"}
    assert model.graph.initializers["w"].const_value is tensor
    assert (model.ir.metadata_props["author"], model.ir.producer_name) == ("somebody", "tool")
    assert model.signature == signature
    assert first.outputs[0].shape == ir.Shape(["N", 3])


def test_nodes_that_become_several_get_names_of_their_own(exact: Any) -> None:
    """The converter calls them all as the one was called, which onnxruntime refuses."""
    text = f"{head(9)} g (float[2, 3, 4] x) => (float[2, 3, 4] y) {{ [n] y = Softmax(x) }}"
    model, _ = exact(text, UpgradeOpset(to=13), tolerance=1e-6)
    names = [node.name for node in model.nodes()]
    assert len(names) == len(set(names)) > 1
    assert names[-1] == "n"


def test_nothing_is_declared_that_was_not(exact: Any) -> None:
    """The converter's own inference calls a value of unknown rank a scalar."""
    text = f"""{head(11)} g (float[3] x) => (float[3] y) <int64 n = {{2}}, bool true = {{1}}> {{
        y = Loop(n, true, x)<body = b (int64 i, bool c, float[3] s) => (bool d, float[3] u) {{
            d = Identity(c) z = Softmax<axis = 0>(x) t = Add(s, z) u = Neg(t) }}> }}"""
    model, _ = exact(text, UpgradeOpset(to=13), tolerance=1e-6)
    body = next(iter(model.graph.subgraphs()))
    inner = [value for node in body for value in node.outputs if not value.is_graph_output()]
    assert [(value.type, value.shape) for value in inner] == [(None, None)] * len(inner)


def test_sparse_weights_stay(exact: Any) -> None:
    proto = onnx.parser.parse_model(f"{head(11)} g (float[3] x) => (float[3] y) {{ y = Add(x, s) }}")
    values = numpy_helper.from_array(np.float32([5]), "s")
    places = numpy_helper.from_array(np.int64([1]), "s_places")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    model, _ = exact(load(proto), UpgradeOpset(to=17))
    assert [tensor.values.name for tensor in model.proto().graph.sparse_initializer] == ["s"]


def test_types_that_the_converter_does_not_know(exact: Any) -> None:
    text = f"""{head(11)} g (seq(float[3]) s, string[2] t, float[3] x) => (seq(float[3]) r, string[2] u) {{
        a = SequenceInsert(s, x) r = SequenceInsert(a, x) u = Identity(t) }}"""
    x = np.float32([1, 2, 3])
    model, _ = exact(text, UpgradeOpset(to=17), {"s": [x], "t": np.array(["a", "b"], object), "x": x})
    assert isinstance(model.graph.outputs[0].type, ir.SequenceType)


def test_before_ir_4_weights_were_listed_as_inputs(exact: Any) -> None:
    text = (
        '<ir_version: 3, opset_import: ["" : 7]> g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Add(x, w) }'
    )
    model, _ = exact(text, UpgradeOpset(to=13))
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert list(model.graph.initializers) == ["w"]


def test_from_ir_4_on_a_listed_weight_is_a_default_and_stays_one(exact: Any) -> None:
    text = f"{head(9)} g (float[2] x, float[2] w = {{1, 2}}) => (float[2] y) {{ y = Add(x, w) }}"
    model, _ = exact(text, UpgradeOpset(to=13), [{"x": np.float32([1, 2])}, {n: np.float32([3, 4]) for n in "xw"}])
    assert [value.name for value in model.graph.inputs] == ["x", "w"]


def test_a_model_that_is_there_already_is_left_alone() -> None:
    model = parsed(f"{head(17)} g (float[2] x) => (float[2] y) {{ y = Relu(x) }}")
    findings = UpgradeOpset(to=17).run(model, RunContext(model))
    assert (model.revision, findings.declined) == (0, [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{head(9)} g (float[2] x) => (float[2] y) {{ y = Unheard(x) }}", "Unheard"),
        (f"{head(11)} g (float[2] x) => (float[2] y) {{ y = Hardmax(x) }}", "Hardmax"),
        ("""<ir_version: 8, opset_import: ["" : 13, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.neg(x) }
            <opset_import: ["" : 13], domain: "f"> neg (a) => (b) { b = Neg(a) }""", "inline-functions"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_stays_as_it_was(text: str, reason: str) -> None:
    model = parsed(text)
    before = model.proto()
    findings = UpgradeOpset(to=17).run(model, RunContext(model))
    assert [reason in declined.why for declined in findings.declined] == [True], findings.declined
    assert model.proto() == before
    assert model.revision == 0


@pytest.mark.parametrize("to", [{}, {"to": 20}])
def test_it_stops_at_what_the_target_loads(exact: Any, to: dict[str, int]) -> None:
    model = parsed(f"{head(13)} g (float[2] x) => (float[2] y) {{ y = Relu(x) }}")
    findings = UpgradeOpset(**to).run(model, RunContext(model, target=Target(max_opset=17)))
    assert model.opset == 17
    assert [declined.why for declined in findings.declined] == [
        f"opset {to.get('to', 21)} is more than target.max_opset, 17"
    ]
    again = UpgradeOpset(to=13).run(model, RunContext(model, target=Target(max_opset=11)))
    assert (again.changes, again.declined) == ([], [])


def test_a_recipe_asks_for_no_more_than_the_target_loads() -> None:
    target = {"name": "cpu", "max_opset": 17}
    with pytest.raises(RecipeError, match=r"passes\.1\.upgrade-opset\.to: 21 is more than target\.max_opset, 17"):
        build({"passes": ["clean", {"upgrade-opset": {"to": 21}}], "target": target})
    for passes in ([{"upgrade-opset": {"to": 17}}], ["upgrade-opset"], ["quantize-weights"]):
        build({"passes": passes, "target": target})
    build({"passes": [{"upgrade-opset": {"to": 21}}]})


def test_an_opset_that_onnx_does_not_know_is_an_impossible_value() -> None:
    with pytest.raises(pydantic.ValidationError, match="operator sets up to"):
        UpgradeOpset(to=onnx.defs.onnx_opset_version() + 1)


def test_large_weights_are_not_read(tmp_path: Path) -> None:
    """The data file is gone when the conversion runs: nothing may touch it."""
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", info[:1], info[1:], [weight])
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    (tmp_path / "m.data").unlink()
    assert UpgradeOpset(to=21).run(model, RunContext(model)).changed
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)


@pytest.mark.slow
def test_a_chain_of_twenty_thousand_nodes() -> None:
    count = 20_000
    nodes = [helper.make_node("Add", [f"t{i}", f"w{i}"], [f"t{i + 1}"], f"n{i}") for i in range(count)]
    weights = [numpy_helper.from_array(np.float32([i]), f"w{i}") for i in range(count)]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
    model = load(helper.make_model(graph, ir_version=7, opset_imports=[helper.make_opsetid("", 11)]))
    start = time.process_time()
    UpgradeOpset(to=21).run(model, RunContext(model))
    assert model.opset == 21
    assert time.process_time() - start < 5


@pytest.mark.slow
@pytest.mark.parametrize("to", [19, 21])
def test_the_zoo(exact: Any, zoo: Path, to: int) -> None:
    for path in sorted(zoo.glob("*.onnx")):
        with np.load(path.with_suffix(".calib.npz")) as data:
            prefix = "feed0000/"
            feeds = {name.removeprefix(prefix): data[name] for name in data.files if name.startswith(prefix)}
        model, _ = exact(load(path), UpgradeOpset(to=to), feeds, tolerance=1e-5)
        assert model.opset >= to, path.name
