"""The library's front door: `optimize`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnxopt import pipeline, recipe
from onnxopt.model import Source
from onnxopt.pipeline import Result
from onnxopt.recipe import Recipe
from onnxopt.settings import Progress, Settings, parse_bytes

Passes = "str | Path | Mapping[str, Any] | Recipe | list[PassLike] | tuple[PassLike, ...]"


def optimize(
    model: Source,
    passes: "Passes",  # type: ignore[valid-type]
    *,
    output: str | Path | None = None,
    data: Any = None,
    evaluation: Any = None,
    metric: str | Mapping[str, Any] | None = None,
    mask: str | None = None,
    target: str | Mapping[str, Any] | None = None,
    limits: Mapping[str, float] | None = None,
    verify: str | Mapping[str, Any] | None = None,
    work: str | Path | None = None,
    resume: bool = False,
    memory: int | str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Run passes on a model, prove what they did, and write the result.

    Args:
        model: a path, bytes, ModelProto, onnx_ir model or graphsurgeon graph.
        passes: a recipe (path, mapping or Recipe), or a list of pass names, `{name: options}` and Pass objects.
        output: file to write, which may be the model's own; `report.json` goes beside it (`NAME.report.json` where
            a report on another output lies there).
        data: calibration data: a SPEC as on the command line, arrays by input name, or an iterable of feeds.
        evaluation: data for limits and the report, in the same forms.
        metric: a metric's name, or `{kind: ..., output: ..., label: ...}`.
        mask: padding mask of the calibration data: an input, or NAME of an array `mask/NAME` beside the inputs, which
            is not fed; 1 marks what counts in statistics, 0 what is padding.
        target: `portable`, `cpu`, `cuda`, or a profile.
        limits: `{metric_drop: ..., drift: ...}` against the input model.
        verify: `full`, `sample`, `structure`, or the recipe's mapping.
        work: work folder, kept for inspection and resuming.
        resume: go on where a run that was killed, or could not write, left its work folder.
        memory: for statistics of calibration data: bytes, or like `2G`; by default a share of what is free.
        progress: called with a `Progress` now and then.

    Returns:
        The optimized model and the report.

    Raises:
        RecipeError, ModelError, DataError: bad input, in one line; nothing is written.
        ContractViolation: a pass broke its contract or a limit; nothing is written.
    """
    made = _recipe(passes, metric=metric, mask=mask, target=target, limits=limits, verify=verify)
    settings = Settings(
        work=Path(work) if work else None, resume=resume, progress=progress,
        allow_code=not isinstance(passes, str | Path),
        memory=None if memory is None else parse_bytes(memory, "memory"),
    )  # fmt: skip
    return pipeline.run(
        model, made, Path(output) if output else None, data=data, evaluation=evaluation, settings=settings
    )


def _recipe(passes: Any, *, metric: Any, mask: Any, **parts: Any) -> Recipe:
    if isinstance(passes, Recipe):
        content = {**passes.resolved(), "passes": list(passes.passes)}
    elif isinstance(passes, str | Path):
        content = recipe.read(Path(passes))
    elif isinstance(passes, Mapping):
        content = dict(passes)
    else:
        content = {"passes": list(passes)}
    content |= {key: value for key, value in parts.items() if value is not None}
    of_data = {key: value for key, value in (("metric", metric), ("mask", mask)) if value is not None}
    recipe.settle_shorthands(content)
    data = content.get("data") or {}
    if of_data and isinstance(data, Mapping):  # what else stands there, `build` refuses
        content["data"] = {**data, **of_data}
    return recipe.build(content)
