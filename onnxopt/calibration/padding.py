"""Where padding lies: a mask over samples and tokens as one over the leading axes of a tensor of some shape.

Nothing in a graph says which axis counts tokens, so sizes have to: an axis of as many entries as there are tokens
counts them. Where several axes could, the leading one is taken.
"""

from collections.abc import Sequence

import numpy as np

from onnxopt.statistics.masks import Mask

Shape = tuple[int, ...]


def placed(mask: Mask, shape: Shape, *, channels: int | None = None) -> Mask | None:
    """A mask as statistics of a tensor take it.

    Of these the first that fits the shape is taken:

    1. `[batch, ..., tokens, ...]`, the tokens on the first axis that can be theirs: also heads before tokens. Of
       attention scores `[batch, heads, tokens, tokens]` the rows of padding are left out, not the columns.
    2. `[batch * tokens, ...]`, flattened row by row.
    3. `[tokens, ..., batch, ...]`, time first.
    4. `[batch * heads, ..., tokens, ...]`, heads folded into the batch behind each sample.
    5. `[batch, ...]` without tokens (pooled, or of another length), and `[1, batch, ...]`, as recurrent layers give
       their last state: samples count that have at least one token that does.

    Args:
        mask: [batch] or [batch, tokens]; True counts.
        shape: of the tensor.
        channels: the axis of channels, if there is one: it counts neither samples nor tokens, whatever its size.

    Returns:
        A mask over the leading axes, of their sizes or 1; None: none fits.
    """
    free = [size if channels is None or axis != channels % len(shape) else -1 for axis, size in enumerate(shape)]
    rules = (*_OF_TOKENS, _samples)
    found = (rule(mask, free) for rule in (rules if mask.ndim == 2 else rules[-1:]))
    return next((each for each in found if each is not None), None)


def counts_tokens(mask: Mask, shape: Shape) -> bool:
    """Whether the tokens of a mask, and not only its samples, are found in a tensor of some shape."""
    return mask.ndim == 2 and any(rule(mask, shape) is not None for rule in _OF_TOKENS)


def _batch_first(mask: Mask, free: Sequence[int]) -> Mask | None:
    batch, tokens = mask.shape
    axis = _behind(free, tokens)
    return mask.reshape(batch, *[1] * (axis - 1), tokens) if axis and free[0] == batch else None


def _flattened(mask: Mask, free: Sequence[int]) -> Mask | None:
    return mask.reshape(-1) if [mask.size] == free[:1] else None


def _time_first(mask: Mask, free: Sequence[int]) -> Mask | None:
    batch, tokens = mask.shape
    axis = _behind(free, batch)
    return mask.T.reshape(tokens, *[1] * (axis - 1), batch) if axis and free[0] == tokens else None


def _folded(mask: Mask, free: Sequence[int]) -> Mask | None:
    batch, tokens = mask.shape
    axis = _behind(free, tokens)
    if not axis or not batch or free[0] < 1 or free[0] % batch:
        return None
    return np.repeat(mask, free[0] // batch, axis=0).reshape(free[0], *[1] * (axis - 1), tokens)


def _samples(mask: Mask, free: Sequence[int]) -> Mask | None:
    counts: Mask = np.logical_or.reduce(mask, axis=1) if mask.ndim == 2 else mask
    if [len(counts)] == free[:1]:
        return counts
    return counts[None] if [1, len(counts)] == free[:2] else None


def _behind(free: Sequence[int], size: int) -> int:
    """The first axis of a size behind the leading one; 0: there is none."""
    return next((axis for axis, found in enumerate(free) if axis and found == size), 0)


_OF_TOKENS = (_batch_first, _flattened, _time_first, _folded)
