"""External data that nobody vouches for: refused with one line before a byte is read."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxopt.errors import ModelError
from onnxopt.model import load

BYTES = np.arange(512, dtype=np.float32).tobytes()


def tensor(location: str, name: str = "w", dims: tuple[int, ...] = (512,), **place: str) -> TensorProto:
    out = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **place}.items():
        out.external_data.add(key=key, value=value)
    return out


def model_with(weight: TensorProto, where: str = "initializer") -> onnx.ModelProto:
    """A model that holds the tensor in its graph, a subgraph, a node's attribute or a function's."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constant = helper.make_node("Constant", [], ["y"], value=weight)
    functions = []
    if where == "initializer":
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [weight])
    elif where == "attribute":
        graph = helper.make_graph([constant], "g", [], [y])
    elif where == "subgraph":
        inner = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "inner", [], [y], [weight])
        condition = helper.make_tensor("c", TensorProto.BOOL, [], [1])
        choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        graph = helper.make_graph([choice], "g", [], [y], [condition])
    else:
        opsets = [helper.make_opsetid("", 18)]
        functions = [helper.make_function("test", "F", [], ["y"], [constant], opsets)]
        graph = helper.make_graph([helper.make_node("F", [], ["y"], domain="test")], "g", [], [y])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("test", 1)]
    return helper.make_model(graph, ir_version=9, opset_imports=imports, functions=functions)


PLACES = ["initializer", "attribute", "subgraph", "function"]


def refused(weight: TensorProto, where: str, folder: Path, why: str) -> None:
    path = folder / "m.onnx"
    path.write_bytes(model_with(weight, where).SerializeToString())
    with pytest.raises(ModelError, match=why) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "w.bin").write_bytes(BYTES)
    (tmp_path / "secret").write_bytes(BYTES)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "w.bin").write_bytes(BYTES)
    (inside / "link.bin").symlink_to(tmp_path / "secret")
    (inside / "inner.bin").symlink_to(inside / "w.bin")
    (inside / "linked").symlink_to(tmp_path / "outside")
    (inside / "sub").mkdir()
    (inside / "sub" / "w.bin").write_bytes(BYTES)
    os.link(tmp_path / "secret", inside / "hard.bin")
    return inside


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./w.bin"])
def test_inside_is_fine(location: str, where: str, folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(model_with(tensor(location), where).SerializeToString())
    load(path).save(folder / "out.onnx", external_data=False)
    assert BYTES in (folder / "out.onnx").read_bytes()


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("../secret", "outside the model's folder"),
        ("sub/../../secret", "outside the model's folder"),
        ("/etc/passwd", "outside the model's folder"),
        ("", "outside the model's folder|external data"),
        ("link.bin", "symbolic link"),
        ("inner.bin", "symbolic link"),
        ("linked/w.bin", "symbolic link"),
        ("hard.bin", "hard links"),
        ("gone.bin", "missing"),
        ("sub", "not a file"),
    ],
)
def test_location(location: str, why: str, where: str, folder: Path) -> None:
    refused(tensor(location), where, folder, why)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ({"offset": "4"}, "cut short"),
        ({"offset": "99999999999999"}, "cut short"),
        ({"offset": "-4"}, "has the offset '-4'"),
        ({"length": "-2048"}, "has the length '-2048'"),
        ({"length": "4"}, "is said to take"),
        ({"offset": "four"}, "has the offset 'four'"),
    ],
)
def test_extent(place: dict[str, str], why: str, where: str, folder: Path) -> None:
    refused(tensor("w.bin", **place), where, folder, why)


@pytest.mark.parametrize("dims", [(2**40, 2**40), (2**31, 2**32), (513,), (-1,), (-512, -1)])
def test_shape(dims: tuple[int, ...], folder: Path) -> None:
    refused(tensor("w.bin", dims=dims), "initializer", folder, "cut short|negative|needs|not a valid")


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dims", [(2**62, 4), (511,), (-512,), (2**40,)])
def test_embedded_bytes_must_fit(dims: tuple[int, ...], where: str, folder: Path) -> None:
    raw = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=BYTES)
    refused(raw, where, folder, "negative size|holds 2048 bytes")
    typed = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, float_data=[0.0] * 512)
    refused(typed, where, folder, "negative size|holds 512 entries")


@pytest.mark.parametrize("where", PLACES)
def test_no_folder_to_look_in(where: str) -> None:
    proto = model_with(tensor("/etc/passwd"), where)
    for source in (proto, proto.SerializeToString()):
        with pytest.raises(ModelError, match="load the model from its file"):
            load(source)
