"""Random weights that let a wrong edit show: no parameter is constant, no branch silent, no scale out of hand."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
LAYERS = (_ConvNd, nn.Linear)

LEAST = 0.5
"""Least root mean square of what a layer makes of random inputs, and of a table: positions, biases of attention."""


def enliven(module: nn.Module, generator: torch.Generator, *, matrices_only: bool = False) -> None:
    """Draw every constant parameter around its value, and scale up layers and tables that are all but zero.

    Zeros, the tiny scales at the end of residual branches (1e-6) and attention that is everywhere the same would hide
    what lies behind them.

    Args:
        matrices_only: vectors stay as they are: biases and scales that equal each other, which exporters share.
    """
    with torch.no_grad():
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                if weight.numel() < 2 or (matrices_only and weight.ndim < 2):
                    continue
                if bool((weight == weight.flatten()[0]).all()):
                    weight.copy_(_around(weight, isinstance(part, NORMS) and name == "weight", generator))
                if weight.ndim > 1:
                    weight.mul_(_missing(weight, isinstance(part, LAYERS), name))


def _missing(weight: torch.Tensor, layer: bool, name: str) -> float:
    """Factor that brings a layer's weight, or a table, to the least scale; 1 for other weights."""
    size = float(weight.square().mean().sqrt())
    if layer and name == "weight":
        size *= weight[0].numel() ** 0.5
    elif name.endswith("weight"):
        return 1.0
    return max(1.0, LEAST / size)


def _around(weight: torch.Tensor, scales: bool, generator: torch.Generator) -> torch.Tensor:
    value = float(weight.flatten()[0])
    if value == 0 and not scales:
        return torch.randn(weight.shape, generator=generator) * 0.1
    if abs(value) < 0.01:
        return torch.rand(weight.shape, generator=generator) * 0.5 + 0.5
    return value * (torch.rand(weight.shape, generator=generator) * 0.6 + 0.7)


def settle(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Give batch normalizations statistics of `inputs`: deep networks neither vanish nor explode.

    What comes out has a mean square of one per channel. Only a quarter of the mean is subtracted: on random images
    means are far above deviations, and taking them away would leave rounding errors, larger from layer to layer.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(_measure) for norm in norms]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()


def _measure(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    values = inputs[0].transpose(0, 1).flatten(1)
    mean = values.mean(1) / 4
    norm.get_buffer("running_mean").copy_(mean)
    norm.get_buffer("running_var").copy_((values - mean[:, None]).square().mean(1))
