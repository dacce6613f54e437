"""What every pass owes: options that round-trip, a contract that holds, a signature that stays, reasons for refusals.

Each registered pass runs on the same small graphs; the outcome is one of changed and verified, declined with
reasons, unchanged.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt import models
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.errors import OnnxOptError
from onnxopt.model import Model, load
from onnxopt.models.builders import ON_DISK, RARE, RUNNABLE, feeds
from onnxopt.passing import (
    PHASES,
    Declined,
    Exact,
    Findings,
    Limits,
    Pass,
    contract_of,
    make,
    parts,
    pass_class,
    pass_names,
)
from onnxopt.recipe import Verify
from onnxopt.verify import Verifier

SAMPLE = (
    "linear-matmul-bias-after", "linear-gemm-left-trans-both", "linear-conv-2d-grouped-bias",
    "linear-conv-transpose-2d", "shared-matmul", "stored-dequantize-blocks", "opset-9-batchnorm",
    "initializers-as-inputs", "nested-functions", "if-capturing", "loop", "sequences", "random-operators",
    "passed-through", "external-data", "no-names",
)  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "quantize-weights": {"bits": 8, "block_size": 16}, "prune-channels": {"ratio": 0.25, "round_to": 1},
    "sparsify": {"ratio": 0.5},
}  # fmt: skip
"""Options under which a pass has something to do on graphs this small, and those it needs; none elsewhere."""

INCOMPLETE = {"prune-channels", "sparsify"}
"""Passes that have to be told how much."""

HOMES = {
    "inline-functions": "nested-functions", "lift-constants": "stored-constant", "fold-constants": "stored-cast",
    "eliminate-identity": "stored-identity", "upgrade-opset": "double-constant", "eliminate-dead": "odd-initializers",
    "fold-batchnorm": "digits-cnn", "clean": "digits-cnn",
    "fold-scale": "redundant-layers", "fold-shapes": "redundant-layers", "inline-if": "redundant-control-flow",
    "prune-bodies": "redundant-control-flow", "fuse-gemm": "scan", "unlist-initializers": "initializers-as-inputs",
    "eliminate-noops": "chains", "eliminate-common": "chains", "merge-chains": "chains", "merge-transposes": "chains",
    "merge-arithmetic": "chains", "merge-pads": "chains", "deduplicate-weights": "chains",
}  # fmt: skip
"""A graph on which the pass has something to do; elsewhere the transformer."""

BUILT_IN = [name for name, family in pass_names().items() if pass_class(name).__module__.startswith("onnxopt.")]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as shared:
        yield shared


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def written(name: str, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The file of a test graph or of a model that ships, and what to feed it."""
    if name in models.names():
        images = np.load(Path(models.__file__).parent / "digits.calib.npz")["images"]
        return models.path(name), [{"images": images[:4]}]
    home = folder / name
    home.mkdir(exist_ok=True)
    proto = ON_DISK[name](home) if name in ON_DISK else RARE[name]()
    path = home / "model.onnx"
    if not path.exists():
        path.write_bytes(proto.SerializeToString())
    rng = np.random.default_rng(0)
    return path, [feeds(proto, rng), feeds(proto, rng)]


def check(pass_: Pass, name: str, folder: Path, worker: Worker) -> str:
    """Run a pass on a graph and hold it to what it owes; gives the outcome."""
    path, inputs = written(name, folder)
    verifier = Verifier(worker, path, inputs, (), Verify(), real_data=False, scratch=folder)
    verifier.prepare(load(path))
    assert verifier.unverified is None, f"{name}: {verifier.unverified}"
    model = load(path)
    sizes = {key: np.shape(array) for key, array in inputs[0].items() if isinstance(array, np.ndarray)}
    signature, findings = model.signature, run(pass_, model, worker, sizes)
    outcome = "changed" if findings.changed else "declined" if findings.declined else "unchanged"
    assert findings.changed == (model.revision > 0)
    assert all(isinstance(refusal, Declined) and refusal.rule and refusal.why for refusal in findings.declined)
    assert all(change.rule and change.what for change in findings.changes)
    if findings.changed:
        assert pass_.changes_signature or model.signature == signature
        candidate = folder / f"{name}.{pass_.name}.onnx"
        model.save(candidate)
        verdict, _ = verifier.judge(candidate, contract_of(pass_), guard=False)
        assert verdict.broken == ()
        if isinstance(contract_of(pass_), Exact):
            again = load(candidate)
            repeated = run(pass_, again, worker, sizes)
            assert not repeated.changes, f"a second run still changes: {repeated.changes[0]}"
    return outcome


def run(pass_: Pass, model: Model, worker: Worker, sizes: Any) -> Findings:
    findings = Findings()
    for part in parts(pass_):
        revision = model.revision
        try:
            findings.add(part.run(model, RunContext(model, worker=worker, sizes=sizes)))
        except OnnxOptError as error:  # there is nothing in the whole model for it
            assert model.revision == revision
            findings.decline(None, part.name, str(error))
    return findings


@pytest.mark.parametrize("graph", [*SAMPLE, "digits-cnn", "digits-transformer"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_contract_holds(name: str, graph: str, graphs: Path, worker: Worker) -> None:
    check(make(name, OPTIONS.get(name)), graph, graphs, worker)


@pytest.mark.slow
@pytest.mark.parametrize("graph", sorted(RUNNABLE - set(SAMPLE)))
def test_the_contract_holds_on_every_rare_graph(graph: str, graphs: Path, worker: Worker) -> None:
    for name in BUILT_IN:
        check(make(name, OPTIONS.get(name)), graph, graphs, worker)


@pytest.mark.parametrize("name", BUILT_IN)
def test_something_is_done_somewhere(name: str, graphs: Path, worker: Worker) -> None:
    """A pass that never changes anything in this suite would not be tested by it."""
    assert check(make(name, OPTIONS.get(name)), HOMES.get(name, "digits-transformer"), graphs, worker) == "changed"


@pytest.mark.parametrize("name", BUILT_IN)
def test_options_round_trip(name: str) -> None:
    cls, needed = pass_class(name), OPTIONS[name] if name in INCOMPLETE else {}
    limited = cls(**needed, limits=Limits(drift=0.5, metric_drop=None))
    for pass_ in (make(name, needed), make(name, OPTIONS.get(name)), limited):
        assert cls(**pass_.model_dump()) == pass_
        assert cls(**pass_.options()) == pass_
        assert cls.model_validate_json(pass_.model_dump_json()) == pass_
    assert make(name, needed).options() == needed


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_says_what_it_is(name: str) -> None:
    cls = pass_class(name)
    assert cls.name == name
    assert cls.phase in PHASES
    assert cls.summary().endswith(".")
    for key, field in cls.model_fields.items():
        assert field.description, f"option {key} has no description"
    assert cls.model_json_schema()["type"] == "object"
