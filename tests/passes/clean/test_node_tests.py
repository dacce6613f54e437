"""Every model of onnx's own test collections, from file to clean file: nothing crashes and outputs stay."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as node_tests
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.backend.test.loader import DATA_DIR, load_model_tests

from onnxopt.backends.capabilities import max_ir, max_opset
from onnxopt.backends.worker import Worker
from onnxopt.context import RunContext
from onnxopt.errors import ModelError
from onnxopt.model import Model, load
from onnxopt.models.builders import feeds
from onnxopt.passing import contract_of, make, rounds
from onnxopt.recipe import Verify
from onnxopt.verify import Verifier

CLEAN = make("clean")

Feed = dict[str, Any]
Case = tuple[onnx.ModelProto, list[Any]]

SAMPLE = 60
SLOW = frozenset({"averagepool", "lppool", "maxpool"})
"""Modules that take seconds to be imported."""

REASONS = {
    "too new": r"is too new: ONNX Runtime [\d.]+ takes at most",
    "no kernel": r"has no kernel in ONNX Runtime|Failed to find kernel",
    "no such feeds": r"Numpy_type 27[0-3] can't be converted|No corresponding Numpy type",
    "not implemented": r"Batchwise recurrent|Non per-tensor quantization|is not defined for empty set|attn_mask ==",
    "expanded wrongly": r"Type parameter \(T\) of Optype \(\w+\) bound to different types",
    "attribute of a later opset": r"Unrecognized attribute: \w+ for operator",
    "no such locale": r"Failed to construct locale",
    "not taken as weights": r"Input to 'Range' op should be scalars",
}
"""Why the runtime does not run an original; everything else is a fault of ours."""

MEASURED_WITH = ("1.23.2", "1.31.1")
"""Versions of onnx and onnxruntime for which the numbers below hold."""


@cache
def modules() -> list[str]:
    """The modules of onnx's node tests; importing one adds its cases to the collection."""
    return sorted(module.name for module in walk_packages(node_tests.__path__, f"{node_tests.__name__}."))


@cache
def cases(without: frozenset[str] = frozenset()) -> dict[str, Case]:
    """onnx's node tests by name: the model, and values for its inputs in their order."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # importing computes the expected outputs
        for module in modules():
            if module.rpartition(".")[2] not in without:
                import_module(module)
    return {case.name: (case.model, list(case.data_sets[0][0])) for case in node_tests._NodeTestCases}


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


def runnable(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in versions that the runtime reads, where its operators are the same in them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = min(copy.ir_version, max_ir())
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > max_opset():
            schemas = (onnx.defs.get_schema(node.op_type, entry.version, node.domain) for node in copy.graph.node)
            if all(schema.since_version <= max_opset() for schema in schemas):
                entry.version = max_opset()
    return copy


def written(case: Case, folder: Path, weights: bool) -> tuple[Path, Feed]:
    """A node test's file and what to feed it; on request all inputs but the first are weights of the model."""
    proto, values = case
    proto = runnable(proto)
    inputs = {info.name: plain(value) for info, value in zip(proto.graph.input, values, strict=True)}
    if weights:
        proto.ir_version = max(proto.ir_version, 4)
        for info in list(proto.graph.input)[1:]:
            value = inputs[info.name]
            if isinstance(value, np.ndarray | np.generic):
                proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), info.name))
                proto.graph.input.remove(info)
                del inputs[info.name]
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path, inputs


def plain(value: Any) -> Any:
    """Values of types that numpy lacks come as messages."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def survey(chosen: Iterable[tuple[str, Path, Feed]], worker: Worker) -> tuple[Counter[str], list[str]]:
    """How many of the models run, and why the others do not; what went wrong, one line each."""
    reasons: Counter[str] = Counter()
    wrong = []
    for name, path, inputs in chosen:
        try:
            refusal = clean(path, [inputs], worker)
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            continue
        known = [reason for reason, pattern in REASONS.items() if refusal is not None and re.search(pattern, refusal)]
        reasons[known[0] if known else "ran" if refusal is None else refusal] += 1
    return reasons, wrong


def judged(reasons: Counter[str], expected: dict[str, int]) -> None:
    """Fail on a reason that is not known, and on other numbers than those measured with these versions."""
    assert set(reasons) <= {"ran", *REASONS}
    reasons["ran"] += reasons.pop("no such locale", 0)  # which machines have, or have not
    assert reasons["ran"] >= 0.6 * reasons.total()
    if (onnx.__version__, onnxruntime.__version__) == MEASURED_WITH:
        assert reasons == expected


@pytest.mark.parametrize("weights", [False, True], ids=["inputs", "weights"])
def test_a_sample_of_the_node_tests(weights: bool, worker: Worker, tmp_path: Path) -> None:
    found = cases(SLOW)
    chosen = np.random.default_rng(0).choice(sorted(found), SAMPLE // 2 + SAMPLE // 2 * weights, replace=False)
    models = ((name, *written(found[name], tmp_path, weights)) for name in map(str, chosen[-SAMPLE // 2 :]))
    reasons, wrong = survey(models, worker)
    assert wrong == []
    assert set(reasons) <= {"ran", *REASONS}


NOT_RUN = {
    "too new": 241, "no kernel": 63, "no such feeds": 40, "not implemented": 6, "expanded wrongly": 3,
    "attribute of a later opset": 11,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weights", [False, True], ids=["inputs", "weights"])
def test_all_node_tests(weights: bool, worker: Worker, tmp_path: Path) -> None:
    """As they are, and with all inputs but the first as weights, which gives clean-up something to do."""
    found = cases()
    reasons, wrong = survey(((name, *written(found[name], tmp_path, weights)) for name in sorted(found)), worker)
    assert wrong == []
    assert reasons.total() >= 1884
    judged(reasons, NOT_RUN | ({"ran": 1516, "not taken as weights": 4} if weights else {"ran": 1520}))


def collected(kind: str, folder: Path) -> Iterator[tuple[str, Path, Feed]]:
    """onnx's test models of a kind that come as files, each with the first of its data sets."""
    for case in load_model_tests(kind=kind):
        assert case.model_dir is not None
        proto = onnx.load(Path(case.model_dir) / "model.onnx")
        path = folder / "model.onnx"
        path.write_bytes(runnable(proto).SerializeToString())
        weights = {tensor.name for tensor in proto.graph.initializer}
        infos = [info for info in proto.graph.input if info.name not in weights]
        data = Path(case.model_dir) / "test_data_set_0"
        values = {info.name: stored(info, data / f"input_{index}.pb") for index, info in enumerate(infos)}
        yield case.name, path, values


def stored(info: onnx.ValueInfoProto, file: Path) -> Any:
    """A value from a data set."""
    if info.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(file.read_bytes()))
    if info.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(file.read_bytes()))
    return numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("simple", {"ran": 21, "no kernel": 2}),
        ("pytorch-converted", {"ran": 59, "no kernel": 23}),
        ("pytorch-operator", {"ran": 24, "no kernel": 11}),
    ],
)
def test_models_of_the_collections(kind: str, expected: dict[str, int], worker: Worker, tmp_path: Path) -> None:
    reasons, wrong = survey(collected(kind, tmp_path), worker)
    assert wrong == []
    judged(reasons, expected)


LIGHT = sorted((Path(DATA_DIR) / "light").glob("light_*.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("source", LIGHT, ids=lambda path: path.stem)
def test_light_models(source: Path, worker: Worker, tmp_path: Path) -> None:
    """Real architectures whose weights are filled in at run time."""
    proto = onnx.load(source)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert clean(path, [feeds(proto, np.random.default_rng(0))], worker) is None
    assert path.with_suffix(".clean.onnx").stat().st_size <= 1.01 * path.stat().st_size
