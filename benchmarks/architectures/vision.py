"""Classifiers of torchvision and timm: every family of the first, newer mobile and hybrid ones of the second."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from .case import Case

TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t",
    "swin_v2_t", "vgg11_bn", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip

TIMM = (
    "convnext_atto", "efficientnet_lite0", "maxvit_rmlp_pico_rw_256", "maxvit_tiny_tf_224", "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224",
)  # fmt: skip

OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
"""Without heads for training, and without their slow way of drawing weights."""

SIZES = {"inception_v3": 299, "maxvit_rmlp_pico_rw_256": 256}
"""Height and width where they are not 224."""


def _images(name: str, module: torch.nn.Module) -> Case:
    size = SIZES.get(name, 224)
    return Case(module, {"image": torch.randn(2, 3, size, size)}, ("logits",), {"image": {0: "batch"}})


def _torchvision(name: str) -> Case:
    import torchvision

    return _images(name, getattr(torchvision.models, name)(**OPTIONS.get(name, {})))


def _timm(name: str) -> Case:
    import timm

    return _images(name, timm.create_model(name, pretrained=False))


CASES: dict[str, Callable[[], Case]] = {
    **{name: partial(_torchvision, name) for name in TORCHVISION},
    **{name: partial(_timm, name) for name in TIMM},
}
