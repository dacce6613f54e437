"""`onnxopt report REPORT.json`."""

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import onnxopt
from onnxopt import models

Cli = Callable[..., Any]


class Page(HTMLParser):
    """Text of a page, its tags and their attributes; every tag is closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.lines: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and not {"style", "title"} & set(self.open):
            self.lines.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run leaves as `report.json`."""
    model = models.path("digits-cnn")
    output = tmp_path_factory.mktemp("run") / "out.onnx"
    onnxopt.optimize(
        model, ["clean", {"quantize-weights": {"bits": 4}}], output=output, metric="top1", limits={"drift": 0.5},
        data=str(model.with_name("digits.calib.npz")), evaluation=str(model.with_name("digits.eval.npz")),
    )  # fmt: skip
    return output.with_name("report.json").read_text()


@pytest.fixture
def reported(written: str, folder: Path) -> dict[str, Any]:
    """The content of the `report.json` in the working folder."""
    (folder / "report.json").write_text(written)
    content: dict[str, Any] = json.loads(written)
    return content


def changed(report: dict[str, Any], **parts: Any) -> None:
    Path("report.json").write_text(json.dumps(report | parts))


def page(cli: Cli) -> Page:
    ran = cli("report", "report.json", "-o", "page.html")
    assert (ran.code, ran.err) == (0, "wrote page.html\n")
    return Page(Path("page.html").read_text(encoding="utf-8"))


def test_terminal_shows_what_the_run_printed(cli: Cli, folder: Path) -> None:
    printed = cli(
        "run", "tiny.onnx", "-o", "out.onnx", "-p", "clean", "-p", "quantize-weights:bits=4", "--data", "x.npz"
    )
    ran = cli("report", "report.json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == printed.out
    assert ran.out.startswith("verified end to end on 8 samples of calibration data\n")


def test_json(cli: Cli, reported: dict[str, Any]) -> None:
    ran = cli("report", "report.json", "--json", "-o", "page.html")
    assert json.loads(ran.out, parse_constant=pytest.fail) == reported
    assert Path("page.html").exists()


def test_page(cli: Cli, reported: dict[str, Any]) -> None:
    found = page(cli)
    assert found.lines[0] == "verified end to end on 8 samples of evaluation data"
    text = found.text
    for part in (
        "file", "344 KiB", "parameters", "latency (ms)", "limits, whole run", "drift 0.5", "drift (relative L2)",
        "top1", f"standard error {reported['metric']['stderr']:.4f}", "on 500 samples", "sample by sample",
        f"standard error {reported['metric']['difference_stderr']:.4f}", "clean: changed", "fold-batchnorm: 8",
        "folded into stem/Conv", "norm/BatchNormalization", "declined", "quantize-weights: 8",
        "runtimes have no convolution",
        "(8 nodes)", "stem/Conv, blocks.0.conv1/Conv", reported["digests"]["model"], reported["after"]["digest"],
        reported["versions"]["onnxruntime"], "digits.calib.npz, 208 samples", "images", "[8, 1, 8, 8]",
    ):  # fmt: skip
        assert part in text, part


def test_page_needs_nothing_else(cli: Cli, reported: dict[str, Any]) -> None:
    found = page(cli)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in found.tags}
    assert not {"src", "href"} & {name for _, attributes in found.tags for name in attributes}
    assert "url(" not in Path("page.html").read_text(encoding="utf-8")


def test_names_are_text_on_the_page(cli: Cli, reported: dict[str, Any]) -> None:
    odd = "<script>alert('1')</script>&amp;\"{{ 7 * 7 }}"
    step = reported["steps"][-1]
    step["declined"] = [{"node": odd, "rule": odd, "why": odd}]
    step["changes"] = [{"node": odd, "rule": odd, "what": odd}]
    changed(reported, notes=[odd], output=odd, recipe={"passes": [odd]}, data={odd: odd}, status=f"verified {odd}")
    found = page(cli)
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.text.count(odd) >= 10


def test_unverified_comes_first(cli: Cli, folder: Path) -> None:
    assert cli("run", "tiny.onnx", "-o", "out.onnx", "-p", "clean", "--verify", "structure").code == 0
    found = page(cli)
    assert found.lines[0].startswith("UNVERIFIED END TO END: asked for by verify.level; rewrites run by themselves: ")
    assert ("h1", {"class": "unverified"}) in found.tags
    text = found.text
    assert "metric\nnot measured" in text
    assert "limits\nnone" in text


def test_peak_memory(cli: Cli, reported: dict[str, Any]) -> None:
    changed(reported, memory={"own_peak_bytes": 3 << 30, "worker_peak_bytes": None})
    assert "peak memory\n3 GiB with mapped files, and ? in the worker process" in page(cli).text
    changed(reported, memory={})
    assert "peak memory" not in page(cli).text
    assert "peak memory" not in cli("report", "report.json").out


def test_what_is_not_a_number(cli: Cli, reported: dict[str, Any]) -> None:
    """Infinities and NaN are text in the JSON."""
    reported["metric"] |= {"after": "nan", "stderr": None, "difference": None}
    reported["steps"][-1]["verdict"]["drift"] = "inf"
    changed(reported, drift="inf", deployed_drift="inf")
    assert "inf" in cli("report", "report.json").out
    assert "drift so far inf" in page(cli).text


def test_long_lists_are_cut(cli: Cli, reported: dict[str, Any]) -> None:
    changes = [{"node": f"n{i}", "rule": "same", "what": "alike"} for i in range(5000)]
    changes += [{"node": f"m{i}", "rule": "other", "what": f"differs {i}"} for i in range(5000)]
    reported["steps"][-1]["changes"] = changes
    changed(reported)
    text = page(cli).text
    assert "same: 5000" in text
    assert "n49 and 4950 more" in " ".join(text.split())
    assert "and 4800 more, in the JSON" in text
    assert Path("page.html").stat().st_size < 100_000


def test_a_drift_that_nothing_limits_is_told(cli: Cli, reported: dict[str, Any]) -> None:
    changed(reported, deployed_drift=0.6, metric=None, recipe={"passes": ["clean"]})
    assert "WARNING" in cli("report", "report.json").out
    changed(reported, deployed_drift=0.6, metric=None)
    assert "WARNING" not in cli("report", "report.json").out
    reported["steps"][-1]["options"] = {"limits": {"drift": 0.7}}
    changed(reported, deployed_drift=0.6, metric=None, recipe={"passes": ["clean"]})
    assert "WARNING" not in cli("report", "report.json").out
    assert "limits, quantize-weights\ndrift 0.7" in page(cli).text


FOREIGN = {
    "": "Invalid JSON", "not json": "Invalid JSON", '{"a": 1}': "verified: Field required", "[]": "", "3": "",
    "null": "", "[" * 100_000: "", '{"verified": ': "Invalid JSON", '{"version": 1, "passes": ["clean"]}': "verified",
}  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=lambda text: text[:20] or "empty")
def test_foreign_files(cli: Cli, folder: Path, content: str) -> None:
    (folder / "r.json").write_text(content)
    line = cli("report", "r.json", "-o", "page.html").refusal(3)
    assert "r.json is not the report of a run: " in line
    assert FOREIGN[content] in line
    assert len(line) < 300
    assert not (folder / "page.html").exists()


def test_binary_files(cli: Cli, folder: Path) -> None:
    assert "tiny.onnx is not the report of a run" in cli("report", "tiny.onnx").refusal(3)
    assert "no.json" in cli("report", "no.json").refusal(3)
    assert "cannot read report ." in cli("report", ".").refusal(3)


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda r: r["before"].pop("nodes"), "before.nodes"),
        (lambda r: r["metric"].pop("drop"), "metric.drop"),
        (lambda r: r["latency"].update(ratio="fast"), "latency.ratio"),
        (lambda r: r["memory"].update(own_peak_bytes="much"), "memory.own_peak_bytes"),
        (lambda r: r["steps"][2]["changes"][0].pop("rule"), "steps.2.changes.0.rule"),
        (lambda r: r["steps"][2].update(seconds=None), "steps.2.seconds"),
        (lambda r: r.update(verified=False), "contradict"),
        (lambda r: r.update(status="UNVERIFIED"), "contradict"),
        (lambda r: r["recipe"].update(limits=3), "limits"),
        (lambda r: r["steps"][2]["options"].update(limits=[1]), "limits"),
        (lambda r: r["steps"][2].update(verdict={"drift": "much"}), "verdict.drift"),
    ],
    ids=["facts", "metric", "latency", "memory", "change", "step", "claim", "status", "limits", "options", "verdict"],
)
def test_damaged_reports(cli: Cli, reported: dict[str, Any], spoil: Callable[[dict[str, Any]], Any], part: str) -> None:
    spoil(reported)
    changed(reported)
    line = cli("report", "report.json", "-o", "page.html").refusal(3)
    assert "report.json is not the report of a run" in line
    assert part in line


def test_page_that_cannot_be_written(cli: Cli, reported: dict[str, Any]) -> None:
    before = Path("report.json").read_bytes()
    assert "is the report itself" in cli("report", "report.json", "-o", "./report.json").refusal(2)
    assert "no/page.html" in cli("report", "report.json", "-o", "no/page.html").refusal(3)
    assert "is a folder" in cli("report", "report.json", "-o", ".").refusal(3)
    assert Path("report.json").read_bytes() == before
