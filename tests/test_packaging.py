"""What an installation consists of, and what it does not."""

import ast
import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAPPED = ("backends", "kernels", "models", "passes")
"""Top-level folders that are part of the package."""


@pytest.fixture(scope="module")
def installed() -> Distribution:
    try:
        found = distribution("onnxopt")
    except PackageNotFoundError:
        pytest.skip("onnxopt is not installed: this is a bare checkout")
    if '"editable": true' in (found.read_text("direct_url.json") or ""):
        pytest.skip("onnxopt is installed as editable: its files are the checkout's")
    return found


@pytest.fixture(scope="module")
def files(installed: Distribution) -> set[str]:
    return {file.as_posix() for file in installed.files or ()}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_the_version_is_the_project_s(installed: Distribution, project: dict[str, Any]) -> None:
    assert installed.version == project["version"]


def test_everything_of_the_checkout_s_packages_is_installed(files: set[str]) -> None:
    """Modules, `py.typed` and the models with their data; nothing generic lands beside onnxopt."""
    expected = {path.relative_to(ROOT).as_posix() for path in shipped(ROOT / "onnxopt")}
    for folder in MAPPED:
        expected |= {f"onnxopt/{path.relative_to(ROOT).as_posix()}" for path in shipped(ROOT / folder)}
    inside = {name for name in files if name.startswith("onnxopt/") and "__pycache__" not in name}
    assert {"onnxopt/py.typed", "onnxopt/models/__init__.py"} <= expected
    assert expected - inside == set()
    assert {name for name in inside - expected if "onnxopt_kernels" not in name} == set()


def test_nothing_lands_beside_the_package(files: set[str]) -> None:
    places = {name.split("/")[0] for name in files}
    assert {place for place in places if not re.fullmatch(r"onnxopt(-.*\.dist-info)?|\.\.", place)} == set()


def test_a_plain_installation_does_without_torch(project: dict[str, Any]) -> None:
    heavy = re.compile(r"torch|timm|transformers|scikit-learn|dask|pytest")
    plain = project["dependencies"]
    tests = project["optional-dependencies"]["test"]
    assert [need for need in plain if heavy.match(need)] == []
    assert [need for need in tests if re.match(r"torch|onnxopt", need)] == []


def test_the_command_starts_the_cli(installed: Distribution) -> None:
    (command,) = (entry for entry in installed.entry_points if entry.group == "console_scripts")
    assert command.name == "onnxopt"
    assert callable(command.load())


def test_tests_that_use_torch_carry_its_mark() -> None:
    """Otherwise the run with torch would pass them over."""
    unmarked = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if uses_torch(text := path.read_text()) and "mark.torch" not in text
    ]
    assert unmarked == []


def shipped(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".pt", ".pyc"} and "csrc" not in path.parts
    ]


def uses_torch(source: str) -> bool:
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if any(name.name.split(".")[0] == "torch" for name in names):
                return True
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "torch":
                return True
            case ast.Call(func=ast.Attribute(attr="importorskip"), args=[ast.Constant(value="torch"), *_]):
                return True
    return False
