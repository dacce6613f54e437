"""Statistics of every value of models of all kinds: at once, stage by stage, and from sessions of the whole model."""

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.context import RunContext
from onnxopt.data import open_data
from onnxopt.errors import DataError
from onnxopt.model import Model, load
from onnxopt.statistics import Gram, MinMax, Stat

ORACLE = runpy.run_path(str(Path(__file__).with_name("oracle.py")))
parsed, check, values, ranges = (ORACLE[name] for name in ("parsed", "check", "values", "ranges"))

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'
Cuts = Sequence[Sequence[str] | None]
Feeds = list[dict[str, Any]]


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def rows(*counts: int) -> Feeds:
    return [{"x": f(count, 4, seed=at)} for at, count in enumerate(counts)]


LSTM = """g (float[T,N,3] x, float[1,N,4] h0, float[1,N,4] c0) => (float[T,N,2] y, float[1,N,4] hn, float[1,N,4] cn)
<float[1,16,3] w, float[1,16,4] r, float[4,2] p, float[3,3] q> {
  e = MatMul (x, q)  s, hn, cn = LSTM <hidden_size = 4> (e, w, r, , , h0, c0)
  axes = Constant <value = int64[1] {1}> ()  t = Squeeze (s, axes)  u = Relu (t)  y = MatMul (u, p)
}"""
GRU = """g (float[T,N,3] x, float[1,N,4] h0) => (float[T,N,2] y, float[1,N,4] hn)
<float[1,12,3] w, float[1,12,4] r, float[4,2] p> {
  s, hn = GRU <hidden_size = 4> (x, w, r, , , h0)
  axes = Constant <value = int64[1] {1}> ()  t = Squeeze (s, axes)  y = MatMul (t, p)
}"""
PAST = """g (float[N,T,4] x, float[N,P,4] past_k, float[N,P,4] past_v)
=> (float[N,T,3] y, float[N,S,4] present_k, float[N,S,4] present_v)
<float[4,4] wq, float[4,4] wk, float[4,4] wv, float[4,3] wo> {
  q = MatMul (x, wq)  k = MatMul (x, wk)  v = MatMul (x, wv)
  present_k = Concat <axis = 1> (past_k, k)  present_v = Concat <axis = 1> (past_v, v)
  kt = Transpose <perm = [0, 2, 1]> (present_k)  s = MatMul (q, kt)  a = Softmax (s)  c = MatMul (a, present_v)
  y = MatMul (c, wo)
}"""
LOOP = """g (float[N,4] x, int64 n) => (float[N,3] y) <float[4,4] w, float[4,4] v, float[4,3] o> {
  a = MatMul (x, w)  b = Relu (a)  yes = Constant <value = bool {1}> ()
  l = Loop (n, yes, b) <body = body (int64 i, bool c, float[N,4] s) => (bool c2, float[N,4] s2) {
    m = MatMul (s, v)  t = Tanh (m)  s2 = Add (t, a)  c2 = Identity (c)
  }>
  z = Add (l, b)  y = MatMul (z, o)
}"""
SCAN = """g (float[T,4] x, float[4] s0) => (float[T,3] y, float[4] sn) <float[4,4] w, float[4] v, float[4,3] o> {
  a = MatMul (x, w)  g = Sigmoid (s0)
  sn, l = Scan <num_scan_inputs = 1, body = body (float[4] s, float[4] e) => (float[4] s2, float[4] out) {
    m = Mul (s, v)  t = Add (m, e)  s2 = Mul (t, g)  out = Identity (s2)
  }> (s0, a)
  y = MatMul (l, o)
}"""
BRANCH = """g (float[N,4] x, bool flag) => (float[N,3] y) <float[4,4] w, float[4,4] v, float[4,3] o> {
  a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, v)
  i = If (flag) <then_branch = t () => (float[N,4] ty) { i1 = Exp (a)  ty = Mul (i1, x) },
                 else_branch = e () => (float[N,4] ey) { ey = Add (b, c) }>
  y = MatMul (i, o)
}"""
SEQUENCE = """g (float[N,4] x) => (float[N,3] y, seq(float[N,4]) s) <float[4,4] w, float[4,4] v, float[4,3] o> {
  a = MatMul (x, w)  b = Relu (a)  s = SequenceConstruct (a, b)  c = MatMul (b, v)
  one = Constant <value = int64 {1}> ()  d = SequenceAt (s, one)  e = Add (c, d)  f = Relu (e)
  zero = Constant <value = int64 {0}> ()  h = SequenceAt (s, zero)  k = Add (f, h)  y = MatMul (k, o)
}"""
OPTIONAL = """g (float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,4] v, float[4,3] o> {
  a = MatMul (x, w)  op = Optional (a)  b = Relu (a)  c = MatMul (b, v)  d = OptionalGetElement (op)
  has = OptionalHasElement (op)  e = Add (c, d)  k = Where (has, e, c)  y = MatMul (k, o)
}"""
TYPES = """g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v> {
  a = MatMul (x, w)  i = Cast <to = 7> (a)  bo = Cast <to = 9> (i)  h = Cast <to = 10> (a)  bf = Cast <to = 16> (a)
  do = Cast <to = 11> (a)  st = Cast <to = 8> (i)  u8 = Cast <to = 2> (bo)  b = MatMul (a, v)
  i2 = Cast <to = 1> (i)  bo2 = Cast <to = 1> (bo)  h2 = Cast <to = 1> (h)  bf2 = Cast <to = 1> (bf)
  do2 = Cast <to = 1> (do)  st2 = Cast <to = 1> (st)  u2 = Cast <to = 1> (u8)
  y = Sum (b, i2, bo2, h2, bf2, do2, st2, u2)
}"""
OUTPUTS = """g (float[N,4] x) => (float[N,3] y, float[N,2] q2, float[N,4] a)
<float[4,4] w, float[2,4] v, float[4,3] o> {
  a = MatMul (x, w)  q1, q2 = Split <axis = 1, num_outputs = 2> (a)  r, m = Dropout (q1)  b = Relu (r)
  c = MatMul (b, v)  d, = Dropout (c)  y = MatMul (d, o)
}"""
UNSORTED = """g (float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,4] v, float[4,3] o> {
  y = MatMul (d, o)  d = Tanh (c)  c = MatMul (b, v)  b = Relu (a)  a = MatMul (x, w)
}"""
CONSTANTS = """g (float[N,4] x) => (float[N,3] y, float[4,3] z) <float[4,4] w, float[4,3] o> {
  k = Exp (w)  z = MatMul (k, o)  a = MatMul (x, k)  s = Shape (a)  r = Reshape (a, s)  y = MatMul (r, z)
}"""
SIZES = """g (float[N,4] x, float t) => (float[N,3] y) <float[4,4] w, float[4,3] o> {
  a = MatMul (x, w)  s = ReduceMean <keepdims = 0> (a)  b = Mul (a, s)  c = Mul (b, t)
  nz = NonZero (c)  u = Unique (c)  y = MatMul (c, o)
}"""
NOTHING = "g (float[N,4] x, float[N,4] unused) => (float[N,4] y) { y = Identity (x) }"
FUNCTION = """<ir_version: 8, opset_import: ["": 18, "my": 1]>
g (float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] o> {
  a = my.lin (x, w)  b = Relu (a)  c = my.lin (b, w)  y = MatMul (c, o)
}
<domain: "my", opset_import: ["": 18]> lin (p, q) => (r) { t = MatMul (p, q)  r = Tanh (t) }"""
UNKNOWN = """<ir_version: 8, opset_import: ["": 18, "com.microsoft": 1]>
g (float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] o> {
  a = com.microsoft.FastGelu (x)  b = MatMul (a, w)  c = com.microsoft.Gelu (b)  d = MatMul (c, w)  y = MatMul (d, o)
}"""

STATES = [{"x": f(t, n, 3), "h0": f(1, n, 4), "c0": f(1, n, 4, seed=1)} for t, n in ((3, 2), (5, 1), (1, 4))]
PASTS = [{"x": f(n, t, 4), "past_k": f(n, p, 4), "past_v": f(n, p, 4)} for n, t, p in ((2, 1, 3), (1, 2, 5), (2, 3, 0))]
ROWS = rows(2, 1, 4)

KINDS: dict[str, tuple[str, Feeds, Cuts]] = {
    "lstm": (HEAD + LSTM, STATES, (None, ["e"], ["t", "u"], ["hn"])),
    "gru": (HEAD + GRU, [{k: v for k, v in feed.items() if k != "c0"} for feed in STATES], (None, ["t"], ["s"])),
    "past and present": (HEAD + PAST, PASTS, (None, ["a"], ["present_k", "c"], ["q", "s", "c"])),
    "loop": (
        HEAD + LOOP, [feed | {"n": np.array(len(feed["x"]))} for feed in ROWS],
        (None, ["a"], ["b", "l"], ["l"], ["a", "z"]),
    ),
    "scan": (HEAD + SCAN, [feed | {"s0": f(4)} for feed in ROWS], (None, ["a"], ["l"])),
    "if": (
        HEAD + BRANCH, [feed | {"flag": np.array(len(feed["x"]) % 2 == 0)} for feed in ROWS],
        (None, ["b"], ["c"], ["a", "c", "i"]),
    ),
    "sequence": (HEAD + SEQUENCE, ROWS, (None, ["c"], ["b"], ["e"], ["c", "e", "f"])),
    "optional": (HEAD + OPTIONAL, ROWS, (None, ["b"], ["c"], ["c", "e"])),
    "types": ('<ir_version: 10, opset_import: ["": 21]>' + TYPES, rows(2, 1, 4), (None, ["a"], ["b"], ["b", "i2"])),
    "several outputs": (HEAD + OUTPUTS, ROWS, (None, ["a"], ["q1"], ["b", "c"])),
    "unsorted": (HEAD + UNSORTED, ROWS, (None, ["a"], ["b"], ["a", "c"])),
    "constants": (HEAD + CONSTANTS, ROWS, (None, ["a"], ["r"])),
    "sizes that data decide": (HEAD + SIZES, [feed | {"t": np.float32(2)} for feed in ROWS], (None, ["a"], ["c"])),
    "nothing to cut": (HEAD + NOTHING, [feed | {"unused": feed["x"]} for feed in ROWS], (None,)),
    "functions": (FUNCTION, ROWS, (None, ["a"], ["b"], ["a", "c"])),
    "operators that onnx does not know": (UNKNOWN, ROWS, (None, ["a"], ["b", "c", "d"])),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_value(kind: str) -> None:
    text, feeds, cuts = KINDS[kind]
    model = parsed(text)
    data = open_data(feeds, model.signature)
    stages = check(model, data, *cuts, without=["op"] if kind == "optional" else [])
    assert stages >= sum(1 if cut is None else len(cut) for cut in cuts)


def with_weights(text: str, weights: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(f(*shape), name))
    return proto


@pytest.mark.parametrize("head", ['<ir_version: 3, opset_import: ["": 9]>', HEAD])
def test_weights_that_are_listed_as_inputs(head: str) -> None:
    graph = """g (float[N,4] x, float[4,4] w, float[4,3] o) => (float[N,3] y)
    { a = MatMul (x, w)  b = Relu (a)  y = MatMul (b, o) }"""
    model = load(with_weights(head + graph, {"w": (4, 4), "o": (4, 3)}))
    assert check(model, open_data(ROWS, model.signature), None, ["a"], ["a", "b"]) == 7


def test_sparse_initializers() -> None:
    graph = (
        "g (float[N,4] x) => (float[N,3] y) { a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, w)  y = MatMul (c, o) }"
    )
    proto = with_weights(HEAD + graph, {"o": (4, 3)})
    content = onnx.numpy_helper.from_array(np.array([1, 2, 3], np.float32), "w")
    places = onnx.numpy_helper.from_array(np.array([0, 5, 10]), "places")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(content, places, [4, 4]))
    model = load(proto)
    assert check(model, open_data(ROWS, model.signature), None, ["a"], ["a", "c"]) == 6


def test_names_that_are_no_file_names() -> None:
    model = parsed(HEAD + UNSORTED)
    for node in model.graph:
        for value in node.outputs:
            value.name = value.name if value.name == "y" else f"../{value.name}/..\\:*?" + "\u00fc" * 300
    assert check(model, open_data(ROWS, model.signature), None) > 1


def test_inputs_are_read_by_several_stages_and_watched_in_each() -> None:
    model = parsed(HEAD + BRANCH)
    data = open_data(KINDS["if"][1], model.signature)
    stat = Stat("x", MinMax())
    expected = ranges(values(model, data, ["x"]))["x"]
    for stage in RunContext(model, calibration=data).stages(["a", "b", "c"]):
        found = stage.collect([stat])[stat]
        assert (found.low, found.high) == expected


def test_no_tensor_says_so_and_a_statistic_without_its_axis_is_an_error() -> None:
    model = parsed(HEAD + SEQUENCE)
    context = RunContext(model, calibration=open_data(ROWS, model.signature))
    assert context.collect([Stat("s", MinMax())]).why(Stat("s", MinMax())) == "'s' is no tensor"
    model = parsed(HEAD + "g (float[N,4] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }")
    with pytest.raises(DataError, match=r"'y' of shape \[\] has no axis that Gram\(axis=-1, groups=1\) looks at"):
        RunContext(model, calibration=open_data(ROWS, model.signature)).collect([Stat("y", Gram())])


def missing_half_the_time() -> Model:
    """An optional value that is there where the flag is set."""
    tensor = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["N", 4])

    def branch(name: str, inputs: list[str], **attributes: Any) -> onnx.GraphProto:
        output = onnx.helper.make_value_info(name, onnx.helper.make_optional_type_proto(tensor))
        return onnx.helper.make_graph(
            [onnx.helper.make_node("Optional", inputs, [name], **attributes)], name, [], [output]
        )

    chosen = onnx.helper.make_node(
        "If", ["flag"], ["maybe"], then_branch=branch("p", ["x"]), else_branch=branch("q", [], type=tensor)
    )
    flag, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BOOL, []) for name in ("flag", "y"))
    has = onnx.helper.make_node("OptionalHasElement", ["maybe"], ["y"])
    graph = onnx.helper.make_graph([chosen, has], "g", [onnx.helper.make_value_info("x", tensor), flag], [y])
    return load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8))


def test_optional_values() -> None:
    model = missing_half_the_time()
    data = open_data(KINDS["if"][1], model.signature)
    context = RunContext(model, calibration=data)
    share = Stat("y", MinMax())
    found = context.collect([share, Stat("maybe", MinMax())])
    assert (found[share].low, found[share].high) == (0, 1)
    assert found.why(Stat("maybe", MinMax())) == "'maybe' is no tensor"
