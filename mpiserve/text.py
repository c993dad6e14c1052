"""Convert texts to tensors of uint8 and back: each row is UTF-8, padded with zeros."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mpiserve.errors import ArgumentError, Code


def encode_text(texts: Iterable[str], width: int) -> np.ndarray:
    """Encode texts as a tensor, for services with an input `text`.

    Args:
        texts: A text for each row.
        width: The bytes of a row, as in the signature.

    Returns:
        A uint8 array [rows, width].

    Raises:
        ArgumentError: If a text is longer than `width`, or has a zero byte.
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


def fit_text(texts: Iterable[str], width: int) -> np.ndarray:
    """Encode texts as a tensor; one that is too long ends with the last character that fits.

    Args:
        texts: A text for each row.
        width: The bytes of a row.

    Returns:
        A uint8 array [rows, width].
    """
    cut = (text.encode()[:width].decode(errors="ignore").encode() for text in texts)
    rows = [text.ljust(width, b"\0") for text in cut]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), width)


def decode_text(rows: np.ndarray) -> list[str]:
    """Decode texts from a tensor.

    Args:
        rows: A uint8 array [rows, width].

    Returns:
        The text before the first zero of each row; invalid UTF-8 becomes U+FFFD.
    """
    lines = (row.tobytes() for row in np.ascontiguousarray(rows, np.uint8))
    return [line.split(b"\0", 1)[0].decode(errors="replace") for line in lines]
