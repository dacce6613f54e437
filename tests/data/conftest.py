"""Signatures to open data for."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from onnxopt.model import Signature, ValueInfo

MakeSignature = Callable[..., Signature]


@pytest.fixture(scope="session")
def sign() -> MakeSignature:
    """`sign(x=("FLOAT", ["N", 3]), outputs=[...])`: inputs by name; one output ["N", 10] unless given otherwise."""

    def make(outputs: Any = (("N", 10),), **inputs: tuple[str, Any]) -> Signature:
        return Signature(
            tuple(ValueInfo(name, ir.DataType[dtype], dims and tuple(dims)) for name, (dtype, dims) in inputs.items()),
            tuple(ValueInfo(f"y{i}", ir.DataType.FLOAT, dims) for i, dims in enumerate(outputs)),
        )

    return make
