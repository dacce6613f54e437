"""What a Reshape does to axes: the same digits, grouped differently, some of them taken apart."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from onnxopt.analysis.axes.axis import Axes, Axis, Block, Digit, fixed, hold, replaced, runs
from onnxopt.analysis.axes.ids import Freeze
from onnxopt.analysis.symbols.expressions import Scalar, Space, product
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
    return _noted(_by_runs(axes, shape, lambda run, sizes: _grouped(run, sizes, space) or _whole(run, sizes)))


def followed(axes: Axes, shape: Sequence[Scalar], space: Space) -> Axes | None:
    """The same where no channels have to stay because sizes are unknown; None where some would."""
    lost = False

    def grouped(run: Sequence[Digit], sizes: Sequence[Scalar]) -> list[Axis]:
        nonlocal lost
        found = _grouped(run, sizes, space)
        lost = lost or (found is None and _is_open(run, sizes))
        return found or [()] * len(sizes)

    _by_runs(axes, shape, grouped)
    return None if lost else regrouped(axes, shape, space)


def at_sizes(
    axes: Axes, shape: Sequence[Scalar], known: Sequence[tuple[Sequence[int], Sequence[int]]], space: Space
) -> Axes | None:
    """The same for sizes that are open, if channels are taken apart in one way wherever sizes are looked at.

    Args:
        axes: of the tensor.
        shape: that it is given.
        known: what the shapes before and behind are, at some sizes of the inputs.
        space: of the sizes.
    """
    found: list[Axes] = []
    for before, behind in known:
        numbered = tuple(_numbered(axis, size) for axis, size in zip(axes, before, strict=True))
        result = followed(numbered, behind, space) if all(axis is not None for axis in numbered) else None  # type: ignore[arg-type]
        if result is None:
            return None
        found.append(result)
    if len({_structure(result) for result in found}) != 1:
        return None
    return _noted(tuple(_opened(*each, space) for each in zip(found[0], found[-1], shape, strict=True)))


def _numbered(axis: Axis, size: int) -> Axis | None:
    """An axis with numbers for open sizes; None where that takes more than one."""
    open_ = [digit for digit in axis if not isinstance(digit.size, int)]
    rest = product(digit.size for digit in axis if isinstance(digit.size, int))
    if not open_:
        return axis if rest == size else None
    if len(open_) > 1 or not isinstance(rest, int) or rest < 1 or size % rest:
        return None
    left = replace(open_[0], size=size // rest)
    return tuple(left if digit is open_[0] else digit for digit in axis if digit is not open_[0] or left.size != 1)


def _structure(axes: Axes) -> tuple[tuple[tuple[int, int | None], ...], ...]:
    """Which channels make which axes."""
    return tuple(
        tuple((int(digit.block.along(digit.at)[0]), int(digit.size)) for digit in axis if digit.block and digit.live)  # type: ignore[arg-type]
        for axis in axes
    )


def _opened(axis: Axis, other: Axis, size: Scalar, space: Space) -> Axis:
    """An axis with sizes that hold whatever those of the inputs are, from what it is at two choices of them."""
    if not any(digit.live for digit in axis):
        return fixed(size, axis[0].fixed if axis else _UNKNOWN)
    if len(axis) != len(other):
        return tuple(digit if digit.live else replace(digit, size=space.fresh(), block=None) for digit in axis)
    varying = [place for place, (x, y) in enumerate(zip(axis, other, strict=True)) if x.size != y.size]
    rest = divided(space, size, product(digit.size for place, digit in enumerate(axis) if place not in varying))
    if len(varying) != 1 or rest is None:
        rest = space.fresh()
    return tuple(
        replace(digit, size=rest, block=None) if place in varying else digit for place, digit in enumerate(axis)
    )


def _by_runs(
    axes: Axes, shape: Sequence[Scalar], group: Callable[[Sequence[Digit], Sequence[Scalar]], list[Axis]]
) -> Axes:
    digits = [digit for axis in axes for digit in axis]
    wanted = [(place, size) for place, size in enumerate(shape) if size != 1]
    result: list[Axis] = [()] * len(shape)
    for (start, end), (first, last) in runs([digit.size for digit in digits], [size for _, size in wanted]):
        run, sizes = digits[start:end], [size for _, size in wanted[first:last]]
        found = group(run, sizes) if any(digit.live for digit in run) else _fixed(run, sizes)
        for (place, _), axis in zip(wanted[first:last], found, strict=True):
            result[place] = axis
    return tuple(result)


def _fixed(run: Sequence[Digit], sizes: Sequence[Scalar]) -> list[Axis]:
    """A run without channels as axes of these sizes."""
    if len(run) == len(sizes) == 1 and run[0].size == sizes[0]:
        return [(run[0],)]
    return [fixed(size, run[0].fixed if run else _UNKNOWN) for size in sizes]


def _whole(run: Sequence[Digit], sizes: Sequence[Scalar]) -> list[Axis]:
    """A run of which all channels stay."""
    why = _UNKNOWN if _is_open(run, sizes) else _TORN
    hold(tuple(run), why)
    return [fixed(size, why) for size in sizes]


def _is_open(run: Sequence[Digit], sizes: Sequence[Scalar]) -> bool:
    return any(not isinstance(size, int) for size in (*sizes, *(digit.size for digit in run)))


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
