"""The clean-up that every model starts with."""

from typing import ClassVar

from onnxopt.passing import Pass, make

STEPS = (
    "inline-functions",
    "lift-constants",
    "unlist-initializers",
    "eliminate-identity",
    "eliminate-dead",
    "inline-if",
    "prune-bodies",
    "fold-constants",
    "fold-shapes",
    "eliminate-noops",
    "eliminate-common",
    "merge-chains",
    "merge-transposes",
    "merge-arithmetic",
    "merge-pads",
    "fold-batchnorm",
    "fold-scale",
    "fuse-gemm",
    "eliminate-dead",
    "deduplicate-weights",
)
"""Bodies bring in constants, so they come first; nodes without a reader would keep others from being folded."""


class Clean(Pass):
    """All exact clean-up passes, again and again until none finds anything."""

    repeats: ClassVar[bool] = True

    def expand(self) -> list[Pass]:
        return [make(name) for name in STEPS]
