"""Verification of files: levels, noise, chance, and what happens where nothing can be run."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxopt.verify
from onnxopt import models
from onnxopt.backends import machine
from onnxopt.backends.jobs import check_file
from onnxopt.backends.worker import Worker
from onnxopt.errors import ModelError
from onnxopt.model import load
from onnxopt.passing import Exact, Lossy
from onnxopt.recipe import Verify
from onnxopt.verify import Verdict, Verifier

HELPERS = Path(__file__).parent / "helpers"
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
LINEAR = "g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w = {%s}> { y = MatMul (x, w) }"
X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    sys.path.insert(0, str(HELPERS))
    with Worker() as shared:
        yield shared
    sys.path.remove(str(HELPERS))


Judge = Callable[..., Verdict]


@pytest.fixture
def verifier(worker: Worker, tmp_path: Path) -> Callable[..., Verifier]:
    """verifier(source, feeds, **config): prepared on a model in text form (or a file)."""

    def make(source: str | Path, feeds: Any = None, *, real: bool = True, guard: Any = (), **config: Any) -> Verifier:
        path = source if isinstance(source, Path) else written(tmp_path / "original.onnx", source)
        feeds = [{"x": X}] if feeds is None else feeds
        made = Verifier(worker, path, feeds, guard, Verify(**config), real_data=real, scratch=tmp_path)
        made.prepare(load(path))
        return made

    return make


def written(path: Path, source: str) -> Path:
    path.write_bytes(onnx.parser.parse_model(f"{HEAD} {source}").SerializeToString())
    return path


def judged(verifier: Verifier, folder: Path, source: str, contract: Any = None, guard: bool = False) -> Verdict:
    return verifier.judge(written(folder / "candidate.onnx", source), contract or Exact(), guard=guard)[0]


def linear(first: float = 1.0) -> str:
    return LINEAR % f"{first}, 2, 3, 4, 5, 6"


def test_full_measures_both_sessions(verifier: Any, tmp_path: Path) -> None:
    made = verifier(linear())
    same, other = judged(made, tmp_path, linear()), judged(made, tmp_path, linear(1.1))
    assert (same.level, same.drift, same.deployed_drift, same.broken, same.batches) == ("full", 0, 0, (), 1)
    assert other.drift is not None
    assert other.drift > 1e-3
    assert other.deployed_drift == pytest.approx(other.drift, rel=1e-3)
    assert "relative L2" in other.broken[0]
    assert made.unverified is None


def test_lossy_only_measures(verifier: Any, tmp_path: Path) -> None:
    found = judged(verifier(linear()), tmp_path, linear(1.1), Lossy())
    assert found.broken == ()
    assert found.drift is not None
    assert found.drift > 1e-3


def test_exact_is_held_to_the_last_good_state_and_drift_to_the_original(verifier: Any, tmp_path: Path) -> None:
    made = verifier(linear())
    _, accept = made.judge(written(tmp_path / "1.onnx", linear(1.1)), Lossy(), guard=False)
    accept()
    exact = judged(made, tmp_path, linear(1.1))
    assert exact.broken == ()
    assert exact.drift is not None
    assert exact.drift > 1e-3
    assert judged(made, tmp_path, linear()).broken
    again = verifier(linear())
    again.resume_from(tmp_path / "1.onnx")
    assert judged(again, tmp_path, linear(1.1)).broken == ()


def test_sample_runs_one_batch_and_nothing_deployed(verifier: Any, tmp_path: Path) -> None:
    feeds = [{"x": X}, {"x": X}, {"x": X}]
    found = judged(verifier(linear(), feeds, level="sample"), tmp_path, linear(1.1))
    assert (found.batches, found.deployed_drift) == (1, None)
    assert found.broken


def test_structure_checks_the_file_alone(verifier: Any, tmp_path: Path) -> None:
    made = verifier(linear(), level="structure")
    assert "verify.level" in made.unverified
    assert judged(made, tmp_path, linear(1.1)).drift is None
    bad = judged(made, tmp_path, "g (float[N, 3] x) => (float[N, 2] y) { y = Reluu (x) }")
    assert "not valid ONNX" in bad.broken[0]


def test_samples_and_seconds_are_honoured(verifier: Any, tmp_path: Path) -> None:
    feeds = [{"x": X} for _ in range(6)]
    assert judged(verifier(linear(), feeds, samples=4), tmp_path, linear()).batches == 4
    assert judged(verifier(linear(), feeds, max_seconds=1e-6), tmp_path, linear()).batches == 1


def test_a_resumed_run_keeps_to_its_batches(worker: Worker, tmp_path: Path) -> None:
    path = written(tmp_path / "original.onnx", linear())
    made = Verifier(worker, path, [{"x": X}] * 6, (), Verify(max_seconds=1e-6), real_data=True, scratch=tmp_path)
    made.prepare(load(path), 3)
    assert judged(made, tmp_path, linear()).batches == 3


def test_short_memory_falls_to_structure(verifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 79)  # 2 x 24 bytes are 61 % of it
    made = verifier(linear())
    assert made.level == "structure"
    assert "free" in made.unverified
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 81)
    assert verifier(linear()).unverified is None


def test_as_many_batches_as_leave_room_for_their_outputs(
    verifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch gives 32 bytes, held 6 times: so much is a quarter of what is free with four batches, not with five."""
    for free, batches in ((4 * 6 * 32 * 4, 4), (4 * 6 * 32 * 5 - 1, 4), (4 * 6 * 32, 1), (2 * 24 * 2, 1)):
        monkeypatch.setattr(machine, "free_memory_bytes", lambda free=free: free)
        made = verifier(linear(), [{"x": X}] * 6)
        assert judged(made, tmp_path, linear()).batches == made.batches == batches
        assert f"{batches} of 6 batches" in made.notes[0]
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 4 * 6 * 32 * 6)
    assert verifier(linear(), [{"x": X}] * 6).notes == []


def test_an_original_that_ends_the_runtime_is_unverified(verifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxopt.verify, "run_batches", "broken_passes:die")
    made = verifier(linear())
    assert made.level == "structure"
    assert "ended the runtime" in made.unverified


def test_an_original_that_fails_on_random_inputs_is_unverified(verifier: Any) -> None:
    gather = "g (int64[N] x) => (float[N, 2] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { y = Gather (w, x) }"
    made = verifier(gather, [{"x": np.array([7])}], real=False)
    assert "fails on synthetic data" in made.unverified
    with pytest.raises(Exception, match="indices"):
        verifier(gather, [{"x": np.array([7])}])


def test_an_original_that_is_invalid_or_not_loadable_is_refused(verifier: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not valid ONNX"):
        verifier("g (float[N, 3] x) => (float[N, 3] y) { y = Reluu (x) }")
    mystery = tmp_path / "mystery.onnx"
    proto = onnx.parser.parse_model(f"{HEAD} g (float[3] x) => (float[3] y) {{ y = com.nobody.Mystery (x) }}")
    proto.opset_import.add(domain="com.nobody", version=1)
    mystery.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"Mystery.*verify: structure"):
        verifier(mystery)


def test_nan_of_the_original_is_an_error_on_real_data(verifier: Any, tmp_path: Path) -> None:
    logs = "g (float[N, 3] x) => (float[N, 3] y) { y = Log (x) }"
    with pytest.raises(ModelError, match="NaN in output y on sample batch 0"):
        verifier(logs)
    assert judged(verifier(logs, real=False), tmp_path, logs).broken == ()


NORMAL = "g (float[N, 3] x) => (float[N, 3] y) { r = RandomNormalLike %s (x)  y = Add (x, r) }"
TWICE = "g (float[N, 3] x) => (float[N, 3] y) { r = RandomNormalLike (x)  s = RandomNormalLike (x)  %s y = Add (x, d) }"


@pytest.mark.parametrize("seed", ["", "<seed = 3.0>"])
def test_chance_is_seeded(verifier: Any, tmp_path: Path, seed: str) -> None:
    made = verifier(NORMAL % seed, [{"x": X}, {"x": X}], guard=[{"x": X}])
    assert made.notes == []
    same = (NORMAL % seed).replace("r = ", "n = Neg (x)  r = ")
    found = judged(made, tmp_path, same)
    assert (found.broken, found.drift, found.deployed_drift, found.undecidable) == ((), 0, 0, 0)
    assert judged(made, tmp_path, same.replace("Add", "Sub")).broken
    if not seed:
        assert judged(made, tmp_path, NORMAL % "<scale = 2.0>").broken
    # A guard between the two sessions' runs must not move the random numbers on.
    assert judged(made, tmp_path, same, Lossy(), guard=True).deployed_drift == 0
    assert made.notes == []


def test_independent_noises_are_not_taken_for_one(verifier: Any, tmp_path: Path) -> None:
    """x + r - s is not x, whatever a wrong pass thinks of two nodes that look alike."""
    made = verifier(TWICE % "d = Sub (r, s)", [{"x": np.zeros((500, 3), np.float32)}])
    assert judged(made, tmp_path, TWICE % "t = Neg (s)  d = Add (r, t)").broken == ()
    assert judged(made, tmp_path, TWICE % "d = Sub (r, r)").broken
    assert judged(made, tmp_path, TWICE % "d = Sub (s, r)").broken


def test_random_numbers_under_another_name_are_judged_by_their_statistics(verifier: Any, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((500, 3)).astype(np.float32)
    made = verifier(NORMAL % "", [{"x": rows}])
    renamed = (NORMAL % "").replace(" r ", " q ").replace(", r)", ", q)")
    found, accept = made.judge(written(tmp_path / "renamed.onnx", renamed), Exact(), guard=False)
    assert (found.broken, found.drift, found.deployed_drift, found.undecidable) == ((), 0, 0, 1)
    assert "random numbers for y" in made.notes[0]
    wild = renamed.replace("RandomNormalLike", "RandomNormalLike <scale = 4.0>")
    assert "deviation" in judged(made, tmp_path, wild).broken[0]
    accept()
    found = judged(made, tmp_path, renamed)
    assert (found.broken, found.undecidable) == ((), 0)
    assert judged(made, tmp_path, renamed.replace("Add", "Sub")).broken


def test_random_numbers_where_there_were_none_are_no_matter_of_statistics(verifier: Any, tmp_path: Path) -> None:
    plain = "g (float[N, 3] x) => (float[N, 3] y) { y = Identity (x) }"
    assert "relative L2" in judged(verifier(plain), tmp_path, NORMAL % "").broken[0]
    assert "relative L2" in judged(verifier(NORMAL % ""), tmp_path, plain).broken[0]


def test_the_original_s_folder_stays_clean(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = written(tmp_path / "mine" / "m.onnx", NORMAL % "")
    Verifier(worker, path, [{"x": X}], (), Verify(), real_data=True, scratch=tmp_path).prepare(load(path))
    assert list((tmp_path / "mine").iterdir()) == [path]


def test_integers_and_sizes_that_data_decide(verifier: Any, tmp_path: Path) -> None:
    where = "g (float[N, 3] x) => (int64[2, K] y) <float t = {%s}> { b = Greater (x, t)  y = NonZero (b) }"
    made = verifier(where % "0.5")
    same = judged(made, tmp_path, where % "0.5")
    assert (same.broken, same.undecidable) == ((), 0)
    moved = judged(made, tmp_path, where % "0.9")
    assert "shape" in moved.broken[0]
    lossy = judged(made, tmp_path, where % "0.9", Lossy())
    assert lossy.broken == ()
    assert lossy.undecidable == 1


def test_boxes_of_non_max_suppression(verifier: Any, tmp_path: Path) -> None:
    nms = """g (float[1, 6, 4] x) => (int64[K, 3] y) <float[1, 1, 6] s = {0.9, 0.8, 0.7, 0.6, 0.5, 0.4}, int64 n = {%d},
    float i = {0.5}> { y = NonMaxSuppression (x, s, n, i) }"""
    feeds = [{"x": np.sort(np.random.default_rng(1).random((1, 6, 2, 2)), axis=2).reshape(1, 6, 4).astype(np.float32)}]
    made = verifier(nms % 4, feeds)
    assert judged(made, tmp_path, nms % 4).broken == ()
    assert judged(made, tmp_path, nms % 2).broken


def test_sequences(verifier: Any, tmp_path: Path) -> None:
    split = "g (float[4, 3] x) => (seq(float[1, 3]) y) <int64 n = {1}> { z = %s (x)  y = SplitToSequence (z, n) }"
    made = verifier(split % "Neg")
    assert judged(made, tmp_path, split % "Neg").broken == ()
    assert "y[0]" in judged(made, tmp_path, split % "Abs").broken[0]


def test_half_precision_has_its_own_tolerance(verifier: Any, tmp_path: Path) -> None:
    half = """g (float16[N, 3] x) => (float16[N, 3] y) <float[3] w = {%s, 2, 3}>
    { h = Cast <to = 10> (w)  y = Mul (x, h) }"""
    made = verifier(half % "1.0", [{"x": X.astype(np.float16)}])
    assert judged(made, tmp_path, half % "1.002").broken == ()
    assert judged(made, tmp_path, half % "1.05").broken
    assert judged(verifier(linear()), tmp_path, linear(1.01)).broken


def test_half_precision_is_no_excuse_for_other_outputs(verifier: Any, tmp_path: Path) -> None:
    # 15360 and 16384 are the bits of 1 and 2.
    mixed = """g (float[N, 3] x) => (float[N, 3] y, float[N, 3] z)
    <float16[3] w = {15360, 16384, 15360}, float a = {%s}, float b = {%s}>
    { c = Cast <to = 1> (w)  v = Mul (x, c)  y = Mul (v, a)
      h = Cast <to = 10> (x)  i = Mul (h, w)  j = Cast <to = 1> (i)  z = Mul (j, b) }"""
    made = verifier(mixed % ("1.0", "1.0"))
    assert "output y" in judged(made, tmp_path, mixed % ("1.002", "1.0")).broken[0]
    assert judged(made, tmp_path, mixed % ("1.0", "1.002")).broken == ()
    assert "output z" in judged(made, tmp_path, mixed % ("1.0", "1.02")).broken[0]


def test_exact_passes_are_allowed_what_the_state_before_them_computes_in(verifier: Any, tmp_path: Path) -> None:
    """What a lossy pass has put into half precision is rounded so from then on."""
    full = "g (float[N, 3] x) => (float[N, 3] y) <float a = {%s}> { y = Mul (x, a) }"
    half = full.replace("y = Mul (x, a)", "h = Cast <to = 10> (x)  i = Cast <to = 1> (h)  y = Mul (i, a)")
    made = verifier(full % "1.0")
    assert judged(made, tmp_path, full % "1.002").broken
    _, accept = made.judge(written(tmp_path / "half.onnx", half % "1.0"), Lossy(), guard=False)
    accept()
    assert judged(made, tmp_path, half % "1.002").broken == ()
    _, accept = made.judge(written(tmp_path / "full.onnx", full % "1.0"), Lossy(), guard=False)
    accept()
    assert judged(made, tmp_path, full % "1.002").broken


def test_a_model_of_chance_is_judged_by_its_statistics(verifier: Any, tmp_path: Path) -> None:
    # The seed depends on the input in neither copy, but the level of optimization changes the noise here.
    made = verifier("g (float[N, 3] x) => (float[N, 3] y) { y = Neg (x) }")
    object.__setattr__(made._noise, "relative", {"y": 1.0})
    assert "mean and spread" in made.notes[0]
    shifted = "g (float[N, 3] x) => (float[N, 3] y) <float c = {%s}> { n = Neg (x)  y = Add (n, c) }"
    assert judged(made, tmp_path, shifted % "0.01").undecidable == 1
    assert judged(made, tmp_path, shifted % "0.01").broken == ()
    assert "mean" in judged(made, tmp_path, shifted % "9.0").broken[0]


def test_drift_is_of_what_no_pass_saw(worker: Worker, tmp_path: Path) -> None:
    """The candidate differs above 1 only: in the second batch, which passes saw."""
    feeds = [{"x": np.full((2, 3), value, np.float32)} for value in (0.5, 4)]
    original = written(tmp_path / "original.onnx", "g (float[N, 3] x) => (float[N, 3] y) { y = Identity (x) }")
    clipped = "g (float[N, 3] x) => (float[N, 3] y) <float low = {0}, float high = {1}> { y = Clip (x, low, high) }"
    drifts = {}
    for unseen in range(3):
        made = Verifier(worker, original, feeds, [], Verify(), True, tmp_path, unseen=unseen)
        made.prepare(load(original))
        found = judged(made, tmp_path, clipped, Lossy())
        drifts[unseen] = found.drift, found.deployed_drift
        assert judged(made, tmp_path, clipped, Exact()).broken, "what passes saw is compared all the same"
    assert drifts == {unseen: pytest.approx((size, size)) for unseen, size in enumerate((0.75, 0.0, 0.75))}


def test_the_guard_wants_more_than_shape(worker: Worker, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((32, 1, 8, 8), np.float32)
    source = models.path("digits-cnn")
    made = Verifier(worker, source, [{"images": images[:4]}], [{"images": images}], Verify(), True, tmp_path)
    made.prepare(load(source))
    model = load(source)
    model.save(tmp_path / "same.onnx")
    assert made.judge(tmp_path / "same.onnx", Lossy(), guard=True)[0].broken == ()


def test_the_checker_s_complaint_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "bad.onnx", "g (float[N, 3] x) => (float[N, 3] y) { y = Neg (z) }")
    complaint = check_file(str(path), full=False)
    assert complaint is not None
    assert "\n" not in complaint
    assert "z" in complaint


def test_contradicting_shapes_of_the_original_are_not_held_against_candidates(
    verifier: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = """g (float[2, 3] x) => (float[2, 3] y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}>
    { z = MatMul (x, w)  y = %s (z) }"""
    caplog.set_level(logging.INFO)
    made = verifier(wrong % "Neg", [{"x": X[:2]}])
    assert "contradict" in caplog.text
    assert judged(made, tmp_path, wrong % "Neg").broken == ()
    assert judged(made, tmp_path, wrong % "Abs").broken


HIDDEN = "g (float[2, 3] x) => (float[2, %d] y) { %s  r = Relu (x)  y = Reshape (r, s) }"
PLAIN = "g (float[2, 3] x) => (float[2, %d] y) { y = %s (x) }"
TARGETS = {
    "inferred": "s = Shape (x)",
    "run": "l = Constant <value_floats = [0.7, 1.1]> ()  e = Exp (l)  f = Round (e)  s = Cast <to = 7> (f)",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("level", ["structure", "full"])
def test_a_false_output_shape_that_a_candidate_brings_to_light_is_the_original_s(
    verifier: Any, tmp_path: Path, target: str, level: str
) -> None:
    """The checker infers nothing of the original's output, and all of the candidate's."""
    made = verifier(HIDDEN % (9, TARGETS[target]), [{"x": X[:2]}], level=level)
    assert judged(made, tmp_path, PLAIN % (9, "Relu")).broken == ()
    assert "output y has another shape than the original declares" in made.notes
    assert "not valid" in judged(made, tmp_path, PLAIN % (9, "Reluu")).broken[0]


@pytest.mark.parametrize("target", TARGETS)
def test_a_false_output_shape_that_a_candidate_makes_is_its_own(verifier: Any, tmp_path: Path, target: str) -> None:
    made = verifier(HIDDEN % (3, TARGETS[target]), [{"x": X[:2]}], level="structure")
    doubled = "g (float[2, 3] x) => (float[2, 3] y) { y = Concat <axis = 1> (x, x) }"
    assert "differ in dimension" in judged(made, tmp_path, doubled).broken[0]
    assert made.notes == []


def test_where_no_session_fits_false_output_shapes_are_known_from_the_graph(
    verifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_room", lambda needed: False)
    for target, broken in (("inferred", False), ("run", True)):
        made = verifier(HIDDEN % (9, TARGETS[target]), [{"x": X[:2]}])
        assert "free" in made.unverified
        assert bool(judged(made, tmp_path, PLAIN % (9, "Relu")).broken) is broken


def test_an_output_that_the_checker_knows_to_be_declared_falsely_is_told_at_every_level(verifier: Any) -> None:
    for level in ("structure", "full"):
        made = verifier(PLAIN % (9, "Relu"), [{"x": X[:2]}], level=level)
        assert "output y has another shape than the original declares" in made.notes
