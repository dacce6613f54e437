"""`onnxopt demo` on the GPT that ships."""

import json
from pathlib import Path

import pytest

from onnxopt.cli.demo import demo


@pytest.mark.slow
def test_demo_shows_smaller_files_and_what_they_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(tmp_path / "demo", as_json=True)
    found = json.loads(capsys.readouterr().out)
    original, eight, four, two = found["rows"]
    assert original["bytes"] > 3 * eight["bytes"] > 3 * four["bytes"] > 3 * two["bytes"]
    assert abs(eight["change"]) < 0.01
    assert 0 < four["change"] < 0.05 < two["change"]
    assert four["change"] > 2 * four["change_stderr"] > 0
    for bits in (8, 4, 2):
        assert (tmp_path / "demo" / f"byte_gpt_{bits}bit.onnx").is_file()
        assert json.loads((tmp_path / "demo" / f"{bits}bit" / "report.json").read_text())["verified"]
