"""Batches as rows: which entries count, taken in small pieces, checked before anything of them is added."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxopt.errors import DataError

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]

PIECE = 1 << 17
"""Entries of a piece where each is looked at by itself: few enough for a cache, enough to pay for a call."""

NUMPY_BUFFERS = 1 << 18
"""Bytes at most of numpy's own buffers, where types are mixed."""


def checking_bytes(channels: int) -> int:
    """What `check_finite` needs at most: pieces as they come and go, in types of up to eight bytes."""
    return 4 * 8 * max(PIECE, channels) + NUMPY_BUFFERS


def as_float(array: Array) -> Array:
    """The same numbers as float32 where that holds all of the type (halves, small integers), else as float64."""
    return array.astype(float_type(array.dtype), copy=False)


def float_type(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The type that `as_float` gives."""
    return np.dtype(np.float32 if np.can_cast(dtype, np.float32) else np.float64)


def samples_in(batch: Array) -> int:
    """How many samples a batch counts for: its first axis; a scalar is one."""
    return len(batch) if batch.ndim else 1


@dataclass(frozen=True)
class Rows:
    """A batch seen as rows of channels.

    Attributes:
        values: [..., channels], a view of the batch.
        counted: [...], which rows count; None: all.
    """

    values: Array
    counted: Mask | None

    @classmethod
    def of(cls, batch: Array, axis: int | None, mask: Mask | None, tensor: str) -> "Rows":
        """See a batch along its channel axis.

        Args:
            batch: real numbers of any shape.
            axis: of the channels; None: every entry is a row of one channel.
            mask: boolean over leading axes of the batch, of their sizes or 1; False does not count.
            tensor: name for messages.

        Raises:
            DataError: no numbers, no such axis, or a mask that does not fit or tells channels apart.
        """
        shape = batch.shape
        if not np.can_cast(batch.dtype, np.float64):
            raise DataError(f"tensor {tensor!r} is {batch.dtype}: statistics need real numbers")
        if axis is not None and not -batch.ndim <= axis < batch.ndim:
            raise DataError(f"tensor {tensor!r} of shape {list(shape)} has no axis {axis} for channels")
        whole = None if mask is None else spread(mask, shape, tensor)
        if axis is None:
            return cls(batch[..., None], whole)
        if mask is not None and axis % batch.ndim < mask.ndim and mask.shape[axis % batch.ndim] != 1:
            raise DataError(
                f"tensor {tensor!r}: a mask of shape {list(mask.shape)} tells channels (axis {axis}) apart; "
                "give it size 1 there"
            )
        counted = whole if whole is None or not shape[axis] else np.moveaxis(whole, axis, -1)[..., 0]
        return cls(np.moveaxis(batch, axis, -1), counted)

    @property
    def channels(self) -> int:
        """Length of a row."""
        return int(self.values.shape[-1])

    def raw_pieces(self, limit: int) -> Iterator[Array]:
        """The counted rows in order, as `[rows, channels]` of at most `limit` rows and at least one."""
        for span in spans(self.values.shape[:-1] if self.channels else (0,), limit):
            piece = self.values[span].reshape(-1, self.channels)
            if self.counted is not None:
                piece = piece[self.counted[span].reshape(-1)]
            if len(piece):
                yield piece

    def pieces(self, limit: int) -> Iterator[Array]:
        """The same as float32 or float64."""
        return map(as_float, self.raw_pieces(limit))


def spans(shape: Sequence[int], limit: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cut an array of some shape into consecutive pieces of at most `limit` entries."""
    if math.prod(shape) == 0:
        return
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner <= limit or len(shape) == 1:
        step = max(1, limit // inner)
        yield from ((slice(start, start + step),) for start in range(0, shape[0], step))
        return
    for index in range(shape[0]):
        for rest in spans(shape[1:], limit):
            yield (index, *rest)


def spread(mask: Mask, shape: Sequence[int], tensor: str) -> Mask:
    """A mask over leading axes as one over all entries, without copying; DataError where it does not fit."""
    fits = mask.dtype == np.bool_ and mask.ndim <= len(shape)
    if not fits or any(size not in (1, whole) for size, whole in zip(mask.shape, shape, strict=False)):
        raise DataError(
            f"a {mask.dtype} mask of shape {list(mask.shape)} does not fit tensor {tensor!r} of shape {list(shape)}: "
            "a boolean one over its leading axes does"
        )
    return np.broadcast_to(mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim)), tuple(shape))


def check_finite(batch: Array, rows: Rows, mask: Mask | None, tensor: str, first: int) -> None:
    """Raise DataError for a NaN or infinity that counts.

    Args:
        batch: as it came, for telling where.
        rows: the same as rows.
        mask: as it came.
        tensor: its name.
        first: index of the batch's first sample among all.
    """
    if np.issubdtype(batch.dtype, np.integer) or batch.dtype == np.bool_:
        return
    limit = max(1, PIECE // max(1, rows.channels))
    whole = rows.counted is None and batch.flags.c_contiguous  # then without turning channels to the end
    pieces = (batch.reshape(-1)[span] for span in spans((batch.size,), PIECE)) if whole else rows.raw_pieces(limit)
    if all(np.isfinite(piece).all() for piece in pieces):
        return
    bad = ~np.isfinite(batch)
    if mask is not None:
        bad &= spread(mask, batch.shape, tensor)
    place = np.argwhere(bad)[0].tolist()
    kind = "NaN" if np.isnan(batch[tuple(place)]) else "an infinity"
    sample = first + (place[0] if place else 0)
    raise DataError(
        f"tensor {tensor!r} holds {kind} in sample {sample}, at {place} of its batch: "
        "mend the sample, or mask what is padding"
    )
