"""The one pass over data when they are opened: everything is checked, counted and hashed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxopt.data.archive import Array
from onnxopt.data.dataset import Dataset, Facts, Pick, Shape, first_axis, split_aside
from onnxopt.data.hashing import Stream, combined
from onnxopt.data.layout import batch_rows
from onnxopt.data.masks import as_mask, is_fed
from onnxopt.data.sources import Source
from onnxopt.data.validate import LABEL, MASK, conform, listed, spelled_like
from onnxopt.errors import DataError
from onnxopt.model import Signature


def survey(
    source: Source,
    signature: Signature,
    name: str,
    *,
    mask: str | None = None,
    synthetic: bool = False,
    notes: Sequence[str] = (),
) -> Dataset:
    """Read everything once: check it, count samples, find labels and masks, take the digests.

    Args:
        source: the batches.
        signature: the model's.
        name: what messages call the data.
        mask: name of the padding mask.
        synthetic: whether they are random.
        notes: what is known of them already.

    Raises:
        DataError: there is no batch, one does not fit the model, or the mask is not there, is none or counts nothing.
    """
    inputs, aside = _Inputs(signature), _Aside(signature, mask)
    for found in source.read(None):
        given, labels, masks = split_aside(found, signature)
        feeds = inputs.add(given, found.where)
        aside.add(feeds, labels, masks, inputs.rows[-1], found.where)
    if not inputs.rows:
        raise DataError(f"{name}: empty, it gives no batches")
    aligned, misfits = source.aligned(inputs.rows, inputs.leads)
    if aligned is not source:  # its labels and masks come out only now
        aside = _Aside(signature, mask)
        for found, rows in zip(aligned.read(None), inputs.rows, strict=True):
            given, labels, masks = split_aside(found, signature)
            aside.add(conform(signature, given, found.where), labels, masks, rows, found.where)
    aside.check_mask(name, misfits)
    return Dataset(
        name=name,
        signature=signature,
        label_names=aside.label_names(),
        notes=(*notes, *inputs.conversions, *misfits.values()),
        is_synthetic=synthetic,
        mask=mask,
        mask_names=aside.mask_names(),
        _source=aligned,
        _facts=_facts(inputs, aside),
        _picks=tuple(map(Pick, range(len(inputs.rows)))),
    )


def _facts(inputs: "_Inputs", aside: "_Aside") -> Facts:
    fed = {name: stream.of_batches() for name, stream in inputs.streams.items()}
    labels = {name: stream.of_batches() for name, stream in aside.labels.items()}
    mask = {name: stream.of_batches() for name, stream in aside.counted.items()}
    content = combined({"input": fed, "label": labels, "mask": mask})
    if inputs.divisible:
        fed = {name: stream.of_rows() for name, stream in inputs.streams.items()}
        mask = {name: stream.of_rows() for name, stream in aside.counted.items()}
    samples = combined({"input": fed, "mask": mask})
    return Facts(tuple(inputs.rows), tuple(inputs.shapes), inputs.divisible, content, samples)


class _Inputs:
    """What a survey has found of the inputs so far."""

    def __init__(self, signature: Signature) -> None:
        self.rows: list[int] = []
        self.leads: list[int] = []
        self.shapes: list[Mapping[str, Shape]] = []
        self.divisible = True
        self.conversions: dict[str, None] = {}
        self.streams = {info.name: Stream() for info in signature.inputs}
        self._signature = signature

    def add(self, given: Mapping[str, Any], where: str) -> dict[str, Array]:
        """Add a batch; its feeds."""
        feeds = conform(self._signature, given, where)
        self.conversions |= dict.fromkeys(_conversions(given, feeds))
        rows, divisible = batch_rows(self._signature, feeds)
        self.rows.append(rows)
        self.leads.append(first_axis(feeds))
        self.divisible &= divisible
        shapes = {name: array.shape for name, array in feeds.items()}
        self.shapes.append(self.shapes[-1] if self.shapes and self.shapes[-1] == shapes else shapes)
        for name, stream in self.streams.items():
            stream.add(feeds.get(name), rows)
        return feeds


class _Aside:
    """What a survey has found so far of labels and masks."""

    def __init__(self, signature: Signature, mask: str | None) -> None:
        self.labels: dict[str, Stream] = {}
        self.counted = {mask: Stream()} if mask is not None else {}
        self._signature = signature
        self._mask = mask
        self._fed = mask is not None and is_fed(mask, signature)
        self._any = False
        self._seen: Counter[str] = Counter()
        self._batches = 0

    def add(
        self, feeds: Mapping[str, Array], labels: Mapping[str, Array], masks: Mapping[str, Array], rows: int, where: str
    ) -> None:
        self._batches += 1
        self._seen.update([*(LABEL + name for name in labels), *(MASK + name for name in masks)])
        for name, array in labels.items():
            self.labels.setdefault(name, Stream()).add(array, rows)
        among = feeds if self._fed else masks
        if self._mask is not None and self._mask in among:
            mask = as_mask(among[self._mask], self._mask, self._fed, (rows, first_axis(feeds)), where)
            self.counted[self._mask].add(mask, rows)
            self._any |= bool(mask.any())

    def label_names(self) -> tuple[str, ...]:
        """Labels that every batch has."""
        return self._complete(LABEL)

    def mask_names(self) -> tuple[str, ...]:
        """Arrays `mask/NAME` that every batch has, by NAME."""
        return self._complete(MASK)

    def _complete(self, prefix: str) -> tuple[str, ...]:
        found = (name for name, count in self._seen.items() if count == self._batches and name.startswith(prefix))
        return tuple(name.removeprefix(prefix) for name in found)

    def check_mask(self, data: str, misfits: Mapping[str, str]) -> None:
        """Raise DataError where the mask is not in every batch, or counts nothing."""
        name = self._mask
        if name is None:
            return
        if not self._fed and name not in self.mask_names():
            raise DataError(f"{data}: {self._missing(name, misfits)}")
        if not self._any:
            raise DataError(
                f"{data}: the padding mask {name!r} is 0 everywhere, so nothing would count: "
                "1 marks what counts, 0 what is padding"
            )

    def _missing(self, name: str, misfits: Mapping[str, str]) -> str:
        array = MASK + name
        if array in misfits:
            return f"{misfits[array]}; the padding mask has an entry for each (or name it feedNNNN/{array})"
        if self._seen[array]:
            return f"array {array!r}, the padding mask, is in {self._seen[array]} of {self._batches} batches only"
        known = [*(info.name for info in self._signature.inputs), *self.mask_names()]
        return (
            f"the padding mask {name!r} is neither an input of the model nor an array {array!r} of the data; "
            f"there is {listed(known)}{spelled_like(name, known)}"
        )


def _conversions(given: Mapping[str, Any], feeds: Mapping[str, Array]) -> Iterator[str]:
    for name, array in feeds.items():
        have = np.asarray(given[name]).dtype
        if have.kind not in "VUO" and have.newbyteorder("=") != array.dtype:
            yield f"input {name!r}: {have} in the data was converted to {array.dtype}"
