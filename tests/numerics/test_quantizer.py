"""The quantizer: against loops over scalars, and by its properties."""

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.numerics import Quantized, QuantSpec, dequantize, quantize
from onnxopt.numerics.grids import GRIDS, Codes, Floats, Grid
from onnxopt.numerics.rounding import ROUNDINGS
from onnxopt.numerics.scales import SCALE_RULES, BlockScale, Store, minmax

F32 = np.float32


def spec_of(**options: Any) -> QuantSpec:
    return QuantSpec.model_validate(options)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


def block_by_loop(block: np.ndarray, spec: QuantSpec) -> tuple[list[int], Any, int | None, list[Any]]:
    """Codes, scale, zero point and decoded values of one block, an element at a time, from the formulas."""
    half = 2 ** (spec.bits - 1)
    signed_low = {"narrow": 1 - half, "full": -half}
    grid = spec.grid if spec.grid != "auto" else "narrow" if spec.bits == 8 else "full"
    low, high = (signed_low[grid], half - 1) if spec.symmetric else (0, 2 * half - 1)
    top, bottom = max(0, *block), min(0, *block)
    if not spec.symmetric:
        scale = F32(F32(top) - F32(bottom)) / F32(high)
    elif grid == "narrow":
        scale = F32(max(top, -bottom)) / F32(high)
    else:
        scale = F32(top if top >= -bottom else bottom) / F32(low)
    if scale == 0:
        scale = F32(1)
    stored = spec.scale_type.type(scale)
    tiny = np.finfo(stored.dtype).smallest_normal
    if abs(scale) < tiny:
        stored = spec.scale_type.type(np.copysign(tiny, scale))
    zero = None if spec.symmetric else int(min(max(np.rint(-F32(bottom) / F32(stored)), low), high))
    codes = [int(min(max(np.rint(F32(w) / F32(stored)) + (zero or 0), low), high)) for w in block]
    return codes, stored, zero, [F32(code - (zero or 0)) * F32(stored) for code in codes]


def assert_equals_loop(weight: np.ndarray, spec: QuantSpec) -> None:
    quantized = quantize(weight, spec)
    decoded = dequantize(quantized)
    width = spec.block_size or weight.shape[1]
    for row in range(len(weight)):
        for block, start in enumerate(range(0, weight.shape[1], width)):
            at = (row, slice(start, start + width))
            codes, scale, zero, values = block_by_loop(weight[at], spec)
            assert quantized.codes[at].tolist() == codes
            assert quantized.scale[row, block] == scale
            assert zero == (None if quantized.zero_point is None else quantized.zero_point[row, block])
            assert decoded[at].tobytes() == np.array(values, F32).tobytes()


KINDS: list[dict[str, Any]] = [{"grid": "narrow"}, {"grid": "full"}, {"symmetric": False}]
weights = st.builds(
    lambda shape, seed, power, spread: np.ldexp(normal(*shape, seed=seed) ** spread, power).astype(F32),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70)),
    seed=st.integers(0, 10**6),
    power=st.integers(-20, 8),
    spread=st.sampled_from([1, 2, 3]),
)
specs = st.builds(
    lambda kind, **options: spec_of(**kind, **options),
    kind=st.sampled_from(KINDS),
    bits=st.integers(2, 8),
    block_size=st.sampled_from([16, 32, 64, None]),
    scale_dtype=st.sampled_from(["float32", "float16"]),
)


@given(weight=weights, spec=specs)
def test_equals_a_loop_over_scalars(weight: np.ndarray, spec: QuantSpec) -> None:
    assert_equals_loop(weight, spec)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_equals_a_loop_with_the_default_grid(bits: int, symmetric: bool) -> None:
    weight = normal(3, 70, seed=bits)
    weight[0] = 0
    weight[1, 32:64] = -0.0
    assert_equals_loop(weight, spec_of(bits=bits, symmetric=symmetric))


@given(weight=weights, spec=specs)
def test_error_is_at_most_half_a_step_inside_the_range_and_one_beyond(weight: np.ndarray, spec: QuantSpec) -> None:
    quantized = quantize(weight, spec)
    step = np.repeat(np.abs(quantized.scale.astype(F32)), spec.block_size or weight.shape[1], axis=1)
    step = step[:, : weight.shape[1]]
    error = np.abs(weight - dequantize(quantized))
    levels = spec.make_grid().levels
    # A rounded float16 scale may end this many steps short of the block's extreme.
    short = np.ptp(levels) * np.finfo(spec.scale_dtype).eps
    clipped = (quantized.codes == levels[-1]) & (spec.make_grid() == GRIDS["full"](spec.bits))
    limit = np.where(clipped, 1 + short, 0.5 + short) * step
    assert (error <= limit + np.abs(weight) * np.finfo(F32).eps).all()


@given(weight=weights, spec=specs)
def test_quantizing_again_changes_nothing(weight: np.ndarray, spec: QuantSpec) -> None:
    once = quantize(weight, spec)
    twice = quantize(dequantize(once), spec)
    same = np.ones(once.scale.shape, bool)
    if once.zero_point is not None:
        # Where rounding left an end of the grid unused the range shrank, and a new scale is right.
        width = spec.block_size or weight.shape[1]
        for block in range(once.scale.shape[1]):
            codes = once.codes[:, block * width : (block + 1) * width]
            points = once.zero_point[:, block]
            used = np.maximum(codes.max(axis=1), points) - np.minimum(codes.min(axis=1), points)
            same[:, block] = used == 2**spec.bits - 1
    same = np.repeat(same, spec.block_size or weight.shape[1], axis=1)[:, : weight.shape[1]]
    before, after = dequantize(once)[same], dequantize(twice)[same]
    if spec.grid == "full":
        np.testing.assert_array_equal(after, before)
    else:
        np.testing.assert_allclose(after, before, rtol=3e-7, atol=0)


def test_both_ends_of_the_unsigned_grid_are_nearly_always_used() -> None:
    quantized = quantize(normal(500, 32), spec_of(symmetric=False))
    assert np.mean(np.ptp(quantized.codes, axis=1) == 15) > 0.99


@given(weight=weights, spec=specs, seed=st.integers(0, 99))
def test_rows_are_independent(weight: np.ndarray, spec: QuantSpec, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(weight))
    all_at_once, permuted = quantize(weight, spec), quantize(weight[order], spec)
    np.testing.assert_array_equal(permuted.codes, all_at_once.codes[order])
    np.testing.assert_array_equal(permuted.scale, all_at_once.scale[order])


@given(weight=weights, spec=specs.filter(lambda spec: spec.scale_dtype == "float32"), power=st.integers(-30, 30))
def test_a_power_of_two_goes_to_the_scales(weight: np.ndarray, spec: QuantSpec, power: int) -> None:
    plain, scaled = quantize(weight, spec), quantize(np.ldexp(weight, power), spec)
    np.testing.assert_array_equal(scaled.codes, plain.codes)
    np.testing.assert_array_equal(scaled.scale, np.ldexp(plain.scale, power))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("columns", [1, 31, 33, 95])
def test_a_short_last_block_is_as_if_alone(kind: dict[str, Any], columns: int) -> None:
    weight, spec = normal(4, columns), spec_of(bits=4, **kind)
    whole = quantize(weight, spec)
    start = columns // 32 * 32 if columns % 32 else columns - 32
    tail = quantize(weight[:, start:], spec_of(bits=4, block_size=None, **kind))
    np.testing.assert_array_equal(whole.codes[:, start:], tail.codes)
    np.testing.assert_array_equal(whole.scale[:, -1:], tail.scale)
    np.testing.assert_array_equal(dequantize(whole)[:, start:], dequantize(tail))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_blocks_of_zeros_stay_zero(kind: dict[str, Any]) -> None:
    quantized = quantize(np.zeros((2, 40), F32), spec_of(**kind))
    assert not quantized.codes.any()
    assert (quantized.scale == 1).all()
    assert quantized.zero_point is None or not quantized.zero_point.any()
    assert not dequantize(quantized).any()


def test_zero_is_exact_in_every_block() -> None:
    weight = normal(50, 32) + 3
    weight[:, 7] = 0
    for kind in KINDS:
        assert not dequantize(quantize(weight, spec_of(**kind)))[:, 7].any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_scales_too_small_for_float16_are_raised_to_its_smallest_normal(kind: dict[str, Any]) -> None:
    weight = normal(3, 32) * F32(1e-6)
    quantized = quantize(weight, spec_of(scale_dtype="float16", **kind))
    assert (np.abs(quantized.scale) == np.finfo(np.float16).smallest_normal).all()
    assert np.abs(dequantize(quantized) - weight).max() <= np.finfo(np.float16).smallest_normal / 2


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_subnormal_and_huge_weights(kind: dict[str, Any]) -> None:
    tiny, huge = normal(2, 32) * F32(1e-40), normal(2, 32) * F32(1e37)
    assert np.abs(dequantize(quantize(tiny, spec_of(**kind)))).max() < 1e-37
    np.testing.assert_allclose(dequantize(quantize(huge, spec_of(bits=8, **kind))), huge, atol=3e35)


@pytest.mark.parametrize(
    ("bits", "kind", "expected"),
    [
        (4, {"block_size": 32}, 4 + 32 / 32),
        (4, {"block_size": 32, "scale_dtype": "float16", "symmetric": False}, 4 + (16 + 4) / 32),
        (2, {"block_size": 64, "scale_dtype": "float16", "symmetric": False}, 2 + (16 + 2) / 64),
        (8, {"block_size": None}, 8 + 32 / 128),
        (3, {"block_size": 128, "symmetric": False}, 4 + (32 + 4) / 128),
    ],
)
def test_bits_per_weight(bits: int, kind: dict[str, Any], expected: float) -> None:
    quantized = quantize(normal(16, 128), spec_of(bits=bits, **kind))
    assert quantized.bits_per_weight == pytest.approx(expected)
    assert quantized.nbytes == pytest.approx(expected * 16 * 128 / 8)


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_default_grid_has_less_error_than_narrow(bits: int) -> None:
    weight = normal(256, 256)
    squared = [
        np.square(dequantize(quantize(weight, spec_of(bits=bits, grid=grid))) - weight).sum()
        for grid in ("auto", "narrow")
    ]
    assert squared[0] < {2: 0.32, 3: 0.62, 4: 0.80, 5: 0.90, 6: 0.96, 7: 0.98}[bits] * squared[1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_layout_does_not_matter(tmp_path: Path, kind: dict[str, Any]) -> None:
    weight, spec = normal(70, 130), spec_of(**kind)
    expected = quantize(weight, spec)
    np.save(tmp_path / "weight.npy", weight)
    wide = np.zeros((140, 130), F32)
    wide[::2] = weight
    layouts = [np.asfortranarray(weight), wide[::2], np.load(tmp_path / "weight.npy", mmap_mode="r")]
    for other in layouts:
        quantized = quantize(other, spec)
        np.testing.assert_array_equal(quantized.codes, expected.codes)
        np.testing.assert_array_equal(quantized.scale, expected.scale)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_are_read_as_float32(dtype: Any) -> None:
    weight = normal(5, 40).astype(dtype)
    quantized, expected = quantize(weight, QuantSpec()), quantize(weight.astype(F32), QuantSpec())
    np.testing.assert_array_equal(quantized.codes, expected.codes)
    np.testing.assert_array_equal(quantized.scale, expected.scale)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_leading_axes_are_batches(kind: dict[str, Any]) -> None:
    weight, spec = normal(2, 3, 5, 40), spec_of(**kind)
    quantized = quantize(weight, spec)
    assert (quantized.codes.shape, quantized.scale.shape) == ((2, 3, 5, 40), (2, 3, 5, 2))
    decoded = dequantize(quantized)
    for batch in np.ndindex(2, 3):
        alone = quantize(weight[batch], spec)
        np.testing.assert_array_equal(quantized.codes[batch], alone.codes)
        np.testing.assert_array_equal(decoded[batch], dequantize(alone))


def test_many_chunks_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, spec = normal(33, 100), spec_of(symmetric=False)
    one = quantize(weight, spec)
    monkeypatch.setattr("onnxopt.numerics.quantizer._CHUNK", 250)
    many = quantize(weight, spec)
    np.testing.assert_array_equal(many.codes, one.codes)
    np.testing.assert_array_equal(many.scale, one.scale)
    np.testing.assert_array_equal(dequantize(many), dequantize(one))


@pytest.mark.parametrize("transposed", [False, True])
def test_temporaries_are_a_few_chunks(transposed: bool) -> None:
    weight = normal(4096, 1024)
    weight = weight.T if transposed else weight
    tracemalloc.start()
    quantized = quantize(weight, spec_of(symmetric=False))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    dequantize(quantized)
    peak_back = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - kept < 8e6
    assert peak_back - kept - weight.nbytes < 8e6


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        ((1, 2, 5), np.nan, r"weight\[1, 2, 5\] is nan"),
        ((0, 0, 39), -np.inf, r"weight\[0, 0, 39\] is -inf"),
        ((1, 0, 0), 1e300, r"weight\[1, 0, 0\] is 1e\+300"),
    ],
)
def test_names_the_first_bad_element(at: tuple[int, ...], value: float, message: str) -> None:
    weight = np.ones((2, 3, 40))
    weight[at] = weight[1, 2, 39] = value
    with pytest.raises(ValueError, match=message):
        quantize(weight, QuantSpec())


def test_names_bad_elements_beyond_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(33, 100)
    weight[20, 9] = np.nan
    monkeypatch.setattr("onnxopt.numerics.quantizer._CHUNK", 250)
    with pytest.raises(ValueError, match=r"weight\[20, 9\] is nan"):
        quantize(weight, QuantSpec())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_scale_beyond_float16_is_refused(kind: dict[str, Any]) -> None:
    weight = normal(3, 70)
    weight[2, 40] = 1e7
    assert np.isfinite(quantize(weight, spec_of(**kind)).scale).all()
    with pytest.raises(ValueError, match=r"scale\[2, 1\] is beyond float16: choose a wider scale_dtype"):
        quantize(weight, spec_of(scale_dtype="float16", **kind))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(4, F32), r"shape \[4\] cannot be quantized"),
        (np.ones((0, 4), F32), r"shape \[0, 4\] cannot be quantized"),
        (np.ones((3, 0), F32), r"shape \[3, 0\] cannot be quantized"),
        (np.ones((2, 2), np.int32), "type int32 cannot be quantized"),
        (np.ones((2, 2), complex), "type complex128 cannot be quantized"),
    ],
)
def test_refuses_what_is_no_weight(weight: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(weight, QuantSpec())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((2, 64), np.uint8)}, "codes uint8 and scale float32 where the spec says int8 and float32"),
        ({"scale": np.ones((2, 2), np.float16)}, "codes int8 and scale float16 where the spec says int8 and float32"),
        ({"scale": np.ones((2, 3), F32)}, r"scale has shape \(2, 3\), codes \(2, 64\) need \(2, 2\)"),
        ({"zero_point": np.zeros((2, 2), np.uint8)}, "zero point given with symmetric=True"),
        (
            {"codes": np.zeros((2, 64), np.uint8), "spec": spec_of(symmetric=False)},
            "zero point missing with symmetric=False",
        ),
        (
            {
                "codes": np.zeros((2, 64), np.uint8),
                "spec": spec_of(symmetric=False),
                "zero_point": np.zeros((2, 1), np.uint8),
            },
            r"zero point is uint8\(2, 1\), not uint8\(2, 2\)",
        ),
    ],
)
def test_parts_that_do_not_belong_together(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "codes": np.zeros((2, 64), np.int8),
        "scale": np.ones((2, 2), F32),
        "zero_point": None,
        "spec": QuantSpec(),
    }
    Quantized(**parts)
    with pytest.raises(ValueError, match=message):
        Quantized(**parts | change)


class TableGrid:
    """Some values, the code being the place among them: what a grid needs to be no integer grid."""

    levels = np.array([-1, -0.25, 0, 0.5], F32)
    has_zero_point = False
    code_dtype = np.dtype(np.uint8)

    def encode(self, normalized: Floats, zero_point: Codes | None = None) -> Codes:
        return np.asarray(np.abs(normalized[..., None] - self.levels).argmin(axis=-1), np.uint8)

    def decode(self, codes: Codes, zero_point: Codes | None = None) -> npt.NDArray[np.float32]:
        return np.asarray(self.levels[codes])


def test_registered_parts_take_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(blocks: np.ndarray, grid: Grid, store: Store) -> BlockScale:
        return BlockScale(store(minmax(blocks, grid, store).scale / 2))

    def lowest(blocks: np.ndarray, fit: BlockScale, grid: Grid) -> np.ndarray:
        return np.zeros(blocks.shape, grid.code_dtype)

    monkeypatch.setitem(GRIDS, "table", lambda bits: TableGrid())
    monkeypatch.setitem(SCALE_RULES, "halved", halved)
    monkeypatch.setitem(ROUNDINGS, "lowest", lowest)
    weight = normal(3, 70)
    by_table = quantize(weight, spec_of(grid="table"))
    table = np.multiply.outer(np.repeat(by_table.scale, 32, axis=1)[:, :70], TableGrid.levels)
    np.testing.assert_array_equal(by_table.codes, np.abs(table - weight[..., None]).argmin(axis=-1))
    np.testing.assert_array_equal(
        dequantize(by_table), np.take_along_axis(table, by_table.codes[..., None].astype(int), axis=-1)[..., 0]
    )
    by_rule = quantize(weight, spec_of(grid="table", scale="halved", rounding="lowest"))
    np.testing.assert_array_equal(by_rule.scale, by_table.scale / 2)
    np.testing.assert_array_equal(dequantize(by_rule), -np.repeat(by_rule.scale, 32, axis=1)[:, :70])
