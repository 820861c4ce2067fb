"""Buckets of captured extend steps: what fits where."""

from __future__ import annotations

import pytest

from srt.engine.extend_graph import Bucket, extend_buckets


def test_buckets_leave_room_for_their_padding() -> None:
    for bucket in extend_buckets(10000, 2048):
        one_prompt = bucket.num_tokens - bucket.num_seqs
        assert bucket.fits(1, one_prompt + 1)
        assert not bucket.fits(1, one_prompt + 2)
        assert bucket.fits(bucket.num_seqs, bucket.num_tokens)
        assert not bucket.fits(bucket.num_seqs + 1, bucket.num_seqs + 1)


def test_round_prompt_lengths_have_a_bucket_of_their_own() -> None:
    sizes = extend_buckets(10000, 2048)
    for tokens in (64, 256, 1024, 2048):
        smallest = next(b for b in sizes if b.fits(1, tokens))
        assert smallest.num_tokens - smallest.num_seqs == tokens


@pytest.mark.parametrize(("max_step_tokens", "max_running"), [(16, 4), (100, 8), (5000, 1)])
def test_buckets_keep_to_the_engines_limits(max_step_tokens: int, max_running: int) -> None:
    for bucket in extend_buckets(max_step_tokens, max_running):
        assert bucket.num_tokens <= max_step_tokens
        assert bucket.num_seqs <= max_running
    assert Bucket(4, 36) not in extend_buckets(35, 64)
