"""Sampling and logprobs on the CPU, against plain implementations written here."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels.step_message import Message, Sampling, Seq
from reference import assert_as_good_as
from srt import ops
from srt.batch import StepBuffers
from srt.ops import message as msg
from srt.ops import reference_sampling as plain

VOCAB = 300
PAGE_SIZE = 4
MINUS_INF = float("-inf")


def draw_logits(rows: int, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def run(
    logits: Tensor,
    records: list[Sampling],
    histories: list[tuple[list[int], int]] | None = None,
    bitmask: Tensor | None = None,
    native: bool = True,
) -> list[int]:
    """Samples row i with records[i]; histories[i] is (token ids, prompt_len) of its sequence."""
    histories = histories or [([0], 1)] * len(records)
    rows, pages = len(records), 32
    page_table = torch.randperm(rows * pages, generator=torch.Generator().manual_seed(5)).int()
    page_table = torch.cat((page_table, page_table[:pages])).view(rows + 1, pages) + 1
    slot_tokens = torch.full(((rows * pages + 1) * PAGE_SIZE,), 10**6, dtype=torch.int32)
    seqs = []
    for row, (history, prompt_len) in enumerate(histories):
        for pos, token in enumerate(history):
            slot_tokens[page_table[row, pos // PAGE_SIZE] * PAGE_SIZE + pos % PAGE_SIZE] = token
        last = len(history) - 1
        slot = int(page_table[row, last // PAGE_SIZE]) * PAGE_SIZE + last % PAGE_SIZE
        seqs.append(Seq(row, prompt_len, last, (history[-1],), (slot,)))
    message = Message(
        seqs=seqs,
        logits=[(i, i, -1) for i in range(rows)],
        sampling=[replace(record, seq=i) for i, record in enumerate(records)],
    ).build()
    buffers = StepBuffers.allocate(rows, rows, rows, torch.device("cpu"))
    last_tokens = torch.full((rows + 1,), -5, dtype=torch.int32)
    ops.prepare_step(message, page_table, last_tokens, slot_tokens, buffers, rows, rows)
    before = logits.clone()
    sample = ops.sample if native else plain.sample
    tokens = sample(
        logits,
        message,
        buffers,
        page_table,
        slot_tokens,
        last_tokens,
        page_size=PAGE_SIZE,
        bitmask=bitmask,
    )
    assert torch.equal(logits, before)
    assert last_tokens.tolist() == [*tokens.tolist(), -5]
    return [int(token) for token in tokens]


def possible(logits: Tensor, record: Sampling, draws: int = 600, **kwargs: object) -> set[int]:
    """The tokens that turn up in many draws of one row."""
    records = [replace(record, seed=seed) for seed in range(draws)]
    return set(run(logits.expand(draws, -1), records, **kwargs))  # type: ignore[arg-type]


def greedy(**kwargs: object) -> Sampling:
    record = Sampling(**kwargs)  # type: ignore[arg-type]
    return replace(record, flags=record.flags | msg.FLAG_GREEDY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 7, 300, 4099])
def test_greedy_is_argmax(vocab: int, dtype: torch.dtype) -> None:
    logits = draw_logits(5, vocab).to(dtype)
    assert run(logits, [greedy()] * 5) == logits.argmax(-1).tolist()


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[1, [90, 40, 250]] = 3.0
    assert run(logits, [greedy()] * 2) == [0, 40]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_softmax(temperature: float) -> None:
    """Chi-square over 30 tokens: 29 degrees of freedom exceed 66 once in 10 000 times."""
    logits, draws = draw_logits(1, 30), 20000
    records = [Sampling(temperature=temperature, seed=123, position=i) for i in range(draws)]
    counts = Counter(run(logits.expand(draws, -1), records))
    expected = (logits[0].double() / temperature).softmax(-1) * draws
    observed = torch.tensor([counts[i] for i in range(30)], dtype=torch.float64)
    keep = expected >= 5
    rest = expected[~keep].sum(), observed[~keep].sum()
    chi2 = ((observed - expected)[keep].square() / expected[keep]).sum()
    chi2 += (rest[1] - rest[0]).square() / rest[0].clamp(min=1)
    assert chi2 < 66


def test_a_flat_distribution_reaches_the_whole_vocabulary() -> None:
    records = [Sampling(seed=seed) for seed in range(3000)]
    assert len(set(run(torch.zeros(3000, VOCAB), records))) == VOCAB


def test_draw_depends_on_seed_and_position_alone() -> None:
    logits = draw_logits(40)
    records = [Sampling(seed=i * 2**33 + 7, position=i % 5, temperature=1.3) for i in range(40)]
    together = run(logits, records)
    assert together == [run(logits[i : i + 1], [records[i]])[0] for i in range(40)]
    assert together == run(logits.flip(0), records[::-1])[::-1]
    assert together != run(logits, [replace(r, position=r.position + 1) for r in records])
    assert together != run(logits, [replace(r, seed=r.seed + 2**32) for r in records])


def mixed_records() -> list[Sampling]:
    filtered = msg.FLAG_FILTERED
    return [
        Sampling(seed=11),
        Sampling(flags=filtered, top_k=5, seed=12),
        Sampling(flags=filtered, top_p=0.7, temperature=0.8, seed=13),
        Sampling(flags=filtered, min_p=0.05, seed=14),
        Sampling(flags=filtered, top_k=40, top_p=0.9, min_p=0.01, temperature=1.5, seed=15),
        Sampling(flags=filtered, top_p=0.9999, temperature=5.0, seed=16),
        Sampling(
            flags=msg.FLAG_PENALTIES | msg.FLAG_BIASED | msg.FLAG_MASK_STOPS,
            frequency=0.3,
            presence=-0.4,
            repetition=1.2,
            biases=((5, 3.0), (9, -100.0)),
            stop_ids=(1, 2),
            seed=17,
        ),
        greedy(flags=msg.FLAG_PENALTIES, repetition=0.7, frequency=-2.0),
    ]


def test_draws_the_tokens_of_the_reference() -> None:
    """The same formulas, so the same tokens, row by row."""
    records = [
        replace(record, seed=record.seed + 1000 * i, position=i)
        for i in range(12)
        for record in mixed_records()
    ]
    logits = draw_logits(len(records), seed=3)
    histories = [([i % 7, 5, 5, 9, i % VOCAB], 2) for i in range(len(records))]
    ours = run(logits, records, histories)
    assert ours == run(logits, records, histories, native=False)


def plain_filter(logits: Tensor, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Sort, count, cut."""
    probs = logits.double().softmax(-1)
    order = probs.argsort(descending=True).tolist()
    kept = order[:top_k] if top_k > 0 else order
    mass, total, nucleus = 0.0, float(probs[kept].sum()), []
    for token in kept:
        if mass >= top_p * total:
            break
        nucleus.append(token)
        mass += float(probs[token])
    return {token for token in nucleus if probs[token] >= min_p * probs.max()}


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(1, 1.0, 0.0), (4, 1.0, 0.0), (-1, 0.5, 0.0), (-1, 1e-6, 0.0), (-1, 1.0, 0.2), (6, 0.6, 0.1)],
)
def test_filters(top_k: int, top_p: float, min_p: float) -> None:
    logits = draw_logits(1, 40, seed=8)
    record = Sampling(flags=msg.FLAG_FILTERED, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = plain_filter(logits[0], top_k, top_p, min_p)
    assert possible(logits, record, draws=3000) == expected


@pytest.mark.parametrize("record", [Sampling(top_k=2), Sampling(top_p=0.3)])
def test_equals_are_kept_together(record: Sampling) -> None:
    logits = torch.full((1, 50), -20.0)
    logits[0, [3, 30, 44]] = 2.0
    assert possible(logits, replace(record, flags=msg.FLAG_FILTERED)) == {3, 30, 44}


def test_top_p_beyond_the_likely_tokens() -> None:
    """A nucleus whose tail lies far below the maximum is still found."""
    logits = torch.zeros(1, 4000)
    logits[0, 17] = 13.0  # e^13 against 3999
    record = Sampling(flags=msg.FLAG_FILTERED, top_p=0.9999)
    assert len(possible(logits, record, draws=4000)) > 20


def test_penalties_against_a_plain_implementation() -> None:
    logits = draw_logits(1, 20, seed=4)[0]
    history, prompt_len = [3, 3, 8, 11, 5, 5, 5, 11, 2], 4
    expected = logits.clone()
    for token in set(history):
        expected[token] = expected[token] / 1.7 if expected[token] > 0 else expected[token] * 1.7
    for token, count in Counter(history[prompt_len:]).items():
        expected[token] -= 0.6 * count + 0.9
    record = Sampling(
        flags=msg.FLAG_PENALTIES, repetition=1.7, frequency=0.6, presence=0.9, top_k=1
    )
    # Every order statistic: mask the best so far, and the next best must be the plain one's.
    for rank, token in enumerate(expected.argsort(descending=True).tolist()):
        better = tuple(expected.argsort(descending=True)[:rank].tolist())
        masked = replace(
            record,
            flags=msg.FLAG_PENALTIES | msg.FLAG_MASK_STOPS | msg.FLAG_GREEDY,
            stop_ids=better,
        )
        assert run(logits[None], [masked], [(history, prompt_len)]) == [token]


def test_history_tokens_outside_the_vocabulary_are_ignored() -> None:
    logits = draw_logits(1)
    record = greedy(flags=msg.FLAG_PENALTIES, presence=2.0, repetition=1.5)
    for native in (True, False):
        tokens = run(logits, [record], [([VOCAB + 9, 2**30], 0)], native=native)
        assert tokens == logits.argmax(-1).tolist()


def test_bias_comes_first_and_stop_ids_are_masked() -> None:
    logits = torch.zeros(1, VOCAB)
    biased = greedy(flags=msg.FLAG_BIASED, biases=((7, 1.0), (9, 2.0)))
    assert run(logits, [biased]) == [9]
    both = replace(biased, flags=biased.flags | msg.FLAG_MASK_STOPS, stop_ids=(9,))
    assert run(logits, [both]) == [7]
    without_flag = replace(biased, stop_ids=(9,))
    assert run(logits, [without_flag]) == [9]


def test_bitmask() -> None:
    logits = draw_logits(2)
    allowed = [{0, 31, 32, 299}, {64, 65}]
    bitmask = torch.zeros(3, -(-VOCAB // 32), dtype=torch.int32)
    for row, tokens in ((2, allowed[0]), (0, allowed[1])):
        for token in tokens:
            bitmask[row, token // 32] |= -(2**31) if token % 32 == 31 else 1 << token % 32
    first = Sampling(flags=msg.FLAG_MASKED, bitmask_row=2, temperature=3.0)
    second = replace(first, bitmask_row=0)
    assert possible(logits[:1], first, bitmask=bitmask) == allowed[0]
    assert possible(logits[1:], second, bitmask=bitmask) == allowed[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 7, 300, 49152])
def test_token_logprobs(vocab: int, dtype: torch.dtype) -> None:
    logits = draw_logits(4, vocab).to(dtype)
    tokens = torch.tensor([0, vocab - 1, vocab // 2, 0], dtype=torch.int32)
    ref64 = logits.double().log_softmax(-1).gather(-1, tokens.long()[:, None])[:, 0]
    assert_as_good_as(
        ops.token_logprobs(logits, tokens), plain.token_logprobs(logits, tokens), ref64
    )


def test_top_logprobs() -> None:
    logits = draw_logits(3)
    values, ids = ops.top_logprobs(logits, 5)
    expected = logits.log_softmax(-1).topk(5)
    assert ids.dtype == torch.int32
    assert torch.equal(ids.long(), expected.indices)
    torch.testing.assert_close(values, expected.values)
    for j in range(5):  # a client tells by == whether a token was the likeliest
        assert torch.equal(values[:, j], ops.token_logprobs(logits, ids[:, j].contiguous()))


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        ops.token_logprobs(torch.zeros(1, 5), torch.tensor([5], dtype=torch.int32))
