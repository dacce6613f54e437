"""Progress on standard error: a bar on a terminal, a line a step anywhere else."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from onnxopt.settings import Progress

Tell = Callable[[Progress], None]


@contextmanager
def progress(*, silent: bool) -> Iterator[Tell | None]:
    """A function for `Settings.progress`; None where nothing is to be shown."""
    if silent:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar() as tell:
            yield tell
    else:
        yield _Lines()


class _Lines:
    """A line when a step begins."""

    def __init__(self) -> None:
        self._last: tuple[int, str] | None = None

    def __call__(self, at: Progress) -> None:
        if (at.step, at.name) != self._last:
            self._last = (at.step, at.name)
            typer.echo(f"[{min(at.step + 1, at.steps)}/{at.steps}] {at.name}", err=True)


@contextmanager
def _bar() -> Iterator[Tell]:
    """A bar for the steps and one for the work inside a step; both are gone at the end."""
    from rich import progress as rich
    from rich.console import Console

    text = rich.TextColumn("{task.description}", markup=False)
    columns = (rich.BarColumn(24), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), text)
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bars, _logs_above():
        steps = bars.add_task("", total=None)
        inside = bars.add_task("", total=1, visible=False)

        def tell(at: Progress) -> None:
            bars.update(steps, completed=at.step, total=at.steps, description=at.name)
            bars.update(inside, completed=at.done, total=at.total or 1, description=at.what, visible=at.total > 0)

        yield tell


@contextmanager
def _logs_above() -> Iterator[None]:
    """Let log lines go where rich redirected standard error to: above the bars, not through them."""
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    streams = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, streams, strict=True):
            if stream is not None:
                handler.setStream(stream)
