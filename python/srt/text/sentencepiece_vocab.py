"""SentencePiece models (tokenizer.model), run by the library itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import sentencepiece

from srt.errors import LoadError

_SPACE = "\u2581"
# A protobuf message behind another is merged into it: normalizer_spec { add_dummy_prefix: false }.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceBackend:
    """Special tokens are cut out of the text first; what lies between is the library's.

    Args:
        model: the file's bytes.
        special: ids by text.
        prefix: ids that every prompt begins with.
        is_legacy: text behind a special token begins with a space, as text at the beginning does
            (`legacy` in tokenizer_config.json).
    """

    def __init__(
        self,
        model: bytes,
        special: Mapping[str, int],
        prefix: tuple[int, ...] = (),
        *,
        is_legacy: bool = True,
    ) -> None:
        self._first = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._later = self._first
        if not is_legacy:
            self._later = sentencepiece.SentencePieceProcessor(model_proto=model + _NO_DUMMY_PREFIX)
        self._special = dict(special)
        self._prefix = list(prefix)
        longest_first = sorted(special, key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""
        ids = list(self._prefix) if add_special_tokens else []
        at = 0
        for found in self._cut.finditer(text):
            ids += self._encode_plain(text[at : found.start()], is_first=at == 0)
            ids.append(self._special[found[0]])
            at = found.end()
        return ids + self._encode_plain(text[at:], is_first=at == 0)

    def _encode_plain(self, text: str, *, is_first: bool) -> list[int]:
        if not text:
            return []
        ids: list[int] = (self._first if is_first else self._later).encode(text)
        return ids


class SentencePieceModel:
    """A model's vocabulary. Raises LoadError for a file that is none."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        if not self.data:
            raise LoadError(f"{path} is not a SentencePiece model: it is empty")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.data)
        except (RuntimeError, OSError) as error:
            raise LoadError(f"{path} is not a SentencePiece model: {error}") from error
        self.size: int = self._processor.vocab_size()
        self.bos_id: int = self._processor.bos_id()  # -1: none
        self.eos_id: int = self._processor.eos_id()

    def control_tokens(self) -> dict[str, int]:
        """Tokens that text never makes: beginning, end, unknown, padding."""
        model = self._processor
        ids = (i for i in range(self.size) if model.is_control(i) or model.is_unknown(i))
        return {model.id_to_piece(i): i for i in ids}

    def pieces(self) -> list[bytes]:
        """Bytes by token id."""
        return [self._piece(i) for i in range(self.size)]

    def strips_leading_space(self) -> bool:
        """Whether encoding puts a space before a text, which decoding takes away again."""
        first: list[str] = self._processor.encode("a", out_type=str)[:1]
        return bool(first) and first[0].startswith(_SPACE)

    def _piece(self, token_id: int) -> bytes:
        piece: str = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):
            return bytes.fromhex(piece[3:5])
        return piece.replace(_SPACE, " ").encode()
