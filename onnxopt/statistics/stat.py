"""What passes ask for: a statistic of a value of the model, by the value's name."""

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from onnxopt.analysis.axes.windows import Windows
from onnxopt.analysis.linear import Linear
from onnxopt.analysis.linear.recurrent import Layer, Recurrent
from onnxopt.statistics.accumulators import Accumulator
from onnxopt.statistics.conv_grams import ConvCrossGram, ConvGram, Patches
from onnxopt.statistics.grams import CrossGram, CrossGramMatrix, Gram, GramMatrix, Sides
from onnxopt.statistics.regression import ConvRegression, Regressed, Regression
from onnxopt.statistics.state_grams import StateGram

ResultT = TypeVar("ResultT")
Side = Literal["dense", "current"]
Share = Literal["all", "fit", "check"]

FOLD = 5
"""Of so many batches, one is for checking what is fitted on the others."""


@dataclass(frozen=True)
class Stat(Generic[ResultT]):
    """A statistic of one value: equal ones are computed once.

    Attributes:
        tensor: name of the value, an output of a node of the main graph or a graph input.
        request: what is computed of it; one of two sides (`CrossGram`, ...) needs a stage that runs both.
        side: the model whose value it is, where there are two: as it was before the passes' edits, or as it is. What
            requests of two sides call dense and current are both.
        others: sides and names of further values that the request looks at, in its order (`Regression`, ...); of
            requests of two sides the dense one, where it has another name.
        share: all batches; or to fit what is checked on the others: every fifth batch (of fewer than five the last)
            is for checking.
        least_rows: fewer rows than these are an error; 0: any number will do.
    """

    tensor: str
    request: Accumulator[Any, ResultT]
    side: Side = "current"
    share: Share = "all"
    others: tuple[tuple[Side, str], ...] = ()
    least_rows: int = field(default=0, compare=False)

    def counts(self, batch: int, batches: int) -> bool:
        """Whether a batch, of so many, is looked at."""
        fold = min(FOLD, batches)
        return self.share == "all" or (batch % fold == fold - 1) == (self.share == "check")

    @property
    def looks(self) -> tuple[tuple[Side, str], ...]:
        """The values that it looks at, in the order in which the request takes them."""
        if self.two_sided:
            return ("dense", dict(self.others).get("dense", self.tensor)), ("current", self.tensor)
        return (self.side, self.tensor), *self.others

    @property
    def two_sided(self) -> bool:
        """Whether it is of the dense and of the current value together."""
        return isinstance(self.request, CrossGram | ConvCrossGram)


def why_no_gram(linear: Layer) -> str | None:
    """Why the inputs of a layer have no Gram matrix `[groups, columns, columns]`; None where they have one."""
    if linear.kind == "matmul" and linear.groups > 1:
        return "its weight is a batch of matrices, which see different rows"
    return None


def gram(
    linear: Layer, *, taps: bool = True, positions: int | None = None, side: Side = "current", share: Share = "all",
    least_rows: int = 0,
) -> Stat[GramMatrix]:  # fmt: skip
    """Gram matrix of what a layer multiplies with its matrix, `[groups, columns, columns]`.

    Args:
        linear: the layer; see `why_no_gram`.
        taps: for Conv, columns are `in_features * taps` as in `Linear.matrix()`; False, and for ConvTranspose always:
            one a feature, of the pixels of its input.
        positions: of a Conv with taps, how many positions of each sample are looked at; None: all.
        side, share, least_rows: see `Stat`.

    Raises:
        ValueError: `why_no_gram` gives a reason.
    """
    patches = _patches(linear, taps, positions)
    request: Accumulator[Any, GramMatrix]
    if isinstance(linear, Recurrent) and linear.reads_states:
        request = StateGram(groups=linear.groups)
    else:
        request = ConvGram(patches) if patches else Gram(axis=linear.x_axis, groups=linear.groups)
    return Stat(linear.x.name or "", request, side, share, least_rows=least_rows)


def cross_gram(
    linear: Layer, *, taps: bool = True, positions: int | None = None, share: Share = "all", least_rows: int = 0,
    dense: str | None = None,
) -> Stat[CrossGramMatrix]:  # fmt: skip
    """Products of what a layer multiplies in the dense model with the same in the current one; see `gram`.

    Args:
        linear: the layer, of the current model.
        taps, positions, share, least_rows: see `gram`.
        dense: name of what it reads in the dense model; None: the same.
    """
    patches = _patches(linear, taps, positions)
    request: Accumulator[Sides, CrossGramMatrix]
    request = ConvCrossGram(patches) if patches else CrossGram(axis=linear.x_axis, groups=linear.groups)
    others: list[tuple[Side, str]] = [] if dense in (None, linear.x.name) else [("dense", dense or "")]
    return Stat(linear.x.name or "", request, share=share, others=tuple(others), least_rows=least_rows)


def _patches(linear: Layer, taps: bool, positions: int | None) -> Patches | None:
    """The patches that a convolution sees; None where every pixel or row is one by itself."""
    if why := why_no_gram(linear):
        raise ValueError(f"{linear.name}: {why}")
    if isinstance(linear, Recurrent) or linear.kind != "conv" or not taps:
        return None
    assert linear.geometry is not None
    windows = Windows.of(linear.node, linear.geometry.kernel)
    if linear.taps == 1 and not windows.padded and set(windows.strides) <= {1} and positions is None:
        return None
    return Patches(windows, linear.groups, positions)


def regression(
    linear: Linear, target: str, less: str | None = None, *, share: Share = "all", least_rows: int = 0
) -> Stat[Regressed]:
    """What a layer reads in the current model against what it should give.

    Args:
        linear: the layer, of the current model.
        target: a value of the dense model of the shape of the layer's output.
        less: a value of the current model to take off it.
        share, least_rows: see `Stat`.

    Raises:
        ValueError: `why_no_gram` gives a reason, or it is a ConvTranspose.
    """
    if linear.kind == "conv_transpose":
        raise ValueError(f"{linear.name}: its outputs are not of one place of its input each")
    patches = _patches(linear, True, None)
    request: Accumulator[Any, Regressed]
    request = (
        ConvRegression(patches) if patches
        else Regression(axis=linear.x_axis, target_axis=linear.y_axis, groups=linear.groups)
    )  # fmt: skip
    others: list[tuple[Side, str]] = [("dense", target)]
    if less is not None:
        others.append(("current", less))
    return Stat(linear.x.name or "", request, "current", share, tuple(others), least_rows)
