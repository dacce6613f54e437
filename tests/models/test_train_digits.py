"""The digits: what is split off is what ships, and both models learn."""

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from onnxopt import models  # noqa: E402
from onnxopt.models import train_digits  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("part", ["calib", "eval"])
def test_the_data_that_ship_are_those_split_off(part: str) -> None:
    images, labels = train_digits.split()[part]
    with np.load(models.path("digits-cnn").with_name(f"digits.{part}.npz")) as shipped:
        np.testing.assert_array_equal(shipped["images"], images.numpy())
        np.testing.assert_array_equal(shipped["label/y"], labels.numpy())


def test_held_out_images_are_never_trained_on() -> None:
    data = train_digits.split()
    trained = {image.numpy().tobytes() for image in data["train"][0]}
    assert not trained & {image.numpy().tobytes() for image in data["eval"][0]}
    assert {image.numpy().tobytes() for image in data["calib"][0]} <= trained


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine make tiny models take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_training_learns() -> None:
    torch.manual_seed(0)
    data = train_digits.split()
    model = train_digits.DigitsTransformer(width=32, layers=1)
    before = train_digits.accuracy(model, *data["eval"])
    train_digits.train(model, *data["train"], epochs=8)
    assert before < 0.3
    assert train_digits.accuracy(model, *data["eval"]) > 0.6
