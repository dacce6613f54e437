"""Verification without a session of the whole model: what differs after a pass is run piece by piece, before and
after, on random inputs.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxopt import comparing
from onnxopt.analysis.index_bounds import index_bounds
from onnxopt.analysis.precision import default_tolerance
from onnxopt.analysis.regions import TypeAndShape, region_inputs, region_model, region_outputs
from onnxopt.analysis.shapes import Shapes
from onnxopt.analysis.structure import constant_array, constant_tensor, reads
from onnxopt.chance import draws
from onnxopt.comparing import Comparison, Noise
from onnxopt.data import synthetic
from onnxopt.differences import Differences, Part, is_constant
from onnxopt.errors import OnnxOptError
from onnxopt.model import Model, ValueInfo
from onnxopt.nodes import with_inner
from onnxopt.passing import Contract, Exact, Lossy

logger = logging.getLogger(__name__)

Evaluate = Callable[[ir.Model, Mapping[str, Any]], dict[str, Any]]

REWRITES_RUN, REWRITES_LEFT = "rewrites_run", "rewrites_not_run"

_WEIGHT_BYTES = 2**28
"""Weights of all regions that are run: each is read anew for every session."""

_LARGEST = 2**26
"""Regions with more bytes of weights are not run: they would take the memory that this level saves."""

_ELEMENTS = 2**22
"""Numbers that regions are fed with and give, all together: this level is the quick one."""

_REACHES = (8, 64)
"""How many unchanged nodes may lie between pieces that are right only together: first few, then more."""

_TRIES = 4
"""How many times as many pieces as are run may fail to run before no more are tried."""

_TAIL, _FAR = 1 / 8, 8
"""Share of the random numbers that are made larger, and how many times: limits (of a Clip) are met as well."""

_HARD = 64
"""How many times larger all of them are made where limits lie behind what else computes."""

_FEW, _DRAWS = 2**10, 2
"""Parts that are fed with fewer numbers are fed several times: little is told by few."""

_WIDER: Sequence[Mapping[str, Any]] = ({}, {"both": True}, {"both": True, "deep": True}, {"both": True, "behind": 4})
"""How a part is widened, one way after the other, before it is called broken (`Differences.widened`).

Not by more nodes behind it: random numbers through many layers may never show what is wrong.
"""

_QUIET = Noise({}, frozenset())


@dataclass
class Rewrites:
    """Runs what differs between two states of a model.

    Attributes:
        shapes: of the state before; regions are run at these sizes.
        contract: what the pass promises.
        limit: how many pieces are run at most; of pieces that look alike, one first.
        checked: pieces that were run.
        unchecked: pieces that could not be run (unknown sizes, too large, no kernel) or were beyond the limit.
        drift: worst relative L2 among those that held.
        broken: what breaks the exact contract, one line each.
        why: the first reason for which one was not run.
    """

    shapes: Shapes
    evaluate: Evaluate
    rng: np.random.Generator
    contract: Contract
    limit: int = 64
    checked: int = 0
    unchecked: int = 0
    drift: float = 0.0
    broken: list[str] = field(default_factory=list)
    why: str = ""
    _elements: int = 0
    _weight_bytes: int = 0
    _tried: int = 0

    def compare(self, before: Model, after: Model) -> None:
        """Run what differs: cut small, and pieces that differ by themselves with what lies between them."""
        found = Differences(before, after)
        sides = _Sides(before, after, found)
        failing, undecided = list[tuple[Part, list[str]]](), list[Part]()
        for part in _varied(found.pieces):
            lines = self._run(sides, part)
            if lines is None:
                undecided.append(part)
            elif lines:
                failing.append((part, lines))
        untold = {node for part in undecided for node in (*part.old, *part.new)}
        done: list[tuple[Part, list[str]]] = []
        for reach in _REACHES if failing else ():
            again = list[tuple[Part, list[str]]]()
            for part in found.enlarged([part for part, _ in failing], undecided, reach):
                known = next((lines for each, lines in done if each == part), None)
                again.append((part, known or self._run_again(sides, part, failing, untold)))
            done = failing = [(part, lines) for part, lines in again if lines]
        self.broken += [line for _, lines in failing for line in lines]
        self._constants(before, after)

    def counts(self) -> dict[str, int]:
        """How many pieces were run and how many were not, as a step's measures."""
        return {REWRITES_RUN: self.checked, REWRITES_LEFT: self.unchecked}

    def summary(self) -> str:
        """One line about what was run."""
        if self.checked + self.unchecked == 0:
            return "nothing changed but names, places of constants and what nobody reads"
        left = f"{self.unchecked} not run" + (f" ({self.why})" if self.unchecked and self.why else "")
        return f"{self.checked} rewrites run on random inputs (drift {comparing.shown(self.drift)}), {left}"

    def _run(self, sides: "_Sides", part: Part) -> list[str] | None:
        """Why a piece does not hold; empty where it does, None where it could not be run."""
        try:
            if self.checked >= self.limit or self._tried >= _TRIES * self.limit:
                raise OnnxOptError(f"{self.checked} others were run")
            self._tried += 1
            found = self._part(sides, sides.differences.widened(part), _ELEMENTS - self._elements)
        except OnnxOptError as error:
            self._leave(error)
            return None
        if found is None:
            return []
        self.checked += 1
        if not found.broken:
            self.drift = max(self.drift, found.drift)
        return found.broken

    def _leave(self, error: OnnxOptError) -> None:
        logger.debug("a rewrite was not run: %s", error)
        self.unchecked += 1
        self.why = self.why or str(error)

    def _run_again(
        self, sides: "_Sides", part: Part, failing: Sequence[tuple[Part, list[str]]], untold: Set[ir.Node]
    ) -> list[str]:
        """The same for pieces together, with more and more of what they read.

        Where they cannot be run, what each of them said by itself stands; unless what could not be run by itself
        is among them, for that may be the other half of a right rewrite.
        """
        lines: list[str] | None = None
        tried: list[Part] = []
        for options in _WIDER:
            wider = sides.differences.widened(part, **options)
            if wider in tried:
                continue
            tried.append(wider)
            try:
                found = self._part(sides, wider, 4 * _ELEMENTS, hard=len(tried) > 1)
            except OnnxOptError as error:
                if lines is None and not untold.isdisjoint((*part.old, *part.new)):
                    self._leave(error)
                    return []
                continue
            if found is None or not found.broken:
                self.drift = max(self.drift, found.drift if found is not None else 0.0)
                return []
            lines = found.broken
        if lines is None:
            inside = {*part.old, *part.new}
            lines = [line for each, own in failing if not inside.isdisjoint((*each.old, *each.new)) for line in own]
        return lines

    def _part(self, sides: "_Sides", part: Part, most: int, hard: bool = False) -> Comparison | None:
        """Run both sides of a part on the same inputs, and compare what others read of them; None if nobody does."""
        wanted = _read_outside(part)
        if not wanted:
            return None
        old = self._region(sides.before, part.old)
        self._spend(old, most)
        new = self._region(sides.after, part.new) if part.new else None
        given = {name: array for name in wanted if (array := constant_array(sides.values.get(name))) is not None}
        there = given.keys() | {value.name for value in region_outputs(part.new)}
        if gone := [name for name in wanted if name not in there]:
            raise OnnxOptError(f"{gone[0]} is gone")
        found, tolerance = Comparison(), self._tolerance(old, sides.differing(part.old))
        for far in self._draws(old, hard):
            before, after = self._outputs(sides, old, new, wanted, far)
            one = self._comparison(before, given | after, tolerance)
            found.drift = max(found.drift, one.drift)
            if one.broken:
                return one
        return found

    def _draws(self, region: Model, hard: bool) -> list[int]:
        """How much larger some of the numbers are made, one entry a run: an exact rewrite holds there too."""
        if isinstance(self.contract, Lossy):
            return [1]
        again = _DRAWS if sum(map(_elements, region.signature.inputs)) < _FEW else 1
        return [1, _FAR, *([_HARD] if hard else [])] * again

    def _outputs(
        self, sides: "_Sides", old: Model, new: Model | None, wanted: Sequence[str], far: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What both sides give for random numbers; for their sizes alone where other numbers give NaN."""
        for positive in (False, True):
            first = self._feeds(sides.before, old, {}, far, positive)
            before = self.evaluate(old.ir, {info.name: first[info.name] for info in old.signature.inputs})
            if not (empty := [name for name in wanted if _is_nan(before[name])]):
                break
        else:
            raise OnnxOptError(f"{empty[0]} is not a number on random inputs")
        if new is None:
            return {name: before[name] for name in wanted}, {}
        feeds = self._feeds(sides.after, new, first, far, positive)
        after = self.evaluate(new.ir, {info.name: feeds[info.name] for info in new.signature.inputs})
        return {name: before[name] for name in wanted}, after

    def _constants(self, before: Model, after: Model) -> None:
        """Outputs of the graph that no node computes."""
        now = {value.name: value for value in after.graph.outputs}
        for value in before.graph.outputs:
            name, old, new = value.name or "", constant_array(value), constant_array(now.get(value.name))
            if old is None:
                continue
            try:
                if new is None:
                    raise OnnxOptError(f"{name} is no constant any more")
                self.broken += self._comparison({name: old}, {name: new}, self._allowed() or comparing.TIGHT).broken
            except OnnxOptError as error:
                self._leave(error)

    def _comparison(
        self, before: Mapping[str, Any], after: Mapping[str, Any], tolerance: comparing.Tolerance
    ) -> Comparison:
        found = Comparison()
        for name in before:
            allowed = tolerance if not isinstance(tolerance, Mapping) else tolerance.get(name, comparing.TIGHT)
            sides = [{name: before[name]}], [{name: after[name]}]
            if isinstance(self.contract, Lossy):
                one = comparing.measure(*sides, _QUIET)
            else:
                one = comparing.compare(*sides, allowed, _QUIET)
            if one.undecidable:
                raise OnnxOptError(f"{name} has another size now")
            found.drift = max(found.drift, one.drift)
            found.broken += [f"rewrite of {line.removeprefix('output ')}" for line in one.broken]
        return found

    def _tolerance(self, region: Model, differing: Sequence[ir.Node]) -> comparing.Tolerance:
        """What the contract allows on a region: half precision is no excuse where nothing of it was rewritten."""
        if self._allowed() is None and not any(
            self._is_half(inner) for node in differing for inner in with_inner(node)
        ):
            return comparing.TIGHT
        return self._allowed() or default_tolerance(region)

    def _is_half(self, node: ir.Node) -> bool:
        """Whether a node touches half precision, or calls a function, which may."""
        values = (value for value in (*node.inputs, *node.outputs) if value is not None and value.name)
        types = {self.shapes.dtype(value.name or "") or value.dtype for value in values}
        return not types.isdisjoint((ir.DataType.FLOAT16, ir.DataType.BFLOAT16)) or node.domain not in ("", "ai.onnx")

    def _allowed(self) -> float | None:
        return self.contract.tolerance if isinstance(self.contract, Exact) else None

    def _region(self, model: Model, nodes: Sequence[ir.Node]) -> Model:
        constants = _constants_read(nodes)
        nodes = [*constants, *nodes]
        inner = [each for node in nodes for each in with_inner(node)]
        calls = any(node.op_identifier() in model.ir.functions for node in inner)
        called = [node for function in model.ir.functions.values() for node in function.all_nodes()] if calls else []
        if any(map(draws, (*inner, *called))):
            raise OnnxOptError("it draws random numbers")
        border = (*region_inputs(nodes), *region_outputs(nodes))
        types = dict(self._types(border))
        missing = [value.name for value in region_inputs(nodes) if value.name not in types]
        if missing:
            raise OnnxOptError(f"the size of {missing[0]} is unknown")
        if sum(tensor.nbytes for node in constants if (tensor := constant_tensor(node.outputs[0]))) > _LARGEST:
            raise OnnxOptError("its constants are too large to run")
        region = region_model(model, nodes, types)
        if sum(v.const_value.nbytes for v in region.weights() if v.const_value is not None) > _LARGEST:
            raise OnnxOptError("its weights are too large to run")
        if calls:
            region.ir.functions.update(model.ir.functions)
        return region

    def _spend(self, region: Model, most: int) -> None:
        border = (*region.signature.inputs, *region.signature.outputs)
        elements = sum(map(_elements, border))
        weights = sum(v.const_value.nbytes for v in region.weights() if v.const_value is not None)
        if elements > most or self._weight_bytes + weights > _WEIGHT_BYTES:
            raise OnnxOptError("what was run before is as much as this level runs")
        self._elements += elements
        self._weight_bytes += weights

    def _types(self, values: Iterable[ir.Value]) -> Iterator[tuple[str, TypeAndShape]]:
        """Types and shapes of values at a border, by name: the shapes are those of the state before."""
        for value in values:
            if value.name:
                shape, dtype = self.shapes.concrete(value.name), self.shapes.dtype(value.name) or value.dtype
                if shape is not None and dtype is not None:
                    yield value.name, (dtype, shape)

    def _feeds(self, model: Model, region: Model, known: Mapping[str, Any], far: int, positive: bool) -> dict[str, Any]:
        """Random inputs of a region, but for those that are known: given, or weights that are listed as inputs."""
        names = [info.name for info in region.signature.inputs]
        listed = {
            name: array for name in names if (array := constant_array(model.graph.initializers.get(name))) is not None
        }
        known = {**known, **listed}
        if all(name in known for name in names):
            return known
        dataset = synthetic(region.signature, None, index_bounds(region), 1, self.rng)
        drawn = {
            name: self._spread(array, far, positive) for name, array in next(iter(dataset.batches())).feeds.items()
        }
        return drawn | known

    def _spread(self, array: Any, far: int, positive: bool) -> Any:
        if array.dtype.kind != "f":
            return array
        share = _TAIL if far < _HARD else float(array.dtype.itemsize > 2)
        array = np.where(self.rng.random(array.shape) < share, far * array, array).astype(array.dtype)
        return np.abs(array) if positive else array


class _Sides:
    """Both states of the model, and the values of the later one by name."""

    def __init__(self, before: Model, after: Model, differences: Differences) -> None:
        self.before, self.after, self.differences = before, after, differences
        self._differing = {node for piece in differences.pieces for node in piece.old}
        self.values = {value.name: value for node in after.graph for value in node.outputs if value.name}
        self.values |= after.graph.initializers

    def differing(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """Those of the old nodes that are not in the new graph as they were."""
        return [node for node in nodes if node in self._differing]


def _elements(info: ValueInfo) -> int:
    return prod(size for size in info.shape or () if isinstance(size, int))


def _read_outside(part: Part) -> list[str]:
    """Names of the old nodes' values that others read, or the graph gives out.

    Without those that the new nodes make as well and nobody reads any more.
    """
    old, new = ({value.name or "": None for value in region_outputs(nodes)} for nodes in (part.old, part.new))
    remade = {value.name for node in part.new for value in node.outputs}
    return [name for name in old if name in new or name not in remade]


def _constants_read(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """The Constant nodes beside these whose values they read."""
    makers = ((node, value.producer()) for node in nodes for value in reads(node))
    return list(dict.fromkeys(m for n, m in makers if m is not None and m.graph is n.graph and is_constant(m)))


def _is_nan(value: Any) -> bool:
    """Whether nothing can be told from what a node gave."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "fc" and value.size > 0 and bool(np.isnan(value).all())


def _varied(parts: Sequence[Part]) -> list[Part]:
    """The parts, so that what looks alike comes late: one of each kind, then the second ones, and so on."""
    seen: Counter[tuple[str, ...]] = Counter()
    ranked = []
    for part in parts:
        kind = (*(node.op_type for node in part.old), "", *(node.op_type for node in part.new))
        ranked.append((seen[kind], part))
        seen[kind] += 1
    return [part for _, part in sorted(ranked, key=lambda pair: pair[0])]
