"""Gram matrices of the states that recurrent layers read: what each direction gave a step before."""

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from onnxopt.errors import DataError
from onnxopt.statistics.accumulators import Footprint, Shape
from onnxopt.statistics.grams import Gram, GramState
from onnxopt.statistics.masks import Array, Mask, Rows, check_finite


@dataclass(frozen=True)
class StateGram(Gram):
    """Gram matrices of an LSTM's, GRU's or RNN's states as its recurrence reads them, a group for each direction.

    Batches are its output Y `[steps, directions, batch, hidden]`. Every step counts but the one that a direction begins
    with, whose states are no output.

    Attributes:
        reverse: whether the first direction begins at the last step, as the second one always does.
    """

    reverse: bool = False

    def begin(self, tensor: str, first_sample: int = 0) -> "StateGramState":
        """An empty state."""
        return StateGramState(self, tensor, first_sample, -1)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        wide = (*shapes[0][:-1], self.groups * shapes[0][-1])
        own = super().footprint(wide, dtype=dtype)
        return Footprint(own.state, own.work + prod(shapes[0]) * np.dtype(dtype).itemsize)


class StateGramState(GramState):
    """See `StateGram`."""

    request: StateGram

    def update(self, batch: Array, mask: Mask | None = None) -> None:
        """See `State.update`."""
        if batch.ndim != 4 or batch.shape[1] != self.request.groups:
            wanted = f"[steps, {self.request.groups}, batch, hidden]"
            raise DataError(f"tensor {self.tensor!r} of shape {list(batch.shape)} holds no states {wanted}")
        rows = Rows.of(batch, -1, mask, self.tensor)
        check_finite(batch, rows, mask, self.tensor, self.first_sample + self.samples)
        super().update(self._read(batch), None if mask is None else self._both(mask))

    def _read(self, batch: Array) -> Array:
        """`[steps - 1, batch, directions * hidden]`: what the steps read, a direction's first one left out."""
        ways = [self.request.reverse, True][: self.request.groups]
        return np.concatenate([batch[1:, at] if back else batch[:-1, at] for at, back in enumerate(ways)], -1)

    def _both(self, mask: Mask) -> Mask:
        """Which rows count: those that lie between two steps that do."""
        if mask.ndim > 1 and mask.shape[1] != 1:
            shape = list(mask.shape)
            raise DataError(f"tensor {self.tensor!r}: a mask of shape {shape} tells directions apart; give it size 1")
        steps = mask[1:] & mask[:-1] if len(mask) > 1 else mask
        return steps if mask.ndim == 1 else steps[:, 0]
