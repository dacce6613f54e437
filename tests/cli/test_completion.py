"""What shells offer after a TAB, through typer's completion."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onnxopt.passing import pass_names

Cli = Callable[..., Any]
Offered = Callable[[str], list[str]]

PROGRAM = "import sys\nsys.argv[0] = 'onnxopt'\nfrom onnxopt.cli import main\nmain()"
HEAVY = {"numpy", "onnx", "onnxruntime", "onnx_ir", "sympy"}


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | more


@pytest.fixture
def offered(tmp_path: Path) -> Offered:
    """`offered("run m.onnx -p cl")`: what bash is given for the last word."""

    def ask(line: str) -> list[str]:
        place = str(len(line.split(" ")) - 1)
        words = environment(COMP_WORDS=line, COMP_CWORD=place, _ONNXOPT_COMPLETE="complete_bash")
        said = f"print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)"
        code = f"import atexit, sys\natexit.register(lambda: {said})"
        ran = subprocess.run(
            [sys.executable, "-c", f"{code}\n{PROGRAM}"], capture_output=True, text=True, check=False, env=words
        )
        assert ran.stderr == "[]\n"
        return ran.stdout.split()

    return ask


@pytest.mark.parametrize("line", ["onnxopt explain ", "onnxopt run m.onnx -o o.onnx -p ", "onnxopt run m.onnx --pass "])
def test_all_passes(offered: Offered, line: str) -> None:
    assert offered(line) == sorted(pass_names())


def test_what_begins_so(offered: Offered) -> None:
    assert offered("onnxopt explain quantize-w") == ["quantize-weights"]
    assert offered("onnxopt run m.onnx -p eliminate-") == sorted(n for n in pass_names() if n.startswith("eliminate-"))
    assert offered("onnxopt explain zz") == []


def test_commands(offered: Offered) -> None:
    assert offered("onnxopt rep") == ["report"]
    assert "--table" in offered("onnxopt bench m.onnx --")


def test_files_are_left_to_the_shell(offered: Offered) -> None:
    assert offered("onnxopt bench di") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(shell: str) -> None:
    """The shell is found where typer can tell; the script calls the program by its name."""
    values = environment(_ONNXOPT_COMPLETE=f"source_{shell}")
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=values)
    assert f"complete_{shell}" in ran.stdout
    assert "_ONNXOPT_COMPLETE" in ran.stdout


def test_help_offers_it(cli: Cli) -> None:
    out = cli("--help").out
    assert "--install-completion" in out
    assert "--show-completion" in out
