"""Kill -9 anywhere in a run of three passes, then resume: the bytes of an unbroken run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import onnxopt
from onnxopt import models
from onnxopt.errors import RecipeError
from onnxopt.measuring import Measuring
from onnxopt.model import load
from onnxopt.pipeline import Settings, run
from onnxopt.recipe import build

HELPERS = Path(__file__).parent / "helpers"
ROOT = Path(onnxopt.__file__).resolve().parents[1]
CALIBRATION = str(Path(models.__file__).parent / "digits.calib.npz")
PASSES: list[Any] = [
    "clean",
    {"lossy-scale": {"node": "head/Gemm", "factor": 0.99}},
    {"quantize-weights": {"bits": 8}},
]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")

# The run, in a process of its own that kills itself at the Nth call of one function (before or after it).
SCRIPT = textwrap.dedent("""
    import json, os, signal, sys
    given = json.loads(sys.argv[1])
    from pathlib import Path
    import onnxopt.pipeline as pipeline, onnxopt.serialization as serialization
    from onnxopt.recipe import build
    from onnxopt.workdir import WorkDir
    PLACES = {
        "save": (serialization, "write"), "replace": (os, "replace"), "commit": (WorkDir, "commit"),
        "judge": (pipeline._Run, "_judge"), "apply": (pipeline._Run, "_apply"), "finish": (pipeline._Run, "_finish"),
        "report": (pipeline.Report, "staged"), "clean_up": (pipeline._Run, "clean_up"),
    }
    pipeline.Measuring.latency = lambda self, candidate: None
    if given["place"]:
        owner, name = PLACES[given["place"]]
        real, calls = getattr(owner, name), [0]
        def hooked(*args, **kwargs):
            calls[0] += 1
            fatal = calls[0] == given["count"]
            if fatal and not given["after"]:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        setattr(owner, name, hooked)
    pipeline.run(given["source"], build({"passes": given["passes"]}), Path(given["output"]), data=given["data"],
                 settings=pipeline.Settings(resume=given["resume"]))
""")


def start(
    source: Path, output: Path, *, place: str = "", count: int = 1, after: bool = False, resume: bool = False
) -> "subprocess.Popen[bytes]":
    given = {
        "source": str(source), "output": str(output), "passes": PASSES, "data": CALIBRATION,
        "place": place, "count": count, "after": after, "resume": resume,
    }  # fmt: skip
    path = os.pathsep.join(map(str, (ROOT, HELPERS)))
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SCRIPT, json.dumps(given)], env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[bytes]") -> int:
    _, error = process.communicate(timeout=120)
    assert process.returncode in {0, -signal.SIGKILL}, error.decode()
    return process.returncode


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HELPERS))
    monkeypatch.setattr(Measuring, "latency", lambda self, candidate: None)


Sources = Callable[[str], tuple[Path, dict[str, bytes]]]


def content(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in output.parent.glob(f"{output.name}*") if file.is_file()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """sources(kind of storage) -> the input, and the files of an unbroken run."""

    @cache
    def of(kind: str) -> tuple[Path, dict[str, bytes]]:
        folder = tmp_path_factory.mktemp(kind)
        source, output = folder / "source.onnx", folder / "out.onnx"
        load(models.path("digits-cnn")).save(source, external_data=kind == "external")
        assert finish(start(source, output)) == 0
        assert ("out.onnx.data" in content(output)) == (kind == "external")
        return source, content(output)

    return of


def check_resumed(source: Path, output: Path, expected: dict[str, bytes]) -> None:
    result = run(source, build({"passes": PASSES}), output, data=CALIBRATION, settings=Settings(resume=True))
    assert content(output) == expected
    assert [step.outcome for step in result.report.steps] == ["unchanged"] * 2 + ["changed"] * 4
    written = json.loads((output.parent / "report.json").read_text())
    assert len(written["steps"]) == 6
    assert all(step["verdict"] for step in written["steps"][2:])
    assert not output.with_name(f"{output.name}.work").exists()


# Saves: one for each of the four steps that change something, the fifth is the output. Commits: one for each step.
MOMENTS: list[tuple[str, int, bool]] = [
    ("apply", 3, False),
    ("save", 1, True),
    ("commit", 3, False),
    ("commit", 3, True),
    ("replace", 5, False),
    ("replace", 6, False),
    ("judge", 2, True),
    ("save", 3, False),
    ("commit", 6, True),
    ("finish", 1, False),
    ("save", 5, False),
    ("save", 5, True),
    ("report", 1, False),
    ("clean_up", 1, False),
]
QUICK = [("commit", 6, True), ("save", 5, True)]


def _moments() -> list[Any]:
    """Every moment for both kinds of storage; all but a few are slow."""
    return [
        pytest.param(kind, *moment, marks=[] if kind == "external" and moment in QUICK else pytest.mark.slow)
        for kind in ("embedded", "external")
        for moment in MOMENTS
    ]


@pytest.mark.parametrize(("kind", "place", "count", "after"), _moments())
def test_killed_at_a_moment(sources: Sources, tmp_path: Path, kind: str, place: str, count: int, after: bool) -> None:
    source, expected = sources(kind)
    output = tmp_path / "out.onnx"
    output.write_bytes(b"old")
    assert finish(start(source, output, place=place, count=count, after=after)) == -signal.SIGKILL
    final = {"clean_up"} | ({"save"} if after and count == 5 else set())
    if place not in final:
        assert output.read_bytes() == b"old"
    check_resumed(source, output, expected)


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
def test_killed_at_any_time(sources: Sources, tmp_path: Path, fraction: float) -> None:
    source, expected = sources("external")
    output = tmp_path / "out.onnx"
    started = time.monotonic()
    assert finish(start(source, tmp_path / "whole.onnx")) == 0
    seconds = time.monotonic() - started
    process = start(source, output)
    time.sleep(fraction * seconds)
    process.kill()
    process.communicate()
    if output.exists() and not output.with_name("out.onnx.work").exists():  # done before the kill: nothing to resume
        assert content(output) == expected
        return
    check_resumed(source, output, expected)


Start = Callable[..., Any]


@pytest.fixture
def half_done(sources: Sources, tmp_path: Path) -> Start:
    """A run that was killed after its fourth commit; resume it with `half_done(passes=..., data=..., ...)`."""
    source, _ = sources("external")
    output = tmp_path / "out.onnx"
    assert finish(start(source, output, place="commit", count=4, after=True)) == -signal.SIGKILL

    def resume(**other: Any) -> Any:
        recipe = build({"passes": other.get("passes", PASSES)})
        data, model = other.get("data", CALIBRATION), other.get("source", source)
        return run(model, recipe, output, data=data, settings=Settings(resume=True))

    return resume


def test_another_run_is_not_resumed_and_the_first_one_still_is(
    half_done: Start, sources: Sources, tmp_path: Path
) -> None:
    evaluation = str(Path(models.__file__).parent / "digits.eval.npz")
    with pytest.raises(RecipeError, match="cannot resume: recipe differ"):
        half_done(passes=[*PASSES, "quantize-weights"])
    with pytest.raises(RecipeError, match="cannot resume: data differ"):
        half_done(data=evaluation)
    with pytest.raises(RecipeError, match="cannot resume: model, data differ"):
        half_done(source=models.path("digits-transformer"), data=evaluation)
    work = tmp_path / "out.onnx.work"
    (work / "004.onnx.data").write_bytes(b"left over")
    (work / "004.onnx").write_bytes(b"a candidate cut sh")
    half_done()
    assert content(tmp_path / "out.onnx") == sources("external")[1]
    assert not work.exists()


@pytest.mark.slow
def test_without_resume_it_starts_afresh(half_done: Start, sources: Sources, tmp_path: Path) -> None:
    source, expected = sources("external")
    result = run(source, build({"passes": PASSES}), tmp_path / "out.onnx", data=CALIBRATION)
    assert content(tmp_path / "out.onnx") == expected
    assert len(result.report.steps) == 6


@pytest.mark.slow
def test_nothing_to_resume_is_a_start(sources: Sources, tmp_path: Path) -> None:
    source, expected = sources("external")
    check_resumed(source, tmp_path / "out.onnx", expected)
