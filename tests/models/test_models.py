"""The models that ship: found by name, as accurate as said, dynamic, and silent about where they were made."""

import re
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxopt import models
from onnxopt.errors import ModelError

DIGITS = ("digits-cnn", "digits-transformer")


def digits(part: str) -> dict[str, np.ndarray]:
    with np.load(models.path("digits-cnn").with_name(f"digits.{part}.npz")) as arrays:
        return dict(arrays)


def test_names_are_the_files() -> None:
    assert set(DIGITS) <= set(models.names())
    assert [models.path(name).is_file() for name in models.names()] == [True] * len(models.names())


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'resnet'.*digits-cnn, digits-transformer") as caught:
        models.path("resnet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../digits-cnn", "digits_cnn", "digits-cnn.onnx", ""])
def test_a_name_is_not_a_path(name: str) -> None:
    with pytest.raises(ModelError):
        models.path(name)


@pytest.mark.parametrize("name", DIGITS)
def test_held_out_accuracy(name: str) -> None:
    data = digits("eval")
    logits = ort.InferenceSession(models.path(name)).run(None, {"images": data["images"]})[0]
    assert (logits.argmax(1) == data["label/y"]).mean() >= 0.97


@pytest.mark.parametrize("name", DIGITS)
def test_any_batch_gives_the_same_answers(name: str) -> None:
    images = digits("calib")["images"]
    session = ort.InferenceSession(models.path(name))
    whole = session.run(None, {"images": images[:7]})[0]
    single = [session.run(None, {"images": images[i : i + 1]})[0] for i in range(7)]
    assert whole.shape == (7, 10)
    np.testing.assert_allclose(np.concatenate(single), whole, rtol=1e-4, atol=1e-5)


def test_calibration_and_evaluation_share_no_image() -> None:
    seen = {image.tobytes() for image in digits("calib")["images"]}
    assert len(seen) == 256
    assert not seen & {image.tobytes() for image in digits("eval")["images"]}


def test_data_fit_the_models() -> None:
    data = digits("eval")
    assert {name: (array.shape, array.dtype.name) for name, array in data.items()} == {
        "images": ((500, 1, 8, 8), "float32"),
        "label/y": ((500,), "int64"),
    }
    assert set(data["label/y"]) == set(range(10))


def test_the_cnn_keeps_batch_normalization_and_residuals() -> None:
    graph = onnx.load(models.path("digits-cnn")).graph
    operators = Counter(node.op_type for node in graph.node)
    assert operators["BatchNormalization"] == operators["Conv"] == 8
    assert operators["Add"] == 3
    training = [a.i for node in graph.node for a in node.attribute if a.name == "training_mode"]
    assert not any(training)


@pytest.mark.parametrize("name", models.names())
def test_files_are_valid_small_and_name_no_place(name: str) -> None:
    path = models.path(name)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert path.stat().st_size < (32e6 if name == "byte-gpt" else 1e6)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    for tensor in model.graph.initializer:  # among millions of random bytes anything can be read
        tensor.ClearField("raw_data")
    assert places_in(model.SerializeToString()) == []


def places_in(content: bytes) -> list[str]:
    """Readable stretches that look like a path of some machine, or a line of source."""
    text = [part.decode() for part in re.findall(rb"[\x20-\x7e]{6,}", content)]
    place = re.compile(r"/(opt|root|tmp|work|home|usr|users)/|site-packages|\.py\b|[a-z]:\\", re.IGNORECASE)
    return [part for part in text if place.search(part)]


@pytest.mark.parametrize("said", [b"/home/me/x", b"lib/site-packages", b"File model.py, line 3", b"C:\\Users\\me"])
def test_places_are_found(said: bytes) -> None:
    assert places_in(b"\x00\x01" + said + b"\xff")
