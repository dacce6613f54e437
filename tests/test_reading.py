"""Reading: weights are views of the file, whatever their type and place; facts of a file are those of its last form."""

import gc
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt import reading
from onnxopt.errors import ModelError
from onnxopt.external import NUMERIC
from onnxopt.model import load

EXTERNAL = runpy.run_path(str(Path(__file__).with_name("test_external.py")))
BYTES = np.random.default_rng(0).integers(0, 256, 6144).astype(np.uint8).tobytes()


def model_with(tensor: TensorProto, where: str = "initializer") -> onnx.ModelProto:
    made: onnx.ModelProto = EXTERNAL["model_with"](tensor, where)
    return made


def raw(kind: int, content: bytes = BYTES) -> TensorProto:
    elements = len(content) * 8 // ir.DataType(kind).bitwidth
    tensor = TensorProto(name="w", doc_string="about", data_type=kind, dims=[2, elements // 2], raw_data=content)
    tensor.metadata_props.add(key="unit", value="mV")
    return tensor


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files count as large."""
    monkeypatch.setattr(reading, "_MAPPED_BYTES", 1)


@pytest.mark.parametrize("kind", sorted(NUMERIC))
def test_every_type_reads_as_protobuf_s_reader_has_it(kind: int, tmp_path: Path) -> None:
    if ir.DataType(kind).bitwidth == 6:
        pytest.skip("not every byte is a value")
    proto = model_with(raw(kind))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    expected = ir.from_proto(proto).graph.initializers["w"].const_value
    found = load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    assert expected is not None
    assert found is not None
    assert (found.dtype, found.shape, found.name) == (expected.dtype, expected.shape, "w")
    assert (found.doc_string, found.metadata_props) == ("about", {"unit": "mV"})
    assert found.tobytes() == BYTES
    assert found.numpy().dtype == expected.numpy().dtype
    assert found.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("where", EXTERNAL["PLACES"])
@pytest.mark.parametrize("external", [False, True])
def test_saved_as_it_came(where: str, external: bool, mapped: None, tmp_path: Path) -> None:
    for kind in (TensorProto.FLOAT, TensorProto.INT4, TensorProto.BFLOAT16):
        proto = model_with(raw(kind), where)
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        load(tmp_path / "m.onnx").save(tmp_path / "out.onnx", external_data=external)
        saved = onnx.load(tmp_path / "out.onnx")
        assert sum(tensor.raw_data == BYTES for tensor in reading.proto_tensors(saved)) > 0
        assert load(proto).proto() == load(tmp_path / "m.onnx").proto()


@pytest.mark.parametrize("source", ["file", "bytes"])
def test_weights_are_not_copied(source: str, mapped: None, tmp_path: Path) -> None:
    content = model_with(raw(TensorProto.UINT8)).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(content)
    model = load(content) if source == "bytes" else load(tmp_path / "m.onnx")
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    array = tensor.numpy()
    assert not array.flags.owndata
    assert not array.flags.writeable
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    assert len(base.obj) == len(content)


def test_what_was_read_outlives_its_file(mapped: None, tmp_path: Path) -> None:
    """Replaced by itself saved anew, by another model, and removed; and the model object may go before its arrays."""
    path = tmp_path / "m.onnx"
    path.write_bytes(model_with(raw(TensorProto.UINT8)).SerializeToString())
    model = load(path)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    model.save(path)
    load(model_with(raw(TensorProto.UINT8, BYTES[::-1]))).save(path)
    assert tensor.tobytes() == BYTES
    path.unlink()
    array = tensor.numpy()
    del model, tensor
    gc.collect()
    assert array.tobytes() == BYTES


@pytest.mark.parametrize("location", ["onnxopt-cut:0", "onnxopt-cut:", "onnxopt-stub:0"])
def test_no_file_can_claim_what_was_cut_out_of_it(location: str, tmp_path: Path) -> None:
    proto = model_with(raw(TensorProto.UINT8))
    proto.graph.initializer.append(EXTERNAL["tensor"](location, "thief", (6144,)))
    proto.graph.initializer[-1].data_type = TensorProto.UINT8
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="missing"):
        load(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="missing"):
        reading.external_files(tmp_path / "m.onnx")


@pytest.mark.parametrize("dims", [[3072], [6145], [-1], [2**62, 4]])
def test_views_must_fit_their_shape(dims: list[int], tmp_path: Path) -> None:
    tensor = raw(TensorProto.UINT8)
    tensor.dims[:] = dims
    (tmp_path / "m.onnx").write_bytes(model_with(tensor).SerializeToString())
    with pytest.raises(ModelError, match=r"negative size|holds 6144 bytes"):
        load(tmp_path / "m.onnx")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells private memory")
def test_an_embedded_model_in_little_memory(tmp_path: Path) -> None:
    """64 MB of weights, half of them in Constant nodes, from file to file by way of both preparations."""
    measure = runpy.run_path(str(Path(__file__).with_name("test_surgeon.py")))["anonymous_memory"]
    weights = [numpy_helper.from_array(np.full(2**21, i, np.float32), f"w{i}") for i in range(8)]
    constants = [helper.make_node("Constant", [], [w.name], value=w) for w in weights[4:]]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2**21])
    nodes = [*constants, helper.make_node("Sum", [w.name for w in weights], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [y], weights[:4])
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    code = """
        from onnxopt.model import load
        from onnxopt.context import RunContext
        from onnxopt.passes.clean.lift_constants import LiftConstants
        from onnxopt.reading import digest
        from pathlib import Path
        base, peak = anonymous(), 0  # after the imports
        model = load("m.onnx")
        assert LiftConstants().run(model, RunContext(model)).changed
        digest(Path("m.onnx"))
        model.save("embedded.onnx")
        model.save("m.onnx", external_data=True)
    """
    assert measure(code, tmp_path) < 25
    assert (tmp_path / "embedded.onnx").stat().st_size > 2**26
    assert (tmp_path / "m.onnx.data").stat().st_size == 2**26


def test_facts_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    (tmp_path / "a.bin").write_bytes(EXTERNAL["BYTES"])
    path.write_bytes(model_with(EXTERNAL["tensor"]("a.bin"), "function").SerializeToString())
    assert reading.external_files(path) == [tmp_path / "a.bin"]
    assert reading.operators(path) == {("test", "F"), ("", "Constant")}
    before = reading.digest(path)
    (tmp_path / "a.bin").write_bytes(EXTERNAL["BYTES"][::-1])
    assert reading.digest(path) != before
    path.write_bytes(model_with(raw(TensorProto.FLOAT), "subgraph").SerializeToString())
    assert reading.external_files(path) == []
    assert reading.operators(path) == {("", "If"), ("", "Identity")}


def test_facts_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model_with(raw(TensorProto.FLOAT)).SerializeToString())
    read, parse = [], reading._parse
    monkeypatch.setattr(reading, "_parse", lambda content, what: read.append(what) or parse(content, what))
    monkeypatch.chdir(tmp_path)
    for given in (path, Path("m.onnx"), path):
        reading.digest(given)
        reading.external_files(given)
        reading.operators(given)
    assert len(read) == 1


def test_digests_do_not_leave_the_folder(tmp_path: Path) -> None:
    """A file that nobody vouches for could else have any other file read."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret").write_bytes(EXTERNAL["BYTES"])
    for location in ("../secret", "/dev/zero"):
        (inside / "m.onnx").write_bytes(model_with(EXTERNAL["tensor"](location)).SerializeToString())
        with pytest.raises(ModelError, match="outside the model's folder"):
            reading.digest(inside / "m.onnx")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for function in (reading.read, reading.digest, reading.operators):
        with pytest.raises(ModelError, match="no such model file"):
            function(tmp_path / "none.onnx")
        with pytest.raises(ModelError, match="cannot read model file"):
            function(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match="no graph"):
        reading.read(tmp_path / "empty.onnx")


def test_a_body_s_name_that_is_taken_outside_is_another() -> None:
    """In a file names tell values apart: a rewrite that lets the body read the outer `x` would read its own."""
    model = load(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, int64 k) => (float[2] y) { c = Identity (x) '
        "y = Loop (k, , c) <body = b (int64 i, bool g, float[2] x) => (bool d, float[2] o) "
        "{ d = Identity (g)  o = Add (x, c) }> }"
    ))  # fmt: skip
    (body,) = model.graph.subgraphs()
    outer = {value.name for value in model.graph.inputs}
    assert outer.isdisjoint(value.name for value in body.inputs)
    assert [value.name for value in model.graph.inputs] == ["x", "k"]
