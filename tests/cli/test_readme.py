"""What the README tells people to type works, in the order in which it stands there."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxopt.evaluate import KINDS

Cli = Callable[..., Any]

README = Path(__file__).resolve().parents[2] / "README.md"
FENCED = re.compile(r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^    |`)(?P<command>onnxopt (?:\\\n|[^`\n])+)", re.MULTILINE)
STANDING_FOR = {
    "MODEL": "model.onnx", "A": "model.onnx", "B": "small.onnx", "PASS": "quantize-weights",
    "REPORT.json": "report.json",
}  # fmt: skip
COMMANDS = {"run", "passes", "explain", "inspect", "check-groups", "compare", "bench", "report", "doctor"}


def commands(text: str) -> Iterator[list[str]]:
    for found in COMMAND.finditer(text):
        yield [STANDING_FOR.get(word, word) for word in shlex.split(found["command"].replace("\\\n", " "))[1:]]


def blocks(text: str) -> dict[str, str]:
    """Language -> the one block of code in it."""
    found = [(match["language"], match["code"]) for match in FENCED.finditer(text)]
    assert sorted(language for language, _ in found) == ["python", "yaml"]
    return dict(found)


def test_the_table_of_passes(cli: Cli) -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    listed = json.loads(cli("passes", "--json").out)
    assert sorted(rows) == sorted((row["name"], row["contract"]) for row in listed)


@pytest.fixture
def ready(digits: Path) -> Path:
    """A folder with what the README's commands name."""
    shutil.move("cnn.onnx", "model.onnx")
    (digits / "recipe.yaml").write_text(blocks(README.read_text(encoding="utf-8"))["yaml"])
    return digits


def test_commands(cli: Cli, ready: Path) -> None:
    given = list(commands(README.read_text(encoding="utf-8")))
    assert {words[0] for words in given} == COMMANDS
    for words in given:
        ran = cli(*words)
        assert ran.code == 0, f"{' '.join(words)}: {ran.err}"
    size = (ready / "small.onnx").stat().st_size
    assert size < (ready / "model.onnx").stat().st_size
    assert (ready / "report.json").exists()


def test_python(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(blocks(README.read_text(encoding="utf-8"))["python"], "README.md", "exec"), names)
    size = (ready / "small.onnx").stat().st_size
    assert capsys.readouterr().out == f"verified end to end on 8 samples of evaluation data {size}\n"
    assert [value.name for value in names["session"].get_inputs()] == ["images"]


def test_all_metrics_are_named() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in KINDS if f"`{name}`" not in text] == []
