"""DeepSeek-V2 in the engine: the pool holds latents, and greedy tokens are transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.driver import assert_greedy, driver, greedy, random_prompts
from srt.engine.memory import KvFormat, page_bytes
from srt.tiny import write_tiny

KV_RANK, ROPE_DIM, LAYERS = 32, 8, 3  # of srt.tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("deepseek")
    return folder, write_tiny(folder, "DeepseekV2ForCausalLM")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunked_prefill_size": 16, "page_size": 4},
        {"max_total_tokens": 256, "schedule_conservativeness": 0.01, "page_size": 1},
    ],
    ids=["whole", "chunks", "retraction"],
)
def test_greedy_tokens(checkpoint: tuple[Path, Any], settings: dict[str, Any]) -> None:
    """The second time from the prefix cache."""
    folder, model = checkpoint
    prompts = random_prompts(6, 60, 320)
    with driver(folder, **settings) as d:
        first = d.run(prompts, greedy(12))
        again = d.run(prompts[:3], greedy(12))
    for prompt, output in zip(prompts + prompts[:3], first + again, strict=True):
        assert_greedy(model, prompt, output.tokens)
    assert any(output.cached_tokens > 0 for output in again)


def test_a_token_costs_its_latent(checkpoint: tuple[Path, Any]) -> None:
    """kv_lora_rank + rope_dim values a layer, whatever the number of heads; beside its token id."""
    with driver(checkpoint[0]) as d:
        worker = d.engine.worker
        pool, spec = worker.state.kv, worker.model.kv_spec
    assert pool.v == ()
    assert len(pool.k) == LAYERS
    assert all(k.shape[1:] == (1, pool.page_size, KV_RANK + ROPE_DIM) for k in pool.k)
    for dtype, itemsize in ((torch.float32, 4), (torch.bfloat16, 2)):
        num_bytes = page_bytes(spec, 1, KvFormat.of("auto", dtype))
        assert num_bytes == LAYERS * (KV_RANK + ROPE_DIM) * itemsize + 4
    assert page_bytes(spec, 1, KvFormat.of("fp8_e4m3", torch.bfloat16)) == 3 * 40 + 4
