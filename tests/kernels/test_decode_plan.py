"""The decode plan covers every KV tile of every (sequence, head block) once, in equal pieces."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from srt.core import native
from srt.ops import message as msg

if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

WORK_WORDS = 12
NUM_WORK, OFF_WORK, TOTAL_WORDS = 7, 13, 15


def make_message(lens: list[int], capacity: int = 1 << 16) -> Tensor:
    """A host message of decode rows alone; sequence i sits in row 3 i."""
    words = torch.zeros(capacity, dtype=torch.int32)
    words[msg.NUM_SEQS] = words[msg.NUM_DECODE] = words[msg.NUM_TOKENS] = len(lens)
    words[msg.OFF_SEQS] = msg.HEADER_WORDS
    words[TOTAL_WORDS] = msg.HEADER_WORDS + 8 * len(lens)
    seqs = msg.section(words, msg.HEADER_WORDS, len(lens), 8)
    seqs[:, 0] = 3 * torch.arange(len(lens))
    seqs[:, 3] = torch.tensor(lens, dtype=torch.int32)
    return words


def tile_range(seq_len: int, window_left: int, tile: int) -> range:
    begin = max(0, seq_len - window_left - 1) if window_left >= 0 else 0
    return range(begin // tile, -(-seq_len // tile))


def check_plan(
    records: Tensor, lens: list[int], grid: native.DecodeGrid, window_left: int = -1
) -> None:
    num_blocks = grid.num_head_blocks
    ranges = [tile_range(n, window_left, grid.tile_tokens) for n in lens]
    covered: set[tuple[int, int, int]] = set()
    claims = defaultdict(list)
    lengths = []
    for cta, record in enumerate(records.tolist()):
        seq, block, tile, left, row, seq_len, origin, parts, last_parts = record[:9]
        if left == 0:
            continue
        lengths.append(left)
        assert (row, seq_len) == (3 * seq, lens[seq])
        first = True
        while left > 0:
            take = min(left, ranges[seq].stop - tile)
            assert take > 0
            piece = {(seq, block, t) for t in range(tile, tile + take)}
            assert not piece & covered
            covered |= piece
            left -= take
            if first:
                claims[seq, block].append((cta, origin, parts))
            else:
                claims[seq, block].append((cta, cta, last_parts if left == 0 else 1))
            first = False
            seq, block = (seq, block + 1) if block + 1 < num_blocks else (seq + 1, 0)
            tile = ranges[seq].start if seq < len(lens) else 0
    assert len(covered) == num_blocks * sum(map(len, ranges))
    assert max(lengths) - min(lengths) <= 1
    for unit in claims.values():
        start, count = unit[0][0], len(unit)
        assert unit == [(start + i, start, count) for i in range(count)]


@pytest.mark.parametrize("window_left", [-1, 0, 15, 16, 1000])
@pytest.mark.parametrize(
    "lens",
    [[1], [16], [17], [1, 15, 16, 17, 31, 33], [20000], [20000, 1, 1, 300], [500] * 300],
    ids=lambda lens: f"{len(lens)}x{lens[0]}",
)
@pytest.mark.parametrize("heads", [(32, 8), (14, 2), (71, 1)], ids=str)
def test_covers_every_tile_once(lens: list[int], heads: tuple[int, int], window_left: int) -> None:
    grid = native.DecodeGrid(*heads, 64, num_sms=132)
    message = make_message(lens)
    num_bytes = native.plan_decode(message, [(grid, -1), (grid, window_left)])
    assert message[NUM_WORK] == 2 * grid.num_ctas
    assert num_bytes == 4 * message[TOTAL_WORDS]
    offset = int(message[OFF_WORK])
    assert offset % 4 == 0
    records = message[offset:][: 2 * grid.num_ctas * WORK_WORDS].view(2, grid.num_ctas, WORK_WORDS)
    check_plan(records[0], lens, grid)
    check_plan(records[1], lens, grid, window_left)


def test_random_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = native.DecodeGrid(32, 8, 128, num_sms=7)
    for top in (20, 300, 5000):
        lens = torch.randint(1, top, (37,), generator=generator).tolist()
        message = make_message(lens)
        native.plan_decode(message, [(grid, -1)])
        records = message[int(message[OFF_WORK]) :][: grid.num_ctas * WORK_WORDS]
        check_plan(records.view(-1, WORK_WORDS), lens, grid)


def test_planning_again_replaces_the_plan() -> None:
    grid = native.DecodeGrid(32, 8, 128, num_sms=132)
    message = make_message([100, 2000])
    once = native.plan_decode(message, [(grid, -1)])
    copy = message.clone()
    assert native.plan_decode(message, [(grid, -1)]) == once
    assert torch.equal(message, copy)


def test_step_without_decodes_has_no_plan() -> None:
    message = make_message([])
    grid = native.DecodeGrid(32, 8, 128, num_sms=132)
    assert native.plan_decode(message, [(grid, -1)]) == 32 * 4
    assert message[NUM_WORK] == 0


def test_too_small_message_names_both_sizes() -> None:
    grid = native.DecodeGrid(32, 8, 128, num_sms=132)
    message = make_message([5], capacity=100)
    with pytest.raises(ValueError, match=r"needs \d+ words, its capacity is 100"):
        native.plan_decode(message, [(grid, -1)])


def test_unknown_head_dim_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 72"):
        native.DecodeGrid(8, 8, 72, num_sms=132)


def test_a_latent_unit_has_few_parts() -> None:
    """One long sequence is not cut for every CTA: its parts must be joined again."""
    grid = native.DecodeGrid(16, 1, 576, num_sms=132)
    for lens in ([8192], [8192, 5, 100], [100] * 64):
        message = make_message(lens)
        native.plan_decode(message, [(grid, -1)])
        records = msg.section(message, int(message[OFF_WORK]), grid.num_ctas, WORK_WORDS)
        check_plan(records, lens, grid)
        assert records[:, 7].max() <= 17
