"""Metrics as people write them: plain names, ambiguity, options that do not belong."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from onnxopt.errors import DataError, RecipeError
from onnxopt.evaluate import KINDS, MetricConfig

X = np.zeros((4, 3), np.float32)
IDS = np.zeros((4, 3), np.int64)
Y = np.zeros(4, np.int64)


def config(**options: Any) -> MetricConfig:
    return MetricConfig.model_validate(options)


@pytest.mark.parametrize("name", KINDS)
def test_a_plain_name_is_enough(dataset: Any, name: str) -> None:
    metric = MetricConfig.model_validate(name).bind(dataset([{"x": X, "label/y": Y}]))
    assert (metric.name, metric.output, metric.axis, metric.shift) == (name, "y", -1, 0)
    assert metric.label == (None if metric.compares else "y")
    assert metric.k == (5 if name == "topk" else 1)
    assert metric.better == ("lower" if name in ("perplexity", "bits_per_byte", "relative_l2") else "higher")


@pytest.mark.parametrize(
    ("options", "batch", "outputs", "message"),
    [
        ({}, {"x": X, "label/y": Y}, ("a", "b"), "metric top1: output is ambiguous; name one of: 'a', 'b'"),
        (
            {"output": "logit"},
            {"x": X, "label/y": Y},
            ("logits", "b"),
            "no output 'logit'; there are: 'logits', 'b'; did you mean 'logits'?",
        ),
        ({}, {"x": X, "label/y": Y, "label/z": Y}, ("y",), "on data: label is ambiguous; name one of: 'y', 'z'"),
        (
            {},
            {"x": X},
            ("y",),
            "metric top1 on data: label is missing; the data hold no labels: add an array `label/NAME` with a class "
            "number for each sample",
        ),
        ({"label": "w"}, {"x": X}, ("y",), "metric top1 on data: no label 'w'; the data hold no labels: add an array"),
        (
            {"kind": "perplexity"},
            {"a": IDS},
            ("y",),
            "for each sample; where the targets are an input, shifted, give `shift: 1`",
        ),
        ({"label": "w"}, {"x": X, "n": Y, "label/y": Y}, ("y",), "no label 'w'; there are: 'y', 'n'"),
        (
            {"kind": "perplexity", "shift": 1},
            {"a": IDS, "b": IDS},
            ("y",),
            "label (an input, as targets are inputs shifted) is ambiguous; name one of: 'a', 'b'",
        ),
        ({"state": {"h": "y"}}, {"x": X, "label/y": Y}, ("y",), "metric.state of top1: no input 'h'; there are: 'x'"),
        ({"state": {"x": "z"}}, {"x": X, "label/y": Y}, ("y",), "metric.state of top1: no output 'z'; there are: 'y'"),
    ],
)
def test_ambiguity_lists_the_candidates(
    dataset: Any, options: dict[str, Any], batch: dict[str, Any], outputs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        config(**({"kind": "top1"} | options)).bind(dataset([batch], outputs))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_that_fits_no_sample_is_mentioned(dataset: Any) -> None:
    from onnxopt.data import open_data

    signature = dataset([{"x": X}]).signature
    data = open_data({"feed0000/x": X, "label/y": Y[:3]}, signature)
    with pytest.raises(RecipeError, match=r"label is missing; .*; label/y has 3 entries for 4 samples in 1 batches"):
        config(kind="top1").bind(data)


def test_targets_from_the_input(dataset: Any) -> None:
    data = dataset([{"ids": IDS, "x": X}])
    assert config(kind="bits_per_byte", shift=1).bind(data).label == "ids"
    assert config(kind="bits_per_byte", shift=1, label="ids").bind(data).label == "ids"
    with pytest.raises(RecipeError, match="label is missing"):
        config(kind="bits_per_byte").bind(data)
    labelled = dataset([{"ids": IDS, "label/t": IDS}])
    assert config(kind="bits_per_byte", shift=1).bind(labelled).label == "t"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("top", "no metric 'top'; there are top1, topk, perplexity, .* and module:function; did you mean 'topk'?"),
        ({"kind": "top1", "k": 3}, "top1 has no option 'k'; of k, shift, axis, better it has: axis"),
        ({"kind": "cosine", "axis": 1}, "cosine has no option 'axis'; .* it has: none"),
        ({"kind": "topk", "k": 0}, "k\n.*greater than 0"),
        ({"kind": "perplexity", "shift": -1}, "shift\n.*greater than or equal to 0"),
        ({"kind": "perplexity", "better": "higher"}, "perplexity has no option 'better'"),
        ({"kind": "a:b", "better": "more"}, "better\n.*'higher' or 'lower'"),
        ({"kind": "top1", "outptu": "y"}, "outptu\n.*Extra inputs are not permitted"),
        ({}, "kind\n.*Field required"),
    ],
)
def test_what_is_no_metric(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MetricConfig.model_validate(written)


def test_functions_need_leave(dataset: Any, tmp_path: Path) -> None:
    (tmp_path / "my_metric.py").write_text("def f(outputs, feeds, labels):\n    return 1.0\n")
    data = dataset([{"x": X}], ("a", "b"))
    try:
        with pytest.raises(RecipeError, match="'my_metric:f' would run code"):
            config(kind="my_metric:f").bind(data)
        metric = config(kind="my_metric:f", better="lower").bind(data, allow_code=True, base=tmp_path)
        assert (metric.output, metric.label, metric.better) == (None, None, "lower")
        with pytest.raises(DataError, match="has no 'g'"):
            config(kind="my_metric:g").bind(data, allow_code=True, base=tmp_path)
    finally:
        sys.modules.pop("my_metric", None)
