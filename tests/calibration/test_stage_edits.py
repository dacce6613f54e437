"""Whatever is edited in which stage: the dense side stays as it was, the current side is the model as it is."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.analysis.axes import channel_ids, groups, removal
from onnxopt.analysis.linear import linears
from onnxopt.analysis.shapes import infer
from onnxopt.calibration.staging import Stage
from onnxopt.context import RunContext
from onnxopt.data import Dataset, open_data
from onnxopt.edit import Edit
from onnxopt.model import Model, load
from onnxopt.statistics import CrossGram, Gram, MinMax, Stat, cross_gram, gram

ORACLE = runpy.run_path(str(Path(__file__).with_name("oracle.py")))
parsed, values, rows, ranges, names_of = (ORACLE[n] for n in ("parsed", "values", "rows", "ranges", "names_of"))

UNARY, BINARY = ("Relu", "Tanh", "Neg", "Sigmoid"), ("Add", "Sub", "Min")


@st.composite
def graphs(draw: st.DrawFn) -> Model:
    """Small graphs of values [N, 4] that branch and join, with one or two outputs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    names, nodes, weights = ["x"], [], []
    for at in range(draw(st.integers(4, 10))):
        kind = draw(st.sampled_from(("MatMul", "MatMul", *UNARY, *BINARY)))
        read = [draw(st.sampled_from(names[-4:]))]
        if kind == "MatMul":
            weights.append(onnx.numpy_helper.from_array(0.6 * rng.standard_normal((4, 4)).astype(np.float32), f"w{at}"))
            read.append(f"w{at}")
        elif kind in BINARY:
            read.append(draw(st.sampled_from(names)))
        nodes.append(onnx.helper.make_node(kind, read, [f"v{at}"]))
        names.append(f"v{at}")
    outputs = dict.fromkeys([names[-1], draw(st.sampled_from(names[1:]))])
    infos = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in side]
        for side in (["x"], outputs)
    ]
    graph = onnx.helper.make_graph(nodes, "g", *infos, initializer=weights)
    return load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8))


def data_of(model: Model, *counts: int) -> Dataset:
    rng = np.random.default_rng(7)
    feeds = [{"x": rng.standard_normal((count, 4)).astype(np.float32)} for count in counts]
    return open_data(feeds, model.signature)


def reweigh(model: Model, name: str, factor: float = 1.25) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    edit = Edit("test")
    edit.replace_weight(value, value.const_value.numpy() * np.float32(factor))
    model.apply(edit)


def put_behind(model: Model, name: str, op: str = "Tanh") -> None:
    """Let all that read a value read a function of it; a graph output keeps its name."""
    value = value_of(model, name)
    node = ir.node(op, [value])
    node.outputs[0].type = value.type
    edit = Edit("test")
    maker = value.producer()
    assert maker is not None
    edit.insert([node], after=maker)
    edit.rewire(value, node.outputs[0])
    model.apply(edit)


def bypass(model: Model, node: ir.Node) -> None:
    """Take out a node of one input."""
    source = node.inputs[0]
    assert source is not None
    edit = Edit("test")
    edit.rewire(node.outputs[0], source)
    edit.remove(node)
    model.apply(edit)


def value_of(model: Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def edit_somewhere(draw: Any, model: Model) -> None:
    """One edit anywhere: of a stage that is open, to come, or closed."""
    kind = draw(st.sampled_from(("weight", "behind", "bypass", "none")))
    weights = sorted(model.graph.initializers)
    made = [name for name in names_of(model) if name not in ("x",)]
    unary = [node for node in model.graph if node.op_type in UNARY]
    if kind == "weight" and weights:
        reweigh(model, draw(st.sampled_from(weights)), draw(st.sampled_from((0.5, 1.25))))
    elif kind == "behind":
        put_behind(model, draw(st.sampled_from(made)), draw(st.sampled_from(UNARY)))
    elif kind == "bypass" and unary:
        bypass(model, draw(st.sampled_from(unary)))


def look(stage: Stage, dense: Model, model: Model, data: Dataset) -> None:
    """All that the stage sees, on both sides and across, is what whole models give."""
    sides = {"dense": dense, "current": model}
    seen = {side: [n for n in names_of(each) if side == "dense" or stage.sees(n)] for side, each in sides.items()}
    both = [name for name in seen["current"] if name in seen["dense"]]
    stats = [Stat(n, MinMax(), "current") for n in seen["current"]] + [Stat(n, MinMax(), "dense") for n in both]
    crossed = {name: Stat(name, CrossGram()) for name in both}
    found = stage.collect([*stats, *crossed.values()])
    made = {side: values(each, data, seen[side]) for side, each in sides.items()}
    for stat in stats:
        expected = ranges({"it": made[stat.side][stat.tensor]})["it"]
        assert (found[stat].low, found[stat].high) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    for name, crossing in crossed.items():
        product = rows(made["dense"][name]).T @ rows(made["current"][name])
        assert np.allclose(found[crossing].gram()[0], product, rtol=1e-5, atol=1e-5)


@settings(max_examples=100)
@given(graphs(), st.data())
def test_any_cuts_and_any_edits(model: Model, drawn: st.DataObject) -> None:
    dense, data = load(model.proto()), data_of(model, 3, 1, 5)
    cuts = drawn.draw(st.lists(st.sampled_from(names_of(model)[1:]), unique=True, max_size=4))
    for stage in RunContext(model, calibration=data).stages(cuts):
        edit_somewhere(drawn.draw, model)
        if drawn.draw(st.booleans()):
            look(stage, dense, model, data)
            edit_somewhere(drawn.draw, model)


CHAIN = """<ir_version: 8, opset_import: ["": 18]>
chain (float[N,4] x) => (float[N,3] y, float[N,6] b) <float[4,6] w1, float[6,6] w2, float[6,5] w3, float[5,3] w4> {
  a = MatMul (x, w1)  b = Relu (a)  c = MatMul (b, w2)  d = Relu (c)  e = MatMul (d, w3)
  f = Relu (e)  y = MatMul (f, w4)
}"""


def test_channels_removed_in_a_stage_and_across_its_border() -> None:
    model = parsed(CHAIN)
    dense, data, sizes = load(model.proto()), data_of(model, 4, 2), {}
    for stage in RunContext(model, calibration=data).stages(["c", "f"]):
        if stage.index < 2:  # first those of c, at the border; then those of e, within
            channels = channel_ids(model)
            group = next(each for each in groups(channels) if each.name == ("w2", "w3")[stage.index])
            model.apply(removal(channels, list(group.units)[:2]))
        look(stage, dense, model, data)
        for linear in linears(model):
            if stage.sees(linear.x.name or "") and linear.x.producer() is not None:
                found = stage.collect([cross := cross_gram(linear), own := gram(linear)])
                sizes[stage.index, linear.x.name] = found[cross].scatter.shape[1:], found[own].scatter.shape[1:]
    assert {name: sizes[2, name] for name in "bdf"} == {
        "b": ((6, 6), (6, 6)), "d": ((6, 4), (4, 4)), "f": ((5, 3), (3, 3)),
    }  # fmt: skip


def test_a_closed_stage_that_is_edited_is_run_again() -> None:
    model = parsed(CHAIN)
    dense, data = load(model.proto()), data_of(model, 4, 2)
    context = RunContext(model, calibration=data)
    nodes = context.calibration.statistics.runner.nodes
    for stage in context.stages(["b", "d", "f"]):
        if stage.index == 2:
            reweigh(model, "w1")  # what "d" lies on disk of is gone
            look(stage, dense, model, data)
    assert nodes["current"] == 6  # from the start to "f"


def test_downstream_edits_write_nothing_again() -> None:
    model = parsed(CHAIN)
    context = RunContext(model, calibration=data_of(model, 4, 2))
    nodes = context.calibration.statistics.runner.nodes
    for stage in context.stages(["b", "d", "f"]):
        stage.collect([Stat("b" if stage.index == 0 else "d", Gram())])
        reweigh(model, "w4")
        if stage.index == 1:
            break
    assert nodes == {"dense": 4}


def test_shapes_are_followed_anew_only_where_they_may_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def count(*arguments: Any, **options: Any) -> Any:
        runs.append(len(runs))
        return infer(*arguments, **options)

    monkeypatch.setattr("onnxopt.calibration.engine.infer", count)
    model = parsed(CHAIN)
    counts = []
    for stage in RunContext(model, calibration=data_of(model, 4, 2)).stages(["b", "d", "f"]):
        (reweigh if stage.index < 2 else put_behind)(model, "w3" if stage.index < 2 else "e")
        stage.close()
        counts.append(len(runs))
    first = counts[0]
    assert counts == [first, first, first + 1, first + 1 + 1]


SKIP = """<ir_version: 8, opset_import: ["": 18]>
skip (float[N,4] x) => (float[N,3] y, float[N,6] b) <float[4,6] w1, float[6,6] w2, float[6,3] w3> {
  a = MatMul (x, w1)  b = Relu (a)  c = MatMul (b, w2)  d = Relu (c)  e = Add (d, b)  f = Tanh (e)  y = MatMul (f, w3)
}"""


def test_a_border_value_that_is_an_output_and_gets_another_name() -> None:
    """An output keeps its name, so what lies on disk under it is called differently by then."""
    model = parsed(SKIP)
    dense, data = load(model.proto()), data_of(model, 4, 2)
    for stage in RunContext(model, calibration=data).stages(["b", "d", "f"]):
        look(stage, dense, model, data)
        if stage.index == 1:
            put_behind(model, "b")
        look(stage, dense, model, data)


def test_an_early_value_that_a_late_inserted_node_reads_stays() -> None:
    model = parsed(CHAIN)
    dense, data = load(model.proto()), data_of(model, 4, 2)
    context = RunContext(model, calibration=data)
    for stage in context.stages(["b", "d", "f"]):
        if stage.index == 0:
            edit = Edit("test")
            c = value_of(model, "c")
            both = ir.node("Add", [c, value_of(model, "b")])
            edit.insert([both], after=c.producer())
            edit.rewire(c, both.outputs[0])
            model.apply(edit)
            stage.close()
            assert context.calibration.statistics.runner.nodes == {"dense": 2}  # nothing of later stages
            continue
        look(stage, dense, model, data)


def test_the_whole_graph_replaced_in_between() -> None:
    model = parsed(CHAIN)
    dense, data = load(model.proto()), data_of(model, 4, 2)
    for stage in RunContext(model, calibration=data).stages(["b", "d"]):
        if stage.index == 1:
            with model.surgeon():
                pass
            reweigh(model, "w1")
        look(stage, dense, model, data)


def test_after_an_error_the_stage_goes_on() -> None:
    model = parsed(CHAIN)
    dense, data = load(model.proto()), data_of(model, 4, 2)
    content = model.graph.initializers["w2"].const_value
    for stage in RunContext(model, calibration=data).stages(["b", "d"]):
        if stage.index == 1:
            for broken in (np.full((6, 6), np.nan, np.float32), content):
                edit = Edit("test")
                edit.replace_weight(model.graph.initializers["w2"], broken)
                model.apply(edit)
                if broken is not content:
                    with pytest.raises(Exception, match="'c' holds NaN in sample 0"):
                        stage.collect([Stat("c", MinMax())])
        look(stage, dense, model, data)
