"""Small models for the backends' tests."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Build = Callable[..., onnx.ModelProto]


def _tensor(spec: str | tuple[object, ...] | onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """`"x"` is a float32 tensor [N, 3]; `(name, type, shape)` says all."""
    if isinstance(spec, onnx.ValueInfoProto):
        return spec
    name, dtype, shape = (spec, TensorProto.FLOAT, ("N", 3)) if isinstance(spec, str) else spec
    return helper.make_tensor_value_info(name, dtype, shape)


@pytest.fixture(scope="session")
def build() -> Build:
    """build(nodes, inputs, outputs, weights={}, opset=21, ir=10, domains={}, functions=[]) -> ModelProto."""

    def make(
        nodes: Sequence[onnx.NodeProto],
        inputs: Sequence[object] = ("x",),
        outputs: Sequence[object] = ("y",),
        weights: dict[str, np.ndarray] | None = None,
        opset: int = 21,
        ir: int = 10,
        domains: dict[str, int] | None = None,
        functions: Sequence[onnx.FunctionProto] = (),
    ) -> onnx.ModelProto:
        initializers = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
        graph = helper.make_graph(
            nodes, "graph", [_tensor(each) for each in inputs], [_tensor(each) for each in outputs], initializers
        )
        imports = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=ir, functions=list(functions))

    return make


@pytest.fixture
def matmul(build: Build, tmp_path: Path) -> Callable[..., Path]:
    """matmul(name="model.onnx", factor=1.0, size=3) -> path of y = x @ (factor * I), x [N, size]."""

    def write(name: str = "model.onnx", factor: float = 1.0, size: int = 3) -> Path:
        model = build(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
            [("x", TensorProto.FLOAT, ("N", size))],
            [("y", TensorProto.FLOAT, ("N", size))],
            {"w": factor * np.eye(size, dtype=np.float32)},
        )
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write
