"""Model: every kind of source, signature, history, walking, names."""

from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest

from onnxopt.errors import ModelError
from onnxopt.model import HISTORY_KEY, Model, ValueInfo, load, save
from onnxopt.models.builders import RARE


def test_every_source(tmp_path: Path) -> None:
    proto = RARE["if-capturing"]()
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    whole = load(proto)
    sources = [str(path), path, path.read_bytes(), proto, ir.load(path), gs.import_onnx(proto), whole]
    for source in sources:
        model = load(source)
        assert model.signature == whole.signature
        assert [n.op_type for n in model.nodes()] == [n.op_type for n in whole.nodes()]
    assert load(whole) is whole
    assert load(path).path == path
    assert load(proto).path is None


def test_no_source() -> None:
    with pytest.raises(ModelError, match="cannot load a model from int"):
        load(3)  # type: ignore[arg-type]


def test_signature() -> None:
    signature = load(RARE["denotations"]()).signature
    assert signature.inputs == (ValueInfo("x", ir.DataType.FLOAT, ("batch", 3, "height", "width")),)
    assert signature.outputs == (ValueInfo("y", ir.DataType.FLOAT, ("batch", 4, "height - 2", None)),)
    assert load(RARE["maps"]()).signature.inputs[0].dtype is None


def test_listed_initializers_are_no_inputs() -> None:
    model = load(RARE["initializers-as-inputs"]())
    assert len(model.graph.inputs) == 3
    assert [value.name for value in model.signature.inputs] == ["x"]


def test_walks() -> None:
    model = load(RARE["nested-subgraphs"]())
    assert {value.name for value in model.weights()} >= {"outer", "middle", "innermost"}
    assert next(model.graphs()).name == "nested-subgraphs"
    assert len(list(model.graphs())) == 6
    assert {node.op_type for node in model.nodes()} >= {"If", "Loop", "Tanh", "Neg"}
    assert model.opset == 18


def test_history_travels_in_the_file(tmp_path: Path) -> None:
    model = load(RARE["if-capturing"]())
    assert model.history == []
    model.record({"pass": "clean", "drift": 0.01})
    model.record({"pass": "quantize-weights", "options": {"bits": 4}})
    save(model, tmp_path / "m.onnx")
    assert load(tmp_path / "m.onnx").history == model.history
    assert [entry["pass"] for entry in model.history] == ["clean", "quantize-weights"]
    assert str(tmp_path).encode() not in (tmp_path / "m.onnx").read_bytes()


@pytest.mark.parametrize("text", ["not JSON", '{"an": "object"}', ""])
def test_broken_history(text: str) -> None:
    proto = RARE["if-capturing"]()
    proto.metadata_props.add(key=HISTORY_KEY, value=text)
    assert load(proto).history == []


def test_fresh_names() -> None:
    model = load(RARE["if-capturing"]())
    names = [model.fresh_name("w") for _ in range(20_000)]
    assert names[:2] == ["w_1", "w_2"]
    assert len(set(names)) == 20_000
    assert model.fresh_name("w_7") == "w_7_1"
    assert model.fresh_name("unseen") == "unseen"


def test_sparse_names_are_taken() -> None:
    assert load(RARE["sparse-initializers"]()).fresh_name("linear") == "linear_1"


def test_sparse_values_have_a_type_and_no_weight() -> None:
    model = load(RARE["sparse-initializers"]())
    value = next(model.nodes()).inputs[1]
    assert value is not None
    assert (value.dtype, list(value.shape or ())) == (ir.DataType.FLOAT, [4, 5])
    assert value.const_value is None
    assert not list(model.weights())


def test_carried_attributes_follow_their_node() -> None:
    model: Model = load(RARE["sparse-constant"]())
    constant = next(node for node in model.nodes() if node.op_type == "Constant")
    first = ir.node("Constant", [], {"value_float": 1.0}, name="first")
    model.graph.insert_before(next(iter(model.graph)), first)
    after = model.proto()
    message = next(node for node in after.graph.node if node.name == constant.name)
    assert message.attribute[0].sparse_tensor == RARE["sparse-constant"]().graph.node[0].attribute[0].sparse_tensor
