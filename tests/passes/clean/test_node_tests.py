"""Every model of onnx's own test collections, from file to clean file: nothing crashes and outputs stay."""

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.passing import contract_of, make, rounds
from onnxopt.recipe import Verify
from onnxopt.verify import Verifier

CLEAN = make("clean")
SAMPLE = 60

Feed = dict[str, Any]


@cache
def cases() -> dict[str, tuple[onnx.ModelProto, list[Any]]]:
    """onnx's node tests by name: the model, and values for its inputs in their order."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the collection computes its expected outputs
        found = collect_testcases(None)
    return {case.name: (case.model, list(case.data_sets[0][0])) for case in found}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


def clean(path: Path, inputs: Sequence[Feed], worker: Worker, as_weights: bool = False) -> str | None:
    """Load, clean, save; hold the file to the exact contract. Gives why the original does not run, if it does not."""
    proto = onnx.load(path)
    verifier = Verifier(worker, path, inputs, (), Verify(), real_data=False, scratch=path.parent)
    try:
        verifier.prepare(load(path))
        refusal = verifier.unverified
    except ModelError as error:
        refusal = str(error)
    model = load(path)
    signature = model.signature
    sizes = {name: np.shape(array) for name, array in inputs[0].items() if isinstance(array, np.ndarray)}
    context = RunContext(model, worker=worker, sizes=sizes)
    changes = [change for part in rounds(CLEAN, lambda: model.revision) for change in part.run(model, context).changes]
    assert bool(changes) == (model.revision > 0)
    assert model.signature == signature
    target = path.with_suffix(".clean.onnx")
    model.save(target)
    assert count(load(target)) <= count(load(proto))
    if refusal is None:
        verdict, _ = verifier.judge(target, contract_of(CLEAN), guard=False)
        assert verdict.broken == ()
    return refusal


def count(model: Model) -> int:
    return sum(node.op_type != "Constant" for node in model.nodes())


def written(name: str, folder: Path, weights: bool) -> tuple[Path, Feed]:
    """A node test's file and what to feed it; on request all inputs but the first are weights of the model."""
    proto, values = cases()[name]
    inputs = dict(zip((info.name for info in proto.graph.input), values, strict=True))
    if weights:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto = copy
        for info in list(proto.graph.input)[1:]:
            if isinstance(inputs[info.name], np.ndarray | np.generic):
                proto.graph.initializer.append(numpy_helper.from_array(np.asarray(inputs.pop(info.name)), info.name))
                proto.graph.input.remove(info)
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path, inputs
