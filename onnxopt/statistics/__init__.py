"""Statistics of what flows through a model, for passes that choose by data.

Accumulators are plain mathematics on numpy batches: they stream, merge, skip what is masked, and know no graph.
"""

from onnxopt.statistics.accumulators import Accumulator, Footprint, State
from onnxopt.statistics.coactivation import CoActivation, FiringPairs
from onnxopt.statistics.collected import Collected, Found
from onnxopt.statistics.conv_grams import ConvCrossGram, ConvGram, Patches
from onnxopt.statistics.grams import CrossGram, CrossGramMatrix, Gram, GramMatrix, Sides
from onnxopt.statistics.histogram import Distribution, Histogram
from onnxopt.statistics.moments import MeanAndVariance, Moments
from onnxopt.statistics.ranges import Magnitude, Magnitudes, MinMax, Range
from onnxopt.statistics.regression import ConvRegression, Regressed, Regression
from onnxopt.statistics.stat import Share, Side, Stat, cross_gram, gram, regression, why_no_gram
from onnxopt.statistics.state_grams import StateGram

__all__ = [
    "Accumulator",
    "CoActivation",
    "Collected",
    "ConvCrossGram",
    "ConvGram",
    "ConvRegression",
    "CrossGram",
    "CrossGramMatrix",
    "Distribution",
    "FiringPairs",
    "Footprint",
    "Found",
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
    "Regressed",
    "Regression",
    "Share",
    "Side",
    "Sides",
    "Stat",
    "State",
    "StateGram",
    "cross_gram",
    "gram",
    "regression",
    "why_no_gram",
]
