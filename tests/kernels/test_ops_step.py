"""prepare_step on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from kernels.step_message import Message, Sampling, Seq
from srt import ops
from srt.batch import StepBuffers
from srt.ops import message as msg
from srt.ops import reference

ROWS, PAGES_PER_SEQ, SLOTS = 9, 6, 64


@dataclass
class World:
    """The tensors that live as long as the engine, filled with recognizable numbers."""

    page_table: Tensor
    last_tokens: Tensor
    slot_tokens: Tensor
    buffers: StepBuffers

    @classmethod
    def make(cls) -> World:
        buffers = StepBuffers.allocate(32, 8, 16, torch.device("cpu"))
        for tensor in buffers.tensors():
            tensor.fill_(-77)
        return cls(
            page_table=torch.full((ROWS, PAGES_PER_SEQ), -7, dtype=torch.int32),
            last_tokens=torch.arange(1000, 1000 + ROWS, dtype=torch.int32),
            slot_tokens=torch.full((SLOTS,), -9, dtype=torch.int32),
            buffers=buffers,
        )

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.page_table, self.last_tokens, self.slot_tokens, *self.buffers.tensors())


def two_decodes_and_an_extend() -> Message:
    return Message(
        seqs=[
            Seq(row=3, prompt_len=5, start=7, tokens=(-1,), slots=(17,)),
            Seq(row=0, prompt_len=2, start=2, tokens=(44,), slots=(9,)),
            Seq(row=5, prompt_len=9, start=4, tokens=(6, 7, 8, 9, 10), slots=(20, 21, 22, 23, 40)),
        ],
        page_updates=[(3, 1, 4), (5, 0, 5), (5, 1, 10)],
        logits=[(0, 0, -1), (1, 1, -1), (6, 2, -1), (2, 2, 7), (3, 2, 8)],
        sampling=[Sampling(seq=0, temperature=0.5), Sampling(seq=1), Sampling(seq=2, top_k=3)],
    )


def run(op: object, message: Message, world: World, *padded: int) -> None:
    assert callable(op)
    op(
        message.build(),
        world.page_table,
        world.last_tokens,
        world.slot_tokens,
        world.buffers,
        *padded,
    )


def test_unpacks() -> None:
    world = World.make()
    run(ops.prepare_step, two_decodes_and_an_extend(), world, 3, 7)
    buffers = world.buffers
    assert buffers.token_ids[:7].tolist() == [1003, 44, 6, 7, 8, 9, 10]
    assert buffers.positions[:7].tolist() == [7, 2, 4, 5, 6, 7, 8]
    assert buffers.slots[:7].tolist() == [17, 9, 20, 21, 22, 23, 40]
    assert buffers.token_seq[:7].tolist() == [0, 1, 2, 2, 2, 2, 2]
    assert buffers.rows[:3].tolist() == [3, 0, 5]
    assert buffers.seq_lens[:3].tolist() == [8, 3, 9]
    assert buffers.prompt_lens[:3].tolist() == [5, 2, 9]
    assert buffers.q_indptr[:4].tolist() == [0, 1, 2, 7]
    assert buffers.logit_idx[:5].tolist() == [0, 1, 6, 2, 3]
    assert buffers.logit_targets[:5].tolist() == [-1, -1, -1, 7, 8]
    assert buffers.sample_rows[:3].tolist() == [3, 0, 5]
    assert buffers.sampling[2, msg.TOP_K] == 3
    assert world.page_table[5, :3].tolist() == [5, 10, -7]
    assert world.slot_tokens[[17, 9, 40, 41]].tolist() == [1003, 44, 10, -9]
    assert buffers.token_ids[7] == -77  # beyond the padded counts nothing is touched
    assert buffers.rows[3] == -77


def test_pads() -> None:
    world = World.make()
    run(ops.prepare_step, two_decodes_and_an_extend(), world, 6, 12)
    buffers = world.buffers
    assert buffers.rows[3:7].tolist() == [ROWS - 1] * 3 + [-77]
    assert buffers.seq_lens[3:6].tolist() == [1, 1, 1]
    assert buffers.q_indptr[3:7].tolist() == [7, 8, 9, 10]
    assert buffers.slots[7:13].tolist() == [0] * 5 + [-77]
    assert buffers.sample_rows[3:6].tolist() == [ROWS - 1] * 3
    assert buffers.sampling[3:6, msg.SAMPLE_FLAGS].tolist() == [msg.FLAG_GREEDY] * 3
    assert buffers.logit_idx[5:7].tolist() == [0, -77]


@pytest.mark.parametrize("padded", [(3, 7), (4, 8), (8, 32)])
def test_equals_the_reference(padded: tuple[int, int]) -> None:
    ours, plain = World.make(), World.make()
    run(ops.prepare_step, two_decodes_and_an_extend(), ours, *padded)
    run(reference.prepare_step, two_decodes_and_an_extend(), plain, *padded)
    for one, other in zip(ours.tensors(), plain.tensors(), strict=True):
        assert torch.equal(one, other)


def test_an_empty_step_is_all_padding() -> None:
    ours, plain = World.make(), World.make()
    run(ops.prepare_step, Message(), ours, 2, 2)
    run(reference.prepare_step, Message(), plain, 2, 2)
    for one, other in zip(ours.tensors(), plain.tensors(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("padded", "why"),
    [((2, 7), "padded_seqs"), ((9, 16), "padded_seqs"), ((4, 7), "padded_tokens")],
)
def test_refuses_what_does_not_fit(padded: tuple[int, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        run(ops.prepare_step, two_decodes_and_an_extend(), World.make(), *padded)


def test_refuses_a_slot_outside_the_pool() -> None:
    message = Message(seqs=[Seq(row=0, prompt_len=1, start=0, tokens=(1,), slots=(SLOTS,))])
    with pytest.raises(ValueError, match="slot"):
        run(ops.prepare_step, message, World.make(), 1, 1)
