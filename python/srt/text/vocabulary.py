"""What is known of a tokenizer's tokens, and what encodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Backend(Protocol):
    """What encodes: `tokenizers`, tiktoken, sentencepiece, or a checkpoint's own Python."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What is known of the tokens.

    pieces: bytes by token id. special: ids that skip_special_tokens hides. added: ids beside the
    trained vocabulary. eos_ids: ids that end an answer. own_eos_id: the tokenizer's `eos_token`.
    named: `bos_token`, `eos_token`, … by name.
    """

    pieces: list[bytes]
    special: frozenset[int]
    added: frozenset[int]
    eos_ids: tuple[int, ...]
    bos_id: int | None
    own_eos_id: int | None = None
    named: dict[str, str] = field(default_factory=dict)
    strips_leading_space: bool = False
    adds_bos: bool = False
    adds_eos: bool = False
