"""Where the native kernel library lies, and whether it loads.

The library is optional: it is built when onnxopt is installed on a machine with a C++ compiler. Without it
every model still runs, since each of our operators carries its body.
"""

import ctypes
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from onnxopt.errors import KernelError

_STEMS = {"onnxopt_kernels", "libonnxopt_kernels"}
_SUFFIXES = {".so", ".dll", ".dylib"}


@cache
def path() -> Path | None:
    """The library's file, or None where the installation has none.

    The installer's record of files is asked, not the folder of this module: the two differ in an editable
    installation and when Python starts in a checkout.
    """
    try:
        return _find()
    except KernelError:
        return None


def available() -> bool:
    """Whether the library is there and loads."""
    return why_unavailable() is None


@cache
def why_unavailable() -> str | None:
    """One line that says why there is no library to use, or None when there is one."""
    try:
        _load()
    except KernelError as error:
        return str(error)
    return None


def version() -> str:
    """The version that the library was built with.

    Raises:
        KernelError: there is no library, or it does not load.
    """
    return _load()


def _find() -> Path:
    try:
        files = distribution("onnxopt").files
    except PackageNotFoundError as error:
        raise KernelError("onnxopt is not installed (a bare checkout): `pip install .` builds the kernels") from error
    for file in files or ():
        if file.stem in _STEMS and file.suffix in _SUFFIXES:
            return Path(str(file.locate()))
    raise KernelError("onnxopt was installed where no C++ compiler worked: install one, then onnxopt again")


@cache
def _load() -> str:
    file = _find()
    try:
        function = ctypes.CDLL(str(file)).onnxopt_version
    except (OSError, AttributeError) as error:
        raise KernelError(f"the kernel library {file} does not load: {error}; reinstall onnxopt") from error
    function.restype = ctypes.c_char_p
    answer: bytes = function()
    return answer.decode()
