"""The commands and their arguments. Each imports what it needs when it runs, so that `--help` is quick."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxopt.cli import options
from onnxopt.cli.options import Json, ModelFile, Shapes, Threads, pass_names

app = typer.Typer(
    name="onnxopt", no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="A compiler for trained networks: an ONNX file in, a smaller and faster one out.",
)  # fmt: skip


@app.callback(invoke_without_command=True)
def _top(
    traceback: Annotated[bool, typer.Option("--traceback", help="show where an error came from")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more on standard error")] = False,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    if version:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            typer.echo(installed("onnxopt"))
        except PackageNotFoundError:
            typer.echo("unknown: this is a checkout that was not installed")
        raise typer.Exit


@app.command()
def run(
    model: ModelFile,
    output: options.Output,
    recipe: options.Recipe = None,
    passes: options.Passes = None,
    data: options.Data = None,
    eval_data: options.EvalData = None,
    metric: options.Metric = None,
    mask: options.Mask = None,
    target: options.Target = None,
    verify: options.Verify = None,
    set_: options.Set = None,
    report: options.ReportFolder = None,
    work: options.Work = None,
    resume: options.Resume = False,
    dry_run: options.DryRun = False,
    on_violation: options.OnViolation = None,
    accept_loss: options.AcceptLoss = False,
    allow_code: options.AllowCode = False,
    if_changed: options.IfChanged = False,
    reproduce: options.Reproduce = False,
    force_order: options.ForceOrder = False,
    shape: Shapes = None,
    threads: Threads = None,
    memory: options.Memory = None,
    quiet: options.Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a recipe on a model, prove what it did, and write the result with its report."""
    from onnxopt.cli import run as command

    command.run(command.Arguments(
        model, output, recipe, passes or [], data, eval_data, metric, mask, target, verify, set_ or [], report, work,
        resume, dry_run, on_violation, accept_loss, allow_code, if_changed, reproduce, force_order, shape or [],
        threads, memory, quiet, as_json,
    ))  # fmt: skip


@app.command()
def inspect(
    model: ModelFile,
    shape: Shapes = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="what can be removed together instead, and what cannot and why")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a model: inputs, size, work, operators, largest weights, whether it loads."""
    if groups:
        from onnxopt.cli import groups as of_groups

        of_groups.inspect(model, shape or [], as_json)
    else:
        from onnxopt.cli import inspect as command

        command.inspect(model, shape or [], as_json)


@app.command("check-groups")
def check_groups(
    model: ModelFile,
    draws: Annotated[int, typer.Option("--draws", min=1, help="random removals to try")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the draws")] = 0,
    share: Annotated[float, typer.Option("--share", help="share of a group's units that is removed at most")] = 0.5,
    shape: Shapes = None,
    data: Annotated[
        str, typer.Option("--data", metavar="SPEC", help="inputs, of which the first sample is fed; random by default")
    ] = "synthetic",
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Try whether channels that are said to be removable are: remove some, compare with a model that ignores them."""
    from onnxopt.cli import check_groups as command

    command.check_groups(model, draws, seed, share, shape or [], data, threads, as_json)


@app.command()
def passes(as_json: Json = False) -> None:
    """List the passes that a recipe can name."""
    from onnxopt.cli import passes as command

    command.passes(as_json)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(metavar="PASS", autocompletion=pass_names)], as_json: Json = False
) -> None:
    """Explain one pass: what it does, its contract and its options."""
    from onnxopt.cli import passes as command

    command.explain(name, as_json)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="ONNX file")],
    b: Annotated[Path, typer.Argument(metavar="B", help="ONNX file with the same inputs")],
    data: Annotated[str, typer.Option("--data", metavar="SPEC", help="inputs; random by default")] = "synthetic",
    tolerance: Annotated[float | None, typer.Option("--tolerance", help="exit 4 when an output drifts further")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="batches to run")] = 8,
    shape: Shapes = None,
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Compare two models: drift of each output, size, work, latency."""
    from onnxopt.cli import compare as command

    command.compare(a, b, data, tolerance, samples, shape or [], threads, as_json)


@app.command()
def bench(
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL...", help="ONNX files with the same inputs", show_default=False)
    ],
    data: Annotated[
        str, typer.Option("--data", metavar="SPEC", help="inputs, of which the first batch is fed; random by default")
    ] = "synthetic",
    shape: Shapes = None,
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.01, help="seconds of timing, a file")] = 2.0,
    table: Annotated[
        Path | None, typer.Option("--table", metavar="FILE", help="timing table (YAML or JSON) to add the medians to")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time models in turn: latency, throughput, memory, load time; ratios to the first."""
    from onnxopt.cli import bench as command

    command.bench(models, data, shape or [], threads, seconds, table, as_json)


@app.command()
def report(
    file: Annotated[Path, typer.Argument(metavar="REPORT.json", help="report of a run", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="HTML page to write")] = None,
    as_json: Json = False,
) -> None:
    """Show the report of a run, or make a page of it that needs no other file."""
    from onnxopt.cli import report as command

    command.report(file, output, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine and its runtime can do."""
    from onnxopt.cli import doctor as command

    command.doctor(as_json)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="where files and reports go")] = Path("onnxopt-demo"),
    as_json: Json = False,
) -> None:
    """Compress the byte-level GPT that ships with onnxopt, and show before and after."""
    from onnxopt.cli import demo as command

    command.demo(folder, as_json)


def main() -> None:
    """Entry point of the `onnxopt` command. An error is one line, the last; the exit code says of which kind."""
    traceback = "--traceback" in sys.argv
    if traceback:
        sys.argv.remove("--traceback")
    try:
        code = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        if traceback:
            sys.excepthook(type(error), error, error.__traceback__)
        message, code = _worded(error)
        typer.echo(message, err=True)
    if code == _INTERRUPTED:
        typer.echo("interrupted", err=True)
    if code:
        sys.exit(code)


_INTERRUPTED = 130


def _worded(error: Exception) -> tuple[str, int]:
    """What is printed for an error, and its exit code."""
    from onnxopt.errors import OnnxOptError

    if isinstance(error, OnnxOptError):
        return f"error: {_line(error)}", error.exit_code
    usage = getattr(error, "format_message", None)  # errors of click, whichever typer stands on
    if usage is not None and type(error).__name__ == "NoArgsIsHelpError":
        return usage(), 2
    if usage is not None:
        command = getattr(getattr(error, "ctx", None), "command_path", "onnxopt")
        return f"error: {_line(usage()).rstrip('.')}; `{command} --help` shows how to use it", 2
    if isinstance(error, OSError) and error.strerror:
        return f"error: {error.filename or 'system'}: {error.strerror}", 1
    return f"internal error: {type(error).__name__}: {_line(error)} (--traceback shows where)", 1


def _line(error: object) -> str:
    return " ".join(str(error).split())
