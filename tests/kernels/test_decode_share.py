"""Plans of shared prefixes: who reads what, and when sharing pays."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from torch import Tensor

from kernels.test_decode_plan import OFF_WORK, TOTAL_WORDS, WORK_WORDS, make_message
from srt.core import native

if not native.HAS_CUDA:
    pytest.skip("built without CUDA", allow_module_level=True)

PAGE_SIZE = 16


@dataclass(frozen=True)
class Unit:
    """Part of a unit as one CTA's record names it."""

    cta: int
    origin: int
    parts: int


def plan(
    grid: native.DecodeGrid, lens: list[int], groups: list[int], pages: list[int], window: int = -1
) -> tuple[Tensor, Tensor]:
    """The plan's records [num_ctas, 12], and the words from the records on."""
    message = make_message(lens)
    num_bytes = native.plan_decode(
        message,
        [(grid, window)],
        np.array(groups, np.int32),
        np.array(pages, np.int32),
        PAGE_SIZE,
    )
    assert num_bytes == 4 * message[TOTAL_WORDS]
    begin, end = int(message[OFF_WORK]), int(message[TOTAL_WORDS])
    assert end - begin <= native.max_decode_plan_words([(grid, window)], len(lens))
    words = message[begin:end]
    return words[: grid.num_ctas * WORK_WORDS].view(-1, WORK_WORDS), words


def check(
    grid: native.DecodeGrid, lens: list[int], groups: list[int], pages: list[int]
) -> list[int]:
    """Every tile of every head is read once, or by the row block of its sequence; who shares."""
    records, words = plan(grid, lens, groups, pages)
    share = int(records[0, 10])
    if share == 0:
        assert (records[:, 9:11] == 0).all()
        return [0] * len(lens)
    section = words[share:].tolist()
    blocks_at, members_at, units_at, num_blocks = section[:4]
    assert blocks_at % 4 == 0
    by_seq = [section[4 + 2 * i : 6 + 2 * i] for i in range(len(lens))]
    heads, tile, rounds = grid.num_head_blocks, grid.tile_tokens, {}
    prefix_units: dict[tuple[int, int], list[Unit]] = defaultdict(list)
    own: dict[tuple[int, int], set[int]] = defaultdict(set)
    for block in range(num_blocks):
        first, count, num_rounds, row = section[blocks_at + 4 * block : blocks_at + 4 * block + 4]
        rounds[block] = num_rounds
        members = range(first, first + count)
        seqs = [section[members_at + 2 * m] for m in members]
        assert len({groups[s] for s in seqs}) == 1
        assert row == 3 * seqs[0]
        for seq, member in zip(seqs, members, strict=True):
            assert section[members_at + 2 * member + 1] == block
            assert by_seq[seq] == [num_rounds * grid.round_tokens // tile, member]
            assert num_rounds * grid.round_tokens <= pages[seq] * PAGE_SIZE
            assert num_rounds * grid.round_tokens < lens[seq]
    for cta, record in enumerate(records.tolist()):
        at, head, tile_at, left, _, _, origin, parts, last_parts, is_prefix, offset = record[:11]
        assert left == 0 or offset == share
        is_first = True
        while left > 0:
            stop = rounds[at] if is_prefix else -(-lens[at] // tile)
            take = min(left, stop - tile_at)
            assert take > 0
            left -= take
            if is_prefix:
                mine = (origin, parts) if is_first else (cta, last_parts if left == 0 else 1)
                prefix_units[at, head] += [Unit(cta, *mine)]
            else:
                piece = set(range(tile_at, tile_at + take))
                assert not piece & own[at, head]
                own[at, head] |= piece
            is_first = False
            at, head = (at, head + 1) if head + 1 < heads else (at + 1, 0)
            tile_at = 0 if is_prefix or at >= len(lens) else by_seq[at][0]
    for seq, seq_len in enumerate(lens):
        for head in range(heads):
            assert own[seq, head] == set(range(by_seq[seq][0], -(-seq_len // tile)))
    assert set(prefix_units) == {(b, h) for b in range(num_blocks) for h in range(heads)}
    for (block, head), parts_of in prefix_units.items():
        at = units_at + 2 * (block * heads + head)
        origin, count = section[at : at + 2]
        assert parts_of == [Unit(origin + i, origin, count) for i in range(count)]
    return [skip * tile for skip, _ in by_seq]


@pytest.mark.parametrize("heads", [(32, 8), (14, 2), (8, 8), (16, 1)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("num_sms", [2, 20])
def test_every_tile_has_one_reader(heads: tuple[int, int], head_dim: int, num_sms: int) -> None:
    grid = native.DecodeGrid(*heads, head_dim, num_sms=num_sms)
    lens = [2049 + 17 * i for i in range(40)] + [5, 700] + [1024 + i for i in range(9)]
    groups = [0] * 40 + [-1, -1] + [1] * 9
    pages = [128] * 40 + [0, 0] + [63] * 9
    shared = check(grid, lens, groups, pages)
    want = 63 * PAGE_SIZE // grid.round_tokens * grid.round_tokens
    assert shared == [2048 // grid.round_tokens * grid.round_tokens] * 40 + [0] * 2 + [want] * 9


def test_groups_may_be_interleaved() -> None:
    grid = native.DecodeGrid(32, 8, 128, num_sms=132)
    rng = np.random.default_rng(0)
    groups = rng.integers(-1, 5, 200).tolist()
    pages = [0 if g < 0 else 20 + 7 * g for g in groups]
    lens = [p * PAGE_SIZE + int(n) for p, n in zip(pages, rng.integers(1, 300, 200), strict=True)]
    shared = check(grid, lens, groups, pages)
    assert all((n > 0) == (g >= 0) for n, g in zip(shared, groups, strict=True))


@pytest.mark.parametrize(
    ("members", "prefix_pages", "pays"),
    [(1, 512, False), (2, 512, True), (2, 4, False), (3, 64, True), (16, 4, True), (16, 3, False)],
)
def test_sharing_is_chosen_where_it_pays(members: int, prefix_pages: int, pays: bool) -> None:
    grid = native.DecodeGrid(32, 8, 128, num_sms=1)
    lens = [prefix_pages * PAGE_SIZE + 5] * members
    shared = check(grid, lens, [0] * members, [prefix_pages] * members)
    assert (shared[0] > 0) == pays


def test_a_little_saved_on_a_large_device_is_not_worth_two_lines() -> None:
    lens, groups, pages = [64 * PAGE_SIZE + 5] * 4, [0] * 4, [64] * 4
    for num_sms, shares in ((4, True), (132, False)):
        grid = native.DecodeGrid(32, 8, 128, num_sms=num_sms)
        assert (check(grid, lens, groups, pages)[0] > 0) == shares


def test_a_prefix_never_holds_the_newest_token() -> None:
    grid = native.DecodeGrid(32, 8, 128, num_sms=4)
    assert check(grid, [1024] * 8, [0] * 8, [64] * 8) == [1024 - grid.round_tokens] * 8


def test_more_sharers_than_there_is_room_for_read_for_themselves() -> None:
    grid = native.DecodeGrid(14, 2, 64, num_sms=132)
    groups = [0] * 1000 + [1] * 100 + [2] * 20
    shared = check(grid, [520] * 1120, groups, [32] * 1120)
    assert shared == [512] * 1000 + [0] * 100 + [512] * 20


@pytest.mark.parametrize(
    ("heads", "head_dim", "window"),
    [((32, 8), 128, 4096), ((32, 8), 256, -1), ((71, 1), 64, -1)],
    ids=["window", "head_dim", "heads"],
)
def test_layers_that_cannot_share_do_not(
    heads: tuple[int, int], head_dim: int, window: int
) -> None:
    grid = native.DecodeGrid(*heads, head_dim, num_sms=132)
    records, words = plan(grid, [2100] * 16, [0] * 16, [128] * 16, window)
    assert len(words) == grid.num_ctas * WORK_WORDS
    assert (records[:, 9:] == 0).all()


def test_groups_must_name_every_decode() -> None:
    grid = native.DecodeGrid(32, 8, 128, num_sms=132)
    with pytest.raises(ValueError, match="a group and its pages for each decode"):
        plan(grid, [100, 100], [0], [4])
