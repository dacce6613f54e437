"""Axes of open size stay open: the clean model computes the same at sizes that the clean-up has not seen."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.model import load
from onnxopt.models.builders import RARE, RUNNABLE, feeds
from onnxopt.passing import contract_of, make, rounds
from onnxopt.recipe import Verify
from onnxopt.verify import Verifier

CLEAN = make("clean")

BATCHES, LENGTHS = (1, 3), (4, 7)
"""Sizes of a model's first open axis, and of all others (each one larger than the one before)."""

ALL = len(BATCHES) * len(LENGTHS)

QUICK = (
    "chains", "if-capturing", "initializers-as-inputs", "linear-conv-2d-grouped-bias", "linear-matmul-bias-after",
    "loop", "nested-subgraphs", "redundant-control-flow", "redundant-layers", "scan", "shared-matmul",
)  # fmt: skip


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


def symbols(proto: onnx.ModelProto) -> list[str]:
    """Names of the inputs' open axes, in order; those without a name have none to be sized by."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    infos = (info.type.tensor_type.shape for info in proto.graph.input if info.name not in weights)
    return list(dict.fromkeys(dim.dim_param for shape in infos for dim in shape.dim if dim.dim_param))


def is_open(proto: onnx.ModelProto) -> bool:
    """Whether an input has an axis of open size."""
    return bool(symbols(proto)) and all(info.type.HasField("tensor_type") for info in proto.graph.input)


def sized(proto: onnx.ModelProto, batch: int, length: int) -> onnx.ModelProto:
    """A model with the same inputs, whose open axes have sizes: what `feeds` reads."""
    names = symbols(proto)
    sizes = {name: batch if not index else length + index - 1 for index, name in enumerate(names)}
    only = onnx.ModelProto()
    only.graph.input.extend(proto.graph.input)
    only.graph.initializer.extend(onnx.TensorProto(name=each.name) for each in proto.graph.initializer)
    for info in only.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    return only


def hold(path: Path, folder: Path, worker: Worker) -> int:
    """Clean a file at one set of sizes and hold the result to the contract at all of them; gives how many ran."""
    proto = onnx.load(path)
    rng = np.random.default_rng(0)
    samples = [feeds(sized(proto, batch, length), rng) for batch in BATCHES for length in LENGTHS]
    model, first = load(path), samples[0]
    signature = model.signature
    context = RunContext(model, worker=worker, sizes={name: np.shape(array) for name, array in first.items()})
    for part in rounds(CLEAN, lambda: model.revision):
        part.run(model, context)
    assert model.signature == signature
    target = folder / f"{path.stem}.clean.onnx"
    model.save(target)
    ran = 0
    for sample in samples:
        verifier = Verifier(worker, path, [sample], (), Verify(), real_data=False, scratch=folder)
        verifier.prepare(load(path))
        if verifier.unverified is None:
            verdict, _ = verifier.judge(target, contract_of(CLEAN), guard=False)
            assert verdict.broken == (), {name: np.shape(array) for name, array in sample.items()}
            ran += 1
    return ran


@pytest.mark.parametrize("name", models.names())
def test_models_that_ship(name: str, worker: Worker, tmp_path: Path) -> None:
    assert is_open(onnx.load(models.path(name)))
    assert hold(models.path(name), tmp_path, worker) == ALL


def built(name: str, folder: Path) -> Path:
    path = folder / "built.onnx"
    path.write_bytes(RARE[name]().SerializeToString())
    return path


@pytest.mark.parametrize("name", QUICK)
def test_built_graphs(name: str, worker: Worker, tmp_path: Path) -> None:
    assert is_open(RARE[name]())
    assert hold(built(name, tmp_path), tmp_path, worker) == ALL


@pytest.mark.slow
def test_every_built_graph(worker: Worker, tmp_path: Path) -> None:
    ran = {name: hold(built(name, tmp_path), tmp_path, worker) for name in sorted(RUNNABLE & RARE.keys())}
    assert all(ran.values())


@pytest.mark.slow
def test_the_zoo(worker: Worker, zoo: Path, tmp_path: Path) -> None:
    dynamic = [path for path in sorted(zoo.glob("*.onnx")) if is_open(onnx.load(path))]
    assert dynamic
    for path in dynamic:
        assert hold(path, tmp_path, worker) == ALL
