"""Convert text to tokens and back with the tokenizer of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.errors import Code, ModelError
from mpiserve.text import decode_text, fit_text

if TYPE_CHECKING:
    import torch


def read_tokenizer(path: Path) -> Any:
    """Read the tokenizer of a model's directory.

    Raises:
        OSError, ValueError: If it has none, or it cannot be read.
    """
    import transformers

    return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)


class Texts:
    """The tokenizer of a model.

    Args:
        path: The model's directory.
        most: The most tokens that the model accepts.
        cuts: Whether to truncate longer texts, as is usual for embeddings.

    Raises:
        ModelError: If the directory has no tokenizer, or it cannot be read.
    """

    def __init__(self, path: Path, most: int, cuts: bool) -> None:
        try:
            self.tokenizer: Any = read_tokenizer(path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            text = f"{path}: no tokenizer, which 'text' tensors need ({reason})"
            raise ModelError(Code.EMODEL, text) from None
        self._most = min(most, self.tokenizer.model_max_length)
        self._cuts = cuts

    def read(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Convert a tensor of text into tokens and lengths; an empty text has no tokens.

        Raises:
            ModelError: If a text has more tokens than the model accepts.
        """
        import torch

        texts = [self._tokens(text) for text in decode_text(rows.cpu().numpy())]
        lengths = [len(tokens) for tokens in texts]
        width = max(1, *lengths)
        padded = [tokens + [0] * (width - len(tokens)) for tokens in texts]
        return torch.tensor(padded).to(rows.device), torch.tensor(lengths).to(rows.device)

    def _tokens(self, text: str) -> list[int]:
        if not text:
            return []
        cut = {"truncation": True, "max_length": self._most} if self._cuts else {}
        tokens: list[int] = self.tokenizer(text, verbose=False, **cut)["input_ids"]
        if len(tokens) > self._most:
            what = f"a text has {len(tokens)} tokens; the model accepts {self._most}: shorten it"
            raise ModelError(Code.EMODEL, what)
        return tokens

    def write(self, texts: Sequence[list[int]], width: int) -> np.ndarray:
        """Convert tokens into a tensor of text, without special tokens.

        A text that is too long ends with the last character that fits.
        """
        decode = self.tokenizer.decode
        return fit_text((decode(tokens, skip_special_tokens=True) for tokens in texts), width)
