"""What a Reshape does to axes: the same digits, grouped differently, some of them taken apart."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from onnxopt.analysis.axes.axis import Axes, Axis, Block, Digit, fixed, hold, replaced, runs
from onnxopt.analysis.axes.ids import Freeze
from onnxopt.analysis.symbols.expressions import Scalar, Space
from onnxopt.analysis.symbols.functions import divided

_TORN = Freeze("semantics", "a Reshape puts its channels across one another")
_UNKNOWN = Freeze("needs-rule", "a Reshape whose sizes cannot be followed")


def regrouped(axes: Axes, shape: Sequence[Scalar], space: Space) -> Axes:
    """The axes of what a tensor is reshaped to.

    Digits keep their order. Where sizes have no common factors, or are unknown, channels stay whole.

    Args:
        axes: of the tensor.
        shape: that it is given.
        space: of the sizes.
    """
    digits = [digit for axis in axes for digit in axis]
    wanted = [(place, size) for place, size in enumerate(shape) if size != 1]
    result: list[Axis] = [()] * len(shape)
    for (start, end), (first, last) in runs([digit.size for digit in digits], [size for _, size in wanted]):
        places = [place for place, _ in wanted[first:last]]
        sizes = [size for _, size in wanted[first:last]]
        for place, axis in zip(places, _refined(digits[start:end], sizes, space), strict=True):
            result[place] = axis
    return _noted(tuple(result))


def _refined(run: list[Digit], sizes: list[Scalar], space: Space) -> list[Axis]:
    """One run of digits as axes of these sizes."""
    if not any(digit.live for digit in run):
        why = run[0].fixed if run else _UNKNOWN
        return (
            [(run[0],)] if len(run) == len(sizes) == 1 and run[0].size == sizes[0] else [fixed(s, why) for s in sizes]
        )
    grouped = _grouped(run, sizes, space)
    if grouped is not None:
        return grouped
    unknown = any(not isinstance(size, int) for size in (*sizes, *(digit.size for digit in run)))
    why = _UNKNOWN if unknown else _TORN
    hold(tuple(run), why)
    return [fixed(size, why) for size in sizes]


def _grouped(run: Sequence[Digit], sizes: Sequence[Scalar], space: Space) -> list[Axis] | None:
    left = deque(run)
    found: list[Axis] = []
    for size in sizes:
        axis: list[Digit] = []
        rest = size
        while rest != 1:
            if not left:
                return None
            digit = left.popleft()
            behind, inner = divided(space, rest, digit.size), divided(space, digit.size, rest)
            if behind is not None:
                axis.append(digit)
                rest = behind
            elif inner is not None and not (digit.live and not (isinstance(rest, int) and isinstance(inner, int))):
                parted = _parted(digit, rest, inner)
                found, axis, left = _renewed(digit, parted, found, axis, left)
                axis.append(parted[0])
                left.appendleft(parted[1])
                rest = 1
            else:
                return None
        found.append(tuple(axis))
    return None if left else found


def _parted(digit: Digit, outer: Scalar, inner: Scalar) -> tuple[Digit, Digit]:
    """A digit as two."""
    if digit.block is None or not digit.live:
        return replace(digit, size=outer, block=None, why=digit.fixed), replace(
            digit, size=inner, block=None, why=digit.fixed
        )
    assert isinstance(outer, int) and isinstance(inner, int)
    block = digit.block.taken_apart(digit.at, outer, inner)
    return Digit(outer, block, digit.at), Digit(inner, block, digit.at + 1)


def _renewed(
    digit: Digit, parted: tuple[Digit, Digit], found: list[Axis], axis: list[Digit], left: deque[Digit]
) -> tuple[list[Axis], list[Digit], deque[Digit]]:
    """The other digits of a block that was taken apart, as digits of the new block."""
    old, new = digit.block, parted[0].block
    if old is None or new is None:
        return found, axis, left
    factors = {at: at + (at > digit.at) for at in range(old.ids.ndim) if at != digit.at}
    return (
        list(replaced(tuple(found), old, new, factors)),
        list(replaced((tuple(axis),), old, new, factors)[0]),
        deque(replaced((tuple(left),), old, new, factors)[0]),
    )


def _noted(axes: Axes) -> Axes:
    """Tell blocks which of their factors share an axis with something else."""
    for axis in axes:
        for digit in axis:
            if digit.block is not None and any(other.block is not digit.block for other in axis):
                digit.block.mixed[digit.at] = True
    return axes


def whole(axis: Axis) -> Block | None:
    """The block that an axis holds all factors of, in any order, while more than one of them may lose entries."""
    block = axis[0].block if axis else None
    if block is None or any(block.held) or len(axis) != block.ids.ndim or len(axis) < 2:
        return None
    return block if all(digit.block is block for digit in axis) else None
