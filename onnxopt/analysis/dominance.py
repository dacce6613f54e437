"""Vertices that all paths to one vertex of a directed acyclic graph pass through."""

from collections.abc import Iterator


class Confluence:
    """Where all paths to a sink meet again: its tree of immediate post-dominators, grown from the sink backwards.

    A vertex is added after those that its edges lead to, below the nearest vertex that all of its paths to the sink
    pass through, which is where those of its targets meet in the tree: it takes one walk over the edges and, with
    pointers that jump towards the root, a logarithm of the depth each time that paths divide (Cooper, Harvey and
    Kennedy 2001; Myers 1983).

    Args:
        count: vertices are the integers below it.
        sink: the tree's root.
    """

    def __init__(self, count: int, sink: int) -> None:
        self._parent = [-1] * count
        self._jump = [-1] * count
        self._depth = [-1] * count
        self._parent[sink] = self._jump[sink] = sink
        self._depth[sink] = 0
        self.sink = sink

    def __contains__(self, vertex: int) -> bool:
        return self._depth[vertex] >= 0

    def add(self, vertex: int, parent: int) -> None:
        """Put a vertex into the tree, all of whose paths lead over the parent."""
        self._parent[vertex] = parent
        self._depth[vertex] = self._depth[parent] + 1
        near, depth = self._jump[parent], self._depth
        far = self._jump[near]
        self._jump[vertex] = far if depth[parent] - depth[near] == depth[near] - depth[far] else parent

    def meet(self, a: int, b: int) -> int:
        """The first vertex that all paths from both pass through; both are in the tree."""
        parent, jump, depth = self._parent, self._jump, self._depth
        if depth[a] < depth[b]:
            a, b = b, a
        while depth[a] > depth[b]:
            a = jump[a] if depth[jump[a]] >= depth[b] else parent[a]
        while a != b:
            if jump[a] != jump[b]:
                a, b = jump[a], jump[b]
            else:
                a, b = parent[a], parent[b]
        return a

    def next(self, vertex: int) -> int:
        """The first vertex after this one that all of its paths pass through; the sink after itself."""
        return self._parent[vertex]

    def chain(self, vertex: int) -> Iterator[int]:
        """All vertices that every path from this one passes through: itself first, the sink last."""
        while vertex != self.sink:
            yield vertex
            vertex = self._parent[vertex]
        yield self.sink
