"""Sparse weights: single weights become zero, and where there are data the others make up for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from onnxopt.analysis.linear import Linear, find_linears
from onnxopt.analysis.linear.recurrent import Layer
from onnxopt.analysis.linear.sources import Use
from onnxopt.analysis.parameters import stored
from onnxopt.errors import DataError, RecipeError
from onnxopt.globs import is_name, matches
from onnxopt.model import Model
from onnxopt.nodes import with_inner
from onnxopt.numerics.sparsity import Weights, stored_sizes
from onnxopt.numerics.sparsity_global import global_counts
from onnxopt.numerics.units import Array
from onnxopt.passes.prune import Names, checked, not_found
from onnxopt.passing import Context, Findings, Lossy, Pass
from onnxopt.pruning.repair import layers_of_copy
from onnxopt.pruning.sparse import Wanted, by_count, by_magnitude, by_sparsegpt, by_wanda, gradually, output_error
from onnxopt.pruning.sparse_layers import (
    check_finite,
    columns_of,
    decline_others,
    first_reasons,
    inputs_of,
    is_depthwise,
    names_of,
    rows_of,
    too_small,
    unfit,
)
from onnxopt.pruning.sparse_pattern import Pattern, parsed
from onnxopt.statistics import Collected, Stat, why_no_gram
from onnxopt.validating import explain

Method = Literal["magnitude", "wanda", "sparsegpt", "global"]

_NEED_DATA = frozenset({"wanda", "sparsegpt"})

_NO_DATA, _UNSEEN, _FEW = (
    "there are no calibration data", "their inputs cannot be seen", "they see fewer rows than they have inputs",
)  # fmt: skip
"""Why auto takes magnitude."""

_NAMED = 3
"""Layers that a note names."""


Patterns = Annotated[tuple[str, ...], AfterValidator(checked)]


class Sparsify(Pass):
    """Set the weights that matter least to zero, anywhere or all but N of every M, and let the others make up for them.

    MatMul, Gemm, Conv and ConvTranspose keep dense weights, with zeros in them: files get smaller where they are
    compressed, and an engine with sparse kernels can run them; ONNX Runtime is no faster. With calibration data each
    layer's outputs are kept as far as the weights that stay allow (SparseGPT), else the smallest weights go.
    Frantar and Alistarh 2023, "SparseGPT"; Sun et al. 2024, "A Simple and Effective Pruning Approach for Large
    Language Models" (Wanda); Gupta et al. 2022, "Is Complexity Required for Neural Network Pruning?" (GlobalMP); Zhu
    and Gupta 2017, "To prune, or not to prune" (rounds).
    """

    phase = "transform"
    contract = Lossy()
    overridable = ("ratio", "pattern", "method", "damp", "block")

    ratio: float | None = Field(None, gt=0, lt=1, description="share of weights to set to zero, between 0 and 1")
    pattern: Pattern = Field(
        None, description="N:M like 2:4: of every M weights along the inputs of an output N are kept; at each tap of a "
        "kernel the inputs are its channels"
    )  # fmt: skip
    method: Literal["auto"] | Method = Field(
        "auto", description="magnitude: the smallest go; wanda: those that add least to an output; sparsegpt: those "
        "that cost least when the others make up for them; global: the smallest of all layers together. auto: "
        "sparsegpt with calibration data of as many rows as a layer has inputs, else magnitude"
    )  # fmt: skip
    sequential: bool = Field(
        True, description="statistics of a layer are those after the layers before it got their zeros, stage by stage; "
        "false: those of the model as it comes, for one run over the calibration data less"
    )  # fmt: skip
    rounds: PositiveInt = Field(
        1, description="get sparse in so many rounds along a cubic, each with statistics of the model that the one "
        "before left, for wanda and sparsegpt; each takes as long as all does with one"
    )  # fmt: skip
    min_kept: float = Field(0.01, ge=0, lt=1, description="of global: share of its weights that every layer keeps")
    damp: PositiveFloat = Field(
        0.01, description="of sparsegpt: what is added to the diagonal of a Gram matrix, times its mean"
    )
    block: PositiveInt = Field(
        128, description="of sparsegpt: columns that are updated together; a ratio is met in each of these"
    )
    include: Patterns = Field(
        ("*",), description="layers to sparsify, by names of nodes or weights: globs, or re: and a regular expression"
    )
    exclude: Patterns = Field((), description="layers to leave alone, named likewise")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if (self.ratio is None) == (self.pattern is None):
            given = "none is given" if self.ratio is None else "both are given"
            raise ValueError(f"give one of ratio, pattern; {given}")
        if self.method == "global" and self.ratio is None:
            raise ValueError("global needs ratio: a pattern leaves each layer the same share")
        if self.method == "global" and self.ratio is not None and self.min_kept > 1 - self.ratio:
            raise ValueError(f"min_kept {self.min_kept:g} is more than ratio {self.ratio:g} leaves")
        if self.rounds > 1 and self.method not in ("auto", *_NEED_DATA):
            raise ValueError(f"rounds is for wanda and sparsegpt: {self.method} would choose the same in each")
        return self

    def overridden(self, values: Mapping[str, Any]) -> Self:
        """See `Pass.overridden`; a ratio takes the place of a pattern, and a pattern of a ratio."""
        for given, other in (("ratio", "pattern"), ("pattern", "ratio")):
            if values.get(given) is not None:
                values = {other: None, **values}
        return super().overridden(values)

    @property
    def wanted(self) -> Wanted:
        """What a layer is to have."""
        if self.pattern is None:
            assert self.ratio is not None
            return 1 - self.ratio
        return parsed(self.pattern)

    def run(self, model: Model, context: Context) -> Findings:
        """Choose layers and methods, then change the weights of one layer after the other."""
        layers, declined = find_linears(model)
        findings = Findings(declined=declined)
        self._check_names(model, layers, findings)
        decline_others(model, layers, self.name, findings)
        jobs = list(self._chosen(model, layers, context, findings))
        for job in jobs:
            check_finite(job.linear, job.linear.matrix())
        jobs = _with_counts(list(self._with_methods(jobs, context, findings)))
        if not jobs:
            raise RecipeError(f"{self.name}: nothing can be sparse: {first_reasons(findings, layers)}; leave it out")
        rounds = self.rounds if any(job.needs_data for job in jobs) else 1
        work = _Work(
            model, context, findings, self.name, layers_of_copy(model) if rounds > 1 else {}, rounds * len(jobs)
        )
        for number in range(rounds):
            now = {linear.node: linear for linear in context.linears}
            jobs = [replace(job, linear=now[job.linear.node]) for job in jobs]
            for here, found in self._visits(jobs, context):
                for job in here:
                    wanted = gradually(job.options.wanted, rounds)[number]
                    work.sparsify(job, wanted, found, last=number == rounds - 1)
        work.report()
        return findings

    def _check_names(self, model: Model, layers: Sequence[Linear], findings: Findings) -> None:
        """Hold include and exclude to the names that there are."""
        names = [Names(frozenset(names_of(layer)), frozenset(names_of(layer))) for layer in layers]
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if pattern != "*" and (error := not_found(f"{self.name}.{option}", pattern, model, names)):
                    raise error
        for pattern in self.include:
            if pattern != "*" and not any(matches(pattern, each.all) for each in names):
                findings.decline(pattern, self.name, "include names no layer that multiplies by a constant matrix")

    def _chosen(self, model: Model, layers: Sequence[Linear], context: Context, findings: Findings) -> "Iterator[_Job]":
        """The layers that options and overrides leave, and that can have what is asked for."""
        for layer in layers:
            options = self._options_of(layer, context)
            why = self._excluded(layer, context) or unfit(layer, model) or too_small(layer, options.wanted)
            if why is None:
                yield _Job(layer, options)
            else:
                findings.decline(layer.name, self.name, why)

    def _options_of(self, layer: Linear, context: Context) -> "Sparsify":
        given = {key: value for name in names_of(layer) for key, value in context.overrides(name).items()}
        try:
            return self.overridden(given)
        except ValidationError as error:
            raise RecipeError(explain(error, type(self), f"overrides for {layer.name}: ")) from error

    def _excluded(self, layer: Linear, context: Context) -> str | None:
        names = names_of(layer)
        if any(map(context.skips, names)):
            return "an override skips it"
        if not any(matches(pattern, names) for pattern in self.include):
            return "include does not name it"
        if any(matches(pattern, names) for pattern in self.exclude):
            return "exclude names it"
        if is_depthwise(layer) and not any(is_name(pattern) and pattern in names for pattern in self.include):
            return (
                "a depthwise convolution: of its few weights each matters; include does it where it has the very name"
            )
        return None

    def _with_methods(self, jobs: "Sequence[_Job]", context: Context, findings: Findings) -> "Iterator[_Job]":
        """The layers with the method of each, settled before anything is changed.

        Raises:
            DataError: a method that needs data has none, or too few.
        """
        asking = [job for job in jobs if job.options.method in ("auto", *_NEED_DATA)]
        asked = next((job.options.method for job in asking if job.options.method != "auto"), None)
        if not context.samples and (asked or (asking and self.rounds > 1)):
            raise DataError(
                f"{self.name}: {asked or 'more than one round'} needs calibration data: give data.calibration (--data)"
            )
        stats: dict[_Job, Stat[Any]] = {}
        if context.samples:
            able = [job for job in asking if not why_no_gram(job.linear)]
            stats = {job: rows_of(job.linear) if self.sequential else inputs_of(job.linear) for job in able}
        found = context.collect(dict.fromkeys(stats.values())) if stats else Collected({})
        instead: dict[str, list[str]] = {}
        for job in jobs:
            settled = self._settled(job, stats.get(job), found, findings)
            if isinstance(settled, str):
                instead.setdefault(settled, []).append(job.linear.name)
                settled = replace(job, method="magnitude")
            if settled is not None:
                yield settled
        findings.notes += _fallbacks(instead)

    def _settled(
        self, job: "_Job", stat: Stat[Any] | None, found: Collected, findings: Findings
    ) -> "_Job | str | None":
        """A layer with its method, or why it gets magnitude in place of SparseGPT; None where it is declined."""
        method, layer = job.options.method, job.linear
        if method in ("magnitude", "global"):
            return replace(job, method=method)
        why = why_no_gram(layer) or _NO_DATA if stat is None else found.why(stat)
        if why and method != "auto":
            findings.decline(layer.name, self.name, f"{method} cannot see its inputs: {why}")
            return None
        if why or stat is None:
            return why if why == _NO_DATA else _UNSEEN
        rows, columns = found.rows(stat), columns_of(layer)
        if method == "wanda" or rows >= columns:
            return replace(job, method="wanda" if method == "wanda" else "sparsegpt")
        if method == "auto":
            return _FEW
        raise DataError(
            f"{self.name}: sparsegpt needs {columns} rows of calibration data at layer {layer.name}, which gets "
            f"{rows}: give about {ceil(columns / rows)} times as many samples, or method auto: magnitude in such layers"
        )

    def _visits(self, jobs: "Sequence[_Job]", context: Context) -> "Iterator[tuple[list[_Job], Collected]]":
        """The layers in the order in which they are changed, with the statistics of those that need any."""
        asking = [job for job in jobs if job.needs_data]
        if not (asking and self.sequential):
            yield list(jobs), context.collect([inputs_of(job.linear) for job in asking]) if asking else Collected({})
            return
        own = {job.linear.node: job for job in jobs}
        for stage in context.stages(sides=("current",)):
            here = [own[inner] for node in stage.nodes for inner in with_inner(node) if inner in own]
            stats = [inputs_of(job.linear) for job in here if job.needs_data]
            yield here, stage.collect(stats) if stats else Collected({})
            stage.close()


@dataclass(frozen=True, eq=False)
class _Job:
    """A layer and what is to be done to it.

    Attributes:
        linear: the layer as it is now.
        options: those of the pass, or what overrides make of them.
        method: how; settled before anything is changed.
        count: weights that stay, with global.
    """

    linear: Linear
    options: Sparsify
    method: Method = "magnitude"
    count: int = 0

    @property
    def needs_data(self) -> bool:
        """Whether it is done with statistics of the inputs."""
        return self.method in _NEED_DATA

    def applied(self, matrix: Weights, wanted: Wanted, seen: Array | None) -> Weights:
        """`Linear.matrix()` with zeros.

        Raises:
            DataError: the Gram matrix cannot be inverted.
        """
        taps = self.linear.taps
        if seen is None:
            return by_count(matrix, self.count) if self.method == "global" else by_magnitude(matrix, taps, wanted)
        if self.method == "wanda":
            return by_wanda(matrix, taps, wanted, seen)
        try:
            return by_sparsegpt(matrix, taps, wanted, seen, self.options.damp, self.options.block)
        except ValueError as error:
            raise DataError(f"layer {self.linear.name}: {error}") from error


@dataclass
class _Work:
    """Carrying it out, one layer at a time, and the figures of it."""

    model: Model
    context: Context
    findings: Findings
    rule: str
    dense: Mapping[Use, Layer]
    total: int
    done: int = 0
    tally: dict[str, int] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)

    def sparsify(self, job: _Job, wanted: Wanted, found: Collected, *, last: bool) -> None:
        """Change a layer; in the last round tell what became of it."""
        self.context.progress(self.done, self.total, job.linear.name)
        self.done += 1
        seen = found[inputs_of(job.linear)].gram() if job.needs_data else None
        before = job.linear.matrix()
        after = job.applied(before, wanted, seen)
        if not np.array_equal(before, after):
            self.model.apply(job.linear.replaced(after, store=self.context.store, rule=self.rule))
        if last:
            dense = self.dense.get(job.linear.weight.use)
            self._tell(job, before if dense is None else dense.matrix(), after, seen)

    def _tell(self, job: _Job, before: Weights, after: Weights, seen: Array | None) -> None:
        layer, size = job.linear, prod(job.linear.shape)
        stored = layer.layout.to_stored(after).astype(
            layer.weight.root.dtype.numpy() if layer.weight.root.dtype else None
        )
        sizes = stored_sizes(stored)
        for key, count in (
            ("weights", size), ("nonzero_before", int(np.count_nonzero(before))), ("nonzero_after", sizes.nonzero),
            ("dense_bytes", sizes.dense), ("bitmask_bytes", sizes.bitmask), ("zip_bytes", sizes.zipped),
        ):  # fmt: skip
            self.tally[key] = self.tally.get(key, 0) + count
        if np.array_equal(before, after):
            self.findings.decline(layer.name, self.rule, f"it is as sparse already: {sizes.nonzero} of {size} weights")
            return
        what = f"{job.method}: {sizes.nonzero} of {size} weights stay, density {sizes.nonzero / size:.3g}"
        if seen is not None:
            self.errors.append(output_error(before, after, seen, layer.taps))
            what += f", outputs change by {100 * self.errors[-1]:.2g} %"
        self.findings.change(layer.name, self.rule, what)

    def report(self) -> None:
        """Put the figures into the findings."""
        self.findings.measures |= self.tally
        self.findings.measures["density"] = self.tally["nonzero_after"] / self.tally["weights"]
        if self.errors:
            self.findings.measures |= {"mean_error": float(np.mean(self.errors)), "worst_error": max(self.errors)}
        if self.findings.changed:
            zeros, count = (
                self.tally["weights"] - self.tally["nonzero_after"],
                sum(e.params for e in stored(self.model)),
            )
            self.findings.notes.append(f"{zeros} weights are zero: {zeros / count:.1%} of the model's parameters")
            self.findings.notes.append(
                "zeros are stored like any weight and ONNX Runtime is no faster with them: what gets smaller is the "
                "compressed file (zip_bytes), or one that stores a bit for each weight and those that stay "
                "(bitmask_bytes)"
            )


def _with_counts(jobs: Sequence[_Job]) -> list[_Job]:
    """The layers, those of global with how many weights each keeps: one threshold for all of the same options."""
    counts: dict[_Job, int] = {}
    pools: dict[tuple[float | None, float], list[_Job]] = {}
    for job in jobs:
        if job.method == "global":
            pools.setdefault((job.options.ratio, job.options.min_kept), []).append(job)
    for (ratio, min_kept), pool in pools.items():
        least = [ceil(min_kept * prod(job.linear.shape)) for job in pool]
        found = global_counts([job.linear.matrix for job in pool], 1 - (ratio or 0), least)
        counts |= dict(zip(pool, found.tolist(), strict=True))
    return [replace(job, count=counts.get(job, 0)) for job in jobs]


def _fallbacks(instead: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What is to be said of layers that auto gave magnitude in place of SparseGPT."""
    for why, names in instead.items():
        some = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        yield f"in {len(names)} layers the smallest weights go and nothing makes up for them, as {why}: {some}"
