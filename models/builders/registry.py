"""Where the builders of test graphs are listed."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import onnx

Builder: TypeAlias = Callable[[], onnx.ModelProto]
DiskBuilder: TypeAlias = Callable[[Path], onnx.ModelProto]

RARE: dict[str, Builder] = {}
"""Every builder that needs nothing, by the name of what is rare about its model."""

ON_DISK: dict[str, DiskBuilder] = {}
"""Builders that also write data files to a folder, from which their model must then be loaded."""

RUNNABLE: set[str] = set()
"""Those of both whose model onnxruntime has kernels for."""


def rare(build: Builder) -> Builder:
    """List a builder under its function's name, with dashes; onnxruntime can run its model."""
    return add(_label(build), build)


def rare_unrunnable(build: Builder) -> Builder:
    """The same where onnxruntime lacks a kernel."""
    return add(_label(build), build, runs=False)


def on_disk(build: DiskBuilder) -> DiskBuilder:
    """List a builder that writes data files."""
    ON_DISK[_label(build)] = build
    RUNNABLE.add(_label(build))
    return build


def add(name: str, build: Builder, *, runs: bool = True) -> Builder:
    """List a builder under any name.

    Raises:
        ValueError: the name is taken.
    """
    if name in RARE:
        raise ValueError(f"two builders are called {name}")
    RARE[name] = build
    if runs:
        RUNNABLE.add(name)
    return build


def _label(build: Builder | DiskBuilder) -> str:
    return build.__name__.replace("_", "-")
