"""Opening data: from what a user writes to a checked `Dataset`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxopt.data.archive import Archive, ArrayArchive, NpzArchive
from onnxopt.data.code import is_function, load_function
from onnxopt.data.dataset import Dataset
from onnxopt.data.layout import plan
from onnxopt.data.sources import FEED, CallSource, FeedSource, FolderSource, Imported, Kept, PlainSource, Source
from onnxopt.data.survey import survey
from onnxopt.data.synthetic import synthetic
from onnxopt.data.validate import ASIDE, check_names
from onnxopt.errors import DataError
from onnxopt.model import Signature

Feeds: TypeAlias = Mapping[str, Any]
Spec: TypeAlias = "str | Path | Feeds | Callable[[], Iterable[Feeds]] | Iterable[Feeds] | Dataset"


def open_data(
    spec: Spec,
    signature: Signature,
    *,
    allow_code: bool = False,
    base: Path | None = None,
    batch_size: int | None = None,
    mask: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    bounds: Mapping[str, tuple[int, int]] | None = None,
    samples: int = 8,
    seed: int = 0,
) -> Dataset:
    """Open data for a model, read them once and check all of them.

    Forms of `spec`:
        an .npz, or a dict, of arrays named after the inputs: the first axis counts samples. Batches have the
            model's fixed size (samples left over are dropped, with a note), else `batch_size`; arrays with one
            axis more than the input hold one feed a row. Labels are arrays `label/NAME`, one entry a sample;
            so are masks, `mask/NAME`.
        the same with names `feedNNNN/INPUT`: batches fed as they are; `label/NAME` runs over all samples (or
            has one entry a batch). A label that fits neither is left out, with a note. `mask/NAME` runs over all
            samples, `feedNNNN/mask/NAME` (where sizes differ) over those of a batch.
        a folder of .npz: a file is a batch, fed as it is, with its labels and masks; sorted by name.
        `module:function`, or a function: gives an iterable of dicts, fed as they are, at every call.
        an iterable of dicts; an iterator is read at once and kept in memory.
        `synthetic`: random numbers, see `synthetic`.
        a Dataset that was opened for the same inputs.

    Args:
        spec: the data.
        signature: the model's.
        allow_code: whether `module:function` may be imported.
        base: folder that relative paths and modules are looked for in; None: the current folder.
        batch_size: samples per batch where the model leaves that open; None: 8.
        mask: which entries count, and which are padding (`Batch.mask`): a model's input, else NAME of an array
            `mask/NAME`, which is not fed. Random inputs have no padding: `synthetic` has no mask.
        shapes: for `synthetic`: input name -> shape.
        bounds: for `synthetic`: integer input's name -> smallest and largest value.
        samples: for `synthetic`: how many.
        seed: for `synthetic`.

    Raises:
        DataError: missing or unreadable data, or data that do not fit: the message names input, expected, actual.
        RecipeError: `module:function` without `allow_code`.
    """
    if isinstance(spec, Dataset):
        if spec.signature.inputs != signature.inputs:
            raise DataError(f"{spec.name} was opened for a model with other inputs; open it again for this one")
        if mask not in (None, spec.mask) and not spec.is_synthetic:
            had = "without a padding mask" if spec.mask is None else f"with the padding mask {spec.mask!r}"
            raise DataError(f"{spec.name} was opened {had}; open it again with mask={mask!r}")
        return spec
    if isinstance(spec, str) and spec == "synthetic":
        return synthetic(signature, shapes, bounds, samples, np.random.default_rng(seed))
    if isinstance(spec, str | Path):
        return _named(str(spec), signature, allow_code, base, batch_size, mask)
    if isinstance(spec, Mapping):
        return _archive(ArrayArchive(_checked(spec), "data"), signature, batch_size, mask)
    if callable(spec):
        name = getattr(spec, "__qualname__", type(spec).__name__)
        return survey(CallSource(spec, f"function {name}"), signature, f"function {name}", mask=mask)
    if isinstance(spec, Iterable):
        return survey(CallSource(_again(spec), "data"), signature, "data", mask=mask)
    raise DataError(f"data cannot be a {type(spec).__name__}; give a path, a dict of arrays, or batches as dicts")


def _named(
    spec: str, signature: Signature, allow_code: bool, base: Path | None, batch_size: int | None, mask: str | None
) -> Dataset:
    path = (base or Path()) / spec
    if is_function(spec) and not path.exists():
        load_function(spec, allow_code=allow_code, base=base)
        return survey(CallSource(Imported(spec, base), spec), signature, spec, mask=mask)
    if path.is_dir():
        files = tuple(sorted(path.glob("*.npz")))
        if not files:
            raise DataError(f"{path}: empty, no .npz file in this folder")
        return survey(FolderSource(files), signature, str(path), mask=mask)
    if not path.exists():
        raise DataError(f"{path}: no such file; data are an .npz, a folder of .npz, module:function or synthetic")
    return _archive(NpzArchive(path), signature, batch_size, mask)


def _archive(archive: Archive, signature: Signature, batch_size: int | None, mask: str | None) -> Dataset:
    inputs = {info.name for info in signature.inputs}
    names = [name for name in archive.headers if name in inputs or not name.startswith(ASIDE)]
    if not names and inputs:
        raise DataError(f"{archive.name}: empty, no arrays for the inputs {', '.join(map(repr, sorted(inputs)))}")
    feeds = [name for name in names if name not in inputs and FEED.fullmatch(name)]
    if feeds and len(feeds) == len(names):
        return survey(FeedSource(archive, {}), signature, archive.name, mask=mask)
    if feeds:
        other = next(name for name in names if name not in feeds)
        raise DataError(f"{archive.name}: array {other!r} beside {feeds[0]!r}; name all feedNNNN/INPUT or none")
    check_names(signature, names, archive.name)
    layout = plan(signature, archive.headers, batch_size, archive.name)
    rest = f"the last {layout.dropped} samples do not fill the model's batch of {layout.batch}: left out"
    source: Source = PlainSource(archive, layout)
    return survey(source, signature, archive.name, mask=mask, notes=[rest] if layout.dropped else [])


def _checked(arrays: Feeds) -> Feeds:
    for name, value in arrays.items():
        try:
            np.asarray(value)
        except ValueError as error:
            raise DataError(f"data: {name!r} is no array: {error}") from error
    return arrays


def _again(batches: Iterable[Feeds]) -> Callable[[], Iterable[Feeds]]:
    """The batches for any number of passes."""
    if isinstance(batches, list | tuple):
        return Kept(batches)
    return Kept(list(batches)) if isinstance(batches, Iterator) else lambda: batches
