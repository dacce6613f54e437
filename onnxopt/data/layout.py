"""Where the samples are: how an array of samples is cut into batches, and how many samples a batch holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxopt.data.archive import Array, Header
from onnxopt.data.validate import ASIDE, MASK, describe
from onnxopt.errors import DataError
from onnxopt.model import Signature, ValueInfo

Mode = Literal["rows", "row", "whole"]
"""How a batch gets its part of an array: some rows, one row without its first axis, all of it every time."""

BATCH_SIZE = 8
"""Rows per batch where the model leaves that open."""


@dataclass(frozen=True)
class Layout:
    """How arrays whose first axis counts samples become batches.

    Attributes:
        samples: samples that are fed.
        batch: samples per batch; the last may be shorter.
        modes: name of an input or a mask -> mode.
        dropped: samples at the end that do not fill the model's fixed batch.
    """

    samples: int
    batch: int
    modes: Mapping[str, Mode]
    dropped: int

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-self.samples // self.batch)

    def span(self, index: int) -> tuple[int, int]:
        """First sample of a batch, and the one behind its last."""
        return index * self.batch, min((index + 1) * self.batch, self.samples)


def plan(signature: Signature, headers: Mapping[str, Header], batch_size: int | None, where: str) -> Layout:
    """Lay out arrays whose first axis counts samples.

    An array of the input's rank is cut along its first axis: into batches of the model's fixed size, else of
    `batch_size`. An array with one axis more holds one complete feed a row: it is fed row by row, and so are
    then all others. A single value for an input of rank 0 goes with every batch.

    Args:
        signature: the model's.
        headers: shapes of all inputs' arrays, of the labels (`label/NAME`) and of masks (`mask/NAME`).
        batch_size: samples per batch where the model's is symbolic; None: 8.
        where: what messages call the data.

    Raises:
        DataError: a rank that fits neither way, different numbers of samples, no sample, or fixed batch sizes
            that cannot be served together.
    """
    infos = [info for info in signature.inputs if info.name in headers]
    modes: dict[str, Mode] = {info.name: _mode(info, headers[info.name], where) for info in infos}
    counts = {name: headers[name].shape[0] for name, mode in modes.items() if mode != "whole"}
    counts |= {name: (*header.shape, 0)[0] for name, header in headers.items() if name.startswith(ASIDE)}
    samples = _agreed(counts, where)
    fixed = {i.name: i.shape[0] for i in infos if modes[i.name] == "rows" and i.shape and isinstance(i.shape[0], int)}
    by_row = "row" in modes.values() or "rows" not in modes.values()
    batch = _fixed_batch(fixed, by_row, where) or min(batch_size or BATCH_SIZE, samples)
    dropped = samples % batch if fixed else 0
    if dropped == samples:
        raise DataError(f"{where}: {samples} samples do not fill one batch of the model's {batch}")
    by_feed = [headers[name].shape for name, mode in modes.items() if mode == "row"]
    masks = {name: headers[name].shape for name in headers if name.startswith(MASK) and name not in modes}
    modes |= {name: _mask_mode(shape, by_feed) for name, shape in masks.items()}
    return Layout(samples - dropped, batch, modes, dropped)


def _mode(info: ValueInfo, header: Header, where: str) -> Mode:
    rank = len(header.shape)
    if info.shape is None:
        return "rows" if rank else "whole"
    if rank == len(info.shape):
        return "rows" if rank else "whole"
    if rank == len(info.shape) + 1:
        return "row"
    raise DataError(
        f"{where}: input {info.name!r} takes {describe(info)}, the data are {list(header.shape)}; "
        "give samples along the first axis"
    )


def _mask_mode(shape: tuple[int, ...], by_feed: Sequence[tuple[int, ...]]) -> Mode:
    """A mask is fed row by row where it looks like an input that is, up to some axis behind the first."""
    rank = len(shape)
    return "row" if rank > 1 and any(other[:rank] == shape for other in by_feed) else "rows"


def _agreed(counts: Mapping[str, int], where: str) -> int:
    if len(set(counts.values())) > 1:
        raise DataError(f"{where}: arrays have different numbers of samples: {_pairs(counts)}")
    samples = next(iter(counts.values()), 1)
    if samples == 0:
        raise DataError(f"{where}: empty, no samples in {', '.join(map(repr, counts))}")
    return samples


def _fixed_batch(fixed: Mapping[str, int], by_row: bool, where: str) -> int | None:
    """Samples per batch where the model or the data leave no choice; None where they do."""
    sizes = set(fixed.values()) | ({1} if by_row else set())
    if len(sizes) > 1 or 0 in sizes:
        reason = "other arrays hold one feed a row" if by_row else "they cannot be cut alike"
        raise DataError(f"{where}: the model fixes first axes of {_pairs(fixed)}, {reason}; use names feedNNNN/INPUT")
    return next(iter(sizes), None)


def _pairs(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} {size}" for name, size in sizes.items())


def batch_rows(signature: Signature, feeds: Mapping[str, Array]) -> tuple[int, bool]:
    """How many samples a batch holds, and whether a part of its rows is a batch too.

    The first axis counts samples where all inputs (but those of rank 0) have it in common: the same symbol (or
    nothing) and no input has that symbol elsewhere, or the same fixed size, which an output has as well. Where
    that is not so a batch counts as one sample.
    """
    infos = [info for info in signature.inputs if info.name in feeds and feeds[info.name].ndim]
    sizes = {feeds[info.name].shape[0] for info in infos}
    leads = {info.shape[0] if info.shape else None for info in infos}
    later = {dim for info in infos for dim in (info.shape or ())[1:]}
    out = [info.shape[0] if info.shape else None for info in signature.outputs if info.shape != ()]
    if len(sizes) != 1 or 0 in sizes:
        return 1, False
    (size,) = sizes
    if all(isinstance(lead, int) for lead in leads):
        return (size if size in out else 1), False
    symbols = {lead for lead in leads if isinstance(lead, str)}
    free = len(symbols) <= 1 and not symbols & later and not any(isinstance(lead, int) for lead in leads)
    open_output = not out or any(not isinstance(lead, int) for lead in out)
    return (size, True) if free and open_output else (1, False)
