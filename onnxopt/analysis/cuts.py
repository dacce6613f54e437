"""Cut points of a graph and the stages between them: what runs one after the other with little to hand on."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate, chain, pairwise

import onnx_ir as ir

from onnxopt.analysis.dominance import Confluence
from onnxopt.analysis.flow import Flow, flow
from onnxopt.analysis.structure import reads
from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.nodes import inner_graphs, label

_SINKS = 4
"""Graph outputs tried as the end of the trunk."""

_EXTENSIONS = 8
"""How often a trunk that begins inside the graph is continued backwards."""

_LARGER, _FEWER = 1.25, 2
"""Trunks are as good as the best when their largest piece is larger by no more than the one factor, and their pieces
are fewer by no more than the other. It keeps a trunk from beginning inside the first block's branch, which divides
that one block at the price of one more value to hand on."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A stage: nodes that run after those of earlier stages.

    Attributes:
        nodes: of the main graph, in an order in which they run.
        cut: the value that the stage ends in; None for the last stage.
    """

    nodes: tuple[ir.Node, ...]
    cut: ir.Value | None


@dataclass(frozen=True)
class _Part:
    """Some nodes by number, the value that they end in, and the weights that they read."""

    nodes: tuple[int, ...]
    cut: int | None
    bytes: int
    weighs: bool


def trunk(model: Model) -> list[ir.Value]:
    """The tensors through which all data pass on their way from a root to a sink, in order.

    Data that flow through Shape and Size alone do not count. A sink is a graph output (the few with the most weight
    matrices in a row are tried), a root any value. Taken are those for which the largest piece between two trunk
    values is smallest, counted in bytes of weights and nodes; among those about as good the ones with the most pieces
    that have weights; among those about as good the earliest, graph inputs first. So neither masks, position tables
    and past keys, which enter everywhere, nor outputs on the way spoil it. Where the root is a value inside the graph
    (an embedding, where the tokens make the mask, too; the deepest level of a U-Net), the trunk goes on backwards
    from it as from a sink. Sequences, optional values and graph inputs are left out.

    n log n in nodes at worst, linear as a rule.
    """
    data = flow(model)
    return [data.values[value] for value in _trunk(data)]


def stages(model: Model, *, most_bytes: int | None = None, cuts: Sequence[str] | None = None) -> list[Segment]:
    """Divide the main graph into stages; a stage reads graph inputs, initializers and values of earlier stages.

    Each stage is made of the nodes that its cut depends on and that no earlier stage has, and of those that it takes
    besides for graph outputs that need nothing of later stages; the last one holds the rest. Every node is in exactly
    one stage, those that no output needs in the last. Subgraphs stay in their node.
    Without cuts a stage ends at a trunk value (see `trunk`) such that it has weight matrices of its own: about one
    block or layer, with what follows it up to the next weights, unless that makes more values to hand on. One stage
    where there is no trunk.

    Args:
        model: the model.
        most_bytes: join consecutive stages while their weights together take no more than this; a stage that takes
            more by itself stays.
        cuts: names of the values to cut at, in any order, instead of trunk values.

    Raises:
        ModelError: a cut is no value of the main graph, is an input or a weight, is no tensor, depends on no input,
            or comes from the same node as another.
    """
    data = flow(model)
    if cuts is None:
        parts = _with_weights(data, _parts(data, _trunk(data)))
    else:
        numbers = sorted({_named(model, data, name) for name in cuts})
        _refuse_twins(data, numbers)
        parts = _parts(data, numbers)
    if most_bytes is not None:
        parts = _within(parts, most_bytes)
    last = len(parts) - 1
    return [
        Segment(
            tuple(data.nodes[node] for node in part.nodes),
            None if at == last or part.cut is None else data.values[part.cut],
        )
        for at, part in enumerate(parts)
    ]


def frontier(segments: Sequence[Segment]) -> list[list[ir.Value]]:
    """For each boundary between stages the values made before it, graph inputs included, that later ones read.

    What subgraphs read counts; initializers, and outputs of the graph that nobody reads later, do not. In order:
    graph inputs as they are first read, then what nodes make. Linear in the size of the graph and of the result.
    """
    made = {value: at for at, segment in enumerate(segments) for node in segment.nodes for value in node.outputs}
    graphs = {node.graph for segment in segments for node in segment.nodes}
    inputs: dict[ir.Value, int] = {}
    used: dict[ir.Value, int] = {}
    for at, segment in enumerate(segments):
        for value in (value for node in segment.nodes for value in reads(node)):
            if value in made:
                used[value] = at
            elif value.is_graph_input() and value.graph in graphs and not value.is_initializer():
                inputs[value] = 0
                used[value] = at
    result: list[list[ir.Value]] = [[] for _ in segments[1:]]
    for value, first in (*inputs.items(), *made.items()):
        for boundary in result[first : used.get(value, first)]:
            boundary.append(value)
    return result


@dataclass(frozen=True)
class _Route:
    """A trunk from a root to a sink.

    Attributes:
        largest: cost of the largest piece.
        blocks: pieces that have weights.
        rest: cost of what does not lead to the sink.
        cuts: the trunk; the root is one where it can be cut at.
    """

    root: int
    largest: int
    blocks: int
    rest: int
    cuts: tuple[int, ...] = ()


def _trunk(data: Flow) -> tuple[int, ...]:
    costs = _moved_to_readers(data, [size + 1 for size in data.bytes])
    blocks = _moved_to_readers(data, [int(weighs) for weighs in data.weighs])
    routes = [_route(data, sink, costs, blocks) for sink in _sinks(data)]
    if not routes:
        return ()
    route = _first_good([replace(each, largest=max(each.largest, each.rest)) for each in routes])
    cuts, sink = route.cuts, -1
    for _ in range(_EXTENSIONS):
        if data.makers[route.root] < 0 or route.root == sink:
            break
        sink = route.root
        route = _route(data, sink, costs, blocks)
        cuts = route.cuts[:-1] + cuts
    return cuts


def _first_good(routes: Sequence[_Route]) -> _Route:
    """The first of those that are as good as the best in their largest piece, then in the number of pieces."""
    largest = min(route.largest for route in routes)
    routes = [route for route in routes if route.largest <= _LARGER * largest]
    blocks = max(route.blocks for route in routes)
    return next(route for route in routes if _FEWER * route.blocks >= blocks)


def _moved_to_readers(data: Flow, costs: list[int]) -> list[int]:
    """Costs by node, those of nodes on which no data depend moved to who first needs them."""
    costs = costs.copy()
    reader: dict[int, int] = {}
    for at, needs in enumerate(data.needs):
        for value in needs:
            reader.setdefault(data.makers[value], at)
    for at, outputs in enumerate(data.outputs):
        if at in reader and not any(data.carries[value] for value in outputs):
            costs[reader[at]] += costs[at]
            costs[at] = 0
    return costs


def _sinks(data: Flow) -> list[int]:
    """The graph outputs behind the most weight matrices in a row, then behind the most nodes."""
    length = [0] * len(data.values)
    for reads_, outputs, weighs in zip(data.data, data.outputs, data.weighs, strict=True):
        far = max((length[value] for value in reads_), default=0) + 1 + weighs * len(data.nodes)
        for value in outputs:
            length[value] = far
    ends = [at for at, value in enumerate(data.values) if value.is_graph_output()]
    ends = [at for at in ends if data.makers[at] >= 0 and data.carries[at]]
    return sorted(ends, key=lambda at: -length[at])[:_SINKS]


def _route(data: Flow, sink: int, costs: list[int], blocks: list[int]) -> _Route:
    """The best trunk that leads to a sink, of all roots."""
    tree, count = _confluence(data, sink), len(data.values)
    inside = [count + at in tree for at in range(len(data.nodes))]
    until = list(accumulate((cost if here else 0 for cost, here in zip(costs, inside, strict=True)), initial=0))
    heavy = list(accumulate((block if here else 0 for block, here in zip(blocks, inside, strict=True)), initial=0))
    rest = sum(costs) - until[-1]
    nearest = {sink: sink}  # of any vertex: the next trunk value on its way, itself where it can be one
    following = {sink: sink}
    largest, pieces, roots = {sink: 0}, {sink: 0}, []
    for vertex in chain([sink], _backwards(data, tree)):
        up = nearest[tree.next(vertex)]
        nearest[vertex] = up
        if vertex >= count or not (data.makers[vertex] < 0 or data.tensor[vertex] or vertex == sink):
            continue
        nearest[vertex], following[vertex] = vertex, up
        here, there = data.makers[vertex] + 1, data.makers[up] + 1
        largest[vertex] = max(largest[up], until[there] - until[here])
        pieces[vertex] = pieces[up] + (heavy[there] > heavy[here])
        begun = pieces[vertex] + (heavy[here] > 0)
        roots.append(_Route(vertex, max(largest[vertex], until[here]), begun, rest))
    route = _first_good(sorted(roots, key=lambda each: each.root))
    passed = [route.root]
    while passed[-1] != sink:
        passed.append(following[passed[-1]])
    return replace(route, cuts=tuple(at for at in passed if data.makers[at] >= 0 and data.tensor[at]))


def _confluence(data: Flow, sink: int) -> Confluence:
    """The tree of what data on the way to a sink pass through: values, and nodes numbered after all values."""
    count = len(data.values)
    tree = Confluence(count + len(data.nodes), sink)
    meets: dict[int, int] = {}
    for at in range(data.makers[sink], -1, -1):
        for value in data.outputs[at]:
            if value in meets:
                tree.add(value, meets[value])
        used = [value for value in data.outputs[at] if value in tree]
        if used:
            tree.add(count + at, reduce(tree.meet, used))
            for value in data.data[at]:
                if data.carries[value]:
                    meets[value] = tree.meet(meets[value], count + at) if value in meets else count + at
    for value in meets:
        if data.makers[value] < 0:
            tree.add(value, meets[value])
    return tree


def _backwards(data: Flow, tree: Confluence) -> Iterator[int]:
    """The tree's vertices but the sink, each after those that it leads to."""
    for at in range(data.makers[tree.sink], -1, -1):
        yield from (value for value in data.outputs[at] if value in tree and value != tree.sink)
        if len(data.values) + at in tree:
            yield len(data.values) + at
    yield from (value for value, maker in enumerate(data.makers) if maker < 0 and value in tree)


def _parts(data: Flow, cuts: Sequence[int]) -> list[_Part]:
    """The nodes by the cut that needs them first, then those that none needs."""
    places = _needed_by_cuts(data, cuts)
    _place_outputs(data, cuts, places)
    last = max(places.values(), default=0)
    members: list[list[int]] = [[] for _ in range(last + 1)]
    for at in range(len(data.nodes)):
        members[places.get(at, last)].append(at)
    return [_part(data, nodes, cut) for nodes, cut in zip(members, (*cuts, None), strict=False)]


def _needed_by_cuts(data: Flow, cuts: Sequence[int]) -> dict[int, int]:
    places: dict[int, int] = {}
    for place, cut in enumerate(cuts):
        _place_upstream(data, data.makers[cut], place, places)
    return places


def _place_upstream(data: Flow, node: int, place: int, places: dict[int, int]) -> None:
    """Put a node and what it depends on, as far as it has no place yet, to one place."""
    waiting = [node]
    while waiting:
        at = waiting.pop()
        if at >= 0 and at not in places:
            places[at] = place
            waiting.extend(data.makers[value] for value in data.needs[at])


def _place_outputs(data: Flow, cuts: Sequence[int], places: dict[int, int]) -> None:
    """Graph outputs that no cut depends on are made in the first stage that has all that it takes."""
    position = {cut: place for place, cut in enumerate(cuts)}
    earliest = [0] * len(data.nodes)
    for at, needs in enumerate(data.needs):
        earliest[at] = places.get(at, 0)
        for value in needs if at not in places else ():
            if data.makers[value] >= 0:
                there = earliest[data.makers[value]]
                earliest[at] = max(earliest[at], there + (position.get(value) == there))
    ends = {maker for maker, value in zip(data.makers, data.values, strict=True) if value.is_graph_output()} - {-1}
    for at in sorted(ends, key=lambda end: (earliest[end], end)):
        _place_upstream(data, at, earliest[at], places)


def _part(data: Flow, nodes: Sequence[int], cut: int | None) -> _Part:
    return _Part(tuple(nodes), cut, sum(data.bytes[at] for at in nodes), any(data.weighs[at] for at in nodes))


def _with_weights(data: Flow, parts: list[_Part]) -> list[_Part]:
    """Parts of at least one weight matrix each, with what follows it as long as that leaves no more to hand on."""
    live = _live(data, parts)
    heavy = [at for at, part in enumerate(parts) if part.weighs]
    ends = [min(range(a, b), key=lambda at: (live[at], -at)) + 1 for a, b in pairwise(heavy)]
    return [_merged(parts[a:b]) for a, b in pairwise([0, *ends, len(parts)])]


def _live(data: Flow, parts: list[_Part]) -> list[int]:
    """By part: how many values that it or one before it makes are read after it."""
    place = {node: at for at, part in enumerate(parts) for node in part.nodes}
    until = [0] * len(data.values)
    for node, needs in enumerate(data.needs):
        for value in needs:
            until[value] = max(until[value], place[node])
    changes = [0] * (len(parts) + 1)
    for value, maker in enumerate(data.makers):
        first = place[maker] if maker >= 0 else 0
        if until[value] > first:
            changes[first] += 1
            changes[until[value]] -= 1
    return list(accumulate(changes))


def _within(parts: list[_Part], most_bytes: int) -> list[_Part]:
    """Runs of parts as one, as long as their weights take no more than so many bytes."""
    runs: list[list[_Part]] = []
    total = 0
    for part in parts:
        if runs and total + part.bytes <= most_bytes:
            runs[-1].append(part)
            total += part.bytes
        else:
            runs.append([part])
            total = part.bytes
    return [_merged(run) for run in runs]


def _merged(run: list[_Part]) -> _Part:
    nodes = sorted(node for part in run for node in part.nodes)
    return _Part(tuple(nodes), run[-1].cut, sum(part.bytes for part in run), any(part.weighs for part in run))


def _named(model: Model, data: Flow, name: str) -> int:
    """The number of the value that a cut names."""
    found = next((at for at, value in enumerate(data.values) if value.name == name), None)
    if found is None:
        raise ModelError(f"cannot cut at {name!r}: {_why_unknown(model, data, name)}")
    if data.makers[found] < 0:
        raise ModelError(f"cannot cut at {name!r}: it is an input of the model; name a value that a node computes")
    if not data.tensor[found]:
        raise ModelError(f"cannot cut at {name!r}: it may be a sequence or an optional value; name a tensor")
    if not data.fed[found]:
        raise ModelError(f"cannot cut at {name!r}: it is the same for all inputs; name a value that depends on one")
    return found


def _why_unknown(model: Model, data: Flow, name: str) -> str:
    if name in model.graph.initializers:
        return "it is a weight; name a value that a node computes"
    for node in data.nodes:
        if any(value.name == name for graph in inner_graphs(node) for value in _values(graph)):
            return f"it lies inside the subgraph of {label(node)}; cut at that node's outputs"
    known = [value.name for value in data.values if value.name]
    near = difflib.get_close_matches(name, known, n=3)
    return "no such value in the main graph" + (f"; did you mean {' or '.join(map(repr, near))}?" if near else "")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _refuse_twins(data: Flow, cuts: list[int]) -> None:
    for first, second in pairwise(cuts):
        if data.makers[first] == data.makers[second]:
            names = f"{data.values[second].name!r} and at {data.values[first].name!r}"
            raise ModelError(f"cannot cut at {names}: one node computes both; name one of them")
