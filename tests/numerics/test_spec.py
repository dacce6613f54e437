"""QuantSpec: what it accepts, what it refuses and how it says so."""

from typing import Any

import pytest
from pydantic import ValidationError

from onnxopt.numerics import QuantSpec
from onnxopt.numerics.grids import GRIDS, IntegerGrid


def test_options_round_trip() -> None:
    spec = QuantSpec(bits=2, block_size=None, symmetric=False, scale_dtype="float16")
    assert QuantSpec.model_validate_json(spec.model_dump_json()) == spec
    assert QuantSpec.model_validate(spec.model_dump()) == spec
    assert hash(spec) == hash(spec.model_copy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "2, 3, 4, 5, 6, 7 or 8"),
        ({"block_size": 48}, "16, 32, 64, 128 or 256"),
        ({"scale_dtype": "bfloat16"}, "'float32' or 'float16'"),
        ({"blocksize": 32}, "Extra inputs are not permitted"),
        ({"scale": "minmx"}, r"unknown scale rule 'minmx'; allowed: .*minmax.*; did you mean 'minmax'\?"),
        ({"rounding": "nearst"}, r"unknown rounding 'nearst'; allowed: .*nearest.*; did you mean 'nearest'\?"),
        ({"grid": "atuo"}, r"unknown grid 'atuo'; allowed: auto, full, narrow, unsigned; did you mean 'auto'\?"),
        ({"grid": "unsigned"}, "grid 'unsigned' needs symmetric: false"),
        ({"grid": "narrow", "symmetric": False}, "grid 'narrow' needs symmetric: true"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantSpec(**options)


def test_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        QuantSpec().bits = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"bits": 2}, -2, 1),
        ({"bits": 4}, -8, 7),
        ({"bits": 7}, -64, 63),
        ({"bits": 8}, -127, 127),
        ({"bits": 8, "grid": "full"}, -128, 127),
        ({"bits": 4, "grid": "narrow"}, -7, 7),
        ({"bits": 2, "symmetric": False}, 0, 3),
        ({"bits": 8, "symmetric": False, "grid": "unsigned"}, 0, 255),
    ],
)
def test_grid_of_a_spec(options: dict[str, Any], low: int, high: int) -> None:
    assert QuantSpec(**options).make_grid() == IntegerGrid(low, high, has_zero_point=low == 0)


def test_storage_bits_are_those_of_an_onnx_type() -> None:
    widths = [QuantSpec.model_validate({"bits": bits}).storage_bits for bits in range(2, 9)]
    assert widths == [2, 4, 4, 8, 8, 8, 8]


@pytest.mark.parametrize(("block_size", "columns", "blocks"), [(32, 64, 2), (32, 65, 3), (256, 5, 1), (None, 65, 1)])
def test_block_count(block_size: Any, columns: int, blocks: int) -> None:
    assert QuantSpec(block_size=block_size).block_count(columns) == blocks


def test_json_schema_describes_every_option_and_lists_the_names() -> None:
    fields = QuantSpec.model_json_schema()["properties"]
    assert all(field["description"] for field in fields.values())
    assert fields["grid"]["enum"] == ["auto", *sorted(GRIDS)]
    assert "minmax" in fields["scale"]["enum"]
    assert "nearest" in fields["rounding"]["enum"]
