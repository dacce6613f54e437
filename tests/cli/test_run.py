"""`onnxopt run`: where recipes and data come from, what is written and printed, and when nothing is done."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from onnxopt import pipeline
from onnxopt.cli.output import size
from onnxopt.cli.report import html
from onnxopt.cli.run import before_and_after, show
from onnxopt.models.builders import Sketch
from onnxopt.passing import pass_class
from onnxopt.report import Facts, Report, Step
from onnxopt.settings import Settings

Cli = Callable[..., Any]
Tiny = Callable[..., onnx.ModelProto]

CLEAN = ("-p", "clean")
RUN = ("run", "tiny.onnx", "-o", "out.onnx")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def report(path: str = "report.json") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text(), parse_constant=pytest.fail)
    return content


def test_the_main_job(cli: Cli, digits: Path) -> None:
    before = names(digits)
    ran = cli(
        "run", "cnn.onnx", "-o", "out.onnx", *CLEAN, "-p", "quantize-weights:bits=8,block_size=32",
        "--data", "calib.npz", "--eval-data", "eval.npz", "--metric", "top1",
    )  # fmt: skip
    assert ran.code == 0
    assert names(digits) - before == {"out.onnx", "report.json", "report.recipe.yaml"}
    assert ran.out.startswith("verified end to end on 8 samples of evaluation data\n")
    assert re.search(r"\ndrift .*, as deployed \S+, on 8 samples of evaluation data\n", ran.out)
    assert "quantize-weights: changed" in ran.out
    found = report()
    assert found["metric"]["samples"] == len(np.load("eval.npz")["images"])
    assert found["metric"]["before"] > 0.98
    assert [step["name"] for step in found["steps"]][-3:] == ["clean", "upgrade-opset", "quantize-weights"]
    assert found["steps"][-1]["options"] == {"bits": 8, "block_size": 32} or found["steps"][-1]["options"] == {
        "bits": 8
    }
    onnx.checker.check_model("out.onnx", full_check=True)


def test_progress_goes_to_standard_error(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, *CLEAN)
    assert [line.partition("] ")[2] for line in ran.err.splitlines()][-2:] == ["clean", "measuring and writing"]


def test_json_is_all_that_is_printed(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, *CLEAN, "--json")
    assert ran.code == 0
    assert ran.err == ""
    assert json.loads(ran.out, parse_constant=pytest.fail) == report()


def test_quiet_is_silent(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, *CLEAN, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert (folder / "out.onnx").exists()


def test_samples_are_counted_not_batches(cli: Cli, folder: Path) -> None:
    assert "on 5 samples of calibration data" in cli(*RUN, *CLEAN, "--data", "x.npz", "--set", "verify.samples=5").out
    assert "on 1 sample of calibration data" in cli(*RUN, *CLEAN, "--data", "x.npz", "--verify", "sample").out


def test_structure_says_unverified_first(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, *CLEAN, "--verify", "structure")
    assert ran.code == 0
    first = "UNVERIFIED END TO END: asked for by verify.level; rewrites run by themselves: 1 of 1, not run: 0"
    assert ran.out.splitlines()[0] == first
    assert report()["verified"] is False


def test_peak_memory_is_shown_apart(cli: Cli, folder: Path) -> None:
    [line] = [line for line in cli(*RUN, *CLEAN).out.splitlines() if line.startswith("peak memory")]
    own, worker = (report()["memory"][key] for key in ("own_peak_bytes", "worker_peak_bytes"))
    assert own != worker
    assert line == f"peak memory: {size(own)} with mapped files, and {size(worker)} in the worker process"


# Recipes


def test_recipe_then_passes_then_single_values(cli: Cli, folder: Path) -> None:
    (folder / "r.yaml").write_text("passes:\n- eliminate-identity\n- clean\n")
    ran = cli(
        *RUN, "-r", "r.yaml", "-p", "quantize-weights:bits=4,min_elements=1", "--set", "passes.2.bits=2",
        "--set", "verify.samples=3", "--verify", "structure",
    )  # fmt: skip
    assert ran.code == 0
    assert report()["recipe"]["passes"] == [
        "eliminate-identity", "clean", {"quantize-weights": {"bits": 2, "min_elements": 1}},
    ]  # fmt: skip
    assert report()["recipe"]["verify"] == {"level": "structure", "samples": 3}


def test_the_resolved_recipe_runs_again(cli: Cli, folder: Path) -> None:
    assert cli(*RUN, *CLEAN, "-p", "quantize-weights:bits=8", "--data", "x.npz").code == 0
    first = (folder / "out.onnx").read_bytes()
    again = cli(*RUN, "-r", "report.recipe.yaml", "--data", "x.npz")
    assert again.code == 0
    assert (folder / "out.onnx").read_bytes() == first


def test_the_resolved_recipe_names_what_the_command_line_gave(cli: Cli, digits: Path) -> None:
    (digits / "deep" / "er").mkdir(parents=True)
    made = cli(
        "run", "cnn.onnx", "-o", "deep/out.onnx", *CLEAN, "-p", "quantize-weights:bits=8,min_elements=1",
        "--data", "calib.npz", "--eval-data", str(digits / "eval.npz"), "--metric", "top1", "--verify", "sample",
        "--shape", "images:2,1,8,8", "--memory", "64M", "--accept-loss", "--set", "seed=3",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert report("deep/report.json")["recipe"]["data"] == {
        "calibration": "calib.npz", "evaluation": str(digits / "eval.npz"), "metric": {"kind": "top1"},
    }  # fmt: skip
    text = (digits / "deep" / "report.recipe.yaml").read_text()
    assert text.splitlines()[0] == "# with --shape images:2,1,8,8 --accept-loss --memory 67108864"
    assert yaml.safe_load(text)["data"]["calibration"] == "../calib.npz"
    again = cli("run", "cnn.onnx", "-o", "deep/er/again.onnx", "-r", "deep/report.recipe.yaml", "--accept-loss")
    assert again.code == 0, again.err
    first, second = report("deep/report.json"), report("deep/er/report.json")
    for key in ("metric", "drift", "deployed_drift", "drift_on"):
        assert first[key] == second[key], key
    assert (digits / "deep" / "out.onnx").read_bytes() == (digits / "deep" / "er" / "again.onnx").read_bytes()


def test_data_by_another_name_are_the_same_data(cli: Cli, folder: Path) -> None:
    shutil.copy("x.npz", "y.npz")
    given = (*RUN, *CLEAN, "--if-changed", "--verify", "structure")
    assert "is up to date" not in cli(*given, "--data", "x.npz").out
    assert "is up to date" in cli(*given, "--data", "y.npz").out
    assert "is up to date" not in cli(*given).out


@pytest.mark.parametrize(("drop", "told"), [(0.25, "0.2500 lost"), (-0.25, "0.2500 gained"), (0.0, "0.0000 lost")])
def test_a_gain_is_no_negative_loss(drop: float, told: str) -> None:
    facts = Facts(1, 17, 1, 4, None)
    metric = {"name": "top1", "before": 0.5, "after": 0.5 - drop, "drop": drop}
    rows = before_and_after(Report(verified=True, status="fine", before=facts, after=facts, metric=metric))
    assert rows[-1] == ["top1", "0.5000", f"{0.5 - drop:.4f}", told]


def test_steps_that_had_nothing_to_do_are_brief(cli: Cli, folder: Path) -> None:
    out = cli(*RUN, *CLEAN).out
    assert "lift-constants" not in out
    assert [step["name"] for step in report()["steps"]] == ["inline-functions", "lift-constants", "clean"]
    assert "0 changes" not in cli("run", "out.onnx", "-o", "again.onnx", *CLEAN).out


def test_what_a_pass_chose_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    facts = Facts(1, 17, 1, 4, None)
    step = Step("p", {}, "changed", 0.1, chosen={"order": "magnitude", "round_to": "8 for conv"})
    found = Report(verified=True, status="fine", before=facts, after=facts, steps=[step])
    show(found, limited=True)
    assert "\n    chosen: order magnitude, round_to 8 for conv\n" in capsys.readouterr().out
    assert "magnitude" in html(found)


def test_plain_names_take_single_values(cli: Cli, folder: Path) -> None:
    (folder / "r.yaml").write_text("passes: [clean]\nverify: structure\n")
    assert cli(*RUN, "-r", "r.yaml", "--set", "verify.samples=2", "--target", "portable").code == 0
    assert report()["recipe"]["verify"] == {"level": "structure", "samples": 2}
    assert report()["recipe"]["target"]["name"] == "portable"


def test_the_mask_that_is_typed_counts(cli: Cli, folder: Path) -> None:
    """As `data.metric` does, it takes the place of the recipe's and leaves the rest of its data alone."""
    x = np.load("x.npz")["x"]
    np.savez("masked.npz", x=x, **{"mask/real": np.arange(len(x)) % 2})
    (folder / "r.yaml").write_text("passes: [clean]\ndata: {calibration: masked.npz, mask: other}\n")
    assert cli(*RUN, "-r", "r.yaml", "--mask", "real", "--verify", "structure").code == 0
    assert report()["recipe"]["data"] == {"calibration": "masked.npz", "mask": "real"}
    assert not any("mask" in note for note in report()["notes"])
    line = cli(*RUN, "-r", "r.yaml").refusal(3)
    assert line.startswith("error: masked.npz: the padding mask 'other' is neither an input of the model nor an array")
    assert cli(*RUN, *CLEAN, "--data", "masked.npz", "--verify", "structure").code == 0
    assert [note for note in report()["notes"] if "mask/real" in note]


def test_memory_is_how_a_run_is_carried_out(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = pipeline.run

    def recorded(*given: Any, settings: Settings, **options: Any) -> Any:
        seen.append(settings.memory)
        return run(*given, settings=settings, **options)

    monkeypatch.setattr(pipeline, "run", recorded)
    assert cli(*RUN, *CLEAN, "--verify", "structure").code == 0
    assert cli(*RUN, *CLEAN, "--verify", "structure", "--memory", "1.5G").code == 0
    assert seen == [None, 3 * 2**29]
    assert "memory for statistics of calibration data" in " ".join(cli("run", "--help").out.split())


def test_keys_without_a_value_are_defaults(cli: Cli, folder: Path) -> None:
    (folder / "r.yaml").write_text("passes: [clean]\ndata:\nlimits:\nverify:\n")
    assert cli(*RUN, "-r", "r.yaml", "--set", "limits.drift=1", "--dry-run").code == 0


def test_force_order(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, "-p", "quantize-weights:bits=8,min_elements=1", *CLEAN, "--force-order", "--verify", "structure")
    assert ran.code == 0
    assert [step["name"] for step in report()["steps"]][-2:] == ["quantize-weights", "clean"]


@pytest.mark.parametrize("place", ["beside the recipe", "in the working folder", "in both"])
def test_where_a_recipes_data_are_found(cli: Cli, folder: Path, place: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "r.yaml").write_text("passes: [clean]\ndata: {calibration: d.npz}\n")
    near, here = (np.ones((count, 8), np.float32) for count in (20, 30))
    if place != "in the working folder":
        np.savez("sub/d.npz", x=near)
    if place != "beside the recipe":
        np.savez("d.npz", x=here)
    ran = cli(*RUN, "-r", "sub/r.yaml", "--dry-run", "--json")
    assert ran.code == 0
    described = json.loads(json.loads(ran.out)["data"])
    assert described["calibration"]["samples"] == (24 if place == "in the working folder" else 16)


# Code


@pytest.fixture
def code(folder: Path) -> Path:
    """A module `feeding_NAME.py`, importable once under that name."""
    module = folder / f"feeding_{folder.name}.py".replace("-", "_")
    module.write_text("import numpy as np\ndef feeds():\n    return [{'x': np.ones((2, 8), np.float32)}] * 10\n")
    return module


def test_code_from_the_command_line(cli: Cli, code: Path) -> None:
    assert cli(*RUN, *CLEAN, "--data", f"{code.stem}:feeds", "--dry-run").code == 0


def test_code_from_a_recipe_file_needs_leave(cli: Cli, code: Path) -> None:
    Path("r.yaml").write_text(f"passes: [clean]\ndata: {{calibration: '{code.stem}:feeds'}}")
    assert cli(*RUN, "-r", "r.yaml", "--dry-run").code == 2
    assert cli(*RUN, "-r", "r.yaml", "--dry-run", "--data", "x.npz").code == 0
    assert cli(*RUN, "-r", "r.yaml", "--dry-run", "--allow-code").code == 0


def test_a_metric_from_the_command_line(cli: Cli, code: Path) -> None:
    code.write_text("def score(outputs, labels):\n    return [1.0] * len(outputs['y'])\n")
    Path("r.yaml").write_text("passes: [clean]\ndata: {evaluation: x.npz}")
    given = (*RUN, "-r", "r.yaml", "--dry-run", "--metric")
    assert cli(*given, f"{code.stem}:score").code == 0
    assert cli(*given, f"{code.stem}:no").code == 3


# What is printed


def test_dry_run_shows_every_option(cli: Cli, folder: Path) -> None:
    given = (*RUN, *CLEAN, "-p", "quantize-weights:block_size=64", "--dry-run")
    lines = cli(*given).out.splitlines()
    (line,) = [line for line in lines if line.startswith("quantize-weights")]
    assert re.match(r"quantize-weights +quantize +lossy +", line)
    assert " bits=4 " in line, "a default"
    assert " block_size=64* " in line, "what was given"
    assert any(re.match(r"fold-constants +clean +exact +max_growth=", line) for line in lines)
    last = json.loads(cli(*given, "--json").out)["plan"][-1]
    assert set(last["options"]) == set(pass_class("quantize-weights").model_fields)
    assert (last["contract"], last["phase"], last["changed_options"]) == ("lossy", "quantize", ["block_size"])


@pytest.mark.parametrize(
    ("given", "warned"), [((), True), (("--set", "limits.drift=3"), False), (("--eval-data", "x.npz"), False)]
)
def test_a_large_drift_that_nobody_judges(cli: Cli, folder: Path, given: tuple[str, ...], warned: bool) -> None:
    metric = ("--metric", "relative_l2") if "--eval-data" in given else ()
    ran = cli(*RUN, "-p", "quantize-weights:bits=2,min_elements=1", "--accept-loss", "--data", "x.npz", *given, *metric)
    assert ran.code == 0, ran.err
    drift = report()["deployed_drift"]
    assert drift > 0.3
    line = f"WARNING: outputs changed by {drift:.0%} (relative L2) and nothing says whether that is too much: "
    assert (f"{line}give --eval-data and --metric, or limits\n" in ran.out) is warned
    assert ("WARNING" in ran.out) is (warned or bool(metric))
    assert ("and no limit says how far it may" in ran.out) == bool(metric)


def test_no_drift_is_below_what_can_be_told(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, *CLEAN)
    assert "drift (relative L2): < 1e-6, as deployed < 1e-6, on synthetic data\n" in ran.out
    assert "WARNING" not in ran.out


# Sizes of random inputs


def test_sizes_that_the_model_takes_are_found(cli: Cli, folder: Path) -> None:
    """As in a recurrent network of audio: [batch, samples] beside a state [layers, batch, width], none named."""
    sketch = Sketch()
    x, state = sketch.input("x", [None, None]), sketch.input("state", [2, None, 3])
    window = sketch.node("Slice", x, *(sketch.weight(n, np.array([v])) for n, v in zip("sea", (0, 40, 1), strict=True)))
    hidden = sketch.node("MatMul", window, sketch.random("w", 40, 3))
    sketch.output(sketch.node("Add", sketch.node("Identity", hidden), state), [2, None, 3])
    onnx.save(sketch.model(), "long.onnx")
    given = ("run", "long.onnx", "-o", "out.onnx", *CLEAN)
    ran = cli(*given)
    assert ran.out.startswith("verified end to end on synthetic data\n"), ran.out
    sizes = "x [2, 64], state [2, 2, 3]"
    assert f"note: the original does not run on random inputs of the usual sizes, but on these: {sizes}\n" in ran.out
    assert report()["sizes"] == {"x": [2, 64], "state": [2, 2, 3]}
    assert "is up to date" in cli(*given, "--if-changed").out
    assert cli(*given, "--data", "synthetic").out.startswith("verified end to end on synthetic data\n")
    assert report()["sizes"] == {"x": [2, 64], "state": [2, 2, 3]}
    assert cli(*given, "--shape", "x:2,30").out.startswith(
        "UNVERIFIED END TO END: the original fails on synthetic data"
    )


def test_dry_run_counts_weights_wherever_they_stand(cli: Cli, folder: Path) -> None:
    for name, weight in (("weight", "<float[3] w = {1, 2, 3}> { y = Add(x, w) }"),
                         ("constant", "{ w = Constant<value = float[3] {1, 2, 3}>()  y = Add(x, w) }")):  # fmt: skip
        text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) {weight}'
        onnx.save(onnx.parser.parse_model(text), f"{name}.onnx")
        ran = cli("run", f"{name}.onnx", "-o", "out.onnx", *CLEAN, "--dry-run")
        assert re.search(r"^weights +12 B$", ran.out, re.MULTILINE), name


@pytest.mark.parametrize("changes", [0, 1])
def test_what_was_declined_is_told_most_frequent_first(capsys: pytest.CaptureFixture[str], changes: int) -> None:
    reasons = ["small", "odd", "shared", "small", "fed", "odd", "small", "rare"]
    declined = [{"node": f"n{i}", "rule": "r", "why": why} for i, why in enumerate(reasons)]
    step = Step("p", {}, "changed", 0.1, changes=[{"node": "m", "rule": "r", "what": "w"}] * changes, declined=declined)
    facts = Facts(1, 17, 1, 4, None)
    show(Report(verified=True, status="fine", before=facts, after=facts, steps=[step]), limited=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5].endswith(", 8 declined (0.1 s)")
    assert [line.strip() for line in lines[-4:]] == [
        "declined 3x: small", "declined 2x: odd", "declined 1x: shared",
        "and for 2 other reasons, which the report names",
    ]  # fmt: skip


def test_the_ratio_of_latencies_says_what_it_is(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, *CLEAN)
    assert re.search(r"^latency \(ms\) .*x\d\.\d\d \(median of pairs\)$", ran.out, re.MULTILINE)


# Where things go


def test_dry_run_writes_nothing(cli: Cli, folder: Path) -> None:
    before = names(folder)
    ran = cli(*RUN, *CLEAN, "--dry-run", "--data", "x.npz", "--report", "r", "--work", "w")
    assert ran.code == 0
    assert "eliminate-identity" in ran.out
    assert names(folder) == before


def test_report_folder(cli: Cli, folder: Path) -> None:
    assert cli(*RUN, *CLEAN, "--verify", "structure", "--report", "deep/er").code == 0
    assert names(folder / "deep" / "er") == {"report.json", "report.recipe.yaml"}
    assert not (folder / "report.json").exists()
    assert yaml.safe_load((folder / "deep" / "er" / "report.recipe.yaml").read_text())["passes"] == ["clean"]


def test_two_outputs_in_one_folder_have_a_report_each(cli: Cli, folder: Path) -> None:
    given = ("run", "tiny.onnx", *CLEAN, "--verify", "structure", "--if-changed")
    own = {"out.onnx": "report.json", "other.onnx": "other.report.json"}
    before = names(folder)
    for _ in range(2):
        for output, file in own.items():
            ran = cli(*given, "-o", output)
            assert ran.code == 0
            assert (f"whose report is {file}" in ran.out) is (output == "other.onnx" and "up to date" not in ran.out)
            assert report(file)["output"] == output
    assert "is up to date" in ran.out
    assert names(folder) - before == {*own, *own.values(), "report.recipe.yaml", "other.report.recipe.yaml"}
    assert cli("report", "other.report.json").code == 0


@pytest.mark.parametrize("content", ["", "[]", '{"passed": 3}', "{"])
def test_what_is_no_report_is_left_alone(cli: Cli, folder: Path, content: str) -> None:
    (folder / "report.json").write_text(content)
    assert cli(*RUN, *CLEAN, "--verify", "structure").code == 0
    assert (folder / "report.json").read_text() == content
    assert report("out.report.json")["output"] == "out.onnx"
    (folder / "report.json").unlink()
    assert cli(*RUN, *CLEAN, "--verify", "structure").code == 0
    assert not (folder / "report.json").exists(), "the report that is there is replaced"


def test_work_folder_is_kept(cli: Cli, folder: Path) -> None:
    given = (*RUN, *CLEAN, "--verify", "structure", "--work", "w")
    assert cli(*given).code == 0
    assert (folder / "w" / "state.json").exists()
    assert "out.onnx.work" not in names(folder)
    assert cli(*given, "--resume").code == 0


def test_in_place(cli: Cli, digits: Path) -> None:
    before = (digits / "cnn.onnx").stat().st_size
    ran = cli(
        "run", "cnn.onnx", "-o", "cnn.onnx", "-p", "quantize-weights:bits=4,block_size=16,min_elements=1",
        "--accept-loss", "--data", "calib.npz", "--eval-data", "eval.npz", "--metric", "relative_l2", "--json",
    )  # fmt: skip
    assert ran.code == 0
    found = json.loads(ran.out)
    assert found["before"]["file_bytes"] == before
    assert found["metric"]["before"] == 0, "the original is measured, not what took its place"
    assert found["metric"]["after"] > 0


def test_in_place_with_external_data(cli: Cli, folder: Path, tiny: Tiny) -> None:
    model = tiny(400)
    content = model.graph.initializer[0].raw_data
    onnx.save(model, "big.onnx", save_as_external_data=True, location="big.onnx.data", size_threshold=0)
    for _ in range(2):
        assert cli("run", "big.onnx", "-o", "big.onnx", *CLEAN, "--verify", "structure").code == 0
        (weight,) = onnx.load("big.onnx").graph.initializer
        assert onnx.numpy_helper.to_array(weight).tobytes() == content
    used = onnx.load("big.onnx", load_external_data=False).graph.initializer[0].external_data[0].value
    assert [path.name for path in folder.glob("big*.data")] == [used]


# What decides


def test_if_changed(cli: Cli, folder: Path, tiny: Tiny) -> None:
    given = (*RUN, *CLEAN, "--data", "x.npz", "--if-changed", "--verify", "structure")

    def runs(*arguments: str) -> bool:
        stamp = (folder / "report.json").stat().st_mtime_ns if (folder / "report.json").exists() else 0
        ran = cli(*arguments)
        assert ran.code == 0
        again = (folder / "report.json").stat().st_mtime_ns != stamp
        assert ("is up to date" in ran.out) is not again
        return again

    assert runs(*given)
    assert not runs(*given)
    np.savez("x.npz", x=np.ones((40, 8), np.float32))
    assert runs(*given)
    assert runs(*given, "--set", "verify.samples=4")
    assert not runs(*given, "--set", "verify.samples=4")
    onnx.save(tiny(9), "tiny.onnx")
    assert runs(*given)
    (folder / "out.onnx").write_bytes(b"")
    assert runs(*given)
    assert not runs(*given)
    assert cli(*given, "--quiet").out == ""


def test_shape(cli: Cli, folder: Path) -> None:
    assert cli(*RUN, *CLEAN, "--shape", "x:3,8").code == 0
    assert report()["sizes"] == {"x": [3, 8]}
    assert report()["before"]["macs"] == 3 * 8 * 8


def test_shape_of_one_of_two_inputs(cli: Cli, folder: Path) -> None:
    sketch = Sketch()
    x, y = sketch.input("x", ["n", 8]), sketch.input("y", ["m", 8])
    sketch.output(sketch.node("Relu", x), ["n", 8])
    sketch.output(sketch.node("Relu", y), ["m", 8])
    onnx.save(sketch.model(), "two.onnx")
    np.savez("two.npz", x=np.ones((6, 8), np.float32), y=np.ones((6, 8), np.float32))
    assert cli("run", "two.onnx", "-o", "out.onnx", *CLEAN, "--data", "two.npz", "--shape", "x:3,8").code == 0
    sizes = report()["sizes"]
    assert sizes["x"] == [3, 8]
    assert sizes["y"][1] == 8


BAD = ("-p", "quantize-weights:bits=2,min_elements=1")


def test_a_limit_that_is_passed(cli: Cli, folder: Path) -> None:
    (folder / "out.onnx").write_bytes(b"old")
    before = names(folder)
    ran = cli(*RUN, *BAD, "--data", "x.npz", "--set", "limits.drift=0.001")
    assert "limits.drift" in ran.refusal(4)
    assert names(folder) == before
    assert (folder / "out.onnx").read_bytes() == b"old"


def test_a_pass_that_is_skipped(cli: Cli, folder: Path) -> None:
    ran = cli(*RUN, *CLEAN, *BAD, "--data", "x.npz", "--set", "limits.drift=0.001", "--on-violation", "skip", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    outcomes = {step["name"]: step["outcome"] for step in report()["steps"]}
    assert outcomes["quantize-weights"] == "rolled back"
    assert outcomes["clean"] == "changed"


def test_a_collapse_may_be_accepted(cli: Cli, folder: Path) -> None:
    """Weights that are equal but for a little become equal, and so do the classes."""
    sketch = Sketch()
    weight = np.float32(1) + np.eye(8, dtype=np.float32) * np.float32(1e-3)
    x = sketch.input("x", ["n", 8])
    x = sketch.node("Sub", x, sketch.node("ReduceMean", x, sketch.weight("axes", np.array([1]))))
    sketch.output(sketch.node("MatMul", x, sketch.weight("w", weight)), ["n", 8])
    onnx.save(sketch.model(), "tiny.onnx")
    given = (*RUN, "-p", "quantize-weights:bits=4,min_elements=1", "--data", "x.npz")
    assert "quantize-weights" in cli(*given).refusal(4)
    assert not (folder / "out.onnx").exists()
    assert cli(*given, "--accept-loss").code == 0
    assert (folder / "out.onnx").exists()


def test_traceback_anywhere(cli: Cli, folder: Path) -> None:
    for given in (("--traceback", *RUN, "-p", "claen"), (*RUN, "-p", "claen", "--traceback")):
        ran = cli(*given)
        assert ran.code == 2
        assert "Traceback (most recent call last)" in ran.err
        assert ran.err.splitlines()[-1].startswith("error: passes.0: no pass named 'claen'")


def test_in_a_process_of_its_own(spawn: Cli, folder: Path) -> None:
    ran = spawn(*RUN, *CLEAN)
    assert ran.code == 0
    assert ran.out.startswith("verified end to end")
    assert "Traceback" not in ran.err
