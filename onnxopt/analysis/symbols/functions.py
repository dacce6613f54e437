"""Integer functions of expressions, in closed form where there is one: quotients, rests, the smaller, the larger."""

import math

from onnxopt.analysis.symbols.expressions import (
    MOST_SIZE,
    Polynomial,
    Scalar,
    Space,
    at_most,
    below,
    from_terms,
    high,
    low,
    terms_of,
)


def quotient(space: Space, a: Scalar, b: Scalar) -> Scalar:
    """`a / b` as integers divide in ONNX: rounded towards zero. A divisor of 0 is the runtime's error."""
    if isinstance(a, int) and isinstance(b, int):
        return int(abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else space.unknown()
    exact = divided(space, a, b)
    if exact is not None:
        return exact
    least, positive = low(a), low(b)
    signless = least is not None and least >= 0 and positive is not None and positive >= 0
    if isinstance(b, int) and signless and b > 0:
        whole = {m: c - c % b for m, c in terms_of(a).items()}
        rest = {m: c % b for m, c in terms_of(a).items()}
        taken, left = from_terms(whole, space), from_terms(rest, space)
        outside = divided(space, taken, b)
        at_least = low(left)
        if outside is not None and at_least is not None and at_least >= 0:
            return outside + _floor(space, left, b)
        return _floor(space, a, b)
    return space.function("div", a, b, low=0 if signless else None)


def _floor(space: Space, a: Scalar, b: int) -> Scalar:
    """`a // b` for an `a` that is not negative and a positive `b`."""
    common = math.gcd(b, *terms_of(a).values())
    if common > 1:
        a, b = from_terms({monomial: c // common for monomial, c in terms_of(a).items()}, space), b // common
    least, most = low(a), high(a)
    if least is not None and most is not None and least // b == most // b:
        return least // b
    return space.function("div", a, b, low=0 if least is None else least // b, high=None if most is None else most // b)


def divided(space: Space, a: Scalar, b: Scalar) -> Scalar | None:
    """`a / b` where nothing is left over, whatever the sizes; None where that is not certain.

    A divisor that can be 0 counts as if it could not: dividing by it is an error.
    """
    if a == b:
        return 1
    divisor = terms_of(b)
    if len(divisor) != 1:
        return None
    ((factors, by),) = divisor.items()
    result = {}
    for monomial, coefficient in terms_of(a).items():
        left = list(monomial)
        for atom in factors:
            if atom not in left:
                return None
            left.remove(atom)
        if coefficient % by:
            return None
        result[tuple(left)] = coefficient // by
    return from_terms(result, space)


def modulo(space: Space, a: Scalar, b: Scalar, truncated: bool = False) -> Scalar:
    """`a mod b` with the sign of the divisor, or with that of the dividend (`truncated`, as in C)."""
    if isinstance(a, int) and isinstance(b, int):
        if not b:
            return space.unknown()
        return a % b if not truncated else (abs(a) % abs(b)) * (-1 if a < 0 else 1)
    if divided(space, a, b) is not None:
        return 0
    least, divisor = low(a), low(b)
    if least is not None and least >= 0 and divisor is not None and divisor >= 0:
        truncated = False
        if below(a, b):
            return a
    if isinstance(b, int) and b > 0 and not truncated:
        rest = from_terms({m: c % b for m, c in terms_of(a).items()}, space)
        least = low(rest)
        if isinstance(rest, int) or (below(rest, b) and least is not None and least >= 0):
            return rest
        return space.function("mod", rest, b, low=0, high=b - 1)
    return space.function("fmod" if truncated else "mod", a, b)


def smaller(space: Space, a: Scalar, b: Scalar) -> Scalar:
    """The smaller of two numbers."""
    if at_most(a, b):
        return a
    if at_most(b, a):
        return b
    lows, highs = (low(a), low(b)), [bound for bound in (high(a), high(b)) if bound is not None]
    least = None if None in lows else min(bound for bound in lows if bound is not None)
    return space.function("min", *_sorted(a, b), low=least, high=min(highs, default=None))


def larger(space: Space, a: Scalar, b: Scalar) -> Scalar:
    """The larger of two numbers."""
    if at_most(a, b):
        return b
    if at_most(b, a):
        return a
    lows, highs = [bound for bound in (low(a), low(b)) if bound is not None], (high(a), high(b))
    most = None if None in highs else max(bound for bound in highs if bound is not None)
    return space.function("max", *_sorted(a, b), low=max(lows, default=None), high=most)


def _sorted(a: Scalar, b: Scalar) -> tuple[Scalar, Scalar]:
    """The two in an order that does not depend on which came first."""
    return (a, b) if _key(a) <= _key(b) else (b, a)


def _key(value: Scalar) -> tuple[tuple[tuple[int, ...], int], ...]:
    return tuple(sorted((tuple(atom.order for atom in m), c) for m, c in terms_of(value).items()))


def absolute(space: Space, a: Scalar) -> Scalar:
    """`|a|`."""
    return larger(space, a, -a)


def broadcast(space: Space, a: Scalar, b: Scalar, meet: bool = True) -> Scalar:
    """The size of an axis after operands with sizes a and b were combined element by element.

    Sizes must be equal, or one of them 1; anything else is the runtime's error, and then nothing is claimed.
    """
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        return space.fresh()
    for one, other in ((a, b), (b, a)):
        least = low(one)
        if least is not None and least >= 2:
            return one
        if _within(other, one):
            return one
    if a == 0 or b == 0:
        return 0
    if meet:
        space.meet(a, b)
    sizes = {size for value in (a, b) for size in _merged(value)}
    return space.function("broadcast", frozenset(sizes), low=0, high=MOST_SIZE)


def _within(a: Scalar, b: Scalar) -> bool:
    """Whether `a` is `min(b, k)` for a k of 1 or more: then it is b, or 1, or nothing fits."""
    atom = a.atom if isinstance(a, Polynomial) else None
    if atom is None or atom.kind != "min" or b not in atom.args:
        return False
    least = [low(arg) for arg in atom.args if isinstance(arg, int | Polynomial) and arg != b]
    return all(bound is not None and bound >= 1 for bound in least)


def _merged(value: Scalar) -> frozenset[Scalar]:
    atom = value.atom if isinstance(value, Polynomial) else None
    if atom is not None and atom.kind == "broadcast":
        (sizes,) = atom.args
        assert isinstance(sizes, frozenset)
        return sizes
    return frozenset((value,))


def sliced(space: Space, size: Scalar, start: Scalar, end: Scalar, step: int) -> tuple[Scalar, Scalar]:
    """First index and number of elements of a slice of an axis, by Slice's rules for negative and large bounds."""
    if step > 0:
        first, stop = bound(space, start, size), bound(space, end, size)
        distance = stop - first if at_most(first, stop) else larger(space, stop - first, 0)
        if distance == 0 or at_most(stop, first):
            return first, 0
        return first, distance if step == 1 else quotient(space, distance + (step - 1), step)
    most = high(end)
    if most is None or most >= MOST_SIZE:  # runtimes do not agree on what that means backwards
        return space.unknown(), space.fresh()
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        first = min(max(start + size if start < 0 else start, 0), size - 1)
        stop = min(max(end + size if end < 0 else end, -1), size - 1)
        return first, max(0, -((first - stop) // step))
    if step == -1 and isinstance(end, int) and end < -MOST_SIZE and (start == -1 or at_most(size - 1, start)):
        return size - 1, size
    return space.unknown(), space.fresh()


def bound(space: Space, index: Scalar, size: Scalar) -> Scalar:
    """An index as Slice takes it with a positive step: negative ones from the end, then between 0 and the size."""
    least, most = low(index), high(index)
    if most is not None and most < 0:
        return larger(space, index + size, 0)
    if least is not None and least >= 0:
        return smaller(space, index, size)
    if index == size - 1:
        return larger(space, index, 0)
    return space.function("bound", index, size, low=0)
