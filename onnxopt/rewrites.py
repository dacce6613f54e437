"""Verification without a session of the whole model: each rewrite's old and new nodes on random inputs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import comparing
from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.analysis.regions import TypeAndShape, region_inputs, region_model, region_outputs
from onnxopt.analysis.shapes import Shapes
from onnxopt.comparing import Noise
from onnxopt.data import synthetic
from onnxopt.edit import Edit
from onnxopt.errors import OnnxOptError
from onnxopt.model import Model

logger = logging.getLogger(__name__)

Evaluate = Callable[[ir.Model, Mapping[str, Any]], dict[str, Any]]

_LARGEST = 2**28
"""Regions with more bytes of weights are not run: they would take the memory that this level saves."""


@dataclass
class Rewrites:
    """Watches a pass's edits and compares each rewrite's old and new sub-model at once.

    Attributes:
        checked: rewrites that were run.
        unchecked: rewrites that could not be run (unknown sizes, too large, no kernel) or were beyond the limit.
        drift: worst relative L2 among those that were run.
        broken: what breaks the exact contract, one line each.
    """

    model: Model
    shapes: Shapes
    evaluate: Evaluate
    rng: np.random.Generator
    tolerance: float | None
    limit: int = 64
    checked: int = 0
    unchecked: int = 0
    drift: float = 0.0
    broken: list[str] = field(default_factory=list)

    def __call__(self, edit: Edit) -> Callable[[], None] | None:
        """The watcher of `Model.watcher`."""
        staying = edit.touched
        old_nodes = _in_order([*edit.removed, *staying])
        if not old_nodes or self.checked >= self.limit:
            self.unchecked += bool(old_nodes)
            return None
        try:
            old = self._region(old_nodes)
        except OnnxOptError as error:
            self._skip(error)
            return None
        names = [value.name for value in region_outputs(old_nodes)]
        follow = {old_value: new_value for old_value, new_value in edit.rewired}
        heirs = [follow.get(value, value) for value in region_outputs(old_nodes)]

        def check() -> None:
            renamed = {str(name): heir for name, heir in zip(names, heirs, strict=True)}
            self._check(edit.rule, old, _in_order([*edit.inserted, *staying]), renamed)

        return check

    def summary(self) -> str:
        """One line about what was run. A pass that puts a whole other graph in place makes no rewrites."""
        if self.checked + self.unchecked == 0:
            return "UNCHECKED: nothing that it did could be run by itself"
        return f"{self.checked} rewrites run on random inputs (drift {self.drift:.1e}), {self.unchecked} not run"

    def _check(self, rule: str, old: Model, new_nodes: Sequence[ir.Node], heirs: Mapping[str, ir.Value]) -> None:
        try:
            feeds = self._feeds(old)
            before = self.evaluate(old.ir, feeds)
            after = feeds | (self.evaluate(self._region(new_nodes).ir, feeds) if new_nodes else {})
        except OnnxOptError as error:
            self._skip(error)
            return
        after |= {v.name: v.const_value.numpy() for v in heirs.values() if v.name and v.const_value is not None}
        if any(heir.name not in after for heir in heirs.values()):
            self._skip(OnnxOptError("what it put in place is not there to compare"))
            return
        self.checked += 1
        quiet = Noise({}, frozenset())
        for name, heir in heirs.items():
            found = comparing.compare(
                [{rule: before[name]}],
                [{rule: after[str(heir.name)]}],
                np.inf if self.tolerance is None else self.tolerance,
                quiet,
            )
            self.drift = max(self.drift, found.drift)
            self.broken += [f"rewrite {line.removeprefix('output ')}" for line in found.broken]

    def _region(self, nodes: Sequence[ir.Node]) -> Model:
        if len({id(node.graph) for node in nodes}) > 1:
            raise OnnxOptError("its nodes lie in several graphs")
        types: dict[str, TypeAndShape] = {}
        for value in (*region_inputs(nodes), *region_outputs(nodes)):
            shape, dtype = self.shapes.concrete(value), self.shapes.dtype(value) or value.dtype
            if shape is not None and dtype is not None and value.name:
                types[value.name] = (dtype, shape)
        missing = [value.name for value in region_inputs(nodes) if value.name not in types]
        if missing:
            raise OnnxOptError(f"the size of {missing[0]} is unknown")
        region = region_model(self.model, nodes, types)
        if sum(v.const_value.nbytes for v in region.weights() if v.const_value is not None) > _LARGEST:
            raise OnnxOptError("its weights are too large to run")
        return region

    def _feeds(self, region: Model) -> dict[str, Any]:
        dataset = synthetic(region.signature, None, index_bounds(region), 1, self.rng)
        return dict(next(iter(dataset.batches())).feeds)

    def _skip(self, error: OnnxOptError) -> None:
        logger.debug("a rewrite was not run: %s", error)
        self.unchecked += 1


def _in_order(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Nodes in an order in which they can run: a depth-first walk over what each reads, without recursion."""
    inside, done = set(nodes), dict[ir.Node, None]()
    stack = list(reversed(nodes))
    while stack:
        node = stack[-1]
        waiting = [near for near in node.predecessors() if near in inside and near not in done]
        if waiting and node not in done:
            stack.extend(waiting)
        else:
            done.setdefault(stack.pop())
    return list(done)
