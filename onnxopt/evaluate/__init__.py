"""Metrics: what they are, how they are written, and their values with standard errors."""

from onnxopt.evaluate.config import MetricConfig
from onnxopt.evaluate.metrics import KINDS, Metric
from onnxopt.evaluate.scoring import Score, evaluate, paired_difference

__all__ = ["KINDS", "Metric", "MetricConfig", "Score", "evaluate", "paired_difference"]
