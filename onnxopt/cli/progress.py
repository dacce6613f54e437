"""Progress on standard error: bars on a terminal, a line a step and some for long work anywhere else."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from onnxopt.settings import Progress

Tell = Callable[[Progress], None]

_LONG = 30.0
"""Seconds from which on work inside a step has lines of its own."""

_SEEN = 600.0
"""Seconds that the speed is told from: a single batch may take minutes."""

_MARKS = 4
"""In how many parts these divide it."""


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
    """A line when a step begins, and of long work inside it one at each quarter."""

    def __init__(self) -> None:
        self._last: tuple[int, str] | None = None
        self._is_new = _Work()
        self._begun = 0.0
        self._marks = 0

    def __call__(self, at: Progress) -> None:
        if (at.step, at.name) != self._last:
            self._last = (at.step, at.name)
            typer.echo(f"{_place(at)} {at.name}", err=True)
        if at.total > 0:
            self._inside(at)

    def _inside(self, at: Progress) -> None:
        now = time.monotonic()
        if self._is_new(at):
            self._begun, self._marks = now, 0
        share = at.done / at.total
        marks = min(int(share * _MARKS), _MARKS - 1)
        if marks <= self._marks:
            return
        self._marks = marks
        seconds = (now - self._begun) / share
        if seconds > _LONG:
            left = _duration(seconds * (1 - share))
            typer.echo(f"{_place(at)} {at.name}: {at.what or 'work'} {share:.0%}, about {left} left", err=True)


class _Work:
    """Whether other work begins: in another step, of another amount, or counted anew."""

    def __init__(self) -> None:
        self._last = Progress(-1, 0, "")

    def __call__(self, at: Progress) -> bool:
        last, self._last = self._last, at
        return (at.step, at.name, at.total) != (last.step, last.name, last.total) or at.done < last.done


def _place(at: Progress) -> str:
    return f"[{min(at.step + 1, at.steps)}/{at.steps}]"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


@contextmanager
def _bar() -> Iterator[Tell]:
    """A bar for the steps and one for the work inside a step, with the time left; both are gone at the end."""
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class Left(rich.TimeRemainingColumn):
        """Of the work inside alone: steps take any time."""

        def render(self, task: rich.Task) -> Text:
            return super().render(task) if task.fields.get("inside") else Text("")

    text = rich.TextColumn("{task.description}", markup=False)
    columns = (rich.BarColumn(24), rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), Left(), text)
    shown = rich.Progress(
        *columns, console=Console(stderr=True), transient=True, speed_estimate_period=_SEEN
    )  # fmt: skip
    with shown as bars, _logs_above():
        steps = bars.add_task("", total=None)
        inside = bars.add_task("", total=1, visible=False, inside=True)
        is_new = _Work()

        def tell(at: Progress) -> None:
            bars.update(steps, completed=at.step, total=at.steps, description=at.name)
            if is_new(at):
                bars.reset(inside)  # the speed of other work tells nothing
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
