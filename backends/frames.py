"""Objects as frames on a pipe: a pickle (protocol 5) with large arrays beside it, never copied into it.

A frame is a count, as many lengths, and as many blocks: the pickle first, then the arrays' bytes.
"""

import pickle
import struct
from typing import IO, Any

Frame = list[bytes | bytearray | memoryview]

_COUNT = struct.Struct("<I")


def encode(value: object) -> Frame:
    """`value` as a frame that still refers to its arrays' memory.

    Raises:
        Exception: `value` holds what cannot be pickled (TypeError, AttributeError, pickle.PicklingError).
    """
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return [data, *(buffer.raw() for buffer in buffers)]


def decode(frame: Frame) -> Any:
    """The value of `frame`; its arrays live in the frame's blocks."""
    return pickle.loads(frame[0], buffers=frame[1:])


def write(stream: IO[bytes], frame: Frame) -> None:
    """Send `frame`; OSError when nobody reads any more."""
    stream.write(_COUNT.pack(len(frame)))
    stream.write(struct.pack(f"<{len(frame)}Q", *map(len, frame)))
    for block in frame:
        stream.write(block)
    stream.flush()


def read(stream: IO[bytes]) -> Frame:
    """Receive a frame; EOFError when the other side is gone."""
    (count,) = _COUNT.unpack(_exactly(stream, _COUNT.size))
    lengths = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
    return [_exactly(stream, length) for length in lengths]


def _exactly(stream: IO[bytes], length: int) -> bytearray:
    block = bytearray(length)
    rest = memoryview(block)
    while rest:
        received = stream.readinto(rest)  # type: ignore[attr-defined]
        if not received:
            raise EOFError("the other side closed the pipe")
        rest = rest[received:]
    return block


def skip_to(stream: IO[bytes], mark: bytes) -> None:
    """Read up to and with `mark`, which ends a line; EOFError when it does not come."""
    while not (line := stream.readline()).endswith(mark):
        if not line:
            raise EOFError("the other side closed the pipe")
