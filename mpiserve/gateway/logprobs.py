"""How likely the tokens of a choice are, from the outputs of a service to clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpiserve.gateway.text_parts import BROKEN
from mpiserve.wire.openai_logprobs import Logprob, TokenText

NewTokens = Mapping[str, np.ndarray]  # rows of outputs by name, as long as there are new tokens


class TokenTexts:
    """The texts of single tokens, each as it is behind another one.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers leave out the space before a text's first token.
        self._before: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._known: dict[int, TokenText] = {}

    def __getitem__(self, token: int) -> TokenText:
        """Return the text of a token."""
        found = self._known.get(token)
        if found is None:
            found = self._known[token] = self._made(token)
        return found

    def _made(self, token: int) -> TokenText:
        text = self._decoded([*self._before, token])[len(self._decoded(self._before)) :]
        if BROKEN not in text:
            return TokenText(text, text.encode())
        data = bytes_of(self._tokenizer.convert_ids_to_tokens(token))
        if data is None:
            return TokenText(text, None)
        try:
            return TokenText(data.decode(), data)
        except UnicodeDecodeError:
            return TokenText("bytes:" + "".join(f"\\x{byte:02x}" for byte in data), data)

    def _decoded(self, tokens: list[int]) -> str:
        decode = self._tokenizer.decode
        text: str = decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def bytes_of(piece: str) -> bytes | None:
    """Return the bytes of a tokenizer's piece: "<0xE2>", or a letter for each byte."""
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes.fromhex(piece[3:5])
        except ValueError:
            return None
    values = [LETTERS.get(letter) for letter in piece]
    return None if None in values else bytes(value for value in values if value is not None)


def _letters() -> dict[str, int]:
    """The letter of each byte: itself if it can be seen, else one of those from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): b for i, b in enumerate(others)}


LETTERS = _letters()


class Logprobs:
    """Collects the likelihoods of a choice's tokens, and gives them when their text is shown.

    Args:
        texts: Of the tokens.
        number: How many of the likeliest tokens to tell.
    """

    def __init__(self, texts: TokenTexts, number: int) -> None:
        self._texts = texts
        self._number = number
        self._held: list[Logprob] = []
        self._shown = 0

    def add(self, new: NewTokens, at: int, offset: int) -> None:
        """Add a new token, which begins behind so many characters of the text."""
        likeliest: list[tuple[TokenText, float]] = []
        if self._number:
            pairs = zip(new["top_tokens"][at], new["top_logprobs"][at], strict=True)
            likeliest = [(self._texts[int(t)], float(v)) for t, v in [*pairs][: self._number]]
        token = self._texts[int(new["tokens"][at])]
        self._held.append(Logprob(token, float(new["logprobs"][at]), likeliest, offset))

    def take(self, shown: str, *, all_of_them: bool = False) -> list[Logprob]:
        """Return those whose tokens begin in the text that is shown now, or before it.

        The others, as those of a text that ends the choice, are held.
        """
        self._shown += len(shown)
        some = self._held
        if not all_of_them:
            some = [one for one in self._held if one.offset < self._shown]
        self._held = self._held[len(some) :]
        return some
