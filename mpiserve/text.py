"""Text in tensors: a row of uint8 for each, which is its UTF-8 filled up with zeros."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mpiserve.errors import ArgumentError, Code


def encode_text(texts: Iterable[str], width: int) -> np.ndarray:
    """Put texts into a tensor, for services with an input `text`.

    Args:
        texts: One for each row.
        width: Bytes of a row, as in the signature.

    Returns:
        A uint8 array [rows, width].

    Raises:
        ArgumentError: If a text is longer, or has a zero byte.
    """
    rows = [text.encode() for text in texts]
    for number, row in enumerate(rows):
        if len(row) > width:
            text = f"text {number} has {len(row)} bytes of UTF-8, the tensor has room for {width}"
            raise ArgumentError(Code.EARG, text)
        if b"\0" in row:
            raise ArgumentError(Code.EARG, f"text {number} has a zero byte, which ends a text")
    padded = b"".join(row.ljust(width, b"\0") for row in rows)
    return np.frombuffer(padded, np.uint8).reshape(len(rows), width).copy()


def decode_text(rows: np.ndarray) -> list[str]:
    """Get texts out of a tensor.

    Args:
        rows: A uint8 array [rows, width].

    Returns:
        What is before the first zero of each row; bytes that are no UTF-8 become U+FFFD.
    """
    lines = (row.tobytes() for row in np.ascontiguousarray(rows, np.uint8))
    return [line.split(b"\0", 1)[0].decode(errors="replace") for line in lines]
