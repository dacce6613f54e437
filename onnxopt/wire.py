"""A serialized model without its large tensors: where their bytes lie, and a message of all the rest.

protobuf copies what it parses, and its reader copies again. Here a model's bytes (a file's mapping) are walked at the
level of the wire format; large `raw_data` are cut out and become views, so that weights cost no memory of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

_LARGE = 4096
"""Fewer bytes than that are left to protobuf: a page is mapped whole anyway."""

_DEEPEST = 100
"""protobuf reads no deeper either."""

# Field numbers of onnx.proto: under which number a message holds which others.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 2, 9, 13, 14


class _Strange(Exception):
    """Not how protobuf writes a message; what it is, protobuf's own parser shall say."""


@dataclass(frozen=True)
class _Field:
    number: int
    start: int
    """Of the tag."""
    body: int
    end: int
    value: int
    """Of a varint; 0 for others."""


class Cutter:
    """Takes large tensors out of a serialized ModelProto.

    Args:
        content: the bytes; the views refer to them.
        data_types: tensors of these element types are cut.
        location: what the external data of a cut tensor name; a number follows.

    Attributes:
        views: the bytes that were cut, by location.
    """

    def __init__(self, content: memoryview, data_types: frozenset[int], location: str) -> None:
        self._content = content
        self._data_types = data_types
        self._location = location
        self.views: dict[str, memoryview] = {}

    def skeleton(self) -> bytes | memoryview:
        """The message with a reference to external data in place of each large `raw_data`."""
        try:
            pieces = self._without(0, len(self._content), "model", 0)
        except (_Strange, IndexError):
            pieces, self.views = None, {}
        return self._content if pieces is None else b"".join(pieces)

    def _without(self, start: int, end: int, kind: str, depth: int) -> list[bytes | memoryview] | None:
        """Pieces of the message between two places; None where nothing is cut."""
        if kind == "tensor":
            return self._tensor(start, end)
        if depth > _DEEPEST:
            raise _Strange
        children, pieces, kept = _CHILDREN[kind], [], start
        for each in self._fields(start, end):
            if each.number not in children or each.end - each.body < _LARGE:
                continue
            inside = self._without(each.body, each.end, children[each.number], depth + 1)
            if inside is not None:
                pieces += [self._content[kept : each.start], field(each.number, sum(map(len, inside))), *inside]
                kept = each.end
        return [*pieces, self._content[kept:end]] if pieces else None

    def _tensor(self, start: int, end: int) -> list[bytes | memoryview] | None:
        held = list(self._fields(start, end))
        raw = [each for each in held if each.number == _RAW_DATA]
        types = [each.value for each in held if each.number == _DATA_TYPE]
        embedded = all(
            each.number != _EXTERNAL_DATA and (each.number != _DATA_LOCATION or not each.value) for each in held
        )
        known = len(types) == 1 and types[0] in self._data_types
        if not embedded or not known or len(raw) != 1 or raw[0].end - raw[0].body < _LARGE:
            return None
        location = f"{self._location}{len(self.views)}"
        self.views[location] = self._content[raw[0].body : raw[0].end]
        entry = _text(1, "location") + _text(2, location)
        reference = field(_EXTERNAL_DATA, len(entry)) + entry + bytes([_DATA_LOCATION << 3, 1])
        return [self._content[start : raw[0].start], reference, self._content[raw[0].end : end]]

    def _fields(self, start: int, end: int) -> Iterator[_Field]:
        at = start
        while at < end:
            begin = at
            tag, at = self._varint(at)
            value, stop = 0, at
            match tag & 7:
                case 0:  # a varint
                    value, stop = self._varint(at)
                case 1:  # eight bytes
                    stop = at + 8
                case 2:  # as many bytes as a varint says
                    size, at = self._varint(at)
                    stop = at + size
                case 5:  # four bytes
                    stop = at + 4
                case _:
                    raise _Strange
            if stop > end or tag < 8:
                raise _Strange
            yield _Field(tag >> 3, begin, at, stop, value)
            at = stop

    def _varint(self, at: int) -> tuple[int, int]:
        """A number and the place behind it."""
        value = shift = 0
        while True:
            byte = self._content[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
            if shift > 63:
                raise _Strange


def field(number: int, size: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _number(number << 3 | 2) + _number(size)


def _text(number: int, text: str) -> bytes:
    return field(number, len(text.encode())) + text.encode()


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
