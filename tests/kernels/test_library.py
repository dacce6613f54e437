"""The kernel library is found where the installer put it, and its absence has a reason."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import onnxruntime
import pytest

from onnxopt import kernels
from onnxopt.errors import KernelError
from onnxopt.kernels import library

Install = Callable[[dict[str, bytes]], Path]


def forget() -> None:
    for cached in (library.path, library.why_unavailable, library._load):
        cached.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Make an installation of onnxopt that consists of the given files, and the only one there is."""

    def lay_out(files: dict[str, bytes]) -> Path:
        info = tmp_path / "onnxopt-9.9.dist-info"
        written = {f"{info.name}/METADATA": b"Metadata-Version: 2.4\nName: onnxopt\nVersion: 9.9\n", **files}
        for name, content in written.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in written))
        return tmp_path

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    forget()
    yield lay_out
    forget()


def test_a_bare_checkout_has_no_library_and_says_so(install: Install) -> None:
    assert kernels.path() is None
    assert not kernels.available()
    assert "not installed" in str(kernels.why_unavailable())
    with pytest.raises(KernelError, match="not installed"):
        kernels.version()


def test_an_installation_without_a_compiler_says_so(install: Install) -> None:
    install({"onnxopt/__init__.py": b"", "onnxopt/kernels/library.py": b""})
    assert kernels.path() is None
    assert "C++ compiler" in str(kernels.why_unavailable())


@pytest.mark.parametrize("name", ["libonnxopt_kernels.so", "onnxopt_kernels.dll", "libonnxopt_kernels.dylib"])
def test_the_library_is_found_under_each_system_s_name(install: Install, name: str) -> None:
    root = install({"onnxopt/__init__.py": b"", f"onnxopt/kernels/{name}": b"not a library"})
    assert kernels.path() == root / "onnxopt" / "kernels" / name


def test_a_library_that_does_not_load_is_named(install: Install) -> None:
    install({"onnxopt/kernels/libonnxopt_kernels.so": b"not a library"})
    assert not kernels.available()
    reason = str(kernels.why_unavailable())
    assert "libonnxopt_kernels.so does not load" in reason
    assert "\n" not in reason
    with pytest.raises(KernelError, match="does not load"):
        kernels.version()


def test_the_built_library_has_the_package_s_version() -> None:
    if reason := kernels.why_unavailable():
        pytest.skip(reason)
    file = kernels.path()
    assert file is not None
    assert file.is_file()
    assert kernels.available()
    assert kernels.version() == version("onnxopt")


@pytest.mark.skipif(not library.available(), reason="the kernel library is not installed here")
def test_onnx_runtime_registers_the_library() -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library.path()))
    assert library.version()
