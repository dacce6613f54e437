"""Putting the results of a run in place: the model and its report, or where that fails neither."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxopt.errors import ModelError
from onnxopt.model import Model
from onnxopt.reading import digest, digest_of, external_files
from onnxopt.report import Report

Describe = Callable[[int | None, str | None], Report]
"""The report on an output of so many bytes, external data included, and of that digest."""


def publish(
    model: Model, output: Path | None, folder: Path | None, describe: Describe, *, external: bool, write: bool
) -> Report:
    """Write a model and its report. All files are written in full before the first of them gets its name.

    Args:
        output: where the model goes; None: nowhere.
        folder: where the report goes; None: nowhere.
        describe: makes the report.
        external: whether the model's weights go to a file of their own.
        write: whether the output is still to be written; else it is there, and the report is of it.

    Raises:
        ModelError: something cannot be written; what was there before is intact.
    """
    made: list[Report] = []
    with contextlib.ExitStack() as stack:
        place: list[Callable[[], None]] = []

        def ready(files: Sequence[Path]) -> None:
            size = sum(file.stat().st_size for file in files)
            made.append(describe(size, digest_of(files)) if files else describe(None, None))
            if folder is not None:
                place.append(stack.enter_context(made[0].staged(folder, report_name(folder, output))))

        if output is not None and write:
            model.save(output, external_data=external, ready=ready)
        else:
            ready([] if output is None else [output, *external_files(output)])
        for files_in_place in place:
            files_in_place()
    return made[0]


def report_name(folder: Path, output: Path | None) -> str:
    """What the report on an output is called in a folder, but for its suffix.

    `report`, unless a report on another output, or anything else, has that name: then it is named after the output.
    """
    if output is None:
        return "report"
    own, found = f"{output.stem}.report", _reported(folder / "report.json")
    free = found is _NOTHING and not (folder / f"{own}.json").exists()
    return "report" if free or found == output.name else own


_NOTHING = object()


def _reported(path: Path) -> object:
    """The name of the output that a report is on; `_NOTHING` where there is no file, None for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return _NOTHING
    except (OSError, ValueError):
        return None
    return found.get("output") if isinstance(found, dict) else None


def present_digest(output: Path) -> str:
    """Digest of the output that is there, whatever it is; empty where there is none."""
    try:
        return digest(output) if output.is_file() else ""
    except ModelError:
        return "damaged"


def check_output(output: Path) -> None:
    """Say before the work, not after it, that the output cannot be written.

    Raises:
        ModelError: a folder is in its place, or its own folder is missing or cannot be written.
    """
    if output.is_dir():
        raise ModelError(f"cannot write {output}: it is a folder")
    if not output.parent.is_dir():
        raise ModelError(f"cannot write {output}: the folder {output.parent} does not exist")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ModelError(f"cannot write {output}: {error.strerror}") from error


def check_report(folder: Path) -> None:
    """The same for the report's folder, which is made when the report is written.

    Raises:
        ModelError: it is no folder, or it cannot be made or written.
    """
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ModelError(f"cannot write the report into {folder}: {there} is not a folder that can be written")
