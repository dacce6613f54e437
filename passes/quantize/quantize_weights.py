"""Weight-only quantization of matrix products: integer codes in the file, activations in floating point."""

import fnmatch
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field, PositiveInt, ValidationError

from onnxopt.analysis.linear import Dense, Linear, find_linears
from onnxopt.edit import Edit
from onnxopt.errors import ModelError, RecipeError
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.numerics import Quantized, QuantSpec, quantize
from onnxopt.numerics.spec import Bits, BlockSize
from onnxopt.passes.quantize import (
    FLOATS,
    Stored,
    constants,
    copied,
    is_fusible,
    needed_opset,
    read_by,
    refusal,
    relative_error,
    store,
    stored_bytes,
    stored_tensor,
    weight_sizes,
)
from onnxopt.passing import Context, Findings, Lossy, Pass, make
from onnxopt.validating import explain

_PRESETS: dict[str, Mapping[str, str]] = {
    "rtn": {"scale": "minmax", "rounding": "nearest"},
}
"""What a preset chooses in `QuantSpec`; bits, blocks and symmetry are options of their own."""

_OLDER_FORMATS: tuple[Mapping[str, Any], ...] = ({"bits": 4}, {"bits": 8, "block_size": None})
"""What takes the place of a format that the target's opset lacks: the first that is no narrower and that it has."""

_LAYER_BYTES = 400
"""What nodes, names and tensor headers of a quantized layer take in a file, about."""


_MOST_COPIES = 0.75
"""Share of a float weight that codes for all its readers may take; for less won, no accuracy is given away."""


class QuantizeWeights(Pass):
    """Quantize the weights of matrix products to 2 to 8 bits, in blocks or by output column.

    MatMul and Gemm with a constant operand, on either side and batched, become MatMul with a weight behind
    DequantizeLinear: standard ONNX, which ONNX Runtime executes on the codes. It does so where no other layer reads
    the same codes or scales, so each layer gets its own. Convolutions, recurrent layers and embeddings are left as
    they are.
    """

    phase = "quantize"
    contract = Lossy()
    overridable = ("preset", "bits", "block_size", "symmetric", "scale_dtype")

    preset: Literal["rtn"] = Field("rtn", description="method; rtn: each weight to the nearest level, without data")
    bits: Bits = Field(
        4, description="bits of a weight; 3 is stored in 4 bits, and 5, 6, 7 in 8; 2 becomes 4 where the number of "
        "outputs is no multiple of 4, which ONNX Runtime would compute wrongly"
    )  # fmt: skip
    block_size: BlockSize | None = Field(
        32, description="consecutive inputs of one output that share a scale; null: one scale for each output"
    )
    symmetric: bool = Field(
        True, description="whether code 0 means 0; false: each block has a zero point too, for lopsided weights"
    )
    scale_dtype: Literal["float16", "float32"] = Field(
        "float16", description="type of stored scales; float16 gives way to float32 in layers where it costs accuracy; "
        "float16 layers always have it"
    )  # fmt: skip
    shared: Literal["copies", "once"] = Field(
        "copies", description="weights that several layers read; copies: codes for each of them, where those together "
        "are a quarter smaller than the float weight; once: one copy, the smallest file, which plain ONNX Runtime "
        "dequantizes for each layer in each run"
    )  # fmt: skip
    include: tuple[str, ...] = Field(("*",), description="layers to quantize: globs over names of nodes or weights")
    exclude: tuple[str, ...] = Field((), description="layers to leave alone: globs over names of nodes or weights")
    min_elements: PositiveInt | None = Field(
        None, description="smallest weight to quantize; null: all that become smaller in the file"
    )

    def expand(self) -> list[Pass]:
        """The opset that the format needs, then this pass itself."""
        return [make("upgrade-opset", {"to": needed_opset(self._spec())}), self]

    def run(self, model: Model, context: Context) -> Findings:
        """Quantize every linear layer that is named, fits and gets smaller."""
        layers, declined = find_linears(model)
        findings = Findings(declined=declined)
        findings.notes += self._idle_patterns(layers)
        _decline_other_weights(model, layers, self._spec(), self.name, findings)
        groups: dict[ir.Value, list[_Choice]] = {}
        for layer in layers:
            choice = self._choose(layer, model, context)
            if isinstance(choice, str):
                findings.decline(layer.name, self.name, choice)
            else:
                groups.setdefault(layer.weight.root, []).append(choice)
        work = _Work(model, context, findings, self.name, self.shared == "copies", sum(map(len, groups.values())))
        before = weight_sizes(model)
        too_shared = 0
        for root, group in groups.items():
            why = self._not_worth_it(root, group)
            if why is None:
                why = self._too_shared(root, group)
                too_shared += why is not None
            if why is None:
                work.quantize(group)
            else:
                for choice in group:
                    findings.decline(choice.layer.name, self.name, why)
        if too_shared:
            findings.notes.append(
                f"{too_shared} weights stay in floating point, as so many layers read each that codes for all of them "
                "would save too little; `shared: once` makes the smallest file, which may be slower than before"
            )
        work.report(before, weight_sizes(model))
        return findings

    def _spec(self) -> QuantSpec:
        return QuantSpec(
            bits=self.bits, block_size=self.block_size, symmetric=self.symmetric, scale_dtype=self.scale_dtype,
            **_PRESETS[self.preset],
        )  # fmt: skip

    def _choose(self, layer: Linear, model: Model, context: Context) -> "_Choice | str":
        """How to quantize a layer, or why not."""
        names = (layer.weight.root.name or "", layer.name)
        if any(map(context.skips, names)):
            return "an override skips it"
        wanted = self._overridden(layer, {k: v for name in names for k, v in context.overrides(name).items()})._spec()
        if not _matches(layer, self.include):
            return "include does not name it"
        if _matches(layer, self.exclude):
            return "exclude names it"
        why = refusal(layer, model)
        if why is not None:
            return why
        if self.min_elements is not None and prod(layer.shape) < self.min_elements:
            return f"its {prod(layer.shape)} weights are fewer than min_elements, {self.min_elements}"
        newest = context.target.max_opset
        spec, note = _fitted(wanted, layer, newest)
        opset = needed_opset(spec, batched=len(layer.matmul_shape) > 2)
        if newest is not None and newest < opset:
            return f"{_words(spec)} needs opset {opset}, which is more than target.max_opset, {newest}"
        if model.opset < opset:
            return f"{_words(spec)} needs opset {opset} and the model has {model.opset}: run upgrade-opset before"
        return _Choice(layer, spec, note, is_fusible(layer, spec, model.opset))

    def _overridden(self, layer: Linear, override: Mapping[str, Any]) -> "QuantizeWeights":
        try:
            return self.overridden(override)
        except ValidationError as error:
            raise RecipeError(explain(error, type(self), f"overrides for {layer.name}: ")) from error

    def _not_worth_it(self, root: ir.Value, group: "Sequence[_Choice]") -> str | None:
        """Why the file would not get smaller if all layers that were chosen of one stored weight read codes."""
        kept_by = _other_reader(root, group)
        if kept_by is not None:
            return f"weight {root.name} is also {kept_by}, so it would stay in the file beside its codes"
        before, after = stored_tensor(group[0].layer).nbytes, self._bytes(group, once=True)
        if self.min_elements is not None or after < before:
            return None
        return f"it would take about {after} bytes with its nodes and has {before} now"

    def _too_shared(self, root: ir.Value, group: "Sequence[_Choice]") -> str | None:
        """Why not each of the layers that were chosen of one stored weight gets codes of its own."""
        before, once, copies = stored_tensor(group[0].layer).nbytes, self._bytes(group, once=True), self._bytes(group)
        if self.shared == "once" or copies == once or copies < _MOST_COPIES * before:
            return None
        return (
            f"{len(group)} layers read {root.name}: codes for each would take about {copies} bytes and it has {before} "
            f"now; `shared: once` takes {once}, but ONNX Runtime would dequantize them in each run"
        )

    def _bytes(self, group: "Sequence[_Choice]", *, once: bool = False) -> int:
        """What the layers of a stored weight would take, with their nodes unless any size is wanted."""
        alike = {number if choice.fusible and not once else choice.form: choice for number, choice in enumerate(group)}
        nodes = _LAYER_BYTES * len(group) if self.min_elements is None else 0
        return nodes + sum(stored_bytes(choice.layer.shape, choice.spec) for choice in alike.values())

    def _idle_patterns(self, layers: Sequence[Linear]) -> list[str]:
        given = [("include", p) for p in self.include if p != "*"] + [("exclude", p) for p in self.exclude]
        return [f"{o}: {p!r} names no layer" for o, p in given if not any(_matches(layer, (p,)) for layer in layers)]


@dataclass(frozen=True)
class _Choice:
    """A layer, how to quantize it, and what is to be said about that."""

    layer: Linear
    spec: QuantSpec
    note: str | None
    fusible: bool

    @property
    def form(self) -> Hashable:
        """Equal for layers of one root that the same codes can serve: turned the same way, in the same graph."""
        layer, layout = self.layer, self.layer.layout
        steps = tuple((node.op_type, _attributes(node), tuple(node.inputs[1:])) for node in layer.weight.steps)
        turned = isinstance(layout, Dense) and layout.out_first
        return self.spec, steps, turned, layer.matmul_shape, layer.alpha, layer.node.graph


@dataclass
class _Work:
    """Carrying it out, one stored weight at a time, and the figures of it."""

    model: Model
    context: Context
    findings: Findings
    rule: str
    copies: bool
    total: int
    elements: int = 0
    code_bytes: int = 0
    copied_bytes: int = 0
    errors: list[float] = field(default_factory=list)
    unfused: int = 0

    def quantize(self, group: Sequence[_Choice]) -> None:
        """Quantize a stored weight for all layers that read it, once for each way in which they do."""
        self.elements += stored_tensor(group[0].layer).size
        keys = [choice.form for choice in group]
        uses = Counter(keys)
        forms: dict[Hashable, tuple[Stored, str]] = {}
        for choice, key in zip(group, keys, strict=True):
            self.context.progress(len(self.findings.changes), self.total, choice.layer.name)
            edit, own = Edit(self.rule), choice.fusible and (self.copies or uses[key] == 1)
            if key not in forms:
                stored, what = forms[key] = self._store(edit, choice)
                self.code_bytes += stored.nbytes
            else:
                stored, what = forms[key]
                if own:
                    stored = copied(edit, choice.layer, stored)
                    self.code_bytes += stored.nbytes
                    self.copied_bytes += stored.nbytes
            read_by(edit, choice.layer, stored, self.model.opset)
            self.model.apply(edit)
            self.findings.change(choice.layer.name, self.rule, what)
            self.unfused += not own

    def _store(self, edit: Edit, choice: _Choice) -> tuple[Stored, str]:
        quantized, error, note = _quantized(choice)
        self.errors.append(error)
        self.findings.notes += [f"{choice.layer.name}: {text}" for text in (choice.note, note) if text is not None]
        what = f"{_words(quantized.spec)}, error {100 * error:.2g} %"
        return store(edit, choice.layer, quantized, self.context), what

    def report(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Put the figures into the findings; the arguments are (bytes, float elements) of all weights."""
        if not self.errors:
            return
        self.findings.measures |= {
            "bits_per_weight": 8 * self.code_bytes / self.elements,
            "quantized_share": self.elements / before[1],
            "weight_bytes_before": before[0],
            "weight_bytes_after": after[0],
            "worst_error": max(self.errors),
            "mean_error": float(np.mean(self.errors)),
        }
        if self.copied_bytes:
            self.findings.notes.append(
                f"layers that read the same weight have codes of their own, {self.copied_bytes} bytes in all: "
                "ONNX Runtime would dequantize shared ones in each run (`shared: once`)"
            )
        if self.unfused:
            self.findings.notes.append(
                f"{self.unfused} layers are batched, share codes or cast them: "
                "plain ONNX Runtime dequantizes them in each run, which may be slower than before"
            )


def _quantized(choice: _Choice) -> tuple[Quantized, float, str | None]:
    """The quantized matrix of a layer, its relative error, and a note where its scales need float32.

    Raises:
        ModelError: NaN or infinity in the weight, or values too large for float32.
    """
    layer, spec = choice.layer, choice.spec
    matrix, wide = layer.matrix(), spec.model_copy(update={"scale_dtype": "float32"})
    may_widen = spec != wide and layer.dtype != ir.DataType.FLOAT16
    try:
        quantized = quantize(matrix, spec)
    except ValueError as error:
        if not may_widen or not np.isfinite(matrix).all():
            raise _unquantizable(layer, error) from error
        try:
            quantized = quantize(matrix, wide)
        except ValueError as again:
            raise _unquantizable(layer, again) from again
        return quantized, relative_error(matrix, quantized), "scales are float32: float16 does not reach that far"
    found = relative_error(matrix, quantized)
    if may_widen and (np.abs(quantized.scale) <= np.finfo(np.float16).smallest_normal).any():
        wider = quantize(matrix, wide)
        least = relative_error(matrix, wider)
        if found > 1.01 * least:
            return wider, least, "scales are float32: they are too small for float16"
    return quantized, found, None


def _unquantizable(layer: Linear, error: ValueError) -> ModelError:
    root = layer.weight.root
    array = stored_tensor(layer).numpy()
    finite = np.isfinite(array)
    if finite.all():
        return ModelError(f"weight {root.name} of layer {layer.name} cannot be quantized: {error}")
    where = [int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape)]
    return ModelError(
        f"weight {root.name} of layer {layer.name} is {array[tuple(where)]} at {where}: "
        "quantization needs finite values; repair the model or exclude the layer"
    )


def _fitted(spec: QuantSpec, layer: Linear, newest: int | None) -> tuple[QuantSpec, str | None]:
    """The quantizer as far as layer and target can have it, and what is to be said where that is not all the way.

    Args:
        newest: the newest opset that the target loads; None: any.
    """
    note = None
    if layer.dtype == ir.DataType.FLOAT16:
        spec = spec.model_copy(update={"scale_dtype": "float16"})
    if spec.storage_bits == 2 and layer.out_features % 4:
        why = f"ONNX Runtime computes 2 bits wrongly where outputs, here {layer.out_features}, are no multiple of 4"
        spec, note = spec.model_copy(update={"bits": 4}), f"4 bits in place of 2, as {why}"
    batched = len(layer.matmul_shape) > 2
    needed = needed_opset(spec, batched=batched)
    for update in _OLDER_FORMATS if newest is not None and newest < needed else ():
        wider = spec.model_copy(update=update)
        if wider.storage_bits >= spec.storage_bits and needed_opset(wider, batched=batched) <= (newest or needed):
            why = f"that needs opset {needed} and target.max_opset is {newest}"
            return wider, f"{_words(wider)} in place of {_words(spec)}, as {why}"
    return spec, note


def _other_reader(root: ir.Value, group: Sequence[_Choice]) -> str | None:
    """Who reads a stored weight beside the chosen layers, to be read after `is also`."""
    chosen = {(choice.layer.weight.node, choice.layer.weight.index) for choice in group}
    for node, index in group[0].layer.weight.sharers:
        if (node, index) not in chosen:
            return f"read by {node.op_type} {label(node)}, which is not quantized"
    outputs = (source.value for choice in group for source in choice.layer.weight.source.chain())
    return next((f"the graph output {value.name}" for value in outputs if value.is_graph_output()), None)


def _decline_other_weights(
    model: Model, layers: Sequence[Linear], spec: QuantSpec, rule: str, findings: Findings
) -> None:
    """Say of every weight that would get smaller, but is none of a linear layer, who reads it."""
    known = {layer.weight.root for layer in layers}
    for layer in layers:
        for source in layer.weight.source.chain():
            known.update(operand.root.value for operand in source.operands if operand is not None)
    for value, tensor in constants(model):
        if value in known or tensor.dtype not in FLOATS or len(tensor.shape) < 2:
            continue
        columns = tensor.shape.numpy()[-1]
        if not tensor.size or stored_bytes((1, tensor.size // columns, columns), spec) + _LAYER_BYTES >= tensor.nbytes:
            continue
        readers = sorted({node.op_type for node, _ in value.uses()})
        why = f"read by {', '.join(readers)}, which takes no quantized weight" if readers else "read by no node"
        findings.decline(value.name, rule, why)


def _matches(layer: Linear, patterns: Iterable[str]) -> bool:
    names = (layer.name, layer.weight.root.name or "")
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _words(spec: QuantSpec) -> str:
    block = "per column" if spec.block_size is None else f"block {spec.block_size}"
    return f"{spec.bits} bit, {block}{'' if spec.symmetric else ', zero points'}"


def _attributes(node: ir.Node) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items()))
