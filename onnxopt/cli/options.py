"""Arguments and options of the commands: what they are called, and what their help says."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer


def pass_names(incomplete: str) -> list[str]:
    """What a shell offers where a pass is named."""
    from onnxopt.discovery import pass_names as known

    return [name for name in sorted(known()) if name.startswith(incomplete)]


ModelFile: TypeAlias = Annotated[Path, typer.Argument(metavar="MODEL", help="ONNX file", show_default=False)]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="print JSON")]
Shapes: TypeAlias = Annotated[
    list[str] | None, typer.Option("--shape", metavar="x:1,3,224,224", help="shape of an input with dynamic axes")
]
Threads: TypeAlias = Annotated[int | None, typer.Option("--threads", min=1, help="threads of sessions")]

# Of `run`.
Output: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", help="file to write; where it is MODEL itself, that is replaced at the end")
]
Recipe: TypeAlias = Annotated[Path | None, typer.Option("--recipe", "-r", help="recipe file (YAML)")]
Passes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--pass", "-p", metavar="NAME[:k=v,...]", help="a pass; may be repeated", autocompletion=pass_names),
]
Data: TypeAlias = Annotated[str | None, typer.Option("--data", metavar="SPEC", help="calibration data")]
EvalData: TypeAlias = Annotated[
    str | None, typer.Option("--eval-data", metavar="SPEC", help="evaluation data; labels are arrays label/NAME")
]
Metric: TypeAlias = Annotated[
    str | None, typer.Option("--metric", help="metric: a name, or YAML like {kind: topk, k: 5}")
]
Mask: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--mask", metavar="NAME", help="padding mask of calibration data (1 counts): an input, or array mask/NAME"
    ),
]
Target: TypeAlias = Annotated[str | None, typer.Option("--target", help="portable, cpu, cuda, or YAML of a profile")]
Verify: TypeAlias = Annotated[str | None, typer.Option("--verify", help="full, sample or structure")]
Set: TypeAlias = Annotated[
    list[str] | None, typer.Option("--set", metavar="passes.1.bits=3", help="change one value of the recipe")
]
ReportFolder: TypeAlias = Annotated[
    Path | None,
    typer.Option("--report", help="folder of report.json (of a second output NAME.onnx: NAME.report.json); else OUT's"),
]
Work: TypeAlias = Annotated[Path | None, typer.Option("--work", help="work folder, kept")]
Resume: TypeAlias = Annotated[bool, typer.Option("--resume", help="go on where a killed run stopped")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="check everything, print the plan, change nothing")]
OnViolation: TypeAlias = Annotated[str | None, typer.Option("--on-violation", help="stop, or skip the pass")]
AcceptLoss: TypeAlias = Annotated[bool, typer.Option("--accept-loss", help="keep results that collapsed")]
AllowCode: TypeAlias = Annotated[bool, typer.Option("--allow-code", help="let a recipe file name Python code")]
IfChanged: TypeAlias = Annotated[bool, typer.Option("--if-changed", help="do nothing when the output is up to date")]
Reproduce: TypeAlias = Annotated[
    bool, typer.Option("--reproduce", help="on a violation, leave a minimal model that shows it")
]
Memory: TypeAlias = Annotated[
    str | None, typer.Option("--memory", metavar="SIZE", help="memory for statistics of calibration data, e.g. 2G")
]
ForceOrder: TypeAlias = Annotated[bool, typer.Option("--force-order", help="run passes in the order given")]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="print nothing but errors")]
