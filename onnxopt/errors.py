"""Everything that onnxopt raises, and the fact of having declined.

Each message is one line: what is wrong, where (node, tensor, file, key) and what to do about it.
The exit codes are those of the command line.
"""

from dataclasses import dataclass
from typing import ClassVar


class OnnxOptError(Exception):
    """Base of all errors that onnxopt raises on purpose."""

    exit_code: ClassVar[int] = 1


class RecipeError(OnnxOptError):
    """The recipe, an option or the command line is wrong."""

    exit_code = 2


class ModelError(OnnxOptError):
    """The model cannot be read, is not valid, or cannot be written."""

    exit_code = 3


class DataError(OnnxOptError):
    """Calibration or evaluation data do not fit the model or are unusable."""

    exit_code = 3


class ContractViolation(OnnxOptError):
    """A pass, or the whole run, broke what it promised; no output was written."""

    exit_code = 4


class KernelError(OnnxOptError):
    """The kernel library is missing, does not load or does not fit the runtime."""


@dataclass(frozen=True)
class Declined:
    """A refusal as a fact: what a pass left as it was, by which rule, and why.

    Attributes:
        node: name of the node or tensor that was left alone.
        rule: the pass's rule that declined, e.g. `fold-constants`.
        why: the reason, readable on its own.
    """

    node: str
    rule: str
    why: str


def innermost(error: BaseException) -> str:
    """The first line of what an error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
