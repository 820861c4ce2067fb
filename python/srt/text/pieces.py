"""What bytes each token id stands for: the table that makes detokenizing one lookup per token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from srt.errors import LoadError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_OUTSIDE = "\U0010ffff"  # never in Latin-1: marks a token that is not byte-level text


def byte_alphabet() -> dict[int, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: byte for byte in printable} | {b: 256 + i for i, b in enumerate(others)}


def build_pieces(vocab: Mapping[str, int], decoder: Mapping[str, Any] | None) -> list[bytes]:
    """Bytes by token id; ids that no token has stand for nothing.

    Args:
        vocab: token to id, added tokens included.
        decoder: the `decoder` entry of tokenizer.json.

    Raises:
        LoadError: a decoder that does not work token by token.
    """
    convert = _converter(decoder)
    pieces = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        pieces[token_id] = convert(token)
    return pieces


def strips_leading_space(decoder: Mapping[str, Any] | None) -> bool:
    """Whether a text that starts at its first token loses one leading space (SentencePiece)."""
    for part in _parts(decoder):
        if part["type"] == "Strip" and part.get("start", 0) > 0:
            return True
        if part["type"] == "Metaspace" and _prepends(part):
            return True
    return False


def _prepends(part: Mapping[str, Any]) -> bool:
    scheme = part.get("prepend_scheme")
    return bool(part.get("add_prefix_space", True)) if scheme is None else scheme != "never"


def _parts(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [part for inner in decoder["decoders"] for part in _parts(inner)]
    return [decoder]


def _converter(decoder: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    parts = _parts(decoder)
    kinds = [part["type"] for part in parts]
    if not parts:
        raise LoadError("tokenizer.json has no decoder; it cannot turn ids into text")
    unknown = set(kinds) - {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}
    if unknown:
        raise LoadError(
            f"tokenizer.json has the decoder {', '.join(sorted(unknown))}, which does not work "
            "token by token; try --tokenizer-mode slow"
        )
    if "ByteLevel" in kinds:
        return _byte_level
    replacements = [_replacement(p) for p in parts if p["type"] in ("Replace", "Metaspace")]
    has_byte_tokens = "ByteFallback" in kinds

    def convert(token: str) -> bytes:
        if has_byte_tokens and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")

    return convert


def _replacement(part: Mapping[str, Any]) -> tuple[str, str]:
    if part["type"] == "Metaspace":
        return part["replacement"], " "
    pattern = part["pattern"]
    if "String" not in pattern:
        raise LoadError(
            f"tokenizer.json replaces by the pattern {json.dumps(pattern)}, not a string"
        )
    return pattern["String"], part["content"]


_TO_LATIN = dict.fromkeys(range(256), _OUTSIDE) | {
    shown: chr(byte) for byte, shown in byte_alphabet().items()
}


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:  # an added token, written as plain text
        return token.encode("utf-8", "replace")
