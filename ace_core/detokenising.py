"""Token ids to text, one token at a time."""

from __future__ import annotations

from typing import Any

__all__ = ["Detokeniser"]

_INCOMPLETE = "\ufffd"


class Detokeniser:
    """Turns a growing list of token ids into pieces whose concatenation is the decoded text.

    Text that ends in an unfinished character (a multi-byte character split over tokens) is held back until it
    is whole, so such tokens yield an empty piece first.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        """Add a token; the text it completes."""
        self._ids.append(token)
        return self._piece(final=False)

    def flush(self) -> str:
        """Whatever was held back, at the end of the text."""
        return self._piece(final=True)

    def _piece(self, final: bool) -> str:
        # Decoding from `start` rather than from `read` lets the tokenizer see the token before, which decides
        # whether a leading space is written.
        known = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(known) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(known) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
