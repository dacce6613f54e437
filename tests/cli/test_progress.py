"""Progress: a bar on a terminal, lines anywhere else, nothing where nothing is asked for."""

import io
import logging
import re
import sys
from collections.abc import Iterator

import pytest

from onnxopt.cli.progress import progress
from onnxopt.settings import Progress

EVENTS = (
    Progress(0, 2, "checking the original"), Progress(0, 2, "clean"), Progress(1, 2, "quantize"),
    Progress(1, 2, "quantize", 3, 7, "layer[3]"), Progress(2, 2, "measuring"),
)  # fmt: skip


class Stream(io.StringIO):
    """Standard error as a terminal, or as a file."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def logged() -> Iterator[logging.StreamHandler[Stream]]:
    """The root logger's handler on the standard error of the moment."""
    handler: logging.StreamHandler[Stream] = logging.StreamHandler(Stream(False))
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def told(monkeypatch: pytest.MonkeyPatch, stream: Stream) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(silent=False) as tell:
        assert tell is not None
        for event in EVENTS:
            tell(event)
        logging.getLogger().warning("something happened")
    return stream.getvalue()


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, Stream(False)).splitlines()[:4] == [
        "[1/2] checking the original", "[1/2] clean", "[2/2] quantize", "[2/2] measuring",
    ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "expected"), [
    (200.0, ["25%, about 2 min left", "50%, about 2 min left", "75%, about 50 s left"]),
    (32.0, ["25%, about 24 s left", "50%, about 16 s left", "75%, about 8 s left"]),
    (29.0, []),
])  # fmt: skip
def test_lines_of_long_work(monkeypatch: pytest.MonkeyPatch, seconds: float, expected: list[str]) -> None:
    """Counted anew for each pass over the data, however its text changes meanwhile."""
    stream, now = Stream(False), 1000.0
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("onnxopt.cli.progress.time.monotonic", lambda: now)
    with progress(silent=False) as tell:
        assert tell is not None
        for passes in (1, 2):
            for done in range(101):
                tell(Progress(1, 3, "gptq", done, 100, f"pass {passes} of 2"))
                now += seconds / 100
    lines = [f"[2/3] gptq: pass {passes} of 2 {line}" for passes in (1, 2) for line in expected]
    assert stream.getvalue().splitlines() == ["[2/3] gptq", *lines]


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "[2/2] quantize\n" in told(monkeypatch, Stream(True))


def test_bars(monkeypatch: pytest.MonkeyPatch, logged: logging.StreamHandler[Stream]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Stream(True)
    before = logged.stream
    logged.setStream(stream)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", told(monkeypatch, stream))
    assert "2/2" in shown
    assert "measuring" in shown
    assert "\nsomething happened\n" in shown.replace("\r", "\n"), "log lines stand above the bars"
    assert stream.getvalue().endswith("\x1b[2K"), "the bars are wiped out"
    assert logged.stream is stream, "afterwards log lines go where they went before"
    logged.setStream(before)
    assert sys.stderr is stream


def test_the_bar_of_the_work_inside_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, now = Stream(True), 0.0
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("rich.console.monotonic", lambda: now)
    monkeypatch.setattr("time.monotonic", lambda: now)
    with progress(silent=False) as tell:
        assert tell is not None
        for done in range(6):
            tell(Progress(1, 3, "gptq", done, 10, "statistics"))
            now += 60
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    last = [line for line in re.split(r"[\r\n]+", shown) if "statistics" in line][-1]
    assert "5/10" in last
    assert "0:05:00" in last
    assert not any("-:--:--" in line for line in shown.splitlines() if "gptq" in line)


def test_bars_are_wiped_out_before_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().endswith("\x1b[2K")
    assert sys.stderr is stream


def interrupted() -> None:
    with progress(silent=False) as tell:
        assert tell is not None
        tell(EVENTS[0])
        raise KeyboardInterrupt


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Stream(True))
    with progress(silent=True) as tell:
        assert tell is None
