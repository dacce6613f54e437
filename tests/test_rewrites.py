"""Level `structure`: what a pass changed is run on random inputs, piece by piece, without a session of the whole."""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import onnxopt.pipeline
from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.differences import Differences
from onnxopt.edit import Edit
from onnxopt.errors import ContractViolation
from onnxopt.model import Model, load
from onnxopt.passes import from_graphsurgeon
from onnxopt.passing import Contract, Exact, Lossy, Pass, make
from onnxopt.pipeline import Settings
from onnxopt.recipe import build
from onnxopt.rewrites import Rewrites, _varied

HELPERS = Path(__file__).parent / "helpers"


@pytest.fixture(scope="module", autouse=True)
def worker() -> Iterator[Worker]:
    sys.path.insert(0, str(HELPERS))
    with Worker() as shared:
        yield shared
    sys.path.remove(str(HELPERS))


EXACT = Exact()


def compared(before: Model, after: Model, contract: Contract = EXACT, **options: Any) -> Rewrites:
    context = RunContext(before, sizes=sizes(before))
    rewrites = Rewrites(context.shapes_of(before), context.evaluate, np.random.default_rng(0), contract, **options)
    rewrites.compare(before, after)
    return rewrites


def sizes(model: Model) -> dict[str, tuple[int, ...]]:
    """Of images, where a model takes them."""
    return {info.name: (2, 1, 8, 8) for info in model.signature.inputs if len(info.shape or ()) == 4}


def changed(source: Model, pass_: Pass, contract: Contract = EXACT, **options: Any) -> Rewrites:
    """What is found out about a pass on a model."""
    after = load(source.proto())
    pass_.run(after, RunContext(after, sizes=sizes(after)))
    return compared(source, after, contract, **options)


HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1, "com.nobody" : 1]>'
WEIGHTS = "float c = {2}, float d = {3}"


def graph(body: str, functions: str = "", size: str = "2", weights: str = WEIGHTS, y: str = "") -> Model:
    """A model from x to y, both vectors unless told."""
    source = f"{HEAD} g (float[{size}] x) => (float[{y or size}] y) <{weights}> {body} {functions}"
    return load(onnx.parser.parse_model(source))


def test_a_right_rewrite_passes() -> None:
    found = changed(load(models.path("digits-cnn")), make("fold-batchnorm"))
    assert found.broken == []
    assert found.checked == 15
    assert found.unchecked == 0
    assert found.drift < 1e-4


@pytest.mark.parametrize(
    ("name", "options"),
    [("wrong-rewrite", {}), ("wrong-rewrite", {"op": "Sigmoid"}), ("wrong-weight", {"node": "blocks.1.conv2/Conv"})],
)
def test_a_wrong_rewrite_is_caught(name: str, options: dict[str, Any]) -> None:
    found = changed(load(models.path("digits-cnn")), make(name, options))
    assert found.checked > 0
    assert "relative L2" in found.broken[0]


def test_a_rewrite_of_a_lossy_pass_is_measured() -> None:
    pass_ = make("lossy-scale", {"node": "head/Gemm", "factor": 0.9})
    found = changed(load(models.path("digits-cnn")), pass_, Lossy())
    assert found.broken == []
    assert found.drift == pytest.approx(0.1, rel=0.5)


def test_lossy_passes_may_change_integers_and_sizes_but_make_no_nan() -> None:
    before = graph("{ i = ArgMax (x)  f = Cast <to = 1> (i)  y = Add (x, f) }", size="64")
    after = graph("{ n = Neg (x)  i = ArgMax (n)  f = Cast <to = 1> (i)  y = Add (x, f) }", size="64")
    assert compared(before, after).broken
    lossy = compared(before, after, Lossy())
    assert (lossy.broken, lossy.checked, lossy.drift) == ([], 1, 1.0)
    before, after = (
        graph(f"{{ a = {op} (x)  y = ReduceSum <keepdims = 0> (a) }}", y="") for op in ("Neg", "ReduceMax")
    )
    lossy = compared(before, after, Lossy())
    assert (lossy.broken, lossy.unchecked, lossy.why) == ([], 1, "a has another size now")
    nan = graph("{ n = Neg (x)  y = Sqrt (n) }", size="64")
    assert "NaN" in compared(graph("{ n = Neg (x)  y = Abs (n) }", size="64"), nan, Lossy()).broken[0]


def test_the_number_of_rewrites_run_is_bounded() -> None:
    """Three Relu that became Sigmoid lie apart from one another; each is a piece."""
    found = changed(load(models.path("digits-cnn")), make("wrong-rewrite", {"op": "Relu"}), limit=3)
    assert (found.checked, found.unchecked) == (3, 4)


def test_no_more_are_tried_either() -> None:
    chain = "{ a = OP (x)  b = OP (a)  c0 = OP (b)  d0 = OP (c0)  e = OP (d0)  y = Neg (e) }"
    tried: list[str] = []

    def refuse(model: ir.Model, feeds: Any) -> dict[str, Any]:
        tried.append(model.graph.outputs[0].name or "")
        raise ContractViolation("no kernel")

    before, after = (graph(chain.replace("OP", op)) for op in ("Neg", "Abs"))
    found = Rewrites(RunContext(before).shapes, refuse, np.random.default_rng(0), EXACT, limit=1)
    found.compare(before, after)
    assert tried == ["a", "b", "c0", "d0"]
    assert (found.checked, found.unchecked, found.why) == (0, 5, "no kernel")


def test_what_looks_alike_comes_late() -> None:
    before = graph("{ a = Abs (x)  b = Abs (a)  e = Abs (b)  f = Neg (e)  h = Abs (f)  y = Cos (h) }")
    after = graph("{ a = Neg (x)  b = Neg (a)  e = Neg (b)  f = Abs (e)  h = Sin (f)  y = Exp (h) }")
    order = [part.new[0].outputs[0].name for part in _varied(Differences(before, after).pieces)]
    assert order == ["a", "f", "h", "y", "b", "e"]


def test_what_cannot_be_run_is_counted() -> None:
    found = compared(
        graph("{ z = com.nobody.Mystery (x)  y = Relu (z) }"), graph("{ z = com.nobody.Other (x)  y = Relu (z) }")
    )
    assert (found.broken, found.checked, found.unchecked) == ([], 0, 1)


def test_a_rewrite_that_puts_an_output_s_name_elsewhere() -> None:
    """The heir of a graph output takes its name over while the edit is applied."""
    before, after = (graph("{ a = Neg (x)  y = Identity (a) }") for _ in range(2))
    first, last = list(after.graph)
    edit = Edit("through")
    edit.rewire(last.outputs[0], first.outputs[0])
    edit.remove(last)
    after.apply(edit)
    found = compared(before, after)
    assert (found.checked, found.unchecked, found.broken) == (1, 0, [])
    node = ir.node("Abs", [after.graph.inputs[0]])
    edit = Edit("wrong")
    edit.insert([node], after=first)
    edit.rewire(first.outputs[0], node.outputs[0])
    edit.remove(first)
    after.apply(edit)
    assert compared(before, after).broken


SCALES = "{ a = Mul (x, c)  b = Mul (a, d)  y = Neg (b) }"
RELUS = "{ a = Neg (x)  r = Relu (a)  b = Relu (r)  i = Abs (b)  j = Abs (r)  y = Add (i, j) }"
TWICE = "{ a = Neg (x)  b = Neg (x)  i = Abs (a)  j = Sin (b)  y = Add (i, j) }"
LONG = " ".join(f"{{v}}{i + 1} = Sin ({{v}}{i})" for i in range(40))
P, Q = (f"{v}0 = Neg (x) " + LONG.replace("{v}", v) for v in "pq")
BRANCHES = f"{{ {P} {Q} i = Abs (p40)  y = Add (i, q40) }}"
LEFT = "{ a = Mul (x, c)  b = Identity (a)  i = Abs (OF)  j = Cos (b)  y = Add (i, j) }"
SPREAD = "{ a = Expand (x, s)  y = Add (a, w) }"
SPREAD_WEIGHTS = "int64[2] s = {3, 2}, float[3, 2] w = {1, 2, 3, 4, 5, 6}"
RIGHT = {
    "nothing": (SCALES, SCALES),
    "another value by the same name": (SCALES, "{ a = Mul (x, c)  i = Neg (a)  b = Mul (i, d)  y = Identity (b) }"),
    "factors the other way round": (SCALES, "{ a = Mul (x, d)  b = Mul (a, c)  y = Neg (b) }"),
    "one node for two": (SCALES, "{ b = Sum (x, x, x, x, x, x)  y = Neg (b) }"),
    "a reader reads another equal value": (TWICE, "{ a = Neg (x)  i = Abs (a)  j = Sin (a)  y = Add (i, j) }"),
    "the same after a long way": (BRANCHES, f"{{ {P} i = Abs (p40)  y = Add (i, p40) }}"),
    "both of two equal values": (
        "{ a = Neg (x)  b = Sin (a)  e = Neg (x)  f = Sin (e)  i = Mul (b, f)  y = Abs (i) }",
        "{ a = Neg (x)  b = Sin (a)  i = Mul (b, b)  y = Abs (i) }",
    ),
    "past an Identity that stays": (LEFT.replace("OF", "b"), LEFT.replace("OF", "a")),
    "what its input makes superfluous": (
        RELUS, "{ a = Neg (x)  r = Relu (a)  i = Abs (r)  j = Abs (r)  y = Add (i, j) }"
    ),
    "a value that nobody reads any more": (
        "{ a = Neg (x)  i = Abs (a)  y = Sin (i) }", "{ a = Cos (x)  n = Neg (x)  i = Abs (n)  y = Sin (i) }"
    ),
    "nobody reads it": ("{ a = Neg (x)  e = Abs (a)  y = Cos (x) }", "{ y = Cos (x) }"),
    "not a number below zero": ("{ a = Sqrt (x)  b = Mul (a, c)  y = ReduceSum (b) }",
                                "{ a = Sqrt (x)  b = Add (a, a)  y = ReduceSum (b) }"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "other"), RIGHT.values(), ids=RIGHT)
def test_a_graph_that_computes_the_same_in_another_way(body: str, other: str) -> None:
    found = compared(graph(body), graph(other))
    assert (found.broken, found.unchecked) == ([], 0)
    assert (found.checked > 0) == ("e = Abs" not in body and body != other)


WRONG = {
    "another operator": (SCALES, SCALES.replace("Neg", "Abs")),
    "another weight": (SCALES, SCALES.replace("(a, d)", "(a, c)")),
    "another factor": (SCALES, "{ a = Mul (x, d)  b = Mul (a, d)  y = Neg (b) }"),
    "another sum": (SCALES, "{ b = Sum (x, x)  y = Neg (b) }"),
    "another reader's value": (TWICE, TWICE.replace("Sin (b)", "Sin (i)")),
    "a value from far away": (BRANCHES, BRANCHES.replace("i, q40", "i, q1")),
    "one reading less": (LEFT.replace("OF", "b"), LEFT.replace("OF", "x")),
    "a limit": ("{ six = Constant <value = float {6}> ()  a = Clip (x, c, six)  y = Neg (a) }",
                "{ a = Max (x, c)  y = Neg (a) }"),
    "not a number below zero": ("{ a = Sqrt (x)  b = Mul (a, c)  y = Softmax (b) }",
                                "{ a = Sqrt (x)  b = Mul (a, d)  y = Softmax (b) }"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "other"), WRONG.values(), ids=WRONG)
def test_a_graph_that_computes_something_else(body: str, other: str) -> None:
    assert "rewrite" in compared(graph(body, size="64"), graph(other, size="64")).broken[0]


def test_a_value_may_shrink_before_a_reader_that_broadcasts() -> None:
    before = graph(SPREAD, y="3, 2", weights=SPREAD_WEIGHTS)
    found = compared(before, graph(SPREAD.replace("Expand (x, s)", "Identity (x)"), y="3, 2", weights=SPREAD_WEIGHTS))
    assert (found.broken, found.checked, found.unchecked) == ([], 1, 0)
    assert compared(before, graph(SPREAD.replace("Expand (x, s)", "Neg (x)"), y="3, 2", weights=SPREAD_WEIGHTS)).broken


FOLDED = "{ a = MatMul (x, w)  r = Reshape (a, s)  t = Transpose (r)  m = Mul (t, c)  y = Neg (m) }"


def folded(body: str, factor: float) -> Model:
    weight = ", ".join(str(factor * i) for i in range(1, 9))
    return graph(
        body, size="2, 2", y="4, 2", weights=f"float[2, 4] w = {{{weight}}}, int64[2] s = {{2, 4}}, float c = {{2}}"
    )


def test_a_factor_folded_into_a_weight_far_upstream() -> None:
    """The values between keep their names and hold something else."""
    through = FOLDED.replace("m = Mul (t, c)  ", "").replace("Neg (m)", "Neg (t)")
    found = compared(folded(FOLDED, 1), folded(through, 2))
    assert (found.broken, found.unchecked) == ([], 0)
    assert compared(folded(FOLDED, 1), folded(through, 3)).broken
    assert compared(folded(FOLDED, 1), folded(FOLDED, 2)).broken


def test_half_of_a_rewrite_that_cannot_be_run_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight is too large to run; what was taken away by it differs by itself."""
    through = FOLDED.replace("m = Mul (t, c)  ", "").replace("Neg (m)", "Neg (t)")
    monkeypatch.setattr("onnxopt.rewrites._LARGEST", 31)
    found = compared(folded(FOLDED, 1), folded(through, 2))
    assert (found.broken, found.unchecked, found.why) == ([], 2, "its weights are too large to run")
    assert compared(folded(FOLDED, 1), folded(FOLDED.replace("Neg", "Abs"), 1)).broken
    alone = FOLDED.replace("a = MatMul (x, w)", "b = Neg (x)  a = MatMul (b, w)")
    found = compared(folded(alone, 1), folded(alone.replace("b = Neg", "b = Abs"), 1))
    assert found.broken
    assert found.unchecked == 0


def test_constants_are_what_they_hold() -> None:
    by_node = SCALES.replace("{ a", "{ k = Constant <value = float {VALUE}> ()  a").replace("x, c", "x, k")
    same = compared(graph(SCALES), graph(by_node.replace("VALUE", "2")))
    assert (same.checked, same.unchecked, same.broken) == (0, 0, [])
    assert same.summary() == "nothing changed but names, places of constants and what nobody reads"
    assert compared(graph(SCALES), graph(by_node.replace("VALUE", "2.004"))).broken
    assert compared(graph(by_node.replace("VALUE", "2.004")), graph(SCALES)).broken
    assert compared(graph(SCALES), graph(SCALES, weights="float c = {2}, float d = {3.004}")).broken
    other = by_node.replace("VALUE", "2").replace("Mul (x, k)", "Div (x, i)").replace("a =", "i = Reciprocal (k)  a =")
    found = compared(graph(by_node.replace("VALUE", "2")), graph(other))
    assert (found.checked, found.unchecked, found.broken) == (1, 0, [])


def test_constants_that_are_given_out() -> None:
    outputs = "{ y = Constant <value = float[2] {1, VALUE}> () }"
    assert compared(graph(outputs.replace("VALUE", "2")), graph(outputs.replace("VALUE", "2"))).broken == []
    assert compared(graph(outputs.replace("VALUE", "2")), graph(outputs.replace("VALUE", "3"))).broken
    found = compared(graph(outputs.replace("VALUE", "2")), graph("{ y = Neg (x) }"))
    assert (found.unchecked, found.why) == (1, "y is no constant any more")
    assert compared(graph("{ y = Shape (x)  z = Neg (y) }"), graph("{ y = Shape (x)  z = Neg (y) }")).broken == []


def test_a_graph_output_may_become_a_constant() -> None:
    before = graph(
        "{ a = Mul (c, d)  z = ConstantOfShape (s)  y = Add (a, z) }", weights=f"{WEIGHTS}, int64[1] s = {{2}}"
    )
    right, wrong = (graph(f"{{ y = Constant <value = float[2] {{6, {last}}}> () }}") for last in (6, 7))
    assert (compared(before, right).checked, compared(before, right).broken) == (1, [])
    assert compared(before, wrong).broken


def test_lifted_constants_run_nothing() -> None:
    made = " ".join(
        f"k{i} = Constant <value = float[2] {{{i}, 1}}> ()  v{i + 1} = Add (v{i}, k{i})" for i in range(100)
    )
    found = changed(graph(f"{{ v0 = Neg (x)  {made}  y = Abs (v100) }}"), make("lift-constants"))
    assert (found.checked, found.unchecked, found.broken) == (0, 0, [])


def test_weights_that_are_listed_as_inputs_are_what_they_hold() -> None:
    """As files of IR version 3 list them."""

    def listed(value: str, body: str = SCALES) -> Model:
        head = HEAD.replace("ir_version: 8", "ir_version: 3")
        weights = f"float c = {value}, float d = {{3}}"
        return load(
            onnx.parser.parse_model(f"{head} g (float[2] x, float c, float d) => (float[2] y) <{weights}> {body}")
        )

    found = compared(listed("{2}"), listed("{2}", "{ b = Sum (x, x, x, x, x, x)  y = Neg (b) }"))
    assert (found.broken, found.checked) == ([], 1)
    assert compared(listed("{2}"), listed("{2.004}")).broken


BLOCK = "  ".join(
    f"a{i} = MatMul (h{i}, w)  b{i} = Relu (a{i})  e{i} = Mul (b{i}, c)  f{i} = Add (e{i}, d)"
    f"  h{i + 1} = Add (f{i}, a{i})"
    for i in range(12)
)
BLOCKS = f"{{ h0 = Neg (x)  {BLOCK}  y = Neg (h12) }}"
DEEP = {"size": "4, 2", "weights": f"{WEIGHTS}, float[2, 2] w = {{0.1, 0.2, 0.3, 0.4}}"}


@pytest.mark.parametrize("block", [0, 5, 11])
def test_one_wrong_rewrite_among_many_right_ones(block: int) -> None:
    right = BLOCKS
    for i in range(12):
        right = right.replace(f"e{i} = Mul (b{i}, c)", f"e{i} = Add (b{i}, b{i})")
    found = compared(graph(BLOCKS, **DEEP), graph(right, **DEEP))
    assert (found.checked, found.unchecked, found.broken) == (12, 0, [])
    wrong = right.replace(f"e{block} = Add (b{block}, b{block})", f"e{block} = Add (b{block}, a{block})")
    assert compared(graph(BLOCKS, **DEEP), graph(wrong, **DEEP)).broken


def test_replacements_that_cannot_be_run_are_counted_with_the_reason() -> None:
    wrong = SCALES.replace("Neg", "Abs")
    found = compared(graph(SCALES, size="N"), graph(wrong, size="N"))
    assert (found.broken, found.checked, found.unchecked) == ([], 0, 1)
    assert found.summary().endswith("1 not run (the size of b is unknown)")
    noisy = SCALES.replace("Neg", "RandomNormalLike")
    assert "random" in compared(graph(noisy), graph(SCALES)).why
    many = "{ a = Neg (x)  b = Neg (a)  y = Neg (b) }"
    found = compared(graph(many), graph(many.replace("Neg", "Abs")), limit=0)
    assert (found.checked, found.unchecked, found.why) == (0, 3, "0 others were run")


FUNCTION = '<domain: "local", opset_import: ["" : 17]> f (p) => (q) { i = %s (p)  q = Neg (i) }'


def test_calls_are_run_against_their_bodies() -> None:
    call = "{ a = local.f (x)  y = Mul (a, d) }"
    body = "{ i = %s (x)  a = Neg (i)  y = Mul (a, d) }"
    found = compared(graph(call, FUNCTION % "Abs"), graph(body % "Abs"))
    assert (found.broken, found.checked) == ([], 1)
    assert compared(graph(call, FUNCTION % "Abs"), graph(body % "Cos")).broken
    assert "random" in compared(graph(call, FUNCTION % "RandomNormalLike"), graph(body % "Cos")).why


def test_half_precision_elsewhere_is_no_excuse_for_a_rewrite() -> None:
    """The graph's last node is in half precision; the rewrite before it is not."""
    body = "{ a = Mul (x, c)  h = Cast <to = 10> (a)  i = Neg (h)  y = Cast <to = 1> (i) }"
    other = body.replace("Mul (x, c)", "Mul (x, k)").replace("{ a", "{ k = Constant <value = float {2.004}> ()  a")
    assert compared(graph(body), graph(other)).broken


def test_a_newer_opset_is_run_node_by_node() -> None:
    model = load(models.path("digits-cnn"))
    found = changed(model, make("upgrade-opset", {"to": max(model.opset + 4, 21)}))
    assert (found.broken, found.unchecked) == ([], 0)
    assert found.checked > 5


def test_many_rewrites_take_time_in_proportion() -> None:
    """None of them can be run: the size of x is unknown."""
    chain = "".join(f"v{i + 1} = OP (v{i}) " for i in range(5000))
    before, after = (
        graph(f"{{ v0 = Neg (x) {chain.replace('OP', op)} y = Cos (v5000) }}", size="N") for op in ("Neg", "Abs")
    )
    started = time.process_time()
    found = compared(before, after)
    assert (found.checked, found.unchecked) == (0, 5000)
    assert found.counts() == {"rewrites_run": 0, "rewrites_not_run": 5000}
    assert time.process_time() - started < 10


def test_a_whole_run_at_level_structure(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxopt.pipeline, "Worker", lambda threads: nullcontext(worker))

    def run(*passes: Any) -> Any:
        recipe = build({"passes": list(passes), "verify": "structure"})
        return onnxopt.pipeline.run(models.path("digits-cnn"), recipe, tmp_path / "out.onnx", settings=Settings())

    report = run("clean").report
    assert report.status == (
        "UNVERIFIED END TO END: asked for by verify.level; rewrites run by themselves: 15 of 15, not run: 0"
    )
    assert not report.verified
    notes = [note for step in report.steps for note in step.notes if "rewrites run" in note]
    assert notes == ["clean: 15 rewrites run on random inputs (drift < 1e-6), 0 not run"]
    before = (tmp_path / "out.onnx").read_bytes()
    with pytest.raises(ContractViolation, match="rewrite"):
        run("wrong-rewrite")
    assert (tmp_path / "out.onnx").read_bytes() == before


def test_whole_graphs_are_looked_at_in_a_run(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxopt.pipeline, "Worker", lambda threads: nullcontext(worker))

    def run(edit: Any) -> Any:
        recipe = build({"passes": [from_graphsurgeon(edit, "from-outside")()], "verify": "structure"})
        return onnxopt.pipeline.run(models.path("digits-cnn"), recipe, tmp_path / "out.onnx", settings=Settings())

    def rename(graph: Any) -> None:
        """Give a node another name, and a value."""
        graph.nodes[0].name, graph.nodes[0].outputs[0].name = "first", "inner"

    def spoil(graph: Any) -> None:
        """Another operator."""
        next(node for node in graph.nodes if node.op == "Relu").op = "Abs"

    (note,) = [note for note in run(rename).report.steps[-1].notes if "rewrites" in note]
    assert note == "from-outside: 1 rewrites run on random inputs (drift < 1e-6), 0 not run"
    with pytest.raises(ContractViolation, match="broke its contract: rewrite of"):
        run(spoil)
