"""Ways to meet a budget, with all groups cut at once: the sum of what each loses alone is not the whole story."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from onnxopt.analysis.axes.engine import Channels
from onnxopt.errors import OnnxOptError
from onnxopt.numerics.allocation_cost import Widths
from onnxopt.passing import Context
from onnxopt.pruning.curves import SAMPLES, Candidate, without
from onnxopt.statistics import Collected

logger = logging.getLogger(__name__)


def least_distorting(
    channels: Channels, candidates: Sequence[Candidate], ways: Mapping[str, Widths], found: Collected | None,
    context: Context,
) -> tuple[Widths, str]:  # fmt: skip
    """The widths that change the model's outputs least, and a word about how far each way does.

    Args:
        channels: of the model as it is.
        candidates: groups.
        ways: what they are called -> widths of all candidates; the first wins where nothing can be measured.
        found: Gram matrices of what readers see, for refits; None: nothing is refitted.
        context: gives outputs of variants.
    """
    readers = list(dict.fromkeys(reader for each in candidates for reader in each.readers))
    probe, losses = context.probe(SAMPLES), dict[str, float]()
    try:
        for at, (way, widths) in enumerate(ways.items()):
            context.progress(at, len(ways), "comparing allocations")
            pairs = zip(candidates, widths.tolist(), strict=True)
            units = channels.spared(unit for each, width in pairs for unit in each.leaving(width))
            try:
                losses[way] = probe.distortion(without(channels, units, readers, found))
            except OnnxOptError as error:
                logger.info("%s: %s", way, error)
                losses[way] = np.inf
    finally:
        probe.close()
    best = min(losses, key=losses.__getitem__)
    told = ", ".join(f"{way} {loss:.3g}" for way, loss in losses.items())
    return ways[best], f"widths by {best}; distortion of the outputs before repair: {told}"
