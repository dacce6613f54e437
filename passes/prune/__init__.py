"""Pruning: whole channels, heads and neurons leave a model. What the passes share is here: how options name groups."""

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from onnxopt.analysis.axes import ChannelGroup, Channels
from onnxopt.analysis.axes.groups import Member
from onnxopt.analysis.axes.scoring import readers
from onnxopt.errors import RecipeError
from onnxopt.globs import check, matches
from onnxopt.model import Model
from onnxopt.nodes import label

_NEAREST = 3


def checked(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns, as a validator of an option.

    Raises:
        ValueError: one is no regular expression.
    """
    for pattern in patterns:
        check(pattern)
    return patterns


@dataclass(frozen=True)
class Names:
    """What a group goes by: names of weights, and of the nodes that read them.

    Attributes:
        makers: of what makes its units; an option that includes means these.
        all: of whatever would change with it; an option that excludes means any of these.
    """

    makers: frozenset[str]
    all: frozenset[str]


def names_of(channels: Channels, group: ChannelGroup) -> Names:
    """What options may call a group."""
    made = {group.name, *_member_names(channels, (member for member in group.members if not member.consumes))}
    return Names(frozenset(made), frozenset({*made, *_member_names(channels, group.members)}))


def _member_names(channels: Channels, members: Iterable[Member]) -> Iterator[str]:
    for member in members:
        yield member.weight.root.name or ""
        yield from (label(node) for node, _ in member.weight.uses)
        yield from (label(node) for node, _ in readers(channels, member.weight))


def not_found(option: str, pattern: str, model: Model, groups: Iterable[Names]) -> RecipeError | None:
    """What is to be said of a pattern that covers no name of a model; None where it covers one."""
    names = {name for each in groups for name in each.all}
    names |= {label(node) for node in model.nodes()} | {value.name or "" for value in model.weights()}
    if matches(pattern, names):
        return None
    near = difflib.get_close_matches(pattern, sorted(names), n=_NEAREST)
    hint = f"did you mean {' or '.join(near)}?" if near else "`onnxopt inspect --groups` lists the groups"
    return RecipeError(f"{option}: {pattern!r} names no group, weight or node; {hint}")


__all__ = ["Names", "checked", "names_of", "not_found"]
