"""Padding masks: where they come from, what they must be, and that they stay with their samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxopt.data import Dataset, likely_masks, open_data
from onnxopt.errors import DataError

IDS = np.arange(20 * 4).reshape(20, 4)
PAD = np.arange(4) < 1 + np.arange(20)[:, None] % 4
"""Of each sample the first one to four tokens count."""


@pytest.fixture
def signature(sign: Any) -> Any:
    return sign(ids=("INT64", ["N", "T"]))


def masked(data: Dataset) -> Any:
    """Masks of all samples, and that they are those of the samples beside them."""
    found = []
    for batch in data.batches():
        assert batch.mask is not None
        assert batch.mask.dtype == np.bool_
        np.testing.assert_array_equal(batch.mask, PAD[batch.feeds["ids"][:, 0] // 4])
        found.append(batch.mask)
    return np.concatenate(found)


def batches() -> Iterator[dict[str, Any]]:
    for rows in (slice(0, 8), slice(8, 16), slice(16, 20)):
        yield {"ids": IDS[rows], "mask/pad": PAD[rows], "mask/other": PAD[rows]}


def forms(folder: Path) -> dict[str, Any]:
    plain = {"ids": IDS, "mask/pad": PAD.astype(np.int8), "mask/other": ~PAD}
    per_feed = {f"feed{i:04d}/{k}": v for i, batch in enumerate(batches()) for k, v in batch.items()}
    whole = {name: array for name, array in per_feed.items() if "mask" not in name}
    np.savez(folder / "plain.npz", **plain)
    np.savez_compressed(folder / "feeds.npz", **whole, **{"mask/pad": PAD.astype(np.float16)})
    (folder / "batches").mkdir()
    for index, batch in enumerate(batches()):
        np.savez(folder / "batches" / f"b{index}.npz", **batch)
    return {
        "plain.npz": folder / "plain.npz", "feeds.npz": folder / "feeds.npz", "folder": folder / "batches",
        "dict": plain, "feeds": per_feed, "list": list(batches()), "function": batches,
    }  # fmt: skip


def test_every_form_gives_the_same_mask(tmp_path: Path, signature: Any) -> None:
    digests = set()
    for name, spec in forms(tmp_path).items():
        data = open_data(spec, signature, mask="pad")
        np.testing.assert_array_equal(masked(data), PAD)
        assert (data.mask, list(data.first().feeds), data.labels, data.notes) == ("pad", ["ids"], {}, ()), name
        assert "pad" in data.mask_names
        digests.add((data.digest(), data.samples_digest()))
        unnamed = open_data(spec, signature)
        assert (unnamed.mask, unnamed.first().mask) == (None, None)
        assert unnamed.samples == data.samples
        assert unnamed.mask_names == data.mask_names
    assert len(digests) == 1


def test_digests_are_of_the_mask_too(signature: Any) -> None:
    arrays = {"ids": IDS, "mask/pad": PAD, "mask/other": PAD ^ (IDS == 0)}
    other = {"ids": IDS, "mask/pad": PAD ^ (IDS == 0)}
    found = [
        open_data(arrays, signature, mask="pad"), open_data(arrays, signature, mask="other"),
        open_data(arrays, signature), open_data(other, signature, mask="pad"),
    ]  # fmt: skip
    assert len({data.digest() for data in found}) == len({data.samples_digest() for data in found}) == 4


def test_a_mask_stays_with_its_samples(tmp_path: Path, signature: Any) -> None:
    data = open_data({"ids": IDS, "mask/pad": PAD}, signature, mask="pad")
    kept, held = data.split(0.3, 0)
    for part in (kept, held, kept.rebatched(3), data.take(11), kept.take(5), data.rebatched(7)):
        assert len(masked(part)) == part.samples
    for place, part in {"a": data, "b": kept.rebatched(3)}.items():
        part.save(tmp_path / place)
        again = open_data(tmp_path / place, signature, mask="pad")
        np.testing.assert_array_equal(masked(again), masked(part))
        assert again.samples == part.samples
    assert open_data(tmp_path / "a", signature, mask="pad").digest() == data.digest()
    assert open_data(tmp_path / "a", signature).digest() == open_data({"ids": IDS}, signature).digest()


def test_an_input_that_is_fed(sign: Any, tmp_path: Path) -> None:
    signature = sign(ids=("INT64", ["N", "T"]), attend=("INT64", ["N", "T"]))
    arrays = {"ids": IDS, "attend": PAD.astype(np.int64), "mask/attend": ~PAD}
    data = open_data(arrays, signature, mask="attend")
    np.testing.assert_array_equal(masked(data), PAD)
    assert data.first().feeds["attend"].dtype == np.int64
    assert data.digest() != open_data(arrays, signature).digest(), "statistics are others"
    data.split(0.2, 0)[0].save(tmp_path / "saved")
    saved = open_data(tmp_path / "saved", signature, mask="attend")
    masked(saved)
    assert saved.mask_names == ()


def test_whole_samples_that_do_not_count(signature: Any) -> None:
    data = open_data({"ids": IDS, "mask/real": IDS[:, 0] % 8 == 0}, signature, mask="real")
    found = [(batch.mask, batch.feeds["ids"][:, 0] % 8 == 0) for batch in data.split(0.2, 0)[0].rebatched(2).batches()]
    for mask, want in found:
        np.testing.assert_array_equal(mask, want)


def test_sizes_that_differ(signature: Any) -> None:
    arrays: dict[str, Any] = {}
    for index, tokens in enumerate((2, 5)):
        arrays[f"feed{index}/ids"] = np.zeros((3, tokens), np.int64)
        arrays[f"feed{index}/mask/pad"] = np.eye(3, tokens)
    data = open_data(arrays, signature, mask="pad")
    assert [batch.mask.shape for batch in data.batches() if batch.mask is not None] == [(3, 2), (3, 5)]
    per_sample = {name: array for name, array in arrays.items() if "mask" not in name} | {"mask/real": np.arange(6) < 4}
    masks = [batch.mask for batch in open_data(per_sample, signature, mask="real").batches()]
    assert [mask.tolist() for mask in masks if mask is not None] == [[True] * 3, [True, False, False]]


@pytest.mark.parametrize(
    ("entries", "want"), [(2, [[False], [True]]), (6, [[False, True, False], [True, False, True]])]
)
def test_over_all_samples_of_feeds(sign: Any, entries: int, want: list[Any]) -> None:
    """One a sample (here a batch, as nothing says which axis counts them), or one a row."""
    feeds = {f"feed{i}/x": np.zeros((3, 3), np.float32) for i in range(2)}
    signature = sign(x=("FLOAT", ["N", "N"]), outputs=[("N", 9)])
    data = open_data(feeds | {"mask/pad": np.arange(entries) % 2}, signature, mask="pad")
    assert [batch.mask.tolist() for batch in data.batches() if batch.mask is not None] == want


@pytest.mark.parametrize(
    ("dims", "outputs", "ids", "pad", "want"),
    [
        ([1, "T"], (1, 9), (5, 1, 4), (5, 1, 4), (1, 4)),  # a feed a row, and so the mask
        ([1, "T"], (1, 9), (5, 1, 4), (5, 4), (1, 4)),
        ([1, "T"], (1, 9), (5, 1, 4), (5,), (1,)),
        ([3, "T"], (3, 9), (5, 3, 4), (5, 3, 4), (3, 4)),
        ([3, "T"], (3, 9), (5, 3, 4), (5, 3), (3,)),
        (["T"], ("T", 9), (5, 4), (5, 4), (4,)),
        ([2, "T"], (2, 9), (6, 4), (6, 4), (2, 4)),  # fixed batches
        (["N", "N"], ("N", 9), (4, 4), (4, 4), (4, 4)),  # not known which axis counts samples
    ],
)
def test_layouts(sign: Any, dims: Any, outputs: Any, ids: Any, pad: Any, want: Any) -> None:
    signature = sign(ids=("INT64", dims), outputs=[outputs])
    arrays = {"ids": np.zeros(ids, np.int64), "mask/pad": np.arange(np.prod(pad)).reshape(pad) % 2}
    data = open_data(arrays, signature, mask="pad")
    found = [batch.mask for batch in data.batches() if batch.mask is not None]
    assert [mask.shape for mask in found] == [want] * data.batch_count
    np.testing.assert_array_equal(np.concatenate([mask.ravel() for mask in found]), arrays["mask/pad"].ravel())


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float16, np.float64, ml_dtypes.bfloat16, ">i4"])
def test_types(signature: Any, dtype: Any) -> None:
    data = open_data({"ids": IDS, "mask/pad": PAD.astype(dtype)}, signature, mask="pad")
    np.testing.assert_array_equal(masked(data), PAD)


TWO = PAD.astype(int)
TWO[9, 2] = 2
NAN = PAD.astype(float)
NAN[9, 2] = np.nan


@pytest.mark.parametrize(
    ("mask", "pad", "message"),
    [
        ("pad", TWO, "data, samples 8 to 15: the padding mask, array 'mask/pad', holds 2 at [1, 2] of the batch: 1"),
        ("pad", NAN, "array 'mask/pad', holds nan at [1, 2]"),
        ("pad", PAD * -10000.0, "holds -10000.0 at [0, 0] of the batch: 1 marks what counts, 0 what is padding"),
        ("pad", PAD.astype(complex), "is complex128, not bool, integer or float"),
        ("pad", PAD.astype(str), "is <U5, not bool, integer or float"),
        ("pad", PAD[:, None, None], "is [8, 1, 1, 4]: it must be [samples] or [samples, tokens], with 8 samples here"),
        ("pad", np.zeros_like(PAD), "data: the padding mask 'pad' is 0 everywhere, so nothing would count"),
        ("pda", PAD, "'pda' is neither an input of the model nor an array 'mask/pda' of the data; there is 'ids', 'pad'"
                     "; did you mean 'pad'?"),
        ("mask/pad", PAD, "nor an array 'mask/mask/pad' of the data; there is 'ids', 'pad'"),
        ("ids", PAD, "mask, input 'ids', holds 2 at [0, 2] of the batch: 1 marks what counts, 0 what is padding; else "
                     "name an array mask/NAME beside the inputs, which is not fed"),
        ("pad", PAD[:9], "arrays have different numbers of samples: 'ids' 20, 'mask/pad' 9"),
    ],
)  # fmt: skip
def test_what_is_no_mask(signature: Any, mask: str, pad: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data({"ids": IDS, "mask/pad": pad}, signature, mask=mask)
    assert message in str(caught.value)
    assert str(caught.value).startswith("data")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mask/pad": PAD[:5]}, "mask/pad has 5 entries for 16 samples in 2 batches: not used; the padding mask has"),
        ({"feed0/mask/pad": PAD[:8]}, "array 'mask/pad', the padding mask, is in 1 of 2 batches only"),
        ({"feed0/mask/pad": PAD[:8], "feed1/mask/pad": PAD[:5]},
         "feed1: the padding mask, array 'mask/pad', is [5, 4]: it must be [samples] or [samples, tokens], with 8"),
        ({}, "the padding mask 'pad' is neither"),
    ],
)  # fmt: skip
def test_masks_that_do_not_fit_feeds(signature: Any, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        open_data({"feed0/ids": IDS[:8], "feed1/ids": IDS[8:16], **arrays}, signature, mask="pad")
    assert message in str(caught.value)


def test_a_mask_that_goes_is_caught(signature: Any, tmp_path: Path) -> None:
    path = tmp_path / "b" / "0.npz"
    path.parent.mkdir()
    np.savez(path, ids=IDS, **{"mask/pad": PAD})
    data = open_data(path.parent, signature, mask="pad")
    np.savez(path, ids=IDS)
    with pytest.raises(DataError, match=r"0\.npz: the padding mask 'pad' is gone, which was there before"):
        data.first()


def test_a_dataset_keeps_the_mask_that_it_was_opened_with(signature: Any) -> None:
    data = open_data({"ids": IDS, "mask/pad": PAD}, signature, mask="pad")
    assert open_data(data, signature, mask="pad") is data is open_data(data, signature)
    with pytest.raises(DataError, match="was opened with the padding mask 'pad'; open it again with mask='other'"):
        open_data(data, signature, mask="other")
    with pytest.raises(DataError, match="was opened without a padding mask; open it again with mask='pad'"):
        open_data(open_data({"ids": IDS, "mask/pad": PAD}, signature), signature, mask="pad")


def test_random_inputs_have_no_padding(signature: Any) -> None:
    data = open_data("synthetic", signature, mask="pad")
    assert (data.mask, data.first().mask) == (None, None)
    assert open_data(data, signature, mask="pad") is data


def test_inputs_may_be_called_like_masks(sign: Any) -> None:
    data = open_data({"mask/pad": IDS}, sign(**{"mask/pad": ("INT64", ["N", "T"])}))
    assert (list(data.first().feeds), data.mask_names) == (["mask/pad"], ())


@pytest.mark.parametrize(
    ("dtype", "array", "found"),
    [
        ("INT64", PAD, ["m"]),
        ("BOOL", PAD, ["m"]),
        ("INT64", np.ones_like(PAD), []),  # no padding
        ("INT64", np.zeros_like(PAD), []),
        ("INT64", 2 * PAD, []),
        ("FLOAT", PAD, []),
        ("INT64", PAD[:, :3], []),  # of another shape
        ("INT64", PAD[:, :, None], []),
    ],
)
def test_inputs_that_may_mark_padding(sign: Any, dtype: str, array: Any, found: list[str]) -> None:
    dims = ["N", *array.shape[1:]]
    signature = sign(ids=("INT64", ["N", 4]), m=(dtype, dims), x=("FLOAT", ["N", 4]))
    numpy_type = {"INT64": np.int64, "BOOL": bool, "FLOAT": np.float32}[dtype]
    arrays = {"ids": IDS, "m": array.astype(numpy_type), "x": PAD.astype(np.float32)}
    assert likely_masks(open_data(arrays, signature)) == found


def test_a_mask_beside_no_integers_is_not_taken_for_one(sign: Any) -> None:
    signature = sign(m=("INT64", ["N", 4]), x=("FLOAT", ["N", 4]))
    assert likely_masks(open_data({"m": PAD.astype(int), "x": PAD.astype(np.float32)}, signature)) == []


def test_only_a_few_batches_are_looked_at(sign: Any) -> None:
    asked = []

    def many() -> Iterator[dict[str, Any]]:
        for index in range(30):
            asked.append(index)
            yield {"ids": IDS, "m": PAD}

    data = open_data(many, sign(ids=("INT64", ["N", 4]), m=("BOOL", ["N", 4])))
    asked.clear()
    assert likely_masks(data) == ["m"]
    assert len(asked) <= 4
