"""Builds step messages by hand, as the scheduler writes them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import torch
from torch import Tensor

from srt.ops import message as msg


@dataclass(frozen=True)
class Seq:
    """row, prompt length, positions [start, start + len(tokens)) with their slots."""

    row: int
    prompt_len: int
    start: int
    tokens: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """One sampling record; `seq` indexes the message's sequences."""

    seq: int = 0
    flags: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    frequency: float = 0.0
    presence: float = 0.0
    repetition: float = 1.0
    seed: int = 0
    position: int = 0
    stop_ids: tuple[int, ...] = ()
    biases: tuple[tuple[int, float], ...] = ()
    bitmask_row: int = -1


@dataclass
class Message:
    """Everything a step message holds."""

    seqs: list[Seq] = field(default_factory=list)
    page_updates: list[tuple[int, int, int]] = field(default_factory=list)
    logits: list[tuple[int, int, int]] = field(default_factory=list)  # token, seq, target
    sampling: list[Sampling] = field(default_factory=list)

    def build(self) -> Tensor:
        """int32 [words]."""
        seqs: list[int] = []
        tokens: list[int] = []
        num_tokens = 0
        for i, seq in enumerate(self.seqs):
            seq_len = seq.start + len(seq.tokens)
            seqs += [seq.row, num_tokens, len(seq.tokens), seq_len, seq.prompt_len, -1, 0, 0]
            for j, (token, slot) in enumerate(zip(seq.tokens, seq.slots, strict=True)):
                tokens += [token, seq.start + j, slot, i]
            num_tokens += len(seq.tokens)
        extra: list[int] = []
        records: list[int] = []
        for record in self.sampling:
            records += _record(record, len(extra))
            extra += record.stop_ids
            extra += [word for token, bias in record.biases for word in (token, _bits(bias))]
        updates = [word for update in self.page_updates for word in (*update, 0)]
        logits = [word for row in self.logits for word in (*row, 0)]
        head = [0] * msg.HEADER_WORDS
        head[msg.NUM_SEQS], head[msg.NUM_TOKENS] = len(self.seqs), num_tokens
        head[msg.NUM_SAMPLES], head[msg.NUM_LOGITS] = len(self.sampling), len(self.logits)
        head[msg.NUM_PAGE_UPDATES] = len(self.page_updates)
        words = head
        for offset, section in (
            (msg.OFF_SEQS, seqs),
            (msg.OFF_TOKENS, tokens),
            (msg.OFF_PAGE_UPDATES, updates),
            (msg.OFF_LOGITS, logits),
            (msg.OFF_SAMPLING, records),
            (msg.OFF_EXTRA, extra),
        ):
            words += [0] * (-len(words) % 4)
            words[offset] = len(words)
            words += section
        return torch.tensor(words, dtype=torch.int32)


def _bits(x: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", x))[0])


def _signed(word: int) -> int:
    return int(struct.unpack("<i", struct.pack("<I", word & 0xFFFFFFFF))[0])


def _record(s: Sampling, extra_offset: int) -> list[int]:
    floats = [_bits(x) for x in (s.frequency, s.presence, s.repetition)]
    return [
        *(s.seq, s.flags, _bits(s.temperature), _bits(s.top_p), s.top_k, _bits(s.min_p)),
        *floats,
        *(_signed(s.seed), _signed(s.seed >> 32), s.position),
        *(extra_offset, len(s.stop_ids), len(s.biases), s.bitmask_row),
    ]
