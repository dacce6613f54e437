"""Statistics of what flows through a model, for passes that choose by data.

Accumulators are plain mathematics on numpy batches: they stream, merge, skip what is masked, and know no graph.
"""

from onnxopt.calibration.accumulators import Accumulator, Footprint, State
from onnxopt.calibration.coactivation import CoActivation, FiringPairs
from onnxopt.calibration.conv_grams import ConvCrossGram, ConvGram, Patches
from onnxopt.calibration.grams import CrossGram, CrossGramMatrix, Gram, GramMatrix, Sides
from onnxopt.calibration.histogram import Distribution, Histogram
from onnxopt.calibration.moments import MeanAndVariance, Moments
from onnxopt.calibration.ranges import Magnitude, Magnitudes, MinMax, Range

__all__ = [
    "Accumulator",
    "CoActivation",
    "ConvCrossGram",
    "ConvGram",
    "CrossGram",
    "CrossGramMatrix",
    "Distribution",
    "FiringPairs",
    "Footprint",
    "Gram",
    "GramMatrix",
    "Histogram",
    "Magnitude",
    "Magnitudes",
    "MeanAndVariance",
    "MinMax",
    "Moments",
    "Patches",
    "Range",
    "Sides",
    "State",
]
