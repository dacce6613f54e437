"""Random numbers that two models draw alike: each node that draws has a seed of its own, which its output's name gives.

Passes keep the names of values that they leave alone, so what is not touched draws the same in both models.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxopt.analysis.reach import reached
from onnxopt.edit import Edit
from onnxopt.model import Model, load
from onnxopt.nodes import DRAWING
from onnxopt.reading import operators

_MAY_DRAW = frozenset(("", name) for name in (*DRAWING, "Dropout"))

_SEEDS = 2**24
"""Seeds are float attributes, which hold so many integers exactly."""


@dataclass(frozen=True)
class Seeded:
    """A model's file in which nothing is left to chance.

    Attributes:
        path: the file, or where it draws without seeds a copy with them.
        draws: whether it draws at all.
        keys: what the seeds were made of; where those of two models are the same, so are their random numbers.
        outputs: the outputs that depend on random numbers.
    """

    path: Path
    draws: bool = False
    keys: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()


def seeded(path: Path, copy: Path) -> Seeded:
    """Give a seed to every node that draws random numbers and has none; in a copy of the file, where there is one."""
    if not operators(path) & _MAY_DRAW:
        return Seeded(path)
    model = load(path)
    drawing = {node: scope for scope, node in _nodes(model) if draws(node)}
    if not drawing:
        return Seeded(path)
    callers = {node for node in model.nodes() if node.op_identifier() in _drawing_functions(model)}
    outputs = reached(model, callers | drawing.keys())
    names = frozenset(value.name for value in model.graph.outputs if value in outputs and value.name)
    keys: Counter[str] = Counter()
    edit = Edit("seed")
    for node, scope in drawing.items():
        if "seed" in node.attributes:
            continue
        key = scope + (node.outputs[0].name or node.op_type)
        keys[key] += 1
        seed = zlib.crc32(f"{key} {keys[key]}".encode()) % _SEEDS
        edit.set_attribute(node, "seed", seed if node.op_type == "Dropout" else float(seed))
    if not keys:
        return Seeded(path, True, frozenset(), names)
    model.apply(edit)
    model.save(copy)
    return Seeded(copy, True, frozenset(f"{key} {count}" for key, count in keys.items()), names)


def draws(node: ir.Node) -> bool:
    """Whether a node draws random numbers; Dropout does in training mode alone."""
    training = node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
    return node.domain in {"", "ai.onnx"} and (training or node.op_type in DRAWING)


def _nodes(model: Model) -> Iterator[tuple[str, ir.Node]]:
    """Every node, and the name of the function that it lies in."""
    yield from (("", node) for node in model.nodes())
    for key, function in model.ir.functions.items():
        yield from (("::".join(key) + " ", node) for node in function.all_nodes())


def _drawing_functions(model: Model) -> set[ir.OperatorIdentifier]:
    """Functions that draw, or call one that does."""
    callers: dict[ir.OperatorIdentifier, set[ir.OperatorIdentifier]] = {}
    found = set()
    for key, function in model.ir.functions.items():
        for node in function.all_nodes():
            callers.setdefault(node.op_identifier(), set()).add(key)
            if draws(node):
                found.add(key)
    waiting = list(found)
    while waiting:
        new = callers.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found
