"""Python's own standard library as a text corpus: bytes to train on, bytes held out to judge with.

Every machine that runs onnxopt has it, so a language model can be trained and judged without a download.
"""

import sysconfig
from pathlib import Path

import numpy as np
import numpy.typing as npt

HELD_OUT = (
    "argparse", "configparser", "csv", "dataclasses", "difflib", "fractions", "functools", "heapq",
    "ipaddress", "queue", "shlex", "statistics", "tempfile", "textwrap", "tokenize", "zipapp",
)  # fmt: skip
"""Modules never trained on. Single files in every supported Python, varied in subject and style."""

_NOT_PROSE = {"encodings", "pydoc_data", "lib2to3", "site-packages", "__pycache__"}
_TESTS = {"test", "tests", "idle_test"}


def stdlib_folder() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def training_bytes(*, tests: bool = True) -> npt.NDArray[np.uint8]:
    """All sources but the held-out modules and whatever tests them: uint8 `[bytes]`.

    Character tables and generated files are left out: they are long and say nothing about code.

    Args:
        tests: whether Python's own test suite belongs to it (more than half of the bytes).
    """
    root = stdlib_folder()
    left_out = _NOT_PROSE if tests else _NOT_PROSE | _TESTS
    parts = [
        path.read_bytes()
        for path in sorted(root.rglob("*.py"))
        if not left_out & set(path.relative_to(root).parts) and not _is_held_out(path)
    ]
    return np.frombuffer(b"\0".join(parts), np.uint8)


def held_out_bytes() -> npt.NDArray[np.uint8]:
    """The held-out modules, one after the other: uint8 `[bytes]`.

    Where none of them can be read (a Python without sources), onnxopt's own sources stand in.
    """
    paths = [stdlib_folder() / f"{name}.py" for name in HELD_OUT]
    present = [path for path in paths if path.is_file()]
    if not present:
        present = sorted(Path(__file__).resolve().parent.parent.glob("**/*.py"))
    return np.frombuffer(b"\0".join(path.read_bytes() for path in present), np.uint8)


def windows(text: npt.NDArray[np.uint8], length: int, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """`count` disjoint windows of `length` + 1 bytes in random order: int64 `[count, length + 1]`.

    The last byte of a window is only ever a target. Fewer rows come back when the text is short.
    """
    whole = len(text) // (length + 1)
    rows = text[: whole * (length + 1)].reshape(whole, length + 1)
    order = np.random.default_rng(seed).permutation(whole)[:count]
    return rows[order].astype(np.int64)


def _is_held_out(path: Path) -> bool:
    """Whether the file is a held-out module, or a test that quotes one."""
    return any(path.stem == name or path.stem.startswith(f"test_{name}") for name in HELD_OUT)
