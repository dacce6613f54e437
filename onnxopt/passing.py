"""What a pass is: its phase, its contract, what it finds; and how passes are found by name."""

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Protocol, Self, Union, get_args, get_origin

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationInfo, field_validator

from onnxopt import discovery
from onnxopt.analysis.cost import Cost
from onnxopt.analysis.linear import Linear
from onnxopt.analysis.shapes import Shapes
from onnxopt.discovery import pass_names
from onnxopt.errors import Declined, OnnxOptError, RecipeError
from onnxopt.model import Model
from onnxopt.nodes import label
from onnxopt.statistics import Collected, Side, Stat

Phase = Literal["clean", "structure", "transform", "quantize", "lower"]
PHASES: tuple[Phase, ...] = ("clean", "structure", "transform", "quantize", "lower")
"""The order in which passes make sense; a recipe out of order is an error."""

_MOST_ROUNDS = 10


@dataclass(frozen=True)
class Exact:
    """The pass changes no output beyond rounding.

    Attributes:
        tolerance: relative L2 a output and sample; None: 1e-4 (fp32) or 5e-3 (fp16, bf16), and never
            under 8 times what the runtime's own optimizations do to the model.
    """

    tolerance: float | None = None


@dataclass(frozen=True)
class Lossy:
    """The pass changes outputs; what it does is measured, reported and held inside the limits."""


Contract = Exact | Lossy


class Limits(BaseModel):
    """How much worse a model may become, against the input model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric_drop: PositiveFloat | None = Field(
        None, description="largest loss of the metric: absolute for scores in 0..1, relative for losses"
    )
    drift: PositiveFloat | None = Field(None, description="largest relative L2 of an output, as deployed")

    def with_(self, own: "Limits | None") -> "Limits":
        """These limits and those that a pass states for itself: the stricter of each."""
        if own is None:
            return self
        pairs = ((self.metric_drop, own.metric_drop), (self.drift, own.drift))
        drop, drift = (min((limit for limit in pair if limit is not None), default=None) for pair in pairs)
        return Limits(metric_drop=drop, drift=drift)


@dataclass(frozen=True)
class Change:
    """One thing that a pass did.

    Attributes:
        node: name of the node or tensor it was done to.
        rule: the pass's rule.
        what: what was done, readable on its own.
    """

    node: str
    rule: str
    what: str


@dataclass
class Findings:
    """What came out of one run of a pass: changes, refusals with reasons, notes, figures.

    Attributes:
        chosen: option that leaves the choice to the pass (`auto`) -> what it chose, and where.
    """

    changes: list[Change] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measures: dict[str, float | int | str] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether the pass did anything."""
        return bool(self.changes)

    def change(self, node: ir.Node | str | None, rule: str, what: str) -> None:
        """Record something done to a node, or to the node or tensor of a name."""
        self.changes.append(Change(_name(node), rule, what))

    def decline(self, node: ir.Node | str | None, rule: str, why: str) -> None:
        """Record something left alone, with the reason."""
        self.declined.append(Declined(_name(node), rule, why))

    def add(self, other: "Findings") -> None:
        """Take over what another run found (figures and choices of the same name are replaced)."""
        self.changes += other.changes
        self.declined += other.declined
        self.notes += other.notes
        self.measures |= other.measures
        self.chosen |= other.chosen


def _name(of: ir.Node | str | None) -> str:
    return label(of) if isinstance(of, ir.Node) else of or ""


class Target(Protocol):
    """What a pass may know of the machine that the model is for."""

    @property
    def name(self) -> str: ...
    @property
    def max_opset(self) -> int | None: ...


class Stage(Protocol):
    """A part of the model between two values that all data pass through."""

    @property
    def index(self) -> int: ...
    @property
    def nodes(self) -> tuple[ir.Node, ...]: ...

    def collect(self, stats: Iterable[Stat[Any]]) -> Collected:
        """Statistics of values in this stage, of the model as it is now, as it was, or of both together."""
        ...

    def close(self) -> None:
        """Go on with the stage as it is now; without it the next stage does so."""
        ...


class Probe(Protocol):
    """The outputs of a model on calibration samples, for comparing variants with it."""

    def distortion(self, variant: Model) -> float:
        """Squared error of the variant's outputs, relative to how much the model's own vary; infinite with NaN."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class Stages(Protocol):
    """The stages of a model, in the order in which they run."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Stage]: ...


class Context(Protocol):
    """What a pass may ask for. Analyses are of the model as it is now, cached per revision."""

    @property
    def target(self) -> Target: ...
    @property
    def rng(self) -> np.random.Generator: ...
    @property
    def linears(self) -> list[Linear]: ...
    @property
    def shapes(self) -> Shapes: ...
    @property
    def cost(self) -> Cost: ...

    def store(self, array: npt.NDArray[Any], dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """Put a heavy result into the work folder and get a memory-mapped tensor of it.

        The array holds one element an entry; `dtype` names the ONNX type where numpy has none (INT4, ...),
        and such types are packed on the way.
        """
        ...

    def evaluate(self, model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run a small model of its own in the reference session: what folds constants."""
        ...

    def drift(self, before: Model, after: Model) -> float | None:
        """How far two variants of the model are apart in the reference session, on one small input of the run.

        Worst relative L2 over outputs and samples; of integers and booleans the share that differs; infinite where
        the second does not run, or its outputs have other types or sizes. The input is the first calibration sample,
        without data the smallest random one on which the first runs and its outputs depend. None where nothing can
        be told: the first does not run, there is no memory for its session, or its outputs never change.
        """
        ...

    @property
    def samples(self) -> int:
        """How many calibration samples there are; 0: the run has no calibration data."""
        ...

    def collect(self, stats: Iterable[Stat[Any]]) -> Collected:
        """Statistics of values of the model as it is now, on all calibration samples.

        As many in one pass over the data as memory allows. What was collected before, by whatever pass, is not
        collected again as long as nothing upstream of the value has changed.

        Raises:
            DataError: no calibration data; NaN or infinity (names tensor and sample); a statistic that needs more
                memory than there is. What has no result by itself says so when it is asked for (`Collected.why`).
        """
        ...

    def stages(
        self, cuts: Sequence[str] | None = None, *, most_bytes: int | None = None, sides: Sequence[Side] = ...
    ) -> Stages:
        """The model stage by stage, for calibration in which a layer sees what edits before it have left.

            for stage in context.stages():
                found = stage.collect([cross_gram(linear), gram(linear)])
                ...edits of nodes of this stage...
                stage.close()

        Args:
            cuts: names of the values between stages; None: those that all data pass through, about one a block.
            most_bytes: join stages while their weights are fewer bytes; None: as small as they are.
            sides: current alone, or also dense: the model as it is when the run begins.
        """
        ...

    def probe(self, samples: int) -> Probe:
        """What tells how far variants are from the model as it is now, on so many calibration samples.

        Raises:
            DataError: no calibration data, or the model has no output of real numbers.
        """
        ...

    def times(self, models: Sequence[Model]) -> list[float] | None:
        """Median seconds of variants at the first sample's sizes, measured in turn as they are deployed.

        None where there is no worker to measure in, or no room for the sessions.
        """
        ...

    def overrides(self, name: str) -> Mapping[str, Any]:
        """The options that the recipe's overrides give a node or weight of that name, merged; later entries win."""
        ...

    def skips(self, name: str) -> bool:
        """Whether an override says that no lossy pass may touch the node or weight of that name.

        Lossy passes ask and decline; the pipeline compares what is skipped before and after them.
        """
        ...

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Tell how far the pass is."""
        ...


class Pass(BaseModel):
    """Base of all passes. Options are fields: help, schema, recipe and command line come from them.

    The file `fold_constants.py` holds the class `FoldConstants`, known as `fold-constants`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""
    phase: ClassVar[Phase] = "clean"
    contract: ClassVar[Contract] = Exact()
    changes_signature: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    """Whether a composite's parts are run again until none of them changes anything."""
    overridable: ClassVar[tuple[str, ...]] = ()
    """The options that an override may set for single nodes or weights; see `overridden`."""

    limits: Limits | None = Field(None, description="limits for this pass alone, against the input model")

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any, info: ValidationInfo) -> Any:
        """Of an option that takes a list, a single value is the list of it: `kinds: heads`."""
        takes_a_list = _is_list(cls.model_fields[info.field_name or ""].annotation)
        return [value] if takes_a_list and isinstance(value, str | int | float) else value

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def run(self, model: Model, context: Context) -> Findings:
        """Change the model and tell what was done and what was not."""
        raise TypeError(f"pass {self.name} neither runs nor expands")

    def expand(self) -> "list[Pass]":
        """The passes that this one stands for; itself, unless it is a composite."""
        return [self]

    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain values."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def overridden(self, values: Mapping[str, Any]) -> Self:
        """This pass with what overrides say of one node or weight; what only other passes take is left out.

        Raises:
            pydantic.ValidationError: an impossible value.
        """
        own = {key: value for key, value in values.items() if key in self.overridable}
        return type(self)(**{key: getattr(self, key) for key in self.model_fields_set} | own) if own else self

    def unfit(self, target: Target) -> str | None:
        """`OPTION: why` where an option that was given cannot be meant for the target; None where all can."""
        return None

    @classmethod
    def summary(cls) -> str:
        """First line of the documentation."""
        return (cls.__doc__ or "").strip().split("\n")[0]


def _is_list(kind: Any) -> bool:
    """Whether nothing but a list, or nothing, is of an option's type."""
    arms = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return all((get_origin(arm) or arm) in (tuple, list) for arm in arms if arm is not NoneType)


def parts(pass_: Pass) -> list[Pass]:
    """A composite's parts, in order; composites may hold composites, and a pass itself after what it needs."""
    return [inner for part in pass_.expand() for inner in ([pass_] if part is pass_ else parts(part))]


def rounds(pass_: Pass, revision: Callable[[], int]) -> Iterator[Pass]:
    """A composite's parts in the order in which they are to be run; again and again where it repeats.

    Ends when every part has seen the graph as it is and left it alone, and after ten rounds in any case.

    Args:
        pass_: the pass; its parts are yielded, each to be run before the next is asked for.
        revision: the model's revision as it is now.
    """
    inner = parts(pass_)
    idle: dict[int, int] = {}
    for _ in range(_MOST_ROUNDS if pass_.repeats else 1):
        for at, part in enumerate(inner):
            before = revision()
            if idle.get(at) == before:
                continue
            yield part
            if revision() == before:
                idle[at] = before
        if all(seen == revision() for seen in idle.values()) and len(idle) == len(inner):
            return


def separated(pass_: Pass) -> list[Pass]:
    """A composite of exact and lossy parts as steps of their own: exact parts are held to exactness."""
    inner = parts(pass_)
    mixed = len({isinstance(part.contract, Exact) for part in inner}) > 1
    return inner if mixed else [pass_]


def contract_of(pass_: Pass) -> Contract:
    """A composite promises what the weakest of its parts promises."""
    exact: list[Exact] = []
    for part in parts(pass_):
        if isinstance(part.contract, Lossy):
            return part.contract
        exact.append(part.contract)
    return max(exact, key=lambda contract: contract.tolerance or 0.0, default=Exact())


def reshapes(pass_: Pass) -> bool:
    """Whether values may have other shapes under the same names after a pass."""
    return any(part.phase in {"structure", "transform"} for part in (pass_, *parts(pass_)))


def pass_class(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        RecipeError: no pass of that name; the message has the nearest names.
    """
    if name in discovery.built_in():
        module = importlib.import_module(discovery.built_in()[name][0])
        return _checked(name, getattr(module, "".join(part.capitalize() for part in name.split("-"))))
    for point in discovery.third_party():
        if point.name == name:
            return _checked(name, _load(point), discovery.package(point))
    near = difflib.get_close_matches(name, pass_names(), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`onnxopt passes` lists them"
    raise RecipeError(f"no pass named {name!r}; {hint}")


def make(name: str, options: Mapping[str, Any] | None = None) -> Pass:
    """A pass with options, which are checked.

    Raises:
        pydantic.ValidationError: an option is unknown or has an impossible value; the recipe words it.
    """
    return pass_class(name)(**(options or {}))


def _load(point: EntryPoint) -> object:
    try:
        return point.load()
    except Exception as error:  # another package's import may fail in any way
        package = discovery.package(point)
        raise OnnxOptError(f"pass {point.name} of package {package} cannot be imported: {error}") from error


def _checked(name: str, found: object, package: str = "onnxopt") -> type[Pass]:
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise OnnxOptError(f"pass {name} of package {package} is {found!r}, no subclass of onnxopt.Pass")
    return found


__all__ = [
    "PHASES", "Change", "Context", "Contract", "Declined", "Exact", "Findings", "Limits", "Lossy", "Pass", "Phase",
    "Target", "contract_of", "make", "parts", "pass_class", "pass_names", "reshapes", "rounds",
    "separated",
]  # fmt: skip
