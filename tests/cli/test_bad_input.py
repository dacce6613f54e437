"""Every bad input: one line that says what, where and what to do; its exit code; nothing written, nothing lost."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt import serialization
from onnxopt.models.builders import Sketch

Cli = Callable[..., Any]
Refused = Callable[..., str]
Tiny = Callable[..., onnx.ModelProto]

OLD = b"what was here before"
CLEAN = ("-p", "clean")
FLOAT = np.float32


@pytest.fixture(params=["no output before", "an output before"])
def old(request: pytest.FixtureRequest, folder: Path) -> bytes | None:
    """The content of `out.onnx` before the command."""
    if request.param == "no output before":
        return None
    (folder / "out.onnx").write_bytes(OLD)
    return OLD


@pytest.fixture
def kept(folder: Path) -> bytes:
    """The content of an `out.onnx` that lies there."""
    (folder / "out.onnx").write_bytes(OLD)
    return OLD


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below, with content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def outside_work(found: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """The same without the work folder, which stays where a run can go on later."""
    return {name: content for name, content in found.items() if not name.startswith("out.onnx.work")}


@pytest.fixture
def refused(cli: Cli, folder: Path) -> Refused:
    """Run a command that must be refused with an exit code; the line that it prints."""

    def call(code: int, *arguments: object, resumable: bool = False) -> str:
        before = snapshot(folder)
        ran = cli(*arguments)
        after = snapshot(folder)
        assert (outside_work(after) if resumable else after) == before, "something was written"
        line: str = ran.refusal(code)
        assert ("out.onnx.work" in after) is ("--resume goes on" in line) is resumable
        return line

    return call


def run(*arguments: object, model: str = "bad.onnx") -> tuple[object, ...]:
    return ("run", model, "-o", "out.onnx", *(arguments or CLEAN))


# Model files


def test_missing_file(refused: Refused, old: bytes | None) -> None:
    assert refused(3, *run()) == "error: no such model file: bad.onnx"


@pytest.mark.parametrize(
    "content",
    [b"just some text\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(50), b"", bytes(100)],
    ids=["text", "png", "empty", "zeros"],
)
def test_no_protobuf(refused: Refused, folder: Path, old: bytes | None, content: bytes) -> None:
    (folder / "bad.onnx").write_bytes(content)
    assert "bad.onnx is not an ONNX model" in refused(3, *run())


def test_a_folder_as_model(refused: Refused, folder: Path) -> None:
    assert "cannot read model file ." in refused(3, *run(model="."))


def test_truncated_anywhere(refused: Refused, folder: Path) -> None:
    whole = (folder / "tiny.onnx").read_bytes()
    for place, end in enumerate(np.linspace(1, len(whole) - 1, 24).astype(int)):
        (folder / "bad.onnx").write_bytes(whole[:end])
        assert "bad.onnx" in refused(3, *(("inspect", "bad.onnx") if place % 6 else run()))


@pytest.fixture
def external(folder: Path, tiny: Tiny) -> Path:
    """`bad.onnx`, whose weight lies in `bad.data`."""
    onnx.save(tiny(), "bad.onnx", save_as_external_data=True, location="bad.data", size_threshold=0)
    return folder


def relocate(location: str) -> None:
    """Let the weight of `bad.onnx` refer to another file."""
    model = onnx.load("bad.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    onnx.save(model, "bad.onnx")


def test_external_data_missing(refused: Refused, external: Path, old: bytes | None) -> None:
    (external / "bad.data").unlink()
    assert refused(3, *run()) == (
        "error: bad.onnx: external data file bad.data is missing; it belongs beside the model"
    )


def test_external_data_too_short(refused: Refused, external: Path) -> None:
    os.truncate("bad.data", 100)
    line = refused(3, *run())
    assert "weight w in bad.data" in line
    assert "the file has 100" in line


@pytest.mark.parametrize("location", ["../bad.data", "/etc/hostname", "sub/../../bad.data"])
def test_external_data_outside(refused: Refused, external: Path, location: str) -> None:
    relocate(location)
    line = refused(3, *run())
    assert location in line
    assert "outside the model's folder" in line


@pytest.mark.parametrize("what", ["file", "folder"])
def test_external_data_through_a_link(refused: Refused, external: Path, tmp_path_factory: Any, what: str) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (external / "bad.data").rename(elsewhere / "bad.data")
    if what == "file":
        (external / "bad.data").symlink_to(elsewhere / "bad.data")
    else:
        (external / "sub").symlink_to(elsewhere)
        relocate("sub/bad.data")
    assert "symbolic link" in refused(3, *run())


def break_input(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "nowhere"


def break_operator(model: onnx.ModelProto) -> None:
    model.graph.node[2].op_type = "Relo"


def break_arity(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.pop()


def break_single_assignment(model: onnx.ModelProto) -> None:
    model.graph.node[2].output[0] = "hidden"


def break_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute.append(onnx.helper.make_attribute("sharpness", 1.0))


def break_order(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


def break_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def break_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 7


INVALID = {
    break_input: ("nowhere", "Relu_node"),
    break_operator: ("Relo", "Relu_node"),
    break_arity: ("MatMul_node", "input size 1"),
    break_single_assignment: ("hidden", "Relu_node"),
    break_attribute: ("sharpness", "Relu_node"),
    break_order: ("MatMul_node", "topologically"),
    break_output: ("nowhere", "output"),
    break_weight: ("weight w", "damaged"),
}


@pytest.mark.parametrize("damage", INVALID, ids=lambda damage: damage.__name__)
def test_invalid_graph(refused: Refused, folder: Path, tiny: Tiny, damage: Callable[[onnx.ModelProto], None]) -> None:
    model = tiny()
    damage(model)
    onnx.save(model, "bad.onnx")
    line = refused(3, *run())
    assert "bad.onnx" in line
    for part in INVALID[damage]:
        assert part in line


@pytest.fixture
def custom(folder: Path) -> Path:
    """`bad.onnx`, with an operator that no runtime here knows."""
    sketch = Sketch()
    hidden = sketch.node("MatMul", sketch.input("x", ["n", 8]), sketch.random("w", 8, 8))
    sketch.domains["acme.ops"] = 1
    sketch.output(sketch.node("Magic", sketch.node("Identity", hidden), domain="acme.ops"), ["n", 8])
    onnx.save(sketch.model(), "bad.onnx")
    return folder


def test_unknown_domain(refused: Refused, custom: Path, kept: bytes) -> None:
    line = refused(3, *run())
    assert "op Magic, domain acme.ops" in line
    assert "register_custom_ops_library" in line
    assert "structure" in line


def test_unknown_domain_without_sessions(cli: Cli, custom: Path) -> None:
    ran = cli(*run(*CLEAN, "--verify", "structure"))
    assert ran.code == 0
    assert ran.out.startswith("UNVERIFIED END TO END")
    assert "Identity" not in {node.op_type for node in onnx.load("out.onnx").graph.node}


def test_unknown_domain_is_inspected(cli: Cli, custom: Path) -> None:
    ran = cli("inspect", "bad.onnx")
    assert ran.code == 0
    assert "acme.ops::Magic" in ran.out
    assert re.search(r"ONNX Runtime loads it +no: .*acme\.ops", ran.out)


# Recipes and options

RECIPES = {
    "passes: [clean]\nverfy: full": ("unknown key verfy", "did you mean verify?", "known keys"),
    "passes: [clean]\nlimits: {drfit: 1}": ("unknown key limits.drfit", "did you mean drift?"),
    "passes: [{quantize-weights: {bit: 4}}]": (
        "unknown key passes.0.quantize-weights.bit;", "did you mean bits?", "block_size",
    ),
    "passes: clean": ("passes: must be a list", "'clean'"),
    "passes: {clean: {}}": ("passes: must be a list",),
    "passes: [claen]": ("passes.0", "'claen'", "did you mean clean"),
    "passes: [clean, 3]": ("passes.1", "not 3"),
    "passes: [clean, {3: {}}]": ("passes.1", "3 is no pass name"),
    "passes: [null]": ("passes.0", "not None"),
    "passes: [{clean: , fold-constants: }]": ("passes.0", "with one name"),
    "passes: [{quantize-weights: 4}]": ("passes.0.quantize-weights: options must be a mapping, not 4",),
    "passes: [{quantize-weights: {bits: 9}}]": ("passes.0.quantize-weights.bits", "2, 3, 4, 5, 6, 7 or 8, not 9"),
    "passes: [{quantize-weights: {bits: four}}]": ("passes.0.quantize-weights.bits", "not 'four'"),
    "passes: [{quantize-weights: {symmetric: perhaps}}]": ("passes.0.quantize-weights.symmetric", "true or false"),
    "passes: [{quantize-weights: {1: 4}}]": ("passes.0.quantize-weights", "key 1 must be text"),
    "passes: [quantize-weights, clean]": (
        "passes.1", "clean (clean) comes after quantize-weights (quantize)",
        "the right order is clean, quantize-weights", "--force-order",
    ),
    "passes: []": ("nothing to do",),
    "pases: [clean]": ("unknown key pases;", "did you mean passes?", "known keys: data, limits,"),
    "version: 2\npasses: [clean]": ("version: must be 1, not 2",),
    "seed: many\npasses: [clean]": ("seed: must be a whole number of at least 0, not 'many'",),
    "passes: [clean]\nlimits: {drift: -1}": ("limits.drift: must be a number above 0, not -1",),
    "passes: [clean]\nlimits: 5": ("limits: must be a mapping, not 5",),
    "passes: [clean]\nverify: {level: ful}": ("verify.level", "'full', 'sample' or 'structure'", "did you mean full?"),
    "passes: [clean]\nverify: {samples: 0}": ("verify.samples: must be a whole number above 0, not 0",),
    "passes: [clean]\ntarget: cpuu": ("target", "'portable', 'cpu' or 'cuda'", "did you mean cpu?"),
    "passes: [clean]\non_violation: go": ("on_violation", "'stop' or 'skip', not 'go'"),
    "passes: [clean]\noverrides: {match: a}": ("overrides: must be a list",),
    "passes: [clean]\noverrides: [{skip: true}]": ("overrides.0.match: is missing",),
    "passes: [clean]\noverrides: [{match: 're:('}]": ("overrides.0.match", "no regular expression"),
    "passes: [clean]\ndata: {calib: x}": ("unknown key data.calib;", "did you mean calibration?"),
    "passes: [clean]\ndata: 3": ("data: must be a mapping, not 3",),
    "passes: [clean]\ndata: {metric: top2}": ("data.metric", "no metric 'top2'", "did you mean 'topk'?"),
    "passes: [clean]\ndata: {metric: {kind: top1, k: 3}}": ("data.metric", "no option 'k'"),
    "a: [": ("r.yaml is not YAML", "line 1"),
    "passes: [clean]\npasses: [fold-constants]": ("r.yaml is not YAML", "'passes' stands twice", "line 1"),
    "- clean": ("r.yaml must be a mapping with the key 'passes'",),
    "": ("r.yaml must be a mapping",),
    "4": ("r.yaml must be a mapping",),
    "1: 2\npasses: [clean]": ("the key 1 must be text",),
    "passes: " + "[" * 5000: ("r.yaml is not YAML",),
}  # fmt: skip


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text[:50])
def test_recipe(refused: Refused, folder: Path, text: str) -> None:
    (folder / "r.yaml").write_text(text)
    line = refused(2, *run("-r", "r.yaml", model="tiny.onnx"))
    for part in RECIPES[text]:
        assert part in line


def test_a_bad_recipe_leaves_the_old_output(refused: Refused, folder: Path, old: bytes | None) -> None:
    (folder / "r.yaml").write_text("passes: [claen]")
    refused(2, *run("-r", "r.yaml", model="tiny.onnx"))


@pytest.mark.parametrize("file", ["no.yaml", ".", "tiny.onnx"])
def test_recipe_file_that_is_none(refused: Refused, folder: Path, file: str) -> None:
    assert f"recipe {file}" in refused(2, *run("-r", file, model="tiny.onnx"))


OPTIONS = {
    (): ("nothing to do", "-r", "-p"),
    ("-p", ""): ("passes.0", "no pass named ''"),
    ("-p", "clean:limits"): ("-p clean:limits", "must be KEY=VALUE"),
    ("-p", "clean:=3"): ("must be KEY=VALUE",),
    ("-p", "clean:limits=[a"): ("-p clean:limits=[a: limits", "is not a YAML value"),
    ("-p", "quantize-weights:bits=9"): ("passes.0.quantize-weights.bits", "not 9"),
    ("-p", "prune-channels:ratio=0.5,round_to=foo"): (
        "passes.0.prune-channels.round_to: must be a whole number above 0 or 'auto', not 'foo'",
    ),
    ("-p", "prune-channels:keep_macs=5X"): ("passes.0.prune-channels.keep_macs: must be the share", "'300M', not '5X'"),
    ("-p", "prune-channels:ratio=0.5,kinds=head"): ("prune-channels.kinds.0: must be", "did you mean heads?"),
    ("-p", "quantize-wieghts"): ("did you mean quantize-weights",),
    (*CLEAN, "--set", "passes.1.bits=3"): ("--set passes.1", "no place in a list of 1 (they count from 0)"),
    (*CLEAN, "--set", "passes.x=3"): ("--set passes.x", "no place in a list"),
    (*CLEAN, "--set", "passes.0.limits"): ("must be PATH=VALUE",),
    (*CLEAN, "--set", "=3"): ("must be PATH=VALUE",),
    (*CLEAN, "--set", "passes..bits=3"): ("must be PATH=VALUE",),
    (*CLEAN, "--set", "passes.0.bits=3"): ("unknown key passes.0.clean.bits",),
    (*CLEAN, "--set", "passes=3"): ("passes: must be a list", "not 3"),
    (*CLEAN, "--set", "limits.drift=[1"): ("--set limits.drift", "is not a YAML value"),
    (*CLEAN, "--set", "limits.drift=1", "--set", "limits.drift.x=3"): ("--set limits.drift.x", "has no keys"),
    (*CLEAN, "--target", "{name"): ("--target: '{name' is not a YAML value",),
    (*CLEAN, "--target", "tpu"): ("'portable', 'cpu' or 'cuda'",),
    (*CLEAN, "--metric", "{kind"): ("--metric: '{kind' is not a YAML value",),
    (*CLEAN, "--metric", "top2"): ("no metric 'top2'",),
    (*CLEAN, "--verify", "ful"): ("did you mean full?",),
    (*CLEAN, "--on-violation", "a: b: c"): ("--on-violation",),
    (*CLEAN, "--threads", "0"): ("--threads", "onnxopt run --help"),
    (*CLEAN, "--memory", "2 apples"): ("--memory: must be bytes, or a number with K, M, G or T", "'2 apples'"),
    (*CLEAN, "--memory", "0"): ("--memory: must be bytes",),
    (*CLEAN, "--mask", ""): ("data.mask: must be text that is not empty",),
    (*CLEAN, "--shape", "x"): ("--shape x: must be INPUT:SIZE,SIZE,...",),
    (*CLEAN, "--shape", "x:1,-8"): ("must be INPUT:SIZE",),
    (*CLEAN, "--fast"): ("No such option: --fast", "onnxopt run --help"),
    (*CLEAN, "--work", "sub"): ("work folder sub holds files of others",),
    (*CLEAN, "--work", "tiny.onnx/sub"): ("cannot use work folder tiny.onnx/sub",),
}


@pytest.mark.parametrize("given", OPTIONS, ids=" ".join)
def test_options(refused: Refused, folder: Path, given: tuple[str, ...]) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "diary.txt").touch()
    line = refused(2, "run", "tiny.onnx", "-o", "out.onnx", *given)
    for part in OPTIONS[given]:
        assert part in line


@pytest.mark.parametrize("given", [("compress",), ("run", "tiny.onnx", *CLEAN), ("inspect",), ("inspect", "--deep")])
def test_usage(refused: Refused, given: tuple[str, ...]) -> None:
    assert "--help` shows how to use it" in refused(2, *given)


def test_a_passes_key_that_is_no_list_beside_p(refused: Refused, folder: Path) -> None:
    (folder / "r.yaml").write_text("passes: 3")
    assert "passes: must be a list" in refused(2, *run("-r", "r.yaml", *CLEAN, model="tiny.onnx"))


def test_code_in_a_recipe_file(refused: Refused, folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    (folder / "r.yaml").write_text("passes: [clean]\ndata: {calibration: 'mine:feeds'}")
    line = refused(2, *run("-r", "r.yaml", model="tiny.onnx"))
    assert "'mine:feeds' would run code" in line
    assert "--allow-code" in line


def test_a_metric_of_code_in_a_recipe_file(refused: Refused, folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('it ran')")
    (folder / "r.yaml").write_text("passes: [clean]\ndata: {evaluation: x.npz, metric: 'mine:score'}")
    assert "--allow-code" in refused(2, *run("-r", "r.yaml", model="tiny.onnx"))


# Data

DATA: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "name": ({"z": np.zeros((4, 8), FLOAT)}, ("'z' is no input", "'x'")),
    "shape": ({"x": np.zeros((4, 9), FLOAT)}, ("input 'x' takes float32 [n, 8]", "[4, 9]")),
    "rank": ({"x": np.zeros(4, FLOAT)}, ("'x'",)),
    "dtype": ({"x": np.zeros((4, 8), int)}, ("input 'x' takes float32", "int64")),
    "nothing": ({}, ("empty",)),
    "no samples": ({"x": np.zeros((0, 8), FLOAT)}, ("empty", "'x'")),
    "nan": ({"x": np.full((4, 8), np.nan, FLOAT)}, ("'x' holds NaN at [0, 0]",)),
    "infinite": ({"x": np.full((4, 8), np.inf, FLOAT)}, ("'x' holds an infinite value",)),
    "pickled": ({"x": np.array([1, "a"], object)}, ("'x'", "pickled")),
}


@pytest.mark.parametrize("option", ["--data", "--eval-data"])
@pytest.mark.parametrize("case", DATA)
def test_data_that_do_not_fit(refused: Refused, folder: Path, case: str, option: str) -> None:
    arrays, parts = DATA[case]
    np.savez("d.npz", **arrays)
    line = refused(3, *run(*CLEAN, option, "d.npz", model="tiny.onnx"))
    assert "d.npz" in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize("spec", ["no.npz", "tiny.onnx", "", "nomodule:feeds"])
def test_no_data(refused: Refused, folder: Path, old: bytes | None, spec: str) -> None:
    assert (spec or "empty name") in refused(3, *run(*CLEAN, "--data", spec, model="tiny.onnx"))


@pytest.mark.parametrize(("shape", "part"), [("z:1,8", "no input"), ("x:1,9", "[1, 9]"), ("x:1", "[1]")])
def test_a_shape_that_does_not_fit(refused: Refused, folder: Path, shape: str, part: str) -> None:
    assert part in refused(3, *run(*CLEAN, "--shape", shape, model="tiny.onnx"))
    assert part in refused(3, *run(*CLEAN, "--shape", shape, "--data", "x.npz", model="tiny.onnx"))


def test_nan_in_the_originals_outputs(refused: Refused, folder: Path, kept: bytes) -> None:
    sketch = Sketch()
    sketch.output(sketch.node("Log", sketch.input("x", ["n", 8]), outputs=["y"]), ["n", 8])
    onnx.save(sketch.model(), "bad.onnx")
    line = refused(3, *run(*CLEAN, "--data", "x.npz"))
    assert "NaN in output y" in line
    assert "data" in line


# Metrics


@pytest.fixture
def forked(folder: Path) -> Path:
    """`bad.onnx` with outputs `left` and `right`, and `labelled.npz` with labels `a` and `b`."""
    sketch = Sketch()
    x = sketch.input("x", ["n", 8])
    for name in ("left", "right"):
        sketch.output(sketch.node("MatMul", x, sketch.random("w", 8, 4), outputs=[name]), ["n", 4])
    onnx.save(sketch.model(), "bad.onnx")
    labels = {f"label/{name}": np.zeros(6, np.int64) for name in "ab"}
    np.savez("labelled.npz", x=np.ones((6, 8), FLOAT), **labels)
    return folder


@pytest.mark.parametrize(
    ("metric", "parts"),
    [
        ("top1", ("output is ambiguous", "'left', 'right'")),
        ("{kind: top1, output: left}", ("label is ambiguous", "'a', 'b'")),
        ("{kind: top1, output: lfet}", ("no output 'lfet'", "did you mean 'left'?")),
        ("{kind: top1, output: left, label: c}", ("no label 'c'",)),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
def test_ambiguous_metric(
    refused: Refused, forked: Path, metric: str, parts: tuple[str, ...], dry: tuple[str, ...]
) -> None:
    line = refused(2, *run(*CLEAN, "--eval-data", "labelled.npz", "--metric", metric, *dry))
    for part in parts:
        assert part in line


def test_metric_without_evaluation_data(refused: Refused, folder: Path) -> None:
    assert "--eval-data" in refused(3, *run(*CLEAN, "--data", "x.npz", "--metric", "top1", model="tiny.onnx"))


# Output


@pytest.mark.parametrize(
    ("output", "part"),
    [("no/out.onnx", "does not exist"), (".", "is a folder"), ("tiny.onnx/out.onnx", "tiny.onnx")],
)
def test_output_that_cannot_be_written(refused: Refused, folder: Path, output: str, part: str) -> None:
    line = refused(3, "run", "tiny.onnx", "-o", output, *CLEAN)
    assert "cannot write" in line
    assert part in line


def test_report_that_cannot_be_written(refused: Refused, folder: Path, old: bytes | None) -> None:
    line = refused(3, *run(*CLEAN, "--report", "x.npz/report", model="tiny.onnx"))
    assert "cannot write the report into x.npz/report" in line


def test_disk_full_while_saving(
    cli: Cli, refused: Refused, folder: Path, kept: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = serialization._write_model

    def full(skeleton: Any, plan: Any, file: Any) -> None:
        if "out.onnx" in Path(file.name).name:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(skeleton, plan, file)

    with monkeypatch.context() as patch:
        patch.setattr(serialization, "_write_model", full)
        line = refused(3, *run(model="tiny.onnx"), resumable=True)
    assert "out.onnx: the disk is full; what was there before is unchanged" in line
    assert cli(*run(*CLEAN, "--resume", model="tiny.onnx")).code == 0
    assert not (folder / "out.onnx.work").exists()


def test_disk_full_while_working(refused: Refused, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(serialization, "_write_model", full)
    assert "the disk is full" in refused(3, *run(model="tiny.onnx"), resumable=True)


@pytest.mark.parametrize("limit", [100, 20_000], ids=["nothing fits", "the model does not fit"])
def test_files_that_may_not_grow(spawn: Cli, folder: Path, tiny: Tiny, limit: int) -> None:
    pytest.importorskip("resource", reason="no limits on the size of files here")
    onnx.save(tiny(2000), "large.onnx")
    (folder / "out.onnx").write_bytes(OLD)
    before = snapshot(folder)
    first = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    ran = spawn(*run(model="large.onnx"), first=first)
    assert outside_work(snapshot(folder)) == before
    assert (folder / "out.onnx.work").exists() is ("--resume goes on" in ran.err)
    assert "too large" in ran.refusal(ran.code).lower()
    assert ran.code in {1, 3}
