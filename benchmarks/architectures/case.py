"""What is exported: a module, its inputs and what is dynamic about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


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


def named(
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic: dict[str, dict[int, str]] | None = None,
    **fixed: Any,
) -> Case:
    """A model that takes keywords; every input has a dynamic batch where `dynamic` says no more."""
    axes = {name: {0: "batch"} for name in inputs} | (dynamic or {})
    return Case(ByName(model, list(inputs), outputs, **fixed), inputs, tuple(outputs), axes)


def tokens(model: nn.Module, outputs: Sequence[str], *, source: int = 0, **fixed: Any) -> Case:
    """A model of tokens and their mask; with the states of an encoder of that width, where `source` is given."""
    inputs = {"input_ids": torch.randint(1, 1000, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    dynamic = {name: {0: "batch", 1: "sequence"} for name in inputs}
    if source:
        inputs["encoder_hidden_states"] = torch.randn(2, 24, source)
        dynamic["encoder_hidden_states"] = {0: "batch", 1: "source"}
    return named(model, inputs, outputs, dynamic, **fixed)
