"""Cutting large tensors out of serialized models: nothing is lost, and what is odd is left to protobuf."""

import random
import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.external import NUMERIC, location_of, proto_tensors
from onnxopt.models.builders import RARE
from onnxopt.wire import Cutter

EXTERNAL = runpy.run_path(str(Path(__file__).with_name("test_external.py")))
LARGE = np.arange(2048, dtype=np.float32)


def cut(content: bytes) -> tuple[onnx.ModelProto, Cutter]:
    cutter = Cutter(memoryview(content), NUMERIC, "cut:")
    return onnx.ModelProto.FromString(bytes(cutter.skeleton())), cutter


def restored(content: bytes) -> onnx.ModelProto:
    proto, cutter = cut(content)
    for tensor in proto_tensors(proto):
        if location_of(tensor) in cutter.views:
            tensor.raw_data = bytes(cutter.views[location_of(tensor)])
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return proto


def model_with(tensor: TensorProto, where: str = "initializer") -> onnx.ModelProto:
    made: onnx.ModelProto = EXTERNAL["model_with"](tensor, where)
    return made


def large(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(LARGE, name)


@pytest.mark.parametrize("name", sorted(RARE))
def test_nothing_is_lost(name: str) -> None:
    model = RARE[name]()
    assert restored(model.SerializeToString()) == model


@pytest.mark.parametrize("where", EXTERNAL["PLACES"])
def test_large_tensors_are_cut_wherever_they_are(where: str) -> None:
    content = model_with(large(), where).SerializeToString()
    proto, cutter = cut(content)
    assert all(bytes(view) == LARGE.tobytes() for view in cutter.views.values())
    assert len(cutter.views) == sum(location_of(tensor) in cutter.views for tensor in proto_tensors(proto)) > 0
    assert proto.ByteSize() < 1024
    assert restored(content) == model_with(large(), where)


@given(st.data())
def test_models_of_all_kinds_of_fields(data: st.DataObject) -> None:
    """Sizes around the limit, every element type, doc strings, dims of several forms, unnamed tensors."""
    tensors = []
    for index in range(data.draw(st.integers(0, 4))):
        size = data.draw(st.sampled_from([0, 1, 4095, 4096, 4097, 20000]))
        tensor = TensorProto(
            name=data.draw(st.text(max_size=4)), doc_string=data.draw(st.text(max_size=200)),
            dims=data.draw(st.lists(st.integers(-(2**62), 2**62), max_size=3)), raw_data=bytes([index]) * size,
            data_type=data.draw(st.sampled_from([0, 1, 8, 16, 22, 999])),
        )  # fmt: skip
        tensor.metadata_props.add(key="k", value="v")
        tensors.append(tensor)
    model = helper.make_model(
        helper.make_graph([helper.make_node("N", [], ["y"], value=t) for t in tensors], "g", [], [])
    )
    model.graph.initializer.extend(tensors)
    model.functions.add(name="f").node.extend(model.graph.node)
    content = model.SerializeToString()
    assert restored(content) == model
    held = sum(len(tensor.raw_data) >= 4096 and tensor.data_type in NUMERIC for tensor in tensors)
    assert len(cut(content)[1].views) == 3 * held


def test_what_lies_elsewhere_or_is_told_twice_is_left_alone() -> None:
    elsewhere = large()
    elsewhere.data_location = TensorProto.EXTERNAL
    named = large()
    named.external_data.add(key="location", value="w.bin")
    here = large()
    here.data_location = TensorProto.DEFAULT
    twice = large().SerializeToString() + TensorProto(raw_data=LARGE.tobytes()[::-1]).SerializeToString()
    for tensor, count in ((elsewhere, 0), (named, 0), (here, 1), (TensorProto.FromString(twice), 1)):
        assert len(cut(model_with(tensor).SerializeToString())[1].views) == count
    graph = onnx.GraphProto(name="g").SerializeToString() + b"\x2a" + _varint(len(twice)) + twice
    content = b"\x08\x09\x3a" + _varint(len(graph)) + graph
    assert not cut(content)[1].views
    assert restored(content) == onnx.ModelProto.FromString(content)


def test_unknown_fields_stay() -> None:
    fields = b"\xf8\x3e\x05" + b"\xf9\x3e" + bytes(8) + b"\xfa\x3e\x02ab" + b"\xfd\x3e" + bytes(4)
    tensor = large().SerializeToString() + fields
    graph = b"\x2a" + _varint(len(tensor)) + tensor + fields
    content = b"\x08\x09\x3a" + _varint(len(graph)) + graph + fields
    assert len(cut(content)[1].views) == 1
    assert restored(content) == onnx.ModelProto.FromString(content)
    assert restored(content).SerializeToString(deterministic=True).count(fields) == 3


def test_graphs_nested_deeper_than_protobuf_reads() -> None:
    body = large().SerializeToString()
    content = b"\x2a" + _varint(len(body)) + body
    for _ in range(300):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # the graph of an attribute of a node of a graph
            content = tag + _varint(len(content)) + content
    content = b"\x08\x09\x3a" + _varint(len(content)) + content
    with pytest.raises(DecodeError):
        cut(content)


@given(st.integers(0, 2**32))
def test_damage_is_found_by_protobuf_as_ever(seed: int) -> None:
    """Bytes of the framing are changed, taken away or put in: the cut message parses where the whole does."""
    rng = random.Random(seed)
    content = bytearray(model_with(large(), rng.choice(EXTERNAL["PLACES"])).SerializeToString())
    start = content.find(LARGE.tobytes())
    framing = [at for at in range(len(content)) if not start <= at < start + LARGE.nbytes]
    for _ in range(rng.randint(1, 3)):
        if not content:
            break
        at = rng.choice(framing) % len(content)
        match rng.randrange(3):
            case 0:
                content[at] = rng.randrange(256)
            case 1:
                del content[at]
            case 2:
                del content[at:]
    try:
        whole = onnx.ModelProto.FromString(bytes(content))
    except DecodeError:
        with pytest.raises(DecodeError):
            cut(bytes(content))
    else:
        assert restored(bytes(content)) == whole


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
