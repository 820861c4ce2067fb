"""Word positions of the step message (`cpp/core/step_message.h`), for the torch references."""

from __future__ import annotations

from torch import Tensor

HEADER_WORDS = 32
NUM_SEQS, NUM_DECODE, NUM_TOKENS, NUM_SAMPLES, NUM_LOGITS, NUM_PAGE_UPDATES = 1, 2, 3, 4, 5, 6
OFF_SEQS, OFF_TOKENS, OFF_PAGE_UPDATES, OFF_LOGITS, OFF_SAMPLING = 8, 9, 10, 11, 12
OFF_EXTRA = 14

SAMPLE_SEQ, SAMPLE_FLAGS, TEMPERATURE, TOP_P, TOP_K, MIN_P = 0, 1, 2, 3, 4, 5
FREQUENCY, PRESENCE, REPETITION, SEED_LO, SEED_HI, POSITION = 6, 7, 8, 9, 10, 11
EXTRA_OFFSET, NUM_STOP_IDS, NUM_BIASES, BITMASK_ROW = 12, 13, 14, 15

FLAG_GREEDY, FLAG_PENALTIES, FLAG_FILTERED, FLAG_BIASED = 1, 2, 4, 8
FLAG_MASK_STOPS, FLAG_MASKED, FLAG_LOGPROBS = 16, 32, 64


def section(message: Tensor, offset: int, count: int, words: int) -> Tensor:
    """`count` records of `words` words at `offset`: int32 [count, words]."""
    return message[offset : offset + count * words].view(count, words)
