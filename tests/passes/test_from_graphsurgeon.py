"""Passes made of functions that edit a graphsurgeon graph."""

from typing import Any

import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxopt.context import RunContext
from onnxopt.model import load
from onnxopt.passes import from_graphsurgeon
from onnxopt.passing import Exact, Lossy, Pass

TEXT = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { a = Relu(x) y = Relu(a) }'


def drop_doubles(graph: gs.Graph) -> int:
    """Remove a Relu behind a Relu."""
    doubles = [node for node in graph.nodes if node.inputs[0].inputs and node.op == node.i().op == "Relu"]
    for node in doubles:
        before, output = node.i(), node.outputs[0]
        node.outputs.clear()
        before.outputs = [output]
        graph.nodes.remove(node)
    return len(doubles)


def test_the_function_becomes_a_pass(ops: Any) -> None:
    made = from_graphsurgeon(drop_doubles, "drop-doubles")
    assert issubclass(made, Pass)
    assert (made.name, made.__name__, made.phase, made.contract) == ("drop-doubles", "DropDoubles", "clean", Exact())
    assert made.summary() == "Remove a Relu behind a Relu."
    model = load(onnx.parser.parse_model(TEXT))
    signature = model.signature
    findings = made().run(model, RunContext(model))
    assert ops(model) == ["Relu"]
    assert model.signature == signature
    assert [(change.rule, change.what) for change in findings.changes] == [("drop-doubles", "1 changes")]
    assert not made().run(model, RunContext(model)).changed


def test_contract_and_phase_are_given() -> None:
    made = from_graphsurgeon(lambda graph: None, "blur", contract=Lossy(), phase="structure")
    assert (made.contract, made.phase) == (Lossy(), "structure")
    assert Pass.contract == Exact(), "the base is untouched"


def test_a_function_that_returns_nothing_counts_as_a_change() -> None:
    def rename(graph: gs.Graph) -> None:
        graph.name = "renamed"

    model = load(onnx.parser.parse_model(TEXT))
    assert from_graphsurgeon(rename, "rename")().run(model, RunContext(model)).changed
    assert model.graph.name == "renamed"


def test_its_error_leaves_the_model_as_it_was() -> None:
    def fail(graph: gs.Graph) -> None:
        graph.nodes.clear()
        raise RuntimeError("on purpose")

    model = load(onnx.parser.parse_model(TEXT))
    with pytest.raises(RuntimeError, match="on purpose"):
        from_graphsurgeon(fail, "fail")().run(model, RunContext(model))
    assert len(list(model.nodes())) == 2
