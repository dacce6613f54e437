"""Gram matrices of the states of recurrent layers, direction by direction."""

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
    """Gram matrices of what an LSTM, GRU or RNN gives, `[steps, directions, batch, hidden]`: a group a direction.

    They stand for what the recurrence reads, the states of the step before: those of a direction's last step count
    too, and those that it begins with do not.
    """

    def begin(self, tensor: str, first_sample: int = 0) -> "StateGramState":
        """An empty state."""
        return StateGramState(self, tensor, first_sample, -1)

    def footprint(self, *shapes: Shape, dtype: npt.DTypeLike = np.float32) -> Footprint:
        """See `Accumulator.footprint`."""
        own = super().footprint((*shapes[0][:-1], prod(shapes[0][1::2])), dtype=dtype)
        return Footprint(own.state, own.work + prod(shapes[0]) * np.dtype(dtype).itemsize)


class StateGramState(GramState):
    """See `StateGram`."""

    def update(self, batch: Array, mask: Mask | None = None) -> None:
        """See `State.update`."""
        if batch.ndim != 4 or batch.shape[1] != self.request.groups:
            wanted = f"[steps, {self.request.groups}, batch, hidden]"
            raise DataError(f"tensor {self.tensor!r} of shape {list(batch.shape)} holds no states {wanted}")
        over = None if mask is None else self._over_rows(mask)
        rows = Rows.of(batch, -1, over, self.tensor)
        check_finite(batch, rows, over, self.tensor, self.first_sample + self.samples)
        beside = np.moveaxis(batch, 1, 2).reshape(len(batch), batch.shape[2], -1)
        super().update(beside, None if over is None else over[:, 0])

    def _over_rows(self, mask: Mask) -> Mask:
        """A mask over `[steps]`, `[steps, batch]` or `[steps, 1, batch]` as the last of these."""
        if mask.ndim < 3:
            return mask.reshape(len(mask), 1, -1)
        if mask.shape[1] != 1:
            shape = list(mask.shape)
            raise DataError(f"tensor {self.tensor!r}: a mask of shape {shape} tells directions apart; give it size 1")
        return mask
