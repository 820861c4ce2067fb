"""Graph sizes, the pool's size and the made-up step that measures memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from engine.driver import driver
from srt.config import Settings
from srt.engine.device_state import Limits
from srt.engine.memory import KvFormat, num_pool_pages, page_bytes
from srt.engine.startup import cap_running, make_limits, max_mixed_tokens
from srt.engine.step import profile_words, write_profile_message
from srt.engine.trial import nccl_bytes_of_large_graphs, warm_up_prompts
from srt.engine_sizes import NCCL_CALL_BYTES, graph_sizes
from srt.errors import ConfigError
from srt.families import load_model_config
from srt.kv_spec import KvSpec
from srt.ops.peers import PeerGroup
from srt.parallel import TensorParallel

SPEC = KvSpec(num_layers=2, num_kv_heads=4, head_dim=64, v_head_dim=64)


@pytest.mark.parametrize("max_bs", [1, 2, 3, 7, 8, 9, 160, 256, 300, 1680, 2048])
def test_graph_sizes_cover_every_batch_with_little_padding(max_bs: int) -> None:
    sizes = graph_sizes(max_bs)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == max_bs
    for batch in range(1, max_bs + 1):
        padded = min(size for size in sizes if size >= batch)
        assert padded - batch < max(8, batch / 8)
    assert len(sizes) <= 90


def test_page_bytes_counts_both_tensors_and_token_ids() -> None:
    bf16 = KvFormat.of("auto", torch.bfloat16)
    fp8 = KvFormat.of("fp8_e5m2", torch.bfloat16)
    assert page_bytes(SPEC, 16, bf16) == 16 * (2 * 4 * (64 + 64) * 2 + 4)
    assert page_bytes(SPEC, 16, fp8) == 16 * (2 * 4 * (64 + 64) * 1 + 4)


def test_pool_is_lowered_by_max_total_tokens_and_never_raised() -> None:
    def pages(max_total_tokens: int | None, budget: int = 10_000) -> int:
        settings = Settings(model_path="x", max_total_tokens=max_total_tokens)
        return num_pool_pages(settings, budget, 100, TensorParallel())

    assert pages(None) == 100
    assert pages(160) == 11  # ten pages of 16 and the scratch page
    assert pages(161) == 12
    assert pages(10**6) == 100
    with pytest.raises(ConfigError, match="KV pool"):
        pages(None, budget=150)
    with pytest.raises(ConfigError, match="KV pool"):
        pages(None, budget=-5)


def test_large_graphs_are_counted_where_nccl_sums_their_messages(tiny: tuple[Path, Any]) -> None:
    config = load_model_config(tiny[0])
    sizes = graph_sizes(64)
    peers = SimpleNamespace(max_bytes=48 * 2 * config.hidden_size)
    tp = replace(TensorParallel(0, 2), peers=cast(PeerGroup, peers))
    num_large = sum(size > 48 for size in sizes)
    assert num_large > 0
    found = nccl_bytes_of_large_graphs(tp, sizes, config)
    assert found == num_large * (2 * config.num_layers + 2) * NCCL_CALL_BYTES
    assert nccl_bytes_of_large_graphs(TensorParallel(0, 2), sizes, config) == 0


def test_default_rows_leave_each_sequence_room(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0], max_running_requests=None, max_total_tokens=1024) as d:
        assert d.engine.worker.limits.max_running == 1024 // 128
    with driver(tiny[0], max_running_requests=500, max_total_tokens=64, page_size=4) as d:
        assert d.engine.worker.limits.max_running == 16  # one page each


def test_without_chunks_a_step_holds_the_longest_prompt(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0], chunked_prefill_size=-1, max_prefill_tokens=64) as d:
        limits = d.engine.worker.limits
        assert limits.max_step_tokens == limits.max_seq_len + limits.max_running
        settings = Settings(model_path="x", chunked_prefill_size=-1, max_prefill_tokens=64)
        config = d.engine.worker.model.config
        again = cap_running(settings, make_limits(settings, config, torch.device("cpu")), 9)
        assert again.max_running == 1


@pytest.mark.parametrize(("num_seqs", "num_tokens"), [(1, 1), (3, 10), (16, 64), (7, 7)])
def test_profile_step_runs_and_touches_scratch_only(
    tiny: tuple[Path, Any], num_seqs: int, num_tokens: int
) -> None:
    with driver(tiny[0], chunked_prefill_size=64) as d:
        worker = d.engine.worker
        words = worker.message.numpy()
        assert profile_words(num_seqs, num_tokens) <= len(words)
        words[:] = -1
        is_decode = num_seqs == num_tokens
        shape = write_profile_message(words, num_seqs, num_tokens, decode=is_decode)
        assert shape.num_bytes == 4 * profile_words(num_seqs, num_tokens)
        assert shape.is_decode == is_decode
        worker.launch(shape)
        result = worker.result()
        assert len(result.tokens) == num_seqs
        first_page = worker.limits.page_size
        for pool in (*worker.state.kv.k, *worker.state.kv.v):
            assert pool[0].any()
            assert not pool[1:].any()
        assert not worker.state.slot_tokens[first_page:].any()
        assert not worker.state.page_table.any()


def test_warming_up_leaves_no_trace(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0], chunked_prefill_size=128) as d:
        worker = d.engine.worker
        warm_up_prompts(worker)  # 32, 64 and 128 tokens
        assert worker.state.buffers.positions[:128].tolist() == list(range(128))
        for pool in (*worker.state.kv.k, *worker.state.kv.v):
            assert not pool[1:].any()


def test_padded_decode_of_no_sequences_is_what_a_graph_captures(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d, torch.inference_mode():
        worker = d.engine.worker
        worker.runner.write_empty_message()
        output = worker.runner.run_decode(5)
        assert output.tokens is not None
        assert output.logits is not None
        assert output.tokens.shape == (5,)
        assert output.logits.shape == (5, 320)
        assert output.logits.isfinite().all()
        assert not worker.state.kv.k[0][1:].any()


@pytest.mark.parametrize(
    ("rate", "asked", "found"),
    [
        (45_000.0, None, 1024),  # 1125 in 25 ms
        (3_000.0, None, 256),
        (400_000.0, None, 0),  # a whole chunk takes less
        (0.0, None, 0),  # nobody measured
        (45_000.0, 300, 300),
        (45_000.0, 0, 0),
    ],
)
def test_prompts_beside_decodes_take_about_25_ms(
    rate: float, asked: int | None, found: int
) -> None:
    settings = Settings(model_path="x", max_mixed_tokens=asked)
    limits = Limits(
        max_running=8, max_seq_len=65536, max_step_tokens=8200, max_logits=8200, page_size=16
    )
    assert max_mixed_tokens(settings, limits, rate, TensorParallel()) == found
