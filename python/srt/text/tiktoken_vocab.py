"""Vocabularies in tiktoken's form: a rank for each byte string, and a regular expression."""

from __future__ import annotations

import base64
import binascii
import json
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import tiktoken

from srt.errors import InvalidParameter, LoadError
from srt.text.gguf_vocab import modern_split

ONE_DIGIT = modern_split(digits="")  # Qwen, Grok: every digit by itself
THREE_DIGITS = modern_split(digits="{1,3}")  # GPT-4, DBRX, GLM-4
NO_SURROGATES = dict.fromkeys(range(55296, 57344), "�")  # JSON can bring half a pair


class TiktokenBackend:
    """A tiktoken encoding; special tokens are recognised in the text, as chat templates need it.

    Args:
        prefix: ids that every prompt begins with.
        composes: text is brought into Unicode's form NFC first.
    """

    def __init__(
        self, encoding: tiktoken.Encoding, prefix: tuple[int, ...] = (), *, composes: bool = False
    ) -> None:
        self._encoding = encoding
        self._prefix = list(prefix)
        self._composes = composes

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`. Raises InvalidParameter for one that the library cannot split."""
        if self._composes:
            text = unicodedata.normalize("NFC", text)
        text = text.translate(NO_SURROGATES)
        try:
            ids = self._encoding.encode(text, allowed_special="all", disallowed_special=())
        except ValueError as error:  # millions of spaces exhaust the regular expression's stack
            raise InvalidParameter(
                f"a text of {len(text)} characters cannot be tokenized: {error}"
            ) from error
        return self._prefix + ids if add_special_tokens else ids


def is_ranks_file(path: Path) -> bool:
    """Whether a file holds lines of base64 and a number, rather than a SentencePiece model."""
    with path.open("rb") as file:
        first = file.readline(4096).split()
    return len(first) == 2 and first[1].isdigit() and _bytes_of(first[0]) is not None


def read_ranks(path: Path) -> dict[bytes, int]:
    """Ranks by byte string. Raises LoadError naming the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split()
        token = _bytes_of(parts[0]) if len(parts) == 2 and parts[1].isdigit() else None
        if token is None:
            raise LoadError(f"{path}: line {number} is not a token in base64 and its rank")
        ranks[token] = int(parts[1])
    return ranks


def read_tok_json(path: Path) -> tuple[dict[bytes, int], dict[str, int]]:
    """Grok's tokenizer.tok.json: ranks, and special tokens. Raises LoadError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        ranks = {bytes(item["bytes"]): int(item["token"]) for item in found["regular_tokens"]}
        special = {
            bytes(item["bytes"]).decode(): int(item["token"]) for item in found["special_tokens"]
        }
        split = found["word_split"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} is not a tokenizer.tok.json: {error!r}") from error
    if split != "V1":
        raise LoadError(f"{path}: word_split {split!r} is unknown; V1 is known")
    return ranks, special


def make_encoding(
    path: Path, pattern: str, ranks: Mapping[bytes, int], special: Mapping[str, int]
) -> tiktoken.Encoding:
    """Raises LoadError for a vocabulary that tiktoken does not take."""
    taken = set(ranks.values())
    clash = next((text for text, i in special.items() if i in taken), None)
    if clash is not None:
        raise LoadError(f"{path}: special token {clash!r} has an id of the vocabulary")
    try:
        return tiktoken.Encoding(
            path.name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special)
        )
    except (ValueError, AssertionError) as error:
        raise LoadError(f"{path} is not a tiktoken vocabulary: {error}") from error


def pieces_of(ranks: Mapping[bytes, int], special: Mapping[str, int]) -> list[bytes]:
    """Bytes by token id; ids that no token has stand for nothing."""
    tokens = {i: token for token, i in ranks.items()}
    tokens |= {i: text.encode() for text, i in special.items()}
    return [tokens.get(i, b"") for i in range(max(tokens, default=-1) + 1)]


def _bytes_of(encoded: bytes) -> bytes | None:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return None
