"""Passes of other packages: found by their entry point, run from a recipe; a broken one harms nobody else."""

import importlib.metadata
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

import onnxopt
from onnxopt.cli import main
from onnxopt.errors import OnnxOptError, RecipeError
from onnxopt.passing import make, pass_class, pass_names

MODEL = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) <float[4] w = {1, 2, 3, 4}> '
    "{ a = Neg (x)  b = Neg (a)  s = Sigmoid (b)  c = Mul (b, s)  y = Mul (c, w) }"
)
CODE = textwrap.dedent('''
    import onnx_graphsurgeon as gs
    from pydantic import PositiveInt
    from onnxopt import Pass
    from onnxopt.passes import from_graphsurgeon
    from onnxopt.edit import Edit
    from onnxopt.passing import Findings

    class CancelNeg(Pass):
        """Two negations in a row are none."""

        most: PositiveInt = 100

        def run(self, model, context):
            findings = Findings()
            for node in [node for node in model.graph if node.op_type == "Neg"][: self.most]:
                inner = node.inputs[0].producer()
                if inner is None or inner.op_type != "Neg":
                    findings.decline(node.name, "neg-neg", "its input is no negation")
                    continue
                edit = Edit("neg-neg")
                edit.rewire(node.outputs[0], inner.inputs[0])
                edit.remove(node)
                model.apply(edit)
                findings.change(node.name, "neg-neg", "two negations cancelled")
            return findings

    def _rename_graph(graph: gs.Graph) -> int:
        """Turn `Mul` by a weight into the same with swapped inputs."""
        count = 0
        for node in graph.nodes:
            if node.op == "Mul" and isinstance(node.inputs[1], gs.Constant):
                node.inputs = [node.inputs[1], node.inputs[0]]
                count += 1
        return count

    SwapMul = from_graphsurgeon(_rename_graph, "swap-mul")

    NotAPass = 3
''')
ENTRY = "[onnxopt.passes]\ncancel-neg = tiny_passes:CancelNeg\nswap-mul = tiny_passes:SwapMul\n"


def package(folder: Path, name: str, code: str, entry: str) -> None:
    """An installed package as pip leaves it."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    package(folder, "tiny_passes", CODE, ENTRY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tiny_passes", raising=False)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["onnxopt", *arguments])
    main()


def test_both_are_listed(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"cancel-neg", "swap-mul"} <= set(pass_names())
    assert pass_names()["cancel-neg"] == "tiny-passes"
    command(monkeypatch, "passes", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["cancel-neg"]["summary"] == "Two negations in a row are none."
    assert rows["swap-mul"]["summary"].startswith("Turn `Mul` by a weight")
    assert rows["swap-mul"]["contract"] == "exact"
    command(monkeypatch, "explain", "cancel-neg")
    assert "most" in capsys.readouterr().out


def test_both_run_from_a_recipe(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, recipe = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "recipe.yaml"
    source.write_bytes(MODEL.SerializeToString())
    recipe.write_text("passes:\n  - cancel-neg: {most: 5}\n  - swap-mul\n")
    command(monkeypatch, "run", str(source), "-o", str(out), "-r", str(recipe), "--json")
    steps = {step["name"]: step for step in json.loads(capsys.readouterr().out)["steps"]}
    assert steps["cancel-neg"]["outcome"] == steps["swap-mul"]["outcome"] == "changed"
    assert steps["cancel-neg"]["declined"][0]["why"] == "its input is no negation"
    written = onnx.load(out)
    # The inner negation has lost its reader; who wants it gone runs eliminate-dead.
    assert [node.op_type for node in written.graph.node] == ["Neg", "Sigmoid", "Mul", "Mul"]
    assert written.graph.node[-1].input[0] == "w"
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    a, b = (
        ort.InferenceSession(str(f), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0] for f in (source, out)
    )
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bad_options_of_a_plugin_are_worded_like_ours(tiny: Path) -> None:
    from onnxopt.recipe import build

    with pytest.raises(RecipeError, match=r"passes\.0\.cancel-neg\.most"):
        build({"passes": [{"cancel-neg": {"most": 0}}]})
    with pytest.raises(RecipeError, match="did you mean cancel-neg"):
        build({"passes": ["cancel-negs"]})


@pytest.mark.parametrize(
    ("code", "entry", "why"),
    [
        ("import no_such_thing", "bad = bad_passes:Bad", "No module named 'no_such_thing'"),
        ("raise SystemError('at import')", "bad = bad_passes:Bad", "at import"),
        ("", "bad = bad_passes:Bad", "Bad"),
        ("Bad = 3", "bad = bad_passes:Bad", "no subclass"),
        ("", "bad = gone_module:Bad", "gone_module"),
    ],
)
def test_a_broken_plugin_is_named_and_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, entry: str, why: str
) -> None:
    package(tiny, "bad_passes", code, f"[onnxopt.passes]\n{entry}\n")
    monkeypatch.delitem(sys.modules, "bad_passes", raising=False)
    with pytest.raises(OnnxOptError) as caught:
        pass_class("bad")
    assert "bad-passes" in str(caught.value)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    command(monkeypatch, "passes", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["bad"]["summary"].startswith("broken: ")
    assert rows["cancel-neg"]["phase"] == "clean"
    assert make("clean").name == "clean"


def test_a_plugin_cannot_take_the_name_of_a_pass_of_ours(tiny: Path) -> None:
    package(tiny, "bad_passes", "raise ValueError", "[onnxopt.passes]\nclean = bad_passes:Clean\n")
    assert pass_class("clean").__module__ == "onnxopt.passes.clean.clean"
    assert pass_names()["clean"] == "clean"


def _builds_wheels() -> bool:
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= (70, 1)


@pytest.mark.slow
def test_installed_by_pip(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "tiny_passes.py").write_text(CODE)
    points = "".join(f'{line.split(" = ")[0]} = "{line.split(" = ")[1]}"\n' for line in ENTRY.splitlines()[1:])
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "tiny-passes"\nversion = "1.0"\n[tool.setuptools]\npy-modules = ["tiny_passes"]\n'
        f'[project.entry-points."onnxopt.passes"]\n{points}'
    )
    if not _builds_wheels():
        pytest.skip("needs setuptools 70.1 or newer to build a package without a network")
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, project], check=True, capture_output=True)
    root = Path(onnxopt.__file__).resolve().parents[1]
    listed = subprocess.run(
        [sys.executable, "-c", "from onnxopt.cli import main; main()", "passes", "--json"],
        check=True, capture_output=True, text=True, env={"PYTHONPATH": f"{target}:{root}", "PATH": ""},
    )  # fmt: skip
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["swap-mul"]["family"] == rows["cancel-neg"]["family"] == "tiny-passes"
