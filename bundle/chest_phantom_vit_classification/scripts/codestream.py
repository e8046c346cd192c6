"""Compressed streams before they are decoded: what size they say, where they end, and whether anything is missing."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_MARKER = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # stuffed bytes and restart marks aside, in JPEG and in JPEG-LS
_SIZES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15, SOF55 of JPEG-LS
_END, _INTERVAL = 0xD9, 0xDD  # EOI, DRI
_MORE = bytes((37 * i + 181) % 251 for i in range(64))  # like image data, from bits 10 on: others than decoders make up


class Stream(NamedTuple):
    """What a JPEG, JPEG-LS or JPEG 2000 stream says of its image, and the index of its end mark (JPEG 2000: None)."""

    height: int
    width: int
    channels: int
    bits: int
    end: int | None
    restarts: bool = False


def jpeg_stream(data: bytes) -> Stream:
    """Look through the marks of a JPEG or JPEG-LS stream; what follows its end does not matter.

    Raises:
        ValueError: it has no end or no frame header.
    """
    size, restarts, at = None, False, 2
    while mark := _MARKER.search(data, at):
        kind, at = data[mark.end() - 1], mark.end()
        if kind == _END:
            if size is None:
                raise ValueError("its JPEG data has no frame header; it is damaged")
            return Stream(*size, end=mark.start(), restarts=restarts)
        body = data[at + 2 : at + int.from_bytes(data[at : at + 2])]
        if kind in _SIZES and len(body) > 5:
            size = int.from_bytes(body[1:3]), int.from_bytes(body[3:5]), body[5], body[0]
        restarts |= kind == _INTERVAL and any(body)
        at += 2 + len(body)  # then, of a scan, its data, in which no mark is found
    raise ValueError("its JPEG data has no end; it is truncated")


def jpeg2000_stream(data: bytes) -> Stream:
    """Read the size segment of a JPEG 2000 stream, which stands right at its start; a ValueError where it is not."""
    at = data.find(b"\xff\x4f\xff\x51")
    header = data[at + 6 : at + 44]
    if at < 0 or len(header) < 37:
        raise ValueError("its JPEG 2000 data has no size; it is damaged")
    right, bottom, left, top = (int.from_bytes(header[place : place + 4]) for place in (2, 6, 10, 14))
    return Stream(bottom - top, right - left, int.from_bytes(header[34:36]), (header[36] & 0x7F) + 1, None)


def require_whole(data: bytes, stream: Stream, image: np.ndarray, decode: Callable[[bytes], np.ndarray]) -> None:
    """Refuse a JPEG or JPEG-LS stream of which something is missing, although it has an end mark.

    Decoders make up what is missing before that mark, and say nothing. So the stream is decoded again with more data
    before it: a whole one gives the same image, a cut one takes them for what it lacks.

    Args:
        image: what `decode` makes of `data`.

    Raises:
        ValueError: data is missing.
    """
    more = b"".join(b"\xff%c%s" % (mark, _MORE) for mark in range(0xD0, 0xD8)) if stream.restarts else b""
    try:
        whole = np.array_equal(decode(data[: stream.end] + _MORE + more + b"\xff\xd9"), image)
    except Exception:  # of a decoder that stumbles over data which it would not have looked at, were the image whole
        whole = False
    if not whole:
        raise ValueError("its JPEG data ends before the image does; it is truncated")
