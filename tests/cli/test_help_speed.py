"""Help is there at once: nothing heavy is imported for it."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

Cli = Callable[..., Any]

COMMANDS = ("run", "inspect", "passes", "explain", "compare", "bench", "report", "doctor", "demo")


def test_help_names_every_command(cli: Cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    for command in COMMANDS:
        assert f"  {command} " in ran.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert (ran.code, ran.err) == (0, "")


def test_no_command_shows_the_help(cli: Cli) -> None:
    ran = cli()
    assert ran.code == 2
    assert "Commands:" in ran.err


def test_version(cli: Cli) -> None:
    ran = cli("--version")
    assert ran.code == 0
    assert len(ran.out.splitlines()) == 1


def test_help_is_quick(spawn: Cli, record_property: Callable[[str, object], None]) -> None:
    """0.4 s is the aim; a busy machine gets more."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert spawn("--help").code == 0
        seconds.append(time.perf_counter() - started)
    record_property("seconds of --help, best of 3", round(min(seconds), 3))
    assert min(seconds) < 1.0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['onnxopt', 'run', '--help']\nfrom onnxopt.cli import main\nmain()\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'onnx_ir', 'scipy', 'yaml', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
