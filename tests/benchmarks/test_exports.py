"""The command that exports the collection: each file runs at sizes that the exporter did not see."""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.torch,
    # torch's exporters warn about themselves.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("exports")
    monkeypatch.setattr(module, "CASES", {"small": lambda: small(), "broken": lambda: 1 / 0})
    return module


class Summed(torch.nn.Module):
    """Embeds tokens, sums them up, and gives two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(1000, 6), torch.nn.Linear(6, 3)

    def forward(self, input_ids: "torch.Tensor", attention_mask: "torch.Tensor") -> Any:
        class Found:
            states = self.table(input_ids) * attention_mask[..., None]
            logits = self.head(states.sum(1))

        return Found


def small() -> Any:
    return importlib.import_module("architectures.case").tokens(Summed(), ["logits", "states"])


def call(exports: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["exports.py", *words])
    return int(exports.main())


@pytest.mark.parametrize("exporter", ["legacy", "dynamo"])
def test_exports_give_torchs_numbers_at_other_sizes(exports: ModuleType, exporter: str, tmp_path: Path) -> None:
    case, path = exports.build("small"), tmp_path / "small.onnx"
    exports.export(case, exporter, path)
    assert list(tmp_path.iterdir()) == [path]
    assert exports.drift(case, path, exports.UNSEEN) < 1e-5
    assert exports.drift(case, path, {"batch": 3, "sequence": 1}) < 1e-5
    with torch.no_grad():
        case.module.model.table.weight[:, 0] += 1
    assert exports.drift(case, path, exports.UNSEEN) > 1e-2, "another model passes for this one"


def test_files_are_kept_and_failures_reported(
    exports: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there = tmp_path / "small_legacy.onnx"
    there.write_bytes(b"an earlier one")
    assert call(exports, monkeypatch, str(tmp_path), "--exporter", "legacy") == 1
    assert "broken_legacy.onnx: ZeroDivisionError" in capsys.readouterr().err
    assert there.read_bytes() == b"an earlier one"
    assert call(exports, monkeypatch, str(tmp_path), "--exporter", "legacy", "--only", "small", "--force") == 0
    assert there.stat().st_size > 1000
