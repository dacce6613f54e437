"""Integer polynomials over symbols, in a normal form: equal ones compare equal.

What is no polynomial (a quotient that leaves a rest, the smaller of two sizes, ...) is an *atom* of its own, known by
its kind and its arguments: the same function of equal arguments is the same atom.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeAlias, Union

MOST_SIZE = 2**31 - 1
"""No axis is longer than this: what a bound such as INT32_MAX in a Slice relies on, too."""

_MOST_TERMS = 8
_MOST_FACTORS = 6
_MOST_COEFFICIENT = 2**40
_MOST_CONSTANT = 2**72
_MOST_DEPTH = 12
"""Beyond these, a sum or product is an atom of unknown size, so that no chain of nodes makes expressions grow."""


class Atom:
    """A symbol, or a function of expressions that is no polynomial of them.

    Attributes:
        kind: `dim` (a size of an input), `fresh` (unknown), or a function: `div`, `mod`, `min`, `max`, `broadcast`, ...
        args: arguments of the function; what identifies a symbol.
        low: the least value it can have, None where that is unknown; `high` likewise.
        label: what the model calls the size, if it does.
        depth: how many functions lie inside one another.
        space: what interned it.
    """

    __slots__ = ("args", "depth", "high", "kind", "label", "low", "order", "space")

    def __init__(self, space: "Space", order: int, kind: str, args: tuple[Hashable, ...]) -> None:
        self.space = space
        self.order = order
        self.kind = kind
        self.args = args
        self.low: int | None = None
        self.high: int | None = None
        self.label: str | None = None
        self.depth = 0

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(map(str, self.args))})"


Monomial: TypeAlias = tuple[Atom, ...]
Scalar: TypeAlias = Union[int, "Polynomial"]


class Polynomial:
    """A sum of products of atoms with integer coefficients; never a plain number.

    Attributes:
        terms: product of atoms (sorted) -> its coefficient, which is not zero; () is the constant term.
    """

    __slots__ = ("_bounds", "_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms = terms
        self._hash = hash(frozenset(terms.items()))
        self._bounds: tuple[int | None, int | None] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Polynomial) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        parts = (f"{c}" + "".join(f"*{atom}" for atom in monomial) for monomial, c in self.terms.items())
        return f"<{' + '.join(parts)}>"

    @property
    def space(self) -> "Space":
        """What interned its atoms."""
        return next(atom.space for monomial in self.terms for atom in monomial)

    @property
    def atom(self) -> Atom | None:
        """The atom that this is, if it is nothing more."""
        if len(self.terms) != 1:
            return None
        (monomial, coefficient), *_ = self.terms.items()
        return monomial[0] if coefficient == 1 and len(monomial) == 1 else None

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """Least and greatest value, as far as the atoms' own bounds tell."""
        if self._bounds is None:
            low: int | None = 0
            high: int | None = 0
            for monomial, coefficient in self.terms.items():
                least, most = _range(monomial)
                if coefficient < 0:
                    least, most = most, least
                low = None if low is None or least is None else low + coefficient * least
                high = None if high is None or most is None else high + coefficient * most
            self._bounds = (low, high)
        return self._bounds

    def __add__(self, other: Scalar) -> Scalar:
        return _sum(self, other, 1)

    def __radd__(self, other: int) -> Scalar:
        return _sum(self, other, 1)

    def __sub__(self, other: Scalar) -> Scalar:
        return _sum(self, other, -1)

    def __rsub__(self, other: int) -> Scalar:
        return other + self * -1

    def __neg__(self) -> Scalar:
        return self * -1

    def __mul__(self, other: Scalar) -> Scalar:
        terms: dict[Monomial, int] = {}
        for left, a in self.terms.items():
            for right, b in terms_of(other).items():
                monomial = tuple(sorted((*left, *right), key=_order))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return _normal(terms, self.space, "product", self, other)

    def __rmul__(self, other: int) -> Scalar:
        return self * other


class Space:
    """The symbols of one analysis; atoms are interned, so that the same one is the same object.

    Attributes:
        certain: whether the node at hand runs whenever the model does, so that what it demands of sizes holds.
        merged: whether sizes were found equal since this was last set to False.
    """

    def __init__(self) -> None:
        self.certain = True
        self.merged = False
        self._atoms: dict[tuple[str, tuple[Hashable, ...]], Atom] = {}
        self._fresh = 0
        self._leader: dict[Atom, Atom] = {}

    def dim(self, name: str, axis: int, label: str | None) -> Scalar:
        """The size of an axis of an input, or that of an axis which was found to be as long."""
        atom = self._intern("dim", (name, axis))
        atom.low, atom.high, atom.label = 0, MOST_SIZE, label
        while atom in self._leader:
            atom = self._leader[atom]
        return Polynomial({(atom,): 1})

    def fresh(self) -> Scalar:
        """A size of which nothing is known, equal to no other."""
        self._fresh += 1
        atom = self._intern("fresh", (self._fresh,))
        atom.low, atom.high = 0, MOST_SIZE
        return Polynomial({(atom,): 1})

    def function(self, kind: str, *args: Hashable, low: int | None = None, high: int | None = None) -> Scalar:
        """An integer function of expressions (or of anything hashable) that is none of theirs in closed form."""
        atom = self._intern(kind, args)
        if not atom.depth:
            inner = (a.depth for arg in args if isinstance(arg, Polynomial) for m in arg.terms for a in m)
            atom.depth = 1 + max(inner, default=0)
            if atom.depth > _MOST_DEPTH:
                return self.fresh() if low == 0 else self.unknown()
        atom.low, atom.high = low, high
        return Polynomial({(atom,): 1})

    def unknown(self) -> Scalar:
        """A number of which not even the sign is known."""
        self._fresh += 1
        return Polynomial({(self._intern("fresh", (self._fresh,)),): 1})

    def meet(self, a: Scalar, b: Scalar) -> None:
        """Note that an operator combines two axes, element by element.

        Sizes of inputs that the model calls by one name and also combines are taken as equal from then on; neither
        the name alone nor the operator alone, which may repeat an axis of size 1, is enough.
        """
        first = a.atom if isinstance(a, Polynomial) else None
        second = b.atom if isinstance(b, Polynomial) else None
        if first is None or second is None or first is second or not self.certain:
            return
        if first.kind == second.kind == "dim" and first.label is not None and first.label == second.label:
            first, second = sorted((first, second), key=_order)
            self._leader[second] = first
            self.merged = True

    def _intern(self, kind: str, args: tuple[Hashable, ...]) -> Atom:
        atom = self._atoms.get((kind, args))
        if atom is None:
            atom = self._atoms[kind, args] = Atom(self, len(self._atoms), kind, args)
        return atom


def _order(atom: Atom) -> int:
    return atom.order


def _range(monomial: Monomial) -> tuple[int | None, int | None]:
    if len(monomial) == 1:
        return monomial[0].low, monomial[0].high
    low: int | None = 1
    high: int | None = 1
    for atom in monomial:
        if atom.low is None or atom.low < 0:
            return None, None
        low = None if low is None else low * atom.low
        high = None if high is None or atom.high is None else high * atom.high
    return low, high


def terms_of(value: Scalar) -> Mapping[Monomial, int]:
    """The terms of a polynomial or of a number."""
    if isinstance(value, Polynomial):
        return value.terms
    return {(): int(value)} if value else {}


def from_terms(terms: Mapping[Monomial, int], space: Space) -> Scalar:
    """The polynomial with these terms, of which some may be zero."""
    return _normal(dict(terms), space, "sum", *terms, *terms.values())


def _sum(a: Polynomial, b: Scalar, sign: int) -> Scalar:
    terms = dict(a.terms)
    for monomial, coefficient in terms_of(b).items():
        terms[monomial] = terms.get(monomial, 0) + sign * coefficient
    return _normal(terms, a.space, "sum" if sign > 0 else "difference", a, b)


def _normal(terms: dict[Monomial, int], space: Space, kind: str, *args: Hashable) -> Scalar:
    terms = {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
    if not terms or (len(terms) == 1 and () in terms):
        return terms.get((), 0)
    large = len(terms) > _MOST_TERMS or any(
        len(monomial) > _MOST_FACTORS or abs(coefficient) > (_MOST_COEFFICIENT if monomial else _MOST_CONSTANT)
        for monomial, coefficient in terms.items()
    )
    return space.function(kind, *args) if large else Polynomial(terms)


def low(value: Scalar) -> int | None:
    """The least value that an expression is known to have at least."""
    return value.bounds[0] if isinstance(value, Polynomial) else value


def high(value: Scalar) -> int | None:
    """The greatest value that an expression is known to have at most."""
    return value.bounds[1] if isinstance(value, Polynomial) else value


def at_most(a: Scalar, b: Scalar) -> bool:
    """Whether `a <= b` is certain; False says nothing."""
    least = low(b - a)
    if least is not None and least >= 0:
        return True
    return any(_below(x, b) for x in _inside(a, "min")) or any(_below(a, y) for y in _inside(b, "max"))


def _below(a: Scalar, b: Scalar) -> bool:
    least = low(b - a)
    return least is not None and least >= 0


def _inside(value: Scalar, kind: str) -> Iterable[Scalar]:
    atom = value.atom if isinstance(value, Polynomial) else None
    return (arg for arg in atom.args if isinstance(arg, int | Polynomial)) if atom and atom.kind == kind else ()


def below(a: Scalar, b: Scalar) -> bool:
    """Whether `a < b` is certain; False says nothing."""
    return at_most(a + 1, b)


def product(values: Iterable[Scalar]) -> Scalar:
    """All of them multiplied; 1 for none."""
    result: Scalar = 1
    for value in values:
        result = result * value
    return result
