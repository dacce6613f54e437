"""Kernels for the `ai.onnxopt` operators: a native library, present where a C++ compiler was at installation."""

from onnxopt.kernels.library import available, path, version, why_unavailable

__all__ = ["available", "path", "version", "why_unavailable"]
