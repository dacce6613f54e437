"""Well-known architectures with random weights, by both of torch's exporters: what benchmarks clean and compress.

    python benchmarks/exports.py FOLDER [--only NAME]... [--exporter legacy|dynamo]...

Needs the extra `zoo`. Weights are drawn with a fixed seed; nothing is downloaded. Vision models have a dynamic
batch, language models a dynamic batch and length.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

EXPORTERS = ("legacy", "dynamo")
OPSETS = {"legacy": 17, "dynamo": 18}


@dataclass(frozen=True)
class Case:
    """What is exported.

    Attributes:
        module: in inference mode.
        inputs: example inputs by name.
        outputs: names of the outputs.
        dynamic: input -> axis -> symbol.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]]


class ByName(nn.Module):
    """A model that takes keywords and gives an object, as a function of tensors that gives tensors."""

    def __init__(self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str], **fixed: Any) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs, self.fixed = model, tuple(inputs), tuple(outputs), fixed

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.inputs, tensors, strict=True)), **self.fixed)
        return tuple(getattr(found, name) for name in self.outputs)


def _vision(name: str) -> Case:
    import torchvision

    module = getattr(torchvision.models, name)()
    return Case(module, {"image": torch.randn(2, 3, 224, 224)}, ("logits",), {"image": {0: "batch"}})


def _language(model: nn.Module, output: Sequence[str], *, source: int = 0, **fixed: Any) -> Case:
    """A model of tokens and their mask; with the states of an encoder of that width, where `source` is given."""
    inputs = {"input_ids": torch.randint(1, 1000, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    dynamic = {name: {0: "batch", 1: "sequence"} for name in inputs}
    if source:
        inputs["encoder_hidden_states"] = torch.randn(2, 24, source)
        dynamic["encoder_hidden_states"] = {0: "batch", 1: "source"}
    return Case(ByName(model, list(inputs), output, **fixed), inputs, tuple(output), dynamic)


def _bert_base() -> Case:
    from transformers import BertConfig, BertModel

    return _language(BertModel(BertConfig()), ["last_hidden_state", "pooler_output"])


def _gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    return _language(GPT2LMHeadModel(GPT2Config()), ["logits"], use_cache=False)


def _whisper_encoder() -> Case:
    from transformers import WhisperConfig, WhisperModel

    module = ByName(WhisperModel(WhisperConfig()).encoder, ["input_features"], ["last_hidden_state"])
    features = {"input_features": torch.randn(2, 80, 3000)}
    return Case(module, features, ("last_hidden_state",), {"input_features": {0: "batch"}})


def _whisper_decoder() -> Case:
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig()
    return _language(WhisperModel(config).decoder, ["last_hidden_state"], source=config.d_model, use_cache=False)


def _t5_encoder() -> Case:
    from transformers import T5Config, T5EncoderModel

    return _language(T5EncoderModel(T5Config()), ["last_hidden_state"])


def _t5_decoder() -> Case:
    from transformers import T5Config, T5Model

    config = T5Config()
    return _language(T5Model(config).decoder, ["last_hidden_state"], source=config.d_model, use_cache=False)


CASES: dict[str, Callable[[], Case]] = {
    "resnet50": lambda: _vision("resnet50"),
    "mobilenet_v3_large": lambda: _vision("mobilenet_v3_large"),
    "swin_t": lambda: _vision("swin_t"),
    "bert_base": _bert_base,
    "gpt2": _gpt2,
    "whisper_tiny_encoder": _whisper_encoder,
    "whisper_tiny_decoder": _whisper_decoder,
    "t5_small_encoder": _t5_encoder,
    "t5_small_decoder": _t5_decoder,
}


def export(name: str, exporter: str, folder: Path) -> Path:
    """Write `NAME_EXPORTER.onnx`, weights inside."""
    torch.manual_seed(0)
    case = CASES[name]()
    path = folder / f"{name}_{exporter}.onnx"
    axes: dict[str, Any]
    if exporter == "legacy":
        axes = {"dynamic_axes": case.dynamic}
    else:
        sizes = {symbol: torch.export.Dim(symbol) for axis in case.dynamic.values() for symbol in axis.values()}
        shapes = tuple({at: sizes[s] for at, s in case.dynamic.get(name, {}).items()} for name in case.inputs)
        axes = {"dynamic_shapes": (shapes,) if isinstance(case.module, ByName) else shapes, "external_data": False}
    with torch.no_grad():
        torch.onnx.export(
            case.module.eval(), tuple(case.inputs.values()), str(path), input_names=list(case.inputs),
            output_names=list(case.outputs), opset_version=OPSETS[exporter], dynamo=exporter == "dynamo", **axes,
        )  # fmt: skip
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", choices=CASES, help="these models alone")
    parser.add_argument("--exporter", action="append", choices=EXPORTERS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.only or CASES:
        for exporter in given.exporter or EXPORTERS:
            print(export(name, exporter, given.folder), flush=True)


if __name__ == "__main__":
    main()
