"""Einsum: one letter, one axis."""

from collections import Counter
from collections.abc import Sequence

from onnxopt.analysis.axes.axis import Axis
from onnxopt.analysis.axes.rules import Call, rule

Letters = tuple[str, ...]
"""What stands for each axis of a term; those of an ellipsis, counted from the last, are called ..0, ..1, and so on."""


@rule("Einsum")
def _einsum(call: Call) -> None:
    operands = [call.axes(index) for index in range(len(call.node.inputs))]
    known = [axes for axes in operands if axes is not None]
    if len(known) < len(operands):
        for index in range(len(operands)):
            call.hold_input(index, "multiplied with a tensor of unknown rank", "needs-rule")
        return
    terms, result = parsed(call.node.attributes["equation"].as_string(), [len(axes) for axes in known])
    found: dict[str, list[Axis]] = {}
    holders: dict[str, set[int]] = {}
    for index, (letters, axes) in enumerate(zip(terms, known, strict=True)):
        for letter, axis in zip(letters, axes, strict=True):
            if axis:
                found.setdefault(letter, []).append(axis)
                holders.setdefault(letter, set()).add(index)
    chosen = {letter: call.united(axes) for letter, axes in found.items()}
    call.give(tuple(chosen.get(letter, ()) for letter in result))
    for letter, indices in holders.items():
        computed = [index for index in indices if not call.constant(index)]
        if letter in result and len(computed) > 1 and any(digit.live for digit in chosen[letter]):
            call.tag(chosen[letter], "heads")
        elif letter not in result:
            for index in sorted(indices):
                call.consume(index, terms[index].index(letter), known[index][terms[index].index(letter)])


def parsed(equation: str, ranks: Sequence[int]) -> tuple[list[Letters], Letters]:
    """The letters of each operand and of the result.

    Args:
        equation: as Einsum has it; without an arrow the result has the letters that occur once, sorted.
        ranks: of the operands.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    most = max((sum(letter.startswith("..") for letter in term) for term in terms), default=0)
    if not arrow:
        times = Counter(letter for term in terms for letter in term)
        right = "..." * (most > 0) + "".join(
            sorted(letter for letter, count in times.items() if count == 1 and not letter.startswith(".."))
        )
    return terms, _letters(right, len(right.replace("...", "")) + (most if "..." in right else 0))


def _letters(term: str, rank: int) -> Letters:
    before, dots, behind = term.partition("...")
    count = rank - len(before) - len(behind) if dots else 0
    if count < 0 or len(before) + len(behind) + count != rank:
        raise ValueError(f"{term} does not name {rank} axes")
    return (*before, *(f"..{number}" for number in reversed(range(count))), *behind)
