"""A checkpoint's own Python tokenizer, for `--tokenizer-mode slow`; this room alone loads torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from srt.errors import LoadError
from srt.text.pieces import build_pieces, byte_alphabet


class PythonBackend:
    """A `transformers` tokenizer written in Python."""

    def __init__(self, slow: Any) -> None:
        self._slow = slow

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""
        ids: list[int] = self._slow.encode(text, add_special_tokens=add_special_tokens)
        return ids


def open_python_tokenizer(
    path: Path, trust_remote_code: bool
) -> tuple[PythonBackend, list[bytes], list[int]]:
    """The tokenizer, the bytes of each id, and its special ids. Raises LoadError."""
    try:
        slow = AutoTokenizer.from_pretrained(
            path, use_fast=False, trust_remote_code=trust_remote_code
        )
    except (ValueError, OSError, ImportError) as error:
        raise LoadError(f"{path}: the Python tokenizer does not load: {error}") from error
    added = {i for i, token in slow.added_tokens_decoder.items() if token.special}
    return PythonBackend(slow), _pieces(slow), sorted(added | set(slow.all_special_ids))


_BYTE_OF = {chr(shown): byte for byte, shown in byte_alphabet().items()}


def _pieces(slow: Any) -> list[bytes]:
    """What bytes each id stands for, in the ways that Python tokenizers have of saying so."""
    if getattr(slow, "is_fast", False):  # the checkpoint has no other
        fast = slow.backend_tokenizer
        decoder = json.loads(fast.decoder.__getstate__()) if fast.decoder is not None else None
        return build_pieces(fast.get_vocab(with_added_tokens=True), decoder)
    return [_piece(slow, i) for i in range(len(slow))]


def _piece(slow: Any, token_id: int) -> bytes:
    token = slow.convert_ids_to_tokens(token_id)
    if isinstance(token, bytes):  # tiktoken style
        return token
    if token is None:
        return b""
    if token.startswith("<0x") and token.endswith(">") and len(token) == 6:
        return bytes.fromhex(token[3:5])
    if hasattr(slow, "byte_decoder") and all(c in _BYTE_OF for c in token):
        return bytes(_BYTE_OF[c] for c in token)
    text: str = token
    return text.replace("\u2581", " ").encode()
