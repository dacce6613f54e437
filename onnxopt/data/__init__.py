"""Data for calibration and evaluation: opened in many forms, checked against the model, read batch by batch."""

from onnxopt.data.alike import all_alike
from onnxopt.data.code import is_function, load_function
from onnxopt.data.dataset import Batch, Dataset
from onnxopt.data.masks import likely_masks
from onnxopt.data.specs import open_data
from onnxopt.data.synthetic import fitting, synthetic

__all__ = [
    "Batch", "Dataset", "all_alike", "fitting", "is_function", "likely_masks", "load_function", "open_data",
    "synthetic",
]  # fmt: skip
