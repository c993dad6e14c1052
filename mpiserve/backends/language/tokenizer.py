"""Between text and tokens, by the tokenizer of a Hugging Face directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiserve.errors import Code, ModelError
from mpiserve.text import decode_text

if TYPE_CHECKING:
    import torch


class Texts:
    """The tokenizer of a model.

    Args:
        path: The model's directory.
        most: Tokens that the model takes.
        cuts: Leave out what is too long, as is usual where a text is embedded.

    Raises:
        ModelError: If there is none, or it cannot be read.
    """

    def __init__(self, path: Path, most: int, cuts: bool) -> None:
        import transformers

        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                path, local_files_only=True
            )
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            text = f"{path}: no tokenizer, which tensors of text need ({reason})"
            raise ModelError(Code.EMODEL, text) from None
        self._most = min(most, self.tokenizer.model_max_length)
        self._cuts = cuts

    def read(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn a tensor of text into tokens and lengths; no text is no tokens.

        Raises:
            ModelError: For a text that the model is too small for.
        """
        import torch

        lines = [self._tokens(text) for text in decode_text(rows.cpu().numpy())]
        lengths = [len(line) for line in lines]
        width = max(1, *lengths)
        padded = [line + [0] * (width - len(line)) for line in lines]
        return torch.tensor(padded).to(rows.device), torch.tensor(lengths).to(rows.device)

    def _tokens(self, text: str) -> list[int]:
        if not text:
            return []
        cut = {"truncation": True, "max_length": self._most} if self._cuts else {}
        tokens: list[int] = self.tokenizer(text, verbose=False, **cut)["input_ids"]
        if len(tokens) > self._most:
            what = f"a text of {len(tokens)} tokens; the model takes {self._most}"
            raise ModelError(Code.EMODEL, what)
        return tokens

    def write(self, lines: Sequence[list[int]], width: int) -> np.ndarray:
        """Turn tokens into a tensor of text, without what only steers the model.

        A text that is too long ends with the last character that fits.
        """
        rows = np.zeros((len(lines), width), np.uint8)
        for row, line in zip(rows, lines, strict=True):
            text: str = self.tokenizer.decode(line, skip_special_tokens=True)
            fits = text.encode()[:width].decode(errors="ignore").encode()
            row[: len(fits)] = np.frombuffer(fits, np.uint8)
        return rows
