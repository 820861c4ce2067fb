"""What the worker must know of one step on the host, and a made-up step to measure with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from srt.core import native
from srt.ops import message as msg

SEQ_WORDS, TOKEN_WORDS, LOGIT_WORDS, SAMPLING_WORDS = 8, 4, 4, 16
OFF_WORK, TOTAL_WORDS = 13, 15
# A captured step samples rows of any kind: the kernel reads each row's flags on the device, and
# must have room for all of them.
ANY_FLAGS = -1

Words = NDArray[np.int32]


class SharedPrefixes(NamedTuple):
    """By decode, int32: its group (-1: none), and how many pages the group's members share."""

    groups: Words
    pages: Words


@dataclass(frozen=True, slots=True)
class StepShape:
    """Host-side figures of one planned step.

    num_bytes: how much of the message the device needs.  flags: the or of all sampling flags.
    max_q_len, max_seq_len: over the step's sequences.  top_k: how many alternatives every
    sample and prompt row of this step brings (0: none).
    num_prompt_ends: sequences that sample nothing and whose prompt ends.
    num_drafts: of the decodes, guesses about what follows another.
    prefixes: which decodes share pages.
    """

    num_seqs: int
    num_decode: int
    num_tokens: int
    num_samples: int
    num_logits: int
    num_bytes: int
    flags: int
    max_q_len: int
    max_seq_len: int
    top_k: int = 0
    num_prompt_ends: int = 0
    num_drafts: int = 0
    prefixes: SharedPrefixes | None = field(default=None, compare=False)

    @classmethod
    def of(cls, plan: native.StepPlan) -> StepShape:
        """The shape of a planned step."""
        return cls(
            num_seqs=plan.num_seqs,
            num_decode=plan.num_decode,
            num_tokens=plan.num_tokens,
            num_samples=plan.num_samples,
            num_logits=plan.num_logits,
            num_bytes=plan.num_bytes,
            flags=plan.any_sampling_flags,
            max_q_len=plan.max_q_len,
            max_seq_len=plan.max_seq_len,
            top_k=plan.max_top_logprobs,
            num_prompt_ends=len(plan.prompt_end_seqs),
            num_drafts=plan.num_drafts,
            prefixes=SharedPrefixes(plan.prefix_groups, plan.prefix_pages)
            if plan.num_prefix_groups
            else None,
        )

    @property
    def is_decode(self) -> bool:
        """Every sequence runs one token and is sampled: token i, sequence i and sample i agree."""
        return self.num_decode == self.num_seqs and self.num_logits == self.num_samples


def section(words: Words, offset: int, count: int, record_words: int) -> Words:
    """The `count` records at word `offset`: a view, int32 [count, record_words]."""
    return words[offset : offset + count * record_words].reshape(count, record_words)


def profile_words(num_seqs: int, num_tokens: int) -> int:
    """Length of the message that `write_profile_message` writes."""
    per_seq = SEQ_WORDS + LOGIT_WORDS + SAMPLING_WORDS
    return msg.HEADER_WORDS + per_seq * num_seqs + TOKEN_WORDS * num_tokens


def write_profile_message(
    words: Words, num_seqs: int, num_tokens: int, *, decode: bool = False
) -> StepShape:
    """Fills `words` with a step of `num_seqs` nearly equal sequences, all sampled.

    It measures memory and warms kernels up. Rows, pages and slots are 0: it must run while the
    page table is zero, so that only the scratch page is touched. `num_tokens >= num_seqs`; with
    `decode` both are equal.
    """
    base, longer = divmod(num_tokens, num_seqs)
    q_lens = np.full(num_seqs, base, np.int32)
    q_lens[:longer] += 1
    starts = (np.cumsum(q_lens) - q_lens).astype(np.int32)
    off_tokens = msg.HEADER_WORDS + SEQ_WORDS * num_seqs
    off_logits = off_tokens + TOKEN_WORDS * num_tokens
    off_sampling = off_logits + LOGIT_WORDS * num_seqs
    total = off_sampling + SAMPLING_WORDS * num_seqs
    words[:total] = 0
    words[msg.NUM_SEQS], words[msg.NUM_TOKENS] = num_seqs, num_tokens
    words[msg.NUM_DECODE] = num_seqs if decode else 0
    words[msg.NUM_SAMPLES] = words[msg.NUM_LOGITS] = num_seqs
    words[msg.OFF_SEQS], words[msg.OFF_TOKENS] = msg.HEADER_WORDS, off_tokens
    words[msg.OFF_PAGE_UPDATES] = words[msg.OFF_LOGITS] = off_logits
    words[msg.OFF_SAMPLING] = off_sampling
    words[OFF_WORK] = words[msg.OFF_EXTRA] = words[TOTAL_WORDS] = total
    seq_idx = np.arange(num_seqs, dtype=np.int32)
    seqs = section(words, msg.HEADER_WORDS, num_seqs, SEQ_WORDS)
    seqs[:, 1], seqs[:, 5] = starts, seq_idx
    seqs[:, 2] = seqs[:, 3] = seqs[:, 4] = q_lens
    tokens = section(words, off_tokens, num_tokens, TOKEN_WORDS)
    tokens[:, 1] = np.arange(num_tokens, dtype=np.int32) - np.repeat(starts, q_lens)
    tokens[:, 3] = np.repeat(seq_idx, q_lens)
    logits = section(words, off_logits, num_seqs, LOGIT_WORDS)
    logits[:, 0], logits[:, 1], logits[:, 2] = starts + q_lens - 1, seq_idx, -1
    samples = section(words, off_sampling, num_seqs, SAMPLING_WORDS)
    samples[:, msg.SAMPLE_SEQ], samples[:, msg.BITMASK_ROW] = seq_idx, -1
    samples[:, msg.SAMPLE_FLAGS] = msg.FLAG_GREEDY
    return StepShape(
        num_seqs=num_seqs,
        num_decode=num_seqs if decode else 0,
        num_tokens=num_tokens,
        num_samples=num_seqs,
        num_logits=num_seqs,
        num_bytes=4 * total,
        flags=msg.FLAG_GREEDY,
        max_q_len=int(q_lens[0]),
        max_seq_len=int(q_lens[0]),
    )
