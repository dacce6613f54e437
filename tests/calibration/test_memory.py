"""Peak memory: the same for 100 samples and for 1,000, and within the budget beside what a session takes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxopt.analysis.linear import linears
from onnxopt.backends import machine
from onnxopt.backends.worker import Worker
from onnxopt.calibration.engine import Calibration
from onnxopt.data import Dataset, open_data
from onnxopt.model import Model, load
from onnxopt.statistics import gram

MIB = 1 << 20
FEW, MANY = 100, 1000
BUDGET = 96 * MIB
SLACK = 64 * MIB
"""What libraries and allocators take besides."""

Make = Callable[[], Iterator[dict[str, Any]]]


def tokens(model: Model, samples: int) -> Make:
    def make() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for _ in range(samples // 10):
            yield {model.signature.inputs[0].name: rng.integers(0, 256, (10, 48))}

    return make


def images(model: Model, samples: int) -> Make:
    def make() -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(0)
        for _ in range(samples // 10):
            yield {model.signature.inputs[0].name: rng.standard_normal((10, 1, 8, 8)).astype(np.float32)}

    return make


CASES = {"byte_gpt": tokens, "digits_cnn": images}


@pytest.fixture
def used(tmp_path: Path) -> Callable[..., tuple[int, int, int]]:
    """Peaks of a fresh worker and of this process above what they hold before, and the number of passes."""

    def run(name: str, samples: int, staged: bool, budget: int = BUDGET) -> tuple[int, int, int]:
        model = load(f"models/{name}.onnx")
        data: Dataset = open_data(CASES[name](model, samples), model.signature)
        stats = list(dict.fromkeys(map(gram, linears(model))))
        told: dict[str, None] = {}
        with Worker(threads=1) as worker:
            warm = Calibration(data.take(10), tmp_path / "warm", worker)
            warm.collect(model, stats[:1])
            assert machine.reset_peak_memory()
            before = worker.call(machine.resident_bytes), machine.resident_bytes()
            assert worker.call(machine.reset_peak_memory)
            tell = lambda done, total, what: told.setdefault(what)  # noqa: E731
            calibration = Calibration(data, tmp_path / f"{samples}", worker, budget, tell)
            if staged:
                left = list(stats)
                for stage in calibration.stages(model):
                    here = [stat for stat in left if stage.sees(stat.tensor)]
                    stage.collect(here)
                    left = [stat for stat in left if stat not in here]
            else:
                calibration.collect(model, stats)
            after = worker.call(machine.peak_memory_bytes), machine.peak_memory_bytes()
        return after[0] - before[0], after[1] - before[1], len(told)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("staged", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_independent_of_the_number_of_samples(
    name: str, staged: bool, used: Callable[..., tuple[int, int, int]]
) -> None:  # fmt: skip
    if not machine.reset_peak_memory():
        pytest.skip("the system does not tell peaks")
    few, many = used(name, FEW, staged), used(name, MANY, staged)
    for here, there in zip(few[:2], many[:2], strict=True):
        assert abs(there - here) < 0.05 * max(here, there) + 8 * MIB, (few, many)
    session = machine.session_bytes(Path(f"models/{name}.onnx").stat().st_size)
    assert max(few[0], many[0]) < BUDGET + session + SLACK
    assert max(few[1], many[1]) < SLACK
    assert few[2] == many[2]
    if name == "byte_gpt" and not staged:
        assert few[2] > 1  # all Gram matrices at once are more than the budget
