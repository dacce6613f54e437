"""Trunk and stages: against networkx, onnxruntime, and the shapes of networks as everybody knows them."""

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxopt import models
from onnxopt.analysis.cuts import Segment, frontier, stages, trunk
from onnxopt.analysis.regions import region_model
from onnxopt.analysis.structure import ancestors, reads
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders import RARE, Sketch

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
KINDS = ("Relu", "Linear", "Add", "Concat", "Split", "Size", "If", "Constant", "Turned", "Sequence")


def parsed(text: str) -> Model:
    return load(onnx.parser.parse_model(f"{HEAD} {text}"))


@st.composite
def networks(draw: st.DrawFn) -> Model:
    """A runnable network of values [4, 4] with residuals, concats, side inputs, taps, dead ends and branches."""
    sketch = Sketch("net", opset=21, ir_version=10)
    known = [sketch.input(f"x{i}", [4, 4]) for i in range(draw(st.integers(1, 2)))]
    flag = sketch.input("flag", [], TensorProto.BOOL)
    place = st.integers(0, 3)  # how far back a node reads: long chains with skips rather than a thicket
    for kind, a, b in draw(st.lists(st.tuples(st.sampled_from(KINDS), place, place), min_size=1, max_size=20)):
        known.append(_add(sketch, kind, known[-1 - min(a, len(known) - 1)], known[-1 - min(b, len(known) - 1)], flag))
    made = [name for name in known if not name.startswith("x")]
    for name in {made[-1], *draw(st.lists(st.sampled_from(made), max_size=3))}:
        sketch.output(name, [4, 4])
    return load(sketch.model())


def _add(sketch: Sketch, kind: str, a: str, b: str, flag: str) -> str:
    zero = np.zeros((), np.int64)
    match kind:
        case "Linear":
            return sketch.node("MatMul", a, sketch.weight("w", sketch.normal(4, 4) / 2))
        case "Concat":
            return sketch.node(
                "MatMul", sketch.node("Concat", a, b, axis=1), sketch.weight("w", sketch.normal(8, 4) / 3)
            )
        case "Split":
            halves = [sketch.fresh("half"), sketch.fresh("half")]
            sketch.node("Split", a, outputs=halves, axis=1, num_outputs=2)
            return sketch.node("Concat", *reversed(halves), axis=1)
        case "Size":
            return sketch.node("Add", sketch.node("ConstantOfShape", sketch.node("Shape", a)), b)
        case "Constant":
            value = onnx.numpy_helper.from_array(sketch.normal(4, 4))
            return sketch.node("Mul", sketch.node("Constant", value=value), a)
        case "Turned":
            turned = sketch.node("Transpose", sketch.weight("w", sketch.normal(4, 4) / 2), perm=[1, 0])
            return sketch.node("MatMul", a, turned)
        case "Sequence":
            held = sketch.node("SequenceConstruct", a, b)
            return sketch.node("SequenceAt", held, sketch.weight("i", zero))
        case "If":
            then, other = Sketch("then"), Sketch("else")
            name = sketch.fresh("branch")
            then.output(then.node("Add", a, b, outputs=[f"{name}_t"]), [4, 4])
            other.output(other.node("Neg", b, outputs=[f"{name}_e"]), [4, 4])
            return sketch.node("If", flag, then_branch=then.graph(), else_branch=other.graph(), outputs=[name])
        case "Add":
            return sketch.node("Add", a, b)
        case _:
            return sketch.node(kind, a)


def check(model: Model, segments: Sequence[Segment]) -> None:
    """What stages promise."""
    place = {node: at for at, segment in enumerate(segments) for node in segment.nodes}
    assert sorted(node.name or "" for segment in segments for node in segment.nodes) == sorted(
        node.name or "" for node in model.graph
    )
    done: set[ir.Value] = set()
    for segment in segments:
        for node in segment.nodes:
            assert all(v in done or v.producer() not in place for v in reads(node))
            done.update(node.outputs)
    assert [segment.cut is None for segment in segments] == [False] * (len(segments) - 1) + [True]
    made: set[ir.Node] = set()
    for segment in segments[:-1]:
        assert segment.cut is not None
        assert segment.cut.producer() in segment.nodes
        needed = {node for node in ancestors([segment.cut]) if node in place}
        assert needed <= made | set(segment.nodes)
        tapped = ancestors([v for v in model.graph.outputs if v.producer() in segment.nodes])
        assert set(segment.nodes) <= needed | tapped
        made |= set(segment.nodes)
    dead = set(place) - ancestors(model.graph.outputs)
    assert dead & made <= {node for s in segments if s.cut is not None for node in ancestors([s.cut])}


def live(model: Model, segments: Sequence[Segment]) -> list[set[str]]:
    """The frontier by its definition."""
    result = []
    for at in range(1, len(segments)):
        made = {v for s in segments[:at] for node in s.nodes for v in node.outputs} | set(model.graph.inputs)
        read = {v for s in segments[at:] for node in s.nodes for v in reads(node)}
        result.append({v.name or "" for v in made & read if not v.is_initializer()})
    return result


@given(networks(), st.sampled_from([None, 0, 64, 130, 10**6]))
def test_stages_of_any_network(model: Model, most_bytes: int | None) -> None:
    segments = stages(model, most_bytes=most_bytes)
    check(model, segments)
    assert [{value.name for value in boundary} for boundary in frontier(segments)] == live(model, segments)
    names = {value.name for value in trunk(model)}
    assert all(segment.cut is None or segment.cut.name in names for segment in segments)
    if most_bytes == 10**6:
        assert len(segments) == 1


def data_edges(model: Model) -> nx.DiGraph:
    graph = nx.DiGraph()
    for node in model.graph:
        graph.add_node(node)
        if node.op_type != "Shape":
            graph.add_edges_from((value, node) for value in reads(node))
        graph.add_edges_from((node, value) for value in node.outputs)
    return graph


def on_all_paths(graph: nx.DiGraph, root: ir.Value, sink: ir.Value) -> list[ir.Value]:
    """Tensors that dominate the sink, seen from the root; what node computes them and sequences left out."""
    inside = (nx.descendants(graph, root) | {root}) & (nx.ancestors(graph, sink) | {sink})
    parents = nx.immediate_dominators(graph.subgraph(inside), root)
    chain = [sink]
    while chain[-1] is not root:
        chain.append(parents[chain[-1]])
    values = [each for each in reversed(chain) if isinstance(each, ir.Value) and each.producer() is not None]
    return [value for value in values if value.producer().op_type != "SequenceConstruct"]


@given(networks())
def test_the_trunk_is_on_all_paths(model: Model) -> None:
    """From some root to the end, from some root before that to this root, and so on."""
    graph, found = data_edges(model), trunk(model)
    roots = [value for value in model.graph.inputs if value in graph]
    while len(found) > 1:
        sink = found[-1]
        above = [root for root in roots if sink in nx.descendants(graph, root)]
        starts = [at for at in range(len(found) - 1) if on_all_paths(graph, found[at], sink) == found[at:]]
        if any(on_all_paths(graph, root, sink) == found for root in above):
            break
        assert starts
        found = found[: starts[0] + 1]


def run(model: Model, feeds: dict[str, Any]) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    given_ = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, given_), strict=True))


@settings(max_examples=25)
@given(networks(), st.booleans(), st.sampled_from([None, 130]))
def test_stages_compute_what_the_whole_does(model: Model, flag: bool, most_bytes: int | None) -> None:
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {v.name or "": rng.standard_normal((4, 4), np.float32) for v in model.graph.inputs}
    feeds["flag"] = np.array(flag)
    expected = run(model, feeds)
    segments = stages(model, most_bytes=most_bytes)
    held = {value.name for boundary in frontier(segments) for value in boundary}
    values, outputs = feeds, {}
    for at, segment in enumerate(segments):
        types = {name: (ir.DataType.from_numpy(v.dtype), v.shape) for name, v in values.items() if _is_array(v)}
        if at:
            values = {name: values[name] for name in (v.name or "" for v in frontier(segments)[at - 1])}
        made = run(load(region_model(model, segment.nodes, types).proto()), values) if segment.nodes else {}
        outputs |= {name: made[name] for name in made if name in expected}
        values = {**values, **{name: made[name] for name in made if name in held}}
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-4)


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)


def cut_names(model: Model, **options: Any) -> list[str]:
    segments = stages(model, **options)
    check(model, segments)
    return [segment.cut.name or "" for segment in segments if segment.cut is not None]


def layers(
    sketch: Sketch,
    h: str,
    count: int,
    *,
    mask: str = "",
    past: bool = False,
    outputs: Callable[[str], Any] | None = None,
) -> str:
    """Residual blocks whose branch may add a mask and a past state and give out a present one."""
    for at in range(count):
        normed = sketch.node("LpNormalization", h, axis=-1)
        q, k = (sketch.node("MatMul", normed, sketch.random("w", 8, 8)) for _ in range(2))
        if past:
            k = sketch.node("Concat", sketch.input(f"past_{at}", ["b", "t", 8]), k, axis=1)
        if outputs is not None:
            outputs(sketch.node("Identity", sketch.node("Tanh", k), outputs=[f"present_{at}"]))
        scores = sketch.node("MatMul", q, sketch.node("Transpose", k, perm=[0, 2, 1]))
        scores = sketch.node("Add", scores, mask) if mask else scores
        branch = sketch.node(
            "MatMul", sketch.node("MatMul", sketch.node("Softmax", scores), k), sketch.random("w", 8, 8)
        )
        h = sketch.node("Add", h, branch, outputs=[f"h{at}"])
    return h


def head(sketch: Sketch, h: str, width: int = 30) -> None:
    sketch.output(sketch.node("MatMul", h, sketch.random("head", 8, width), outputs=["logits"]), ["b", "s", width])


def embedded(sketch: Sketch, ids: str) -> str:
    return sketch.node("Gather", sketch.random("table", 30, 8), ids, outputs=["embedding"])


BLOCKS = ["embedding", "h0", "h1", "h2", "h3"]


def test_a_mask_that_is_the_first_input_and_taps_that_are_the_first_outputs() -> None:
    sketch = Sketch()
    mask, ids = sketch.input("mask", ["b", "s", "t"]), sketch.input("ids", ["b", "s"], TensorProto.INT64)
    h = embedded(sketch, ids)
    h = layers(sketch, h, 4, mask=mask, past=True, outputs=lambda name: sketch.output(name, None))
    head(sketch, h)
    model = load(sketch.model())
    assert cut_names(model) == BLOCKS
    segments = stages(model)
    for at in range(4):  # a tap is made where what it takes is
        assert f"present_{at}" in {value.name for node in segments[at + 1].nodes for value in node.outputs}
    assert {"mask", "h0", "past_1", "past_2", "past_3"} == {value.name for value in frontier(segments)[1]}


def test_a_mask_made_of_the_tokens() -> None:
    sketch = Sketch()
    ids = sketch.input("ids", ["b", "s"], TensorProto.INT64)
    there = sketch.node("Cast", sketch.node("Equal", ids, sketch.weight("pad", np.array(0))), to=1)
    mask = sketch.node("Unsqueeze", there, sketch.weight("axes", np.array([1])))
    head(sketch, layers(sketch, embedded(sketch, ids), 4, mask=mask))
    assert cut_names(load(sketch.model())) == BLOCKS


def test_a_head_that_is_larger_than_all_the_rest() -> None:
    sketch = Sketch()
    mask, ids = sketch.input("mask", ["b", "s", "t"]), sketch.input("ids", ["b", "s"], TensorProto.INT64)
    head(sketch, layers(sketch, embedded(sketch, ids), 4, mask=mask), 3000)
    assert cut_names(load(sketch.model())) == BLOCKS


def test_sizes_are_no_roots() -> None:
    """Were they, the rows of the position table would be on the trunk: all that is made of them passes there."""
    sketch = Sketch()
    ids = sketch.input("ids", ["b", "s"], TensorProto.INT64)
    axes = sketch.weight("axes", np.array([1]))
    shift = sketch.node("Cast", sketch.node("Shape", ids), to=1)
    rows = sketch.node(
        "MatMul", sketch.node("Expand", shift, sketch.weight("to", np.array([2]))), sketch.random("r", 2, 8)
    )
    there = sketch.node("Cast", sketch.node("Equal", ids, sketch.weight("pad", np.array(0))), to=1)
    h = sketch.node("Add", embedded(sketch, ids), rows, outputs=["start"])
    head(sketch, layers(sketch, h, 4, mask=sketch.node("Unsqueeze", there, axes)))
    model = load(sketch.model())
    assert rows not in {value.name for value in trunk(model)}
    assert cut_names(model) == ["embedding", "start", *BLOCKS[1:]]


def test_positions_from_sizes() -> None:
    sketch = Sketch()
    ids = sketch.input("ids", ["b", "s"], TensorProto.INT64)
    length = sketch.node("Gather", sketch.node("Shape", ids), sketch.weight("one", np.array(1)))
    zero, one = sketch.weight("zero", np.array(0)), sketch.weight("step", np.array(1))
    positions = sketch.node("Gather", sketch.random("rows", 99, 8), sketch.node("Range", zero, length, one))
    mask = sketch.node("MatMul", positions, sketch.node("Transpose", positions))
    h = sketch.node("Add", embedded(sketch, ids), positions)
    head(sketch, layers(sketch, h, 4, mask=mask))
    assert cut_names(load(sketch.model())) == ["embedding", h, "h0", "h1", "h2", "h3"]


def test_a_unet() -> None:
    """Two trunks in a row: down to the deepest level, and up from there."""
    sketch = Sketch()
    x = sketch.input("x", ["b", 4, 32, 32])
    skips = []
    for level in range(3):
        width = 4 * 2**level
        x = sketch.node("Conv", x, sketch.random("w", width * 2, width, 3, 3), pads=[1] * 4)
        x = sketch.node("Relu", x, outputs=[f"down{level}"])
        skips.append(x)
        x = sketch.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = sketch.node("Conv", x, sketch.random("w", 32, 32, 3, 3), pads=[1] * 4, outputs=["bottom"])
    for level in reversed(range(3)):
        width = 4 * 2 ** (level + 1)
        up = sketch.node(
            "ConvTranspose", x, sketch.random("w", width if level == 2 else 2 * width, width, 2, 2), strides=[2, 2]
        )
        x = sketch.node("Concat", up, skips[level], axis=1, outputs=[f"joined{level}"])
        x = sketch.node("Conv", x, sketch.random("w", width, 2 * width, 3, 3), pads=[1] * 4, outputs=[f"up{level}"])
    sketch.output(sketch.node("Conv", x, sketch.random("w", 1, 8, 1, 1), outputs=["y"]), None)
    model = load(sketch.model())
    found = cut_names(model)
    assert {"down0", "down1"} < set(found)
    assert {"up2", "up1", "up0"} < set(found)
    at = found.index("up2")
    assert {value.name for value in frontier(stages(model))[at]} == {"up2", "down0", "down1"}


def test_the_later_of_two_towers_does_not_spoil_the_longer() -> None:
    sketch = Sketch()
    towers = []
    for side, depth in (("a", 2), ("b", 5)):
        h = sketch.input(side, [4, 8])
        for at in range(depth):
            h = sketch.node("MatMul", h, sketch.random("w", 8, 8), outputs=[f"{side}{at}"])
        towers.append(h)
    sketch.output(sketch.node("Add", *towers, outputs=["y"]), [4, 8])
    assert cut_names(load(sketch.model()))[:4] == ["b0", "b1", "b2", "b3"]


def test_a_long_row_of_small_layers_to_another_output_does_not_spoil_it() -> None:
    sketch = Sketch()
    h = small = sketch.input("x", [4, 8])
    for at in range(8):
        small = sketch.node("MatMul", small, sketch.random("w", 8 if at == 0 else 2, 2), outputs=[f"small{at}"])
    for at in range(5):
        h = sketch.node("MatMul", h, sketch.random("w", 8, 8), outputs=[f"h{at}"])
    sketch.output(small, [4, 2])
    sketch.output(h, [4, 8])
    assert cut_names(load(sketch.model())) == ["h0", "h1", "h2", "h3"]


def test_weights_that_are_made_of_constants_count_where_they_are_needed() -> None:
    """The file has the nodes that turn them at its beginning; what takes the most nodes is no block."""
    sketch = Sketch()
    h = side = sketch.input("x", [4, 8])
    turned = [sketch.node("Transpose", sketch.random("w", 8, 8), perm=[1, 0]) for _ in range(5)]
    h = sketch.node("Relu", h, outputs=["start"])
    for at, weight in enumerate(turned):
        h = sketch.node("MatMul", h, weight, outputs=[f"h{at}"])
    for _ in range(12):
        side = sketch.node("Neg", side)
    sketch.output(sketch.node("Add", h, side), [4, 8])
    model = load(sketch.model())
    assert cut_names(model) == ["h0", "h1", "h2", "h3"]
    assert {node.op_type for segment in stages(model)[:4] for node in segment.nodes} == {"Relu", "Transpose", "MatMul"}


def test_sequences_are_no_cuts() -> None:
    sketch = Sketch()
    h = sketch.input("x", [4, 8])
    for at in range(3):
        pair = sketch.node("SequenceConstruct", h, outputs=[f"pair{at}"])
        h = sketch.node("ConcatFromSequence", pair, axis=0, outputs=[f"t{at}"])
        h = sketch.node("MatMul", h, sketch.random("w", 8, 8), outputs=[f"h{at}"])
    sketch.output(sketch.node("SequenceConstruct", h), None)
    sketch.outputs[0].type.CopyFrom(onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(1, None)))
    model = load(sketch.model())
    assert {value.name for value in trunk(model)} == {f"{kind}{at}" for kind in "th" for at in range(3)}
    assert cut_names(model) == ["t1", "t2"]
    with pytest.raises(ModelError, match="may be a sequence"):
        stages(model, cuts=["pair1"])


def test_a_stage_ends_before_the_next_weights() -> None:
    model = parsed("""g (float[2,2] x) => (float[2,2] y) <float[2,2] u = {1, 2, 3, 4}, float[2,2] v = {1, 2, 3, 4}>
    { a = Neg (x)  b = MatMul (a, u)  c = Relu (b)  d = Tanh (c)  e = MatMul (d, v)  y = Abs (e) }""")
    assert cut_names(model) == ["d"]
    assert [value.name for value in trunk(model)] == ["a", "b", "c", "d", "e", "y"]


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity (x)", "k = Shape (x)  y = Cast <to = 1> (k)", "y = Constant <value_float = 1.0> ()",
        "y = RandomNormal <shape = [2]> ()", "", "a = Neg (w)  y = Add (a, w)",
    ],
)  # fmt: skip
def test_one_stage_where_there_is_no_trunk(body: str) -> None:
    output = "y" if body else "x"
    model = parsed(f"g (float[2] x) => (float[N] {output}) <float[2] w = {{1, 2}}> {{ {body} }}")
    (segment,) = stages(model)
    assert (len(segment.nodes), segment.cut) == (len(model.graph), None)
    assert frontier([segment]) == []


def deep(blocks: int = 6) -> Model:
    sketch = Sketch()
    head(sketch, layers(sketch, embedded(sketch, sketch.input("ids", ["b", "s"], TensorProto.INT64)), blocks))
    return load(sketch.model())


@given(st.integers(0, 4000))
def test_joined_stages_stay_within_their_bytes(most_bytes: int) -> None:
    """Blocks of 3 * 8 * 8 * 4 bytes, between a table and a head of 30 * 8 * 4."""
    model = deep()
    blocks = [960, *[768] * 6, 960]
    sizes = [_bytes(segment.nodes) for segment in stages(model, most_bytes=most_bytes)]
    assert sum(sizes) == sum(blocks)
    assert all(size <= most_bytes or size in (768, 960) for size in sizes)
    assert all(a + (960 if b == 960 else 768) > most_bytes for a, b in pairwise(sizes))


def _bytes(nodes: Iterable[ir.Node]) -> int:
    return sum(v.const_value.nbytes for n in nodes for v in n.inputs if v is not None and v.const_value is not None)


def test_named_cuts() -> None:
    model = deep()
    assert cut_names(model, cuts=["h4", "h1"]) == ["h1", "h4"]
    assert cut_names(model, cuts=["h4", "h1", "h4", "logits"]) == ["h1", "h4"]
    assert cut_names(model, cuts=[]) == []
    assert cut_names(model, cuts=["softmax_2", "h0"]) == ["h0", "softmax_2"]
    assert cut_names(model, cuts=["h0", "h1", "h4"], most_bytes=2 * 768 + 960) == ["h1", "h4"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("hidden7", r"no such value in the main graph; did you mean 'hidden[56]' or 'hidden[56]'\?"),
        ("x", "it is an input"), ("w", "it is a weight"), ("inner", "inside the subgraph of y"),
        ("turned", "same for all inputs"), ("nothing like it", r"main graph$"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_cut_at(name: str, why: str) -> None:
    model = parsed("""g (float[2,2] x, bool c) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}>
    { turned = Transpose (w)  hidden5 = MatMul (x, turned)  hidden6 = Neg (hidden5)
      y = If (c) <then_branch = t () => (float[2,2] p) { inner = Abs (hidden6)  p = Neg (inner) },
                  else_branch = e () => (float[2,2] q) { q = Identity (hidden6) }> }""")
    with pytest.raises(ModelError, match=why) as error:
        stages(model, cuts=["hidden5", name])
    assert repr(name) in str(error.value)


def test_two_cuts_at_one_node() -> None:
    model = parsed("g (float[4] x) => (float[2] y) { a, b = Split <num_outputs = 2> (x)  y = Add (a, b) }")
    with pytest.raises(ModelError, match=r"'b' and at 'a'.*one node"):
        stages(model, cuts=["a", "b"])


def test_dead_nodes_and_constants() -> None:
    model = parsed("""g (float[2,2] x) => (float[2,2] y) <float[2,2] u = {1, 2, 3, 4}>
    { k = Constant <value = float[2,2] {1, 2, 3, 4}> ()  dead = Neg (x)  a = MatMul (x, u)  t = Transpose (k)
      y = MatMul (a, t) }""")
    first, last = stages(model)
    assert [node.op_type for node in first.nodes] == ["MatMul"]
    assert [node.op_type for node in last.nodes] == ["Constant", "Neg", "Transpose", "MatMul"]
    assert [[value.name for value in boundary] for boundary in frontier([first, last])] == [["x", "a"]]


def test_unsorted_graphs() -> None:
    proto = deep().proto()
    expected = cut_names(load(proto))
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    assert cut_names(load(proto)) == expected == ["embedding", "h0", "h1", "h2", "h3", "h4", "h5"]


def test_what_subgraphs_take_is_handed_on() -> None:
    model = parsed("""g (float[2,2] x, bool c) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}>
    { side = Exp (x)  a = MatMul (x, w)  b = MatMul (a, w)
      y = If (c) <then_branch = t () => (float[2,2] p) {
                    p = If (c) <then_branch = tt () => (float[2,2] r) { r = Add (b, side) },
                                else_branch = ee () => (float[2,2] s) { s = Identity (b) }> },
                  else_branch = e () => (float[2,2] q) { q = Identity (b) }> }""")
    segments = stages(model, cuts=["a", "b"])
    check(model, segments)
    assert [[value.name for value in boundary] for boundary in frontier(segments)] == [["x", "c", "a"], ["x", "c", "b"]]


def test_inputs_of_bodies_and_defaults_of_inputs_are_not_handed_on() -> None:
    model = parsed("""g (float[2,2] x, float[2,2] w) => (float[2,2] y) <float[2,2] w = {1, 2, 3, 4}>
    { a = MatMul (x, w)  n = Constant <value_int = 3> ()  c = Constant <value = bool {1}> ()
      b = Loop (n, c, a) <body = b (int64 i, bool k, float[2,2] s) => (bool o, float[2,2] r)
          { o = Identity (k)  r = MatMul (s, w) }>
      y = MatMul (b, w) }""")
    segments = stages(model, cuts=["a", "b"])
    assert [[value.name for value in boundary] for boundary in frontier(segments)] == [["a"], ["b"]]


def test_taps_are_made_as_soon_as_they_can_be() -> None:
    model = parsed("""g (float[2] x) => (float[2] later, float[2] tap, float[2] y)
    { a = Neg (x)  inner = Exp (a)  b = Abs (inner)  early = Exp (inner)  tap = Tanh (early)  c = Neg (b)
      later = Add (early, c)  d = Relu (c)  y = Neg (d) }""")
    segments = stages(model, cuts=["b", "d"])
    check(model, segments)
    made = [{value.name for node in segment.nodes for value in node.outputs} for segment in segments]
    assert made == [{"a", "inner", "b", "early", "tap"}, {"c", "later", "d"}, {"y"}]


@pytest.mark.parametrize("name", sorted(RARE))
def test_rare_models(name: str) -> None:
    model = load(RARE[name]())
    segments = stages(model)
    check(model, segments)
    assert [{value.name for value in boundary} for boundary in frontier(segments)] == live(model, segments)


SHIPPED = {"byte-gpt": 2 * 4, "digits-transformer": 2 * 3}
"""Transformers that ship, and their residual branches."""


@pytest.mark.parametrize(("name", "branches"), SHIPPED.items())
def test_shipped_transformers(name: str, branches: int) -> None:
    model = load(models.path(name))
    segments = stages(model)
    check(model, segments)
    assert len(segments) >= branches + 2
    closing = [sum(_joins(node) for node in segment.nodes) for segment in segments]
    assert sorted(closing)[-branches:] == [1] * branches
    assert all(len(boundary) <= 5 for boundary in frontier(segments))


def _joins(node: ir.Node) -> bool:
    """Whether a node adds what a branch made to what went past it."""
    a, b = node.inputs if node.op_type == "Add" else (None, None)
    if a is None or b is None or a.const_value is not None or b.const_value is not None:
        return False
    return a.producer() in ancestors([b]) or b.producer() in ancestors([a])


def test_a_shipped_residual_network() -> None:
    model = load(models.path("digits-cnn"))
    segments = stages(model)
    check(model, segments)
    assert [[node.op_type for node in s.nodes].count("Add") for s in segments] == [0, 1, 1, 1, 0]
    assert [s.nodes[-1].op_type for s in segments] == ["Relu", "Relu", "Relu", "ReduceMean", "Gemm"]


def test_resnet_by_block(zoo: Path) -> None:
    model = load(zoo / "resnet20_cifar_dynamo.onnx")
    segments = stages(model)
    check(model, segments)
    assert [[node.op_type for node in s.nodes].count("Add") for s in segments] == [0, *[1] * 9, 0]
    assert all(len(boundary) == 1 for boundary in frontier(segments))


def test_a_zoo_of_models(zoo: Path) -> None:
    least = {
        "digits_cnn_bn": 5,
        "digits_lstm": 2,
        "digits_transformer": 9,
        "fashion_se": 8,
        "hf_bert": 9,
        "resnet20": 11,
    }
    for path in sorted(zoo.glob("*.onnx")):
        model = load(path)
        segments = stages(model)
        check(model, segments)
        assert len(segments) >= next((n for name, n in least.items() if path.name.startswith(name)), 1), path.name


def _line(x: ir.Value, node: Callable[..., ir.Value]) -> list[ir.Value]:
    for _ in range(20_000):
        x = node("MatMul", x, None)
    return [x]


def _residual(x: ir.Value, node: Callable[..., ir.Value]) -> list[ir.Value]:
    for _ in range(5_000):
        x = node("Add", x, node("MatMul", node("Relu", node("MatMul", x, None)), None))
    return [x]


def _skips(x: ir.Value, node: Callable[..., ir.Value]) -> list[ir.Value]:
    first = x
    for _ in range(10_000):
        x = node("Add", node("Relu", x), first)
    return [x]


def _unet(x: ir.Value, node: Callable[..., ir.Value]) -> list[ir.Value]:
    kept = []
    for _ in range(3_000):
        kept.append(x := node("MatMul", node("Relu", x), None))
    for skip in reversed(kept):
        x = node("MatMul", node("Add", node("Relu", x), skip), None)
    return [x]


def _wide(x: ir.Value, node: Callable[..., ir.Value]) -> list[ir.Value]:
    return [node("Sum", *(node("MatMul", x, None) for _ in range(20_000)))]


def _heads(x: ir.Value, node: Callable[..., ir.Value]) -> list[ir.Value]:
    return [node("MatMul", x, None) for _ in range(20_000)]


def _taps(x: ir.Value, node: Callable[..., ir.Value]) -> list[ir.Value]:
    given_ = []
    for _ in range(6_600):
        given_.append(node("Neg", node("Abs", x := node("MatMul", x, None))))
    return [*given_, x]


@pytest.mark.parametrize(
    ("build", "least"),
    [(_line, 20_000), (_residual, 5_000), (_skips, 1), (_unet, 1000), (_wide, 1), (_heads, 1), (_taps, 6_600)],
)
def test_speed_of_large_graphs(build: Callable[..., list[ir.Value]], least: int) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.Value(name="w", const_value=ir.Tensor(np.ones((2, 2), np.float32), name="w"))
    nodes: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value | None) -> ir.Value:
        nodes.append(ir.node(op, [weight if value is None else value for value in inputs]))
        return nodes[-1].outputs[0]

    outputs = build(x, add)
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=[weight], name="g", opset_imports={"": 21})
    model = Model(ir.Model(graph, ir_version=10))
    start = time.process_time()
    segments = stages(model)
    boundaries = frontier(segments)
    assert time.process_time() - start < 3
    assert len(segments) >= least
    assert len(boundaries) == len(segments) - 1
    assert sum(len(segment.nodes) for segment in segments) == len(nodes)
