"""The command line: a thin layer over the library, a file per command."""

from onnxopt.cli.app import main

__all__ = ["main"]
