"""What passes say: every node they speak of has a name that a person can look for."""

import onnx
import onnx_ir as ir

from onnxopt.context import RunContext
from onnxopt.errors import Declined
from onnxopt.model import load
from onnxopt.passing import Change, Findings, make, parts

UNNAMED = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
g (bool c, float[1, 64] x) => (float[1, 64] y, float[1, 64] z) <float[64, 64] w = {WEIGHTS}, float[64] s = {ONES}> {
  k = Constant<value_floats = [1.0]>()
  o = Constant<value_string = "text">()
  t = Transpose(w)
  m = MatMul(x, t)
  n = BatchNormalization(m, s, s, s, s)
  r = f.double(n)
  i = Identity(r)
  y = Add(i, k)
  dead = Neg(y)
  z = If (c) <then_branch = a () => (float[1, 64] p) { p = Identity(x) },
              else_branch = b () => (float[1, 64] q) { q = MatMul(x, w) }>
}
<domain: "f", opset_import: ["" : 21]> double (a) => (b) { b = Add(a, a) }"""


def test_a_node_is_recorded_by_what_it_is_called() -> None:
    findings = Findings()
    unnamed = ir.Node("", "Relu", [], outputs=[ir.Value(name="y")])
    findings.change(unnamed, "rule", "done")
    findings.change(ir.Node("", "Relu", [], num_outputs=1, name="n"), "rule", "done")
    findings.change("w", "rule", "done")
    findings.decline(unnamed, "rule", "why")
    findings.decline(None, "rule", "why")
    assert findings.changes == [Change(name, "rule", "done") for name in ("y", "n", "w")]
    assert findings.declined == [Declined(name, "rule", "why") for name in ("y", "")]


def test_what_was_found_adds_up() -> None:
    one, other = Findings(chosen={"a": "x", "b": "y"}), Findings(chosen={"b": "z"}, notes=["n"])
    one.add(other)
    assert (one.chosen, one.notes) == ({"a": "x", "b": "z"}, ["n"])


def test_no_pass_speaks_of_a_node_without_a_name() -> None:
    text = UNNAMED.replace("WEIGHTS", ", ".join(["0.5"] * 4096)).replace("ONES", ", ".join(["1"] * 64))
    model = load(onnx.parser.parse_model(text))
    for pass_ in (part for name in ("clean", "quantize-weights") for part in parts(make(name))):
        findings = pass_.run(model, RunContext(model))
        named = [*findings.changes, *findings.declined]
        assert [one for one in named if not one.node] == [], pass_.name
        assert len({(one.node, one) for one in named}) == len(named), pass_.name
