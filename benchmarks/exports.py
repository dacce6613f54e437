"""Well-known architectures with random weights, by both of torch's exporters: what benchmarks clean and compress.

    python benchmarks/exports.py FOLDER [--only NAME]... [--exporter legacy|dynamo]... [--force]

Needs the extra `zoo`. Weights are drawn with a fixed seed; nothing is downloaded. Vision models have a dynamic
batch, language models a dynamic batch and length. Files that are there are not written again. Each export is run in
ONNX Runtime at sizes that the exporter did not see and compared with torch; one that fails is reported, and the next
is tried.
"""

import argparse
import gc
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from architectures import full_size, small, vision
from architectures.alive import enliven, settle
from architectures.case import ByName, Case

EXPORTERS = ("legacy", "dynamo")
OPSETS = {"legacy": 17, "dynamo": 18}
CASES = {**vision.CASES, **full_size.CASES, **small.CASES}

UNPERTURBED = frozenset({"resnet18", "bert", "vit_b_16"})
"""Models that keep their equal biases and scales, which exporters then share by mistake."""

UNSEEN = {"batch": 1, "images": 1, "texts": 4, "sequence": 5, "source": 7, "samples": 1600}
"""Sizes of symbolic axes that no example input has."""


def build(name: str) -> Case:
    """A model of the collection in inference mode, its weights such that every one of them matters."""
    torch.manual_seed(0)
    case = CASES[name]()
    case.module.eval()
    enliven(case.module, torch.Generator().manual_seed(1), matrices_only=name in UNPERTURBED)
    if name not in UNPERTURBED and name in vision.CASES:
        settle(case.module, tuple(torch.randn(8, *value.shape[1:]) for value in case.inputs.values()))
    return case


def export(case: Case, exporter: str, path: Path) -> None:
    """Write the model in one file, weights inside."""
    axes: dict[str, Any]
    if exporter == "legacy":
        axes = {"dynamic_axes": case.dynamic}
    else:
        sizes = {symbol: torch.export.Dim(symbol) for axis in case.dynamic.values() for symbol in axis.values()}
        shapes = tuple({at: sizes[s] for at, s in case.dynamic.get(name, {}).items()} for name in case.inputs)
        axes = {"dynamic_shapes": (shapes,) if isinstance(case.module, ByName) else shapes, "external_data": False}
    # The fused attention of inference is one operator that no exporter knows.
    torch.backends.mha.set_fastpath_enabled(False)
    # A half-written file must not be taken for a finished one.
    partly = path.with_suffix(".partly")
    with torch.no_grad():
        torch.onnx.export(
            case.module, tuple(case.inputs.values()), str(partly), input_names=list(case.inputs),
            output_names=list(case.outputs), opset_version=OPSETS[exporter], dynamo=exporter == "dynamo", **axes,
        )  # fmt: skip
    partly.replace(path)


def resized(case: Case, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Inputs like the example ones, symbolic axes of those sizes; two models of one case get the same."""
    generator = torch.Generator().manual_seed(2)
    inputs = {}
    for name, example in case.inputs.items():
        axes = case.dynamic.get(name, {})
        shape = [sizes[axes[at]] if at in axes else size for at, size in enumerate(example.shape)]
        if example.is_floating_point():
            inputs[name] = torch.randn(shape, generator=generator)
        else:
            inputs[name] = torch.randint(1, int(example.max()) + 1, shape, generator=generator)
    return inputs


def drift(case: Case, path: Path, sizes: Mapping[str, int]) -> float:
    """Relative L2 between torch and ONNX Runtime, the worst over outputs, NaN where one of them is not finite."""
    inputs = resized(case, sizes)
    with torch.no_grad():
        wanted = case.module(*inputs.values())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    found = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in taken})
    pairs = zip(found, [wanted] if isinstance(wanted, torch.Tensor) else wanted, strict=True)
    return float(np.max([np.linalg.norm(got - want.numpy()) / np.linalg.norm(want) for got, want in pairs]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", choices=CASES, help="these models alone")
    parser.add_argument("--exporter", action="append", choices=EXPORTERS)
    parser.add_argument("--force", action="store_true", help="write files again that are there")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in given.only or CASES:
        for exporter in given.exporter or EXPORTERS:
            path = given.folder / f"{name}_{exporter}.onnx"
            if path.exists() and not given.force:
                continue
            try:
                case = build(name)
                export(case, exporter, path)
                print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, drift {drift(case, path, UNSEEN):.0e}", flush=True)
            except Exception as error:
                # Exporters and runtimes raise whatever they like; the list goes on.
                failed.append(path.name)
                print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            gc.collect()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
