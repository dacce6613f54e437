"""Recipes from files and from plain values: what is read, settled, overridden and written back."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt import recipe
from onnxopt.errors import RecipeError
from onnxopt.passing import make, pass_names

FULL: dict[str, Any] = {
    "version": 1,
    "data": {"calibration": "calib.npz", "evaluation": "eval.npz", "metric": {"kind": "top1", "output": "logits"}},
    "target": {"name": "cpu", "threads": 4},
    "limits": {"metric_drop": 0.01, "drift": 0.05},
    "verify": {"level": "sample", "samples": 4, "max_seconds": 9.0},
    "on_violation": "skip",
    "overrides": [{"match": "*/lm_head*", "bits": 8}, {"match": "re:.*norm.*", "skip": True}],
    "seed": 7,
    "passes": ["clean", {"quantize-weights": {"bits": 3, "block_size": 64}}],
}


def test_a_full_recipe_goes_round() -> None:
    resolved = recipe.build(FULL).resolved()
    assert recipe.build(resolved) == recipe.build(FULL)
    assert recipe.build(yaml.safe_load(yaml.safe_dump(resolved))) == recipe.build(FULL)
    assert resolved["passes"] == FULL["passes"]
    assert resolved["overrides"] == FULL["overrides"]


def test_the_data_of_a_run_take_the_place_of_the_recipe_s(tmp_path: Path) -> None:
    made = recipe.build(FULL)
    assert made.on(None, None) == made
    named = made.on("x.npz", tmp_path / "y.npz").resolved()["data"]
    assert named == {**FULL["data"], "calibration": "x.npz", "evaluation": str(tmp_path / "y.npz")}
    assert made.on({"x": [1.0]}, None).resolved()["data"] == {
        k: v for k, v in FULL["data"].items() if k != "calibration"
    }


def test_paths_of_data_lead_from_where_the_file_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npz").touch()
    for written, seen in (
        ("x.npz", "../x.npz"), ("synthetic", "synthetic"), ("gone.npz", "gone.npz"), ("a:b", "a:b"),
        (str(tmp_path / "x.npz"), str(tmp_path / "x.npz")),
    ):  # fmt: skip
        content = {"data": {"calibration": written, "mask": "x.npz"}, "seed": 3}
        away = recipe.seen_from(content, tmp_path / "out")
        assert away == {"data": {"calibration": seen, "mask": "x.npz"}, "seed": 3}
        assert content["data"]["calibration"] == written  # type: ignore[index]
    assert recipe.seen_from({"seed": 3}, tmp_path) == {"seed": 3}


def test_what_a_recipe_needs_beside_it() -> None:
    assert recipe.build(FULL).flags() == []
    assert recipe.build({"data": {"metric": "mine:score"}}).flags() == ["--allow-code"]
    assert recipe.build({"passes": ["quantize-weights", "clean"]}, force_order=True).flags() == ["--force-order"]


def test_defaults_are_left_out_of_what_is_written() -> None:
    assert recipe.build({"passes": ["clean"], "verify": "full", "target": "cpu"}).resolved() == {
        "version": 1, "passes": ["clean"],
    }  # fmt: skip


@pytest.mark.parametrize("part", ["data", "limits", "verify", "target", "overrides", "seed", "version", "passes"])
def test_a_key_without_a_value_is_its_default(part: str) -> None:
    assert recipe.build({part: None}) == recipe.build({})


def test_shorthands() -> None:
    made = recipe.build({"target": "portable", "verify": "structure", "data": "calib.npz"})
    assert (made.target.name, made.verify.level, made.data.calibration) == ("portable", "structure", "calib.npz")
    assert recipe.build({"data": {"metric": "top1"}}) == recipe.build({"data": {"metric": {"kind": "top1"}}})


def test_every_source(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("passes: [clean]")
    made = recipe.build({"passes": ["clean"]})
    assert recipe.load(made) is made
    for source in (path, str(path), {"passes": ["clean"]}, ["clean"], (make("clean"),), [{"clean": None}]):
        assert recipe.load(source) == made


def test_data_are_looked_for_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub" / "batches").mkdir(parents=True)
    (tmp_path / "sub" / "near.npz").touch()
    path = tmp_path / "sub" / "r.yaml"
    monkeypatch.chdir(tmp_path)
    for written, found in (
        ("near.npz", "sub/near.npz"), ("batches", "sub/batches"), ("far.npz", "far.npz"), ("synthetic", "synthetic"),
        ("module:feeds", "module:feeds"), (str(path), str(path)),
    ):  # fmt: skip
        path.write_text(yaml.safe_dump({"data": {"calibration": written, "evaluation": written}}))
        assert recipe.read(Path("sub/r.yaml"))["data"] == {"calibration": found, "evaluation": found}
    path.write_text("data: near.npz")
    assert recipe.read(Path("sub/r.yaml"))["data"] == {"calibration": "sub/near.npz"}


def test_a_mask_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "pad").mkdir()
    (tmp_path / "r.yaml").write_text("data: {calibration: x.npz, mask: pad}\npasses: [clean]\n")
    content = recipe.read(tmp_path / "r.yaml")
    made = recipe.build(content)
    assert (content["data"]["mask"], made.data.mask, made.resolved()["data"]["mask"]) == ("pad", "pad", "pad")
    assert "mask" not in recipe.build({"data": "x.npz"}).resolved()["data"]


@pytest.mark.parametrize("text", ["a: 1\na: 2", "data: {calibration: x, calibration: y}", "- {a: 1, a: 2}"])
def test_a_key_may_stand_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match="stands twice"):
        recipe.read(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("clean", "clean"),
        ("clean:", "clean"),
        ("p:a=1", {"p": {"a": 1}}),
        ("p:a=1,b=x", {"p": {"a": 1, "b": "x"}}),
        ("p:a=[1,2],b={c: 3,d: 4}", {"p": {"a": [1, 2], "b": {"c": 3, "d": 4}}}),
        ("p:include=[a,'conv:0']", {"p": {"include": ["a", "conv:0"]}}),
        ("p:a='x,y',b=\"u=v\"", {"p": {"a": "x,y", "b": "u=v"}}),
        ("p:a=x=y", {"p": {"a": "x=y"}}),
        ("p:a=,b=null", {"p": {"a": None, "b": None}}),
        ("p:a=300M", {"p": {"a": "300M"}}),
    ],
)
def test_a_pass_on_the_command_line(text: str, parsed: Any) -> None:
    assert recipe.parse_pass(text) == parsed


VALUES = st.none() | st.booleans() | st.integers() | st.text("ab,:=[]{}'\"# ", max_size=8)


@given(st.dictionaries(st.sampled_from("abc"), VALUES | st.lists(VALUES, max_size=3), min_size=1))
def test_options_survive_the_command_line(options: dict[str, Any]) -> None:
    text = ",".join(f"{key}={json.dumps(value)}" for key, value in options.items())
    assert recipe.parse_pass(f"p:{text}") == {"p": options}


@pytest.mark.parametrize(
    ("assignment", "changed"),
    [
        ("seed=3", {"seed": 3}),
        ("limits.drift=0.5", {"limits": {"drift": 0.5}}),
        ("passes.0.bits=3", {"passes": [{"clean": {"bits": 3}}, {"quantize-weights": None}]}),
        ("passes.1.bits=3", {"passes": ["clean", {"quantize-weights": {"bits": 3}}]}),
        ("passes.1.limits.drift=1", {"passes": ["clean", {"quantize-weights": {"limits": {"drift": 1}}}]}),
        ("passes.1=clean", {"passes": ["clean", "clean"]}),
        ("overrides.0.bits=4", {"overrides": [{"match": "a", "bits": 4}]}),
        ("verify.samples=2", {"verify": {"samples": 2}}),
    ],
)
def test_single_values(assignment: str, changed: dict[str, Any]) -> None:
    content: dict[str, Any] = {
        "passes": ["clean", {"quantize-weights": None}], "overrides": [{"match": "a"}], "verify": None,
    }  # fmt: skip
    recipe.set_value(content, assignment)
    assert {key: content[key] for key in changed} == changed


@pytest.mark.parametrize(
    "assignment", ["passes.0", "passes.2.a=1", "passes.-1.a=1", "seed.a=1", "=1", "a..b=1", "a=[1"]
)
def test_single_values_that_lead_nowhere(assignment: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        recipe.set_value({"passes": ["clean"], "seed": 3}, assignment)


def test_a_malformed_pass_item_under_a_single_value() -> None:
    with pytest.raises(RecipeError, match=r"passes\.0"):
        recipe.set_value({"passes": [{"a": 1, "b": 2}]}, "passes.0.bits=1")


@pytest.mark.parametrize("name", sorted(pass_names()))
def test_every_misspelled_pass_is_recognised(name: str) -> None:
    wrong = name[:-1] + ("x" if name[-1] != "x" else "y")
    with pytest.raises(RecipeError, match=name):
        recipe.build({"passes": [wrong]})


def test_order() -> None:
    with pytest.raises(RecipeError, match="the right order is clean, quantize-weights"):
        recipe.build({"passes": ["quantize-weights", "clean"]})
    forced = recipe.build({"passes": ["quantize-weights", "clean"]}, force_order=True)
    assert [item.name for item in forced.passes] == ["quantize-weights", "clean"]
    twice = recipe.build({"passes": ["clean", "clean", "quantize-weights"]})
    assert len(twice.passes) == 3


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # the first of them imports what others find there
@given(st.dictionaries(st.sampled_from(sorted(FULL)) | st.text(max_size=3), JUNK, max_size=4))
def test_whatever_is_written_gives_a_recipe_or_one_line(content: dict[str, Any]) -> None:
    message = ""
    try:
        recipe.build(content)
    except RecipeError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 600


def test_what_was_given_is_not_changed() -> None:
    content = {"passes": ["clean"], "target": "cpu", "data": {"metric": "top1"}}
    recipe.build(content)
    assert content == {"passes": ["clean"], "target": "cpu", "data": {"metric": "top1"}}
