"""Names that a subgraph takes from the graphs around it."""

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from onnxopt.nodes import bodies


def unshadow(graph: ir.Graph) -> None:
    """Rename values of subgraphs that have the name of a value around them.

    In memory values are told apart by identity, in a file by name: a node in such a subgraph that is made to read the
    outer value would read the inner one once saved. Linear in nodes.
    """
    if next(iter(graph.subgraphs()), None) is None:
        return
    taken = {value.name for each in (graph, *graph.subgraphs()) for value in _values(each)}
    visible = Counter(value.name for value in _values(graph))
    stack: list[tuple[ir.Graph, bool]] = [(body, True) for body in _bodies(graph)]
    while stack:
        body, entering = stack.pop()
        names = Counter[str | None]()
        if not entering:
            visible.subtract(value.name for value in _values(body))
            continue
        for value in _values(body):
            if value.name and visible[value.name]:
                value.name = _fresh(value.name, taken)
            names[value.name] += 1
        visible.update(names)
        stack.append((body, False))
        stack.extend((inner, True) for inner in _bodies(body))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    seen = dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    yield from seen
    for node in graph:
        yield from node.outputs


def _bodies(graph: ir.Graph) -> Iterator[ir.Graph]:
    return (body for node in graph for body in bodies(node))


def _fresh(stem: str, taken: set[str | None]) -> str:
    count = 1
    while f"{stem}_{count}" in taken:
        count += 1
    taken.add(f"{stem}_{count}")
    return f"{stem}_{count}"
