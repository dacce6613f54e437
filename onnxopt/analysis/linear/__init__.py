"""The linear view: every layer of constant weights, whatever its orientation, storage and operator.

The only place that knows where an operator keeps its weight and which way round; passes ask here.
"""

from onnxopt.analysis.linear.find import find_linears, linears
from onnxopt.analysis.linear.layer import KEEP, Linear, Parameter
from onnxopt.analysis.linear.layouts import Dense, Filters, Geometry

__all__ = ["KEEP", "Dense", "Filters", "Geometry", "Linear", "Parameter", "find_linears", "linears"]
