"""Saving: whole or not at all, whatever interrupts it; weights streamed."""

import resource
import runpy
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxopt.edit import Edit
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders import RARE


def model_of(value: float, size: int = 4096) -> Model:
    weight = numpy_helper.from_array(np.full(size, value, np.float32), "w")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [size])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [weight])
    return load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]))


def value_in(source: Path | Model) -> float:
    model = source if isinstance(source, Model) else load(source)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    array = tensor.numpy()
    assert (array == array[0]).all()
    return float(array[0])


def leftovers(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("external", [False, True])
def test_killed_while_saving(external: bool, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model_of(0, 2**18).save(path, external_data=external)
    code = textwrap.dedent(f"""
        import itertools, runpy
        from onnxopt.model import load
        make = runpy.run_path({__file__!r})["model_of"]
        models = [make(1, 2**18), make(2, 2**18)]
        print("ready", flush=True)
        for model in itertools.cycle(models):
            model.save({str(path)!r}, external_data={external})
    """)
    rng = np.random.default_rng(0)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.1))
            child.send_signal(signal.SIGKILL)
        assert value_in(path) in (0, 1, 2)


@pytest.mark.parametrize("external", [False, True])
def test_disk_full(external: bool, tmp_path: Path) -> None:
    """The file size limit stands in for the disk's: the same write fails at the same place."""
    path = tmp_path / "m.onnx"
    model_of(1).save(path, external_data=external)
    before, files = path.read_bytes(), leftovers(tmp_path)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(ModelError, match=r"grows too large.*unchanged"):
            model_of(2, 2**18).save(path, external_data=external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert leftovers(tmp_path) == files
    assert value_in(path) == 1


def test_over_its_own_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model_of(1).save(path, external_data=True)
    model = load(path)
    for external, files in ((True, 2), (None, 2), (False, 1), (True, 2)):
        model.save(path, external_data=external)
        assert len(leftovers(tmp_path)) == files
        assert value_in(path) == value_in(model) == 1


def test_lazy_weight_over_its_own_source(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model_of(1).save(path, external_data=True)
    model = load(path)
    value = model.graph.initializers["w"]
    source = value.const_value
    assert source is not None
    edit = Edit()
    edit.replace_weight(value, ir.LazyTensor(
        lambda: ir.Tensor(source.numpy() * 2), dtype=source.dtype, shape=ir.Shape(source.shape)
    ))  # fmt: skip
    model.apply(edit)
    model.save(path)
    assert value_in(model) == value_in(path) == 2
    model.save(path, external_data=False)
    assert value_in(model) == value_in(path) == 2


def test_another_models_data_are_left_alone(tmp_path: Path) -> None:
    model_of(1).save(tmp_path / "a.onnx", external_data=True)
    proto = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    (tmp_path / "b.onnx").write_bytes(proto.SerializeToString())
    load(tmp_path / "b.onnx").save(tmp_path / "c.onnx")
    assert value_in(tmp_path / "b.onnx") == value_in(tmp_path / "c.onnx") == 1


@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph", "function"])
def test_inner_data_follow_to_another_folder(where: str, tmp_path: Path) -> None:
    made = runpy.run_path(str(Path(__file__).with_name("test_external.py")))
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "w.bin").write_bytes(made["BYTES"])
    (source / "m.onnx").write_bytes(made["model_with"](made["tensor"]("w.bin"), where).SerializeToString())
    load(source / "m.onnx").save(out / "m.onnx")
    (source / "w.bin").unlink()
    assert (out / "m.onnx.data").read_bytes().startswith(made["BYTES"])
    load(out / "m.onnx").save(out / "m.onnx")
    assert leftovers(out) == {"m.onnx", "m.onnx.1.data"}
    load(out / "m.onnx").save(out / "whole.onnx", external_data=False)
    assert made["BYTES"] in (out / "whole.onnx").read_bytes()


def test_symbolic_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "m.onnx", tmp_path / "link.onnx"
    model_of(1).save(target)
    link.symlink_to(target)
    model_of(2).save(link, external_data=True)
    assert link.is_symlink()
    assert value_in(target) == value_in(link) == 2


def test_permissions(tmp_path: Path) -> None:
    path, fresh = tmp_path / "m.onnx", tmp_path / "fresh.onnx"
    model_of(1).save(path)
    path.chmod(0o640)
    model_of(2).save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    plain = tmp_path / "plain"
    plain.touch()
    model_of(1).save(fresh)
    assert fresh.stat().st_mode == plain.stat().st_mode


def test_not_writable(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "m.onnx", tmp_path):
        with pytest.raises(ModelError, match="cannot write"):
            model_of(1).save(path)
    assert leftovers(tmp_path) == set()


def test_a_weight_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model_of(1).save(path)
    model = model_of(2)
    wrong = ir.LazyTensor(lambda: ir.Tensor(np.zeros(3, np.float32)), dtype=ir.DataType.FLOAT, shape=ir.Shape([4096]))
    model.graph.initializers["w"].const_value = wrong
    with pytest.raises(ModelError, match="weight w gave 12 bytes"):
        model.save(path)
    assert leftovers(tmp_path) == {"m.onnx"}
    assert value_in(path) == 1


@pytest.mark.parametrize(
    ("content", "why"), [(b"", "no graph"), (b"not a model", "protobuf|no graph"), (None, "no such model file")]
)
def test_bad_files(content: bytes | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=why):
        load(path)


def test_truncated(tmp_path: Path) -> None:
    content = RARE["nested-subgraphs"]().SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="cut short"):
        load(path)


@pytest.mark.slow
def test_past_two_gigabytes_goes_outside(tmp_path: Path) -> None:
    """One weight of 2.2 GB, computed while saving, in a model that came without external data."""
    shape = ir.Shape([11, 50 * 2**20])
    rows = np.broadcast_to(np.float32(3), shape.numpy())
    model = model_of(1)
    model.graph.initializers["w"].const_value = ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(rows)), dtype=ir.DataType.FLOAT, shape=shape
    )
    model.save(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 2**16
    assert (tmp_path / "m.onnx.data").stat().st_size == 11 * 50 * 2**20 * 4


@pytest.mark.slow
def test_three_gigabytes_in_little_memory(tmp_path: Path) -> None:
    measure = runpy.run_path(str(Path(__file__).with_name("test_surgeon.py")))["anonymous_memory"]
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(3 * 2**30)
    weights = [TensorProto(name=f"w{i}", data_type=1, dims=[2**24], data_location=1) for i in range(48)]
    for i, weight in enumerate(weights):
        for key, value in (("location", "w.bin"), ("offset", i * 2**26), ("length", 2**26)):
            weight.external_data.add(key=key, value=str(value))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2**24])
    nodes = [helper.make_node("Sum", [w.name for w in weights], ["y"])]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [y], weights), ir_version=10), tmp_path / "m.onnx")
    code = 'from onnxopt.model import load\nload("m.onnx").save("out.onnx")'
    assert measure(code, tmp_path) < 300
    assert (tmp_path / "out.onnx.data").stat().st_size == 3 * 2**30
