"""Passes, a folder a family. Here is what makes a pass of somebody else's function."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from onnxopt.model import Model
from onnxopt.passing import Context, Contract, Exact, Findings, Pass, Phase

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def from_graphsurgeon(
    fn: "Callable[[gs.Graph], int | None]", name: str, contract: Contract | None = None, phase: Phase = "clean"
) -> type[Pass]:
    """A pass made of a function that edits an onnx-graphsurgeon graph in place.

    Args:
        fn: the function. It may return how many things it changed; a 0 says that it left the graph alone,
            None counts as one change.
        name: the pass's name in recipes, such as `fuse-swish`. Its documentation is that of the function.
        contract: what the pass promises; None: `Exact()`.
        phase: where in a recipe it belongs.
    """

    class Surgery(Pass):
        def run(self, model: Model, context: Context) -> Findings:
            findings = Findings()
            with model.surgeon() as graph:
                count = fn(graph)
            if count != 0:
                findings.change(model.graph.name, name, "edited" if count is None else f"{count} changes")
            return findings

    Surgery.name = name
    Surgery.phase = phase
    Surgery.contract = contract or Exact()
    Surgery.__doc__ = fn.__doc__
    Surgery.__module__ = fn.__module__
    Surgery.__name__ = Surgery.__qualname__ = "".join(part.capitalize() for part in name.split("-"))
    return Surgery
