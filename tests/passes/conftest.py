"""Running a pass and proving that it is exact: the oracle of the tests of clean-up passes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxopt.context import RunContext
from onnxopt.model import Model, Signature, load
from onnxopt.passing import Findings, Pass

Feeds = Mapping[str, Any]
Exact = Callable[..., tuple[Model, Findings]]

_SIZE = 3
"""What an axis without a fixed size is."""


def run(model: Model, feeds: Feeds) -> list[Any]:
    """All outputs, by onnxruntime at level BASIC; the checker is asked first."""
    proto = model.proto()
    onnx.checker.check_model(proto)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return list(ort.InferenceSession(proto.SerializeToString(), options).run(None, dict(feeds)))


def random_feeds(signature: Signature) -> Feeds:
    """Something for each input: normal floats, small integers, True."""
    rng, feeds = np.random.default_rng(0), {}
    for value in signature.inputs:
        assert value.shape is not None
        assert value.dtype is not None
        shape = [dim if isinstance(dim, int) else _SIZE for dim in value.shape]
        dtype = value.dtype.numpy()
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[value.name] = np.ones(shape, dtype)
        else:
            feeds[value.name] = rng.integers(0, 3, shape).astype(dtype)
    return feeds


def agree(before: list[Any], after: list[Any], tolerance: float) -> None:
    """Fail unless all outputs are equal, or within a relative L2 of `tolerance`."""
    for a, b in zip(before, after, strict=True):
        if tolerance and isinstance(a, np.ndarray) and a.dtype.kind == "f":
            assert a.shape == b.shape
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
            a, b = np.nan_to_num(a).astype(np.float64), np.nan_to_num(b).astype(np.float64)
            assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a) + 1e-9
        else:
            np.testing.assert_equal(b, a)


@pytest.fixture(scope="session")
def exact() -> Exact:
    """Run a pass on a model (or on onnx's text form of one): outputs must agree for all `feeds`, the signature must
    stay, and a second run must change nothing. Gives the model and what the first run found."""

    def check(
        source: str | Model, pass_: Pass, feeds: Feeds | list[Feeds] | None = None, *, tolerance: float = 0.0
    ) -> tuple[Model, Findings]:
        model = load(onnx.parser.parse_model(source)) if isinstance(source, str) else source
        signature = model.signature
        samples = feeds if isinstance(feeds, list) else [random_feeds(signature) if feeds is None else feeds]
        before = [run(model, sample) for sample in samples]
        findings = pass_.run(model, RunContext(model))
        assert findings.changed == (model.revision > 0)
        assert model.signature == signature
        for sample, expected in zip(samples, before, strict=True):
            agree(expected, run(model, sample), tolerance)
        revision, again = model.revision, pass_.run(model, RunContext(model))
        assert not again.changes
        assert model.revision == revision
        return model, findings

    return check


@pytest.fixture(scope="session")
def random_model() -> Callable[..., onnx.ModelProto]:
    """Given hypothesis's draw: a random acyclic graph of nodes on an input, weights and one another, with random
    outputs."""

    def make(draw: Callable[[st.SearchStrategy[Any]], Any]) -> onnx.ModelProto:
        values, nodes = ["x", "w0", "w1"], []
        for index in range(draw(st.integers(1, 12))):
            op = draw(st.sampled_from(["Add", "Mul", "Neg", "Abs", "Identity"]))
            inputs = [draw(st.sampled_from(values)) for _ in range(2 if op in ("Add", "Mul") else 1)]
            nodes.append(helper.make_node(op, inputs, [f"v{index}"], f"n{index}"))
            values.append(f"v{index}")
        outputs = draw(st.lists(st.sampled_from(values[3:]), min_size=1, max_size=3, unique=True))
        weights = [numpy_helper.from_array(np.float32([i + 1, -i]), f"w{i}") for i in range(2)]
        info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", *outputs)]
        graph = helper.make_graph(nodes, "g", info[:1], info[1:], weights)
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])

    return make


@pytest.fixture(scope="session")
def ops() -> Callable[[Model], list[str]]:
    """Operators of a model's nodes, subgraphs included."""
    return lambda model: [node.op_type for node in model.nodes()]
