"""QuantSpec: what people write to choose a quantizer, one field for each independent choice."""

from typing import Any, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from .grids import GRIDS, Grid, default_grid
from .registry import Registry
from .rounding import ROUNDINGS
from .scales import SCALE_RULES

Bits: TypeAlias = Literal[2, 3, 4, 5, 6, 7, 8]
BlockSize: TypeAlias = Literal[16, 32, 64, 128, 256]


# Field -> the registry of its names, and names with a meaning of their own.
_PARTS: dict[str, tuple[Registry[Any], tuple[str, ...]]] = {
    "grid": (GRIDS, ("auto",)),
    "scale": (SCALE_RULES, ()),
    "rounding": (ROUNDINGS, ()),
}


def _list_names(schema: dict[str, Any]) -> None:
    """Add the registered names to the JSON schema of the fields that take one."""
    for field, (registry, more) in _PARTS.items():
        schema["properties"][field]["enum"] = [*more, *sorted(registry)]


class QuantSpec(BaseModel):
    """How a weight matrix `[output, input]` becomes codes and scales."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_list_names)

    bits: Bits = Field(
        4, description="Bits of a code. 2, 4 and 8 are stored at that size; the others take the next of these."
    )
    block_size: BlockSize | None = Field(
        32,
        description="Consecutive inputs of one output that share a scale; the last block may be short. "
        "null: one scale for each output.",
    )
    symmetric: bool = Field(
        True, description="true: code 0 means 0. false: each block also stores a zero point, for lopsided weights."
    )
    grid: str = Field(
        "auto",
        description="Which codes are used. auto: the best measured for the bits (full below 8, narrow at 8, "
        "unsigned when not symmetric). narrow: as many below zero as above. full: also the lowest, scales have a sign.",
    )
    scale: str = Field(
        "minmax",
        description="How a block's scale is chosen. minmax: its largest weight is kept.",
    )
    rounding: str = Field(
        "nearest",
        description="How weights become codes. nearest: each the closest level, ties to even.",
    )
    scale_dtype: Literal["float32", "float16"] = Field(
        "float32", description="Type of the stored scales; float16 halves them and refuses scales above 65504."
    )

    @field_validator("grid", "scale", "rounding")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        registry, more = _PARTS[str(info.field_name)]
        registry.check(name, *more)
        return name

    @model_validator(mode="after")
    def _grid_fits_symmetry(self) -> Self:
        if self.make_grid().has_zero_point == self.symmetric:
            wanted = str(not self.symmetric).lower()
            raise ValueError(f"grid {self.grid!r} needs symmetric: {wanted}; or leave grid: auto to choose by it")
        return self

    def make_grid(self) -> Grid:
        """Return the grid that `grid`, `bits` and `symmetric` stand for."""
        name = default_grid(self.bits, self.symmetric) if self.grid == "auto" else self.grid
        return GRIDS.find(name)(self.bits)

    @property
    def storage_bits(self) -> int:
        """Bits that a code occupies in a tensor of an ONNX type: 2, 4 or 8."""
        return next(width for width in (2, 4, 8) if width >= self.bits)

    @property
    def scale_type(self) -> np.dtype[Any]:
        """`scale_dtype` as numpy knows it."""
        return np.dtype(self.scale_dtype)

    def block_count(self, columns: int) -> int:
        """Return G, the number of blocks in a row of that many columns."""
        return 1 if self.block_size is None else -(-columns // self.block_size)
