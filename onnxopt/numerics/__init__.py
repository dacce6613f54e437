"""Numerics of compression: numpy in, numpy out; it knows no graph.

A quantizer is put together from independent parts, each a small registered function: a grid (`grids`), a scale rule
(`scales`), a rounding (`rounding`) and the granularity, chosen by a `QuantSpec`; `quantize` and `dequantize` apply
them, `pack` and `unpack` turn codes into the bytes of a file.
"""

from .packing import pack, packed_size, unpack
from .quantizer import Quantized, dequantize, quantize
from .spec import QuantSpec

__all__ = ["QuantSpec", "Quantized", "dequantize", "pack", "packed_size", "quantize", "unpack"]
