"""The clean-up that every model starts with."""

from onnxopt.passing import Pass, make

STEPS = (
    "inline-functions",
    "lift-constants",
    "eliminate-identity",
    "eliminate-dead",
    "fold-constants",
    "fold-batchnorm",
    "eliminate-dead",
)
"""Bodies bring in constants, so they come first; nodes without a reader would keep others from being folded."""


class Clean(Pass):
    """All exact clean-up passes, in the order in which they do most."""

    def expand(self) -> list[Pass]:
        return [make(name) for name in STEPS]
