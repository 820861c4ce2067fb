"""The CUDA sampler draws the reference's tokens; logprobs against float64."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from kernels.step_message import Message, Sampling, Seq
from reference import assert_as_good_as
from srt import ops
from srt.batch import StepBuffers
from srt.core import native
from srt.ops import message as msg
from srt.ops import reference_sampling as plain

pytestmark = pytest.mark.gpu
if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

PAGE_SIZE, PAGES = 16, 20
EDITS = (msg.FLAG_PENALTIES, msg.FLAG_BIASED, msg.FLAG_MASK_STOPS, msg.FLAG_MASKED)
KINDS = {
    "greedy": lambda _: msg.FLAG_GREEDY,
    "plain": lambda _: 0,
    "filtered": lambda _: msg.FLAG_FILTERED,
    "penalized": lambda _: msg.FLAG_PENALTIES,
    "edited greedy": lambda rng: msg.FLAG_GREEDY | rng.choice(EDITS),
    "anything": lambda rng: rng.randrange(64),
}


def draw_record(rng: random.Random, logits: Tensor, seq: int, flags: int) -> Sampling:
    vocab = logits.shape[0]
    return Sampling(
        seq=seq,
        flags=flags,
        temperature=rng.choice([0.3, 0.7, 1.0, 1.7]),
        top_p=rng.choice([0.1, 0.5, 0.9, 0.95, 1.0]),
        top_k=rng.choice([-1, 0, 1, 2, 7, 50, 1000, vocab, vocab + 5]),
        min_p=rng.choice([0.0, 0.0, 0.05, 0.3, 1.0]),
        frequency=rng.choice([0.0, 0.3, -0.5, 1.2]),
        presence=rng.choice([0.0, 0.6, -1.0]),
        repetition=rng.choice([1.0, 1.2, 0.8]),
        seed=rng.getrandbits(64),
        position=rng.randrange(10_000),
        stop_ids=(rng.randrange(vocab), int(logits.argmax())),
        biases=tuple((t, rng.uniform(-8, 8)) for t in rng.sample(range(vocab), 6)),
        bitmask_row=seq,
    )


class Case:
    """Rows of logits with their records and histories, on the CPU."""

    def __init__(self, logits: Tensor, records: list[Sampling], rng: random.Random) -> None:
        rows, vocab = logits.shape
        self.logits = logits
        self.page_table = torch.stack([torch.randperm(400)[:PAGES] + 1 for _ in range(rows + 1)])
        self.page_table = self.page_table.int()
        # A history over few tokens, so that they repeat; one lies outside the vocabulary.
        self.slot_tokens = torch.randint(0, min(vocab, 60), (401 * PAGE_SIZE,)).int()
        self.slot_tokens[::97] = vocab + 3
        self.bitmask = torch.randint(-(2**31), 2**31 - 1, (rows, -(-vocab // 32))).int()
        self.message = Message(
            seqs=[self._seq(row, rng) for row in range(rows)],
            logits=[(i, i, -1) for i in range(rows)],
            sampling=records,
        ).build()
        self.buffers = StepBuffers.allocate(rows, rows, rows, torch.device("cpu"))
        self.last_tokens = torch.full((rows + 1,), -5, dtype=torch.int32)
        ops.prepare_step(
            self.message,
            self.page_table,
            self.last_tokens,
            self.slot_tokens,
            self.buffers,
            rows,
            rows,
        )

    def _seq(self, row: int, rng: random.Random) -> Seq:
        last = rng.randrange(1, PAGES * PAGE_SIZE)
        slot = int(self.page_table[row, last // PAGE_SIZE]) * PAGE_SIZE + last % PAGE_SIZE
        return Seq(row, rng.randrange(1, last + 2), last, (5,), (slot,))

    def tokens(self, flags: int, device: str) -> tuple[Tensor, Tensor]:
        """What `device` draws, and last_tokens after it."""
        buffers = StepBuffers(*(x.to(device) for x in self.buffers.tensors()))
        last_tokens = self.last_tokens.clone().to(device)
        sample = ops.sample if device == "cuda" else plain.sample
        tokens = sample(
            self.logits.to(device),
            self.message.to(device),
            buffers,
            self.page_table.to(device),
            self.slot_tokens.to(device),
            last_tokens,
            page_size=PAGE_SIZE,
            flags=flags,
            bitmask=self.bitmask.to(device),
        )
        return tokens.cpu(), last_tokens.cpu()


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [64, 1000, 50257, 128256, 256000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_draws_the_references_tokens(
    dtype: torch.dtype, vocab: int, kind: str, spread: float
) -> None:
    rng = random.Random(f"{dtype} {vocab} {kind} {spread}")
    torch.manual_seed(rng.getrandbits(32))
    rows = 40 if vocab <= 1000 else 5
    logits = (torch.randn(rows, vocab) * spread).to(dtype)
    records = [draw_record(rng, logits[i], i, KINDS[kind](rng)) for i in range(rows)]
    case = Case(logits, records, rng)
    known = 0
    for record in records:
        known |= record.flags
    expected = case.tokens(-1, "cpu")
    for flags in (known, -1):
        for ours, theirs in zip(case.tokens(flags, "cuda"), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [1, 17, 66, 140, 300])
def test_every_number_of_rows(rows: int) -> None:
    """The grid changes shape with the rows; what they draw does not."""
    logits = torch.randn(rows, 3000).bfloat16()
    rng = random.Random(rows)
    flags = [msg.FLAG_GREEDY * (i % 2) for i in range(rows)]
    records = [draw_record(rng, logits[i], i, flags[i]) for i in range(rows)]
    case = Case(logits, records, rng)
    assert torch.equal(case.tokens(msg.FLAG_GREEDY, "cuda")[0], case.tokens(-1, "cpu")[0])


@pytest.mark.parametrize("rows", [3, 66, 140, 300])
def test_rows_of_all_kinds_side_by_side(rows: int) -> None:
    """Each kernel takes its own rows, and walks over the others'."""
    logits = torch.randn(rows, 3000).bfloat16()
    rng = random.Random(rows)
    kinds = [KINDS[rng.choice(list(KINDS))](rng) for _ in range(rows)]
    records = [draw_record(rng, logits[i], i, kinds[i]) for i in range(rows)]
    case = Case(logits, records, rng)
    for ours, theirs in zip(case.tokens(-1, "cuda"), case.tokens(-1, "cpu"), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_that_are_masked_whole_give_token_0() -> None:
    logits = torch.full((3, 500), float("-inf"))
    rng = random.Random(0)
    kinds = (msg.FLAG_GREEDY, 0, msg.FLAG_FILTERED)
    case = Case(logits, [draw_record(rng, logits[0], i, kinds[i]) for i in range(3)], rng)
    assert case.tokens(-1, "cuda")[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("top", [1, 5, 20, 128])
@pytest.mark.parametrize("vocab", [128, 50257, 128256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logprobs(dtype: torch.dtype, vocab: int, top: int) -> None:
    logits = (torch.randn(9, vocab, device="cuda") * 4).to(dtype)
    tokens = torch.randint(0, vocab, (9,), device="cuda").int()
    ref = logits.double().log_softmax(-1)
    naive = logits.float().log_softmax(-1)
    picked = tokens.long()[:, None]
    assert_as_good_as(
        ops.token_logprobs(logits, tokens),
        naive.gather(-1, picked)[:, 0],
        ref.gather(-1, picked)[:, 0],
    )
    values, ids = ops.top_logprobs(logits, top)
    best = ref.topk(top).values
    assert torch.equal(ref.gather(-1, ids.long()), best)
    assert_as_good_as(values, naive.topk(top).values, best)
