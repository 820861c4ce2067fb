"""Sampling in plain torch, row by row: the meaning of docs/contracts.md section 3.1."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from srt.batch import StepBuffers
from srt.ops import message as msg

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def sample(  # noqa: PLR0913
    logits: Tensor,
    message: Tensor,
    buffers: StepBuffers,
    page_table: Tensor,
    slot_tokens: Tensor,
    last_tokens: Tensor,
    *,
    page_size: int,
    flags: int = -1,  # noqa: ARG001
    bitmask: Tensor | None = None,
) -> Tensor:
    """See `ops.sample`."""
    num_rows = logits.shape[0]
    off_extra = int(message[msg.OFF_EXTRA])
    tokens = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    for i, record in enumerate(buffers.sampling[:num_rows].tolist()):
        row_flags, seq = record[msg.SAMPLE_FLAGS], record[msg.SAMPLE_SEQ]
        x = logits[i].float()
        stop_at = off_extra + record[msg.EXTRA_OFFSET]
        bias_at = stop_at + record[msg.NUM_STOP_IDS]
        if row_flags & msg.FLAG_BIASED:
            x = add_biases(x, message[bias_at : bias_at + 2 * record[msg.NUM_BIASES]])
        if row_flags & msg.FLAG_PENALTIES:
            pages = page_table[buffers.rows[seq].long()]
            history = read_history(slot_tokens, pages, int(buffers.seq_lens[seq]), page_size)
            output = history[int(buffers.prompt_lens[seq]) :]
            x = penalize(x, history, output, *_floats(record, msg.FREQUENCY, msg.REPETITION + 1))
        if row_flags & msg.FLAG_MASK_STOPS:
            x = x.index_fill(0, message[stop_at:bias_at].long(), float("-inf"))
        if row_flags & msg.FLAG_MASKED and bitmask is not None:
            x = apply_bitmask(x, bitmask[record[msg.BITMASK_ROW]])
        tokens[i] = _choose(x, record)
    last_tokens[buffers.sample_rows[:num_rows].long()] = tokens
    return tokens


def _choose(x: Tensor, record: list[int]) -> Tensor:
    """The token id of one row: argmax, or a filtered draw."""
    flags = record[msg.SAMPLE_FLAGS]
    if flags & msg.FLAG_GREEDY:
        return x.argmax()
    (temperature, top_p), (min_p,) = (
        _floats(record, msg.TEMPERATURE, msg.TOP_P + 1),
        _floats(record, msg.MIN_P, msg.MIN_P + 1),
    )
    x = x / temperature
    if flags & msg.FLAG_FILTERED:
        x = keep_likely(x, record[msg.TOP_K], top_p, min_p)
    seed = (record[msg.SEED_HI] & _MASK) << 32 | (record[msg.SEED_LO] & _MASK)
    return draw(x, seed, record[msg.POSITION])


def _floats(record: list[int], begin: int, end: int) -> tuple[float, ...]:
    return struct.unpack(f"<{end - begin}f", struct.pack(f"<{end - begin}i", *record[begin:end]))


def add_biases(x: Tensor, pairs: Tensor) -> Tensor:
    """x [V] plus the biases of `pairs`: int32 [2 * n], token id and bit-cast float32 in turn."""
    return x.index_add(0, pairs[0::2].long(), pairs[1::2].contiguous().view(torch.float32))


def read_history(slot_tokens: Tensor, pages: Tensor, seq_len: int, page_size: int) -> Tensor:
    """Token ids of positions [0, seq_len): int64."""
    pos = torch.arange(seq_len, device=pages.device)
    slots = pages[pos // page_size].long() * page_size + pos % page_size
    return slot_tokens[slots].long()


def penalize(
    x: Tensor,
    history: Tensor,
    output: Tensor,
    frequency: float,
    presence: float,
    repetition: float,
) -> Tensor:
    """Repetition over `history`, frequency and presence over `output` (its tail); x [V] float32."""
    history, output = (ids[(ids >= 0) & (ids < x.shape[0])] for ids in (history, output))
    seen = torch.zeros_like(x, dtype=torch.bool).index_fill(0, history, True)
    repeated = torch.where(x > 0, x / repetition, x * repetition)
    x = torch.where(seen, repeated, x)
    counts = torch.bincount(output, minlength=x.shape[0])
    return x - frequency * counts - presence * (counts > 0)


def apply_bitmask(x: Tensor, words: Tensor) -> Tensor:
    """-inf where the bit of a token is clear. words: int32 [ceil(V / 32)]."""
    ids = torch.arange(x.shape[0], device=x.device)
    allowed = (words[ids // 32] >> (ids % 32)) & 1
    return x.masked_fill(allowed == 0, float("-inf"))


def keep_likely(x: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """-inf for tokens that top-k, then top-p (of what top-k left), then min-p drop.

    Equals are kept or dropped together: a token is kept while fewer than top_k tokens, and less
    than top_p of the mass, are strictly likelier.
    """
    if 0 < top_k < x.shape[0]:
        x = x.masked_fill(x < x.topk(top_k).values[-1], float("-inf"))
    if top_p < 1.0:
        ranked, order = x.sort(descending=True, stable=True)
        probs = ranked.double().softmax(-1)
        before = probs.cumsum(-1) - probs
        first_equal = torch.searchsorted(-ranked, -ranked)  # where each run of equals begins
        drop = before[first_equal] >= top_p
        x = x.masked_fill(torch.zeros_like(drop).scatter(0, order, drop), float("-inf"))
    if min_p > 0.0:
        relative = (x - x.max()).exp()
        x = x.masked_fill(relative < min_p, float("-inf"))
    return x


def draw(x: Tensor, seed: int, position: int) -> Tensor:
    """One token with probability softmax(x): the winner of an exponential race."""
    race = exponentials(x.shape[0], seed, position, x.device)
    weights = (x - x.max()).exp()
    # 0 / 0 cannot happen: an exponential is positive.
    return (weights.double() / race.double()).argmax()


def exponentials(vocab: int, seed: int, position: int, device: torch.device) -> Tensor:
    """float32 [vocab]: `-log1p(-v)` of one Philox word w per token, `v = (w + 0.5) / 2^32`."""
    ids = torch.arange(vocab, device=device)
    words = torch.stack(philox(ids // 4, position, seed), dim=-1)  # [vocab, 4]
    word = words.gather(-1, (ids % 4)[:, None])[:, 0]
    uniform = ((word.double() + 0.5) * 2.0**-32).float().clamp(max=1.0 - 2.0**-24)
    return -torch.log1p(-uniform)


def philox(block: Tensor, position: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of counter (block, position, 0, 0) under the key `seed`; uint32 in int64.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1 = block, torch.full_like(block, position)
    c2, c3 = torch.zeros_like(block), torch.zeros_like(block)
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # wraps beyond 63 bits, keeping the bits that are used
        c0, c1, c2, c3 = (
            (p1 >> 32 & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            (p0 >> 32 & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """See `ops.token_logprobs`."""
    logprobs = logits.float().log_softmax(-1)
    return logprobs.gather(-1, tokens.long()[:, None])[:, 0]
