"""Where paths meet again, against networkx on the reversed graph."""

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from onnxopt.analysis.dominance import Confluence


def grown(count: int, edges: set[tuple[int, int]]) -> Confluence:
    """The tree of a graph whose edges all go upwards; its last vertex is the sink."""
    tree = Confluence(count, count - 1)
    for vertex in reversed(range(count - 1)):
        targets = [b for a, b in sorted(edges) if a == vertex and b in tree]
        if targets:
            meeting = targets[0]
            for target in targets[1:]:
                meeting = tree.meet(meeting, target)
            tree.add(vertex, meeting)
    return tree


@given(st.integers(2, 24).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_the_tree_is_that_of_immediate_post_dominators(case: tuple[int, set[tuple[int, int]]]) -> None:
    count, pairs = case
    edges = {(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1]}
    tree = grown(count, edges)
    graph = nx.DiGraph((b, a) for a, b in edges)
    graph.add_node(count - 1)
    oracle = nx.immediate_dominators(graph, count - 1)
    for vertex in range(count - 1):
        assert (vertex in tree) == (vertex in oracle)
        if vertex in oracle:
            assert tree.next(vertex) == oracle[vertex]
            assert list(tree.chain(vertex)) == [vertex, *tree.chain(oracle[vertex])]


def test_the_sink_follows_itself() -> None:
    tree = grown(3, {(0, 2)})
    assert (tree.next(2), list(tree.chain(2)), list(tree.chain(0))) == (2, [2], [0, 2])
    assert 1 not in tree


def test_a_long_path_with_a_skip_over_all_of_it_at_every_vertex() -> None:
    count = 20_000
    tree = Confluence(count, count - 1)
    tree.add(count - 2, count - 1)
    for vertex in reversed(range(count - 2)):
        tree.add(vertex, tree.meet(vertex + 1, count - 1))
    assert [tree.next(vertex) for vertex in (0, 7, count - 2)] == [count - 1] * 3
    line = Confluence(count, count - 1)
    for vertex in reversed(range(count - 1)):
        line.add(vertex, vertex + 1)
    assert all(line.meet(vertex, count - 1 - vertex) == max(vertex, count - 1 - vertex) for vertex in range(count))
