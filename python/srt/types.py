"""Plain records that every room may use."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

import msgspec


class FinishReason(IntEnum):
    """How a sequence ended; the numbers are the core's (`cpp/core/types.h`), ERROR is Python's."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


class Grammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer must match from its first token to its last.

    source: a regex over the whole answer, a JSON schema as JSON text, or EBNF (GBNF with a rule
    `root ::=`, or llguidance's Lark with a rule `start:`). `text/grammar.py` makes and checks them.
    """

    kind: Literal["regex", "json_schema", "ebnf"]
    source: str


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is sampled. Values are validated where they come in (`text/sampling.py`).

    Stop strings, `n` and text options live in the server: the engine sees token ids only.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # (0, 1]
    top_k: int = -1  # -1: off
    min_p: float = 0.0  # [0, 1]
    frequency_penalty: float = 0.0  # [-2, 2]
    presence_penalty: float = 0.0  # [-2, 2]
    repetition_penalty: float = 1.0  # (0, 2]; over prompt and output
    stop_token_ids: tuple[int, ...] = ()  # model eos ids included unless ignore_eos
    ignore_eos: bool = False
    seed: int = 0  # 64-bit; the server draws one where the client gave none
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: Grammar | None = None
