"""Vectors from a GPU: in bf16, judged by the error that transformers' own bf16 forward makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.driver import random_prompts
from engine.test_embedding import POOL, write_modules
from engine.test_gpu_engine import SMALL_POOL
from srt.llm import Engine
from srt.tiny import make_hf_model

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 768,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
PROMPTS = random_prompts(60, 400, 320, seed=2)


def write(folder: Path, pooling: str, *, causal: bool) -> None:
    """A bf16 checkpoint with random weights."""
    model: Any = make_hf_model("Qwen2ForCausalLM", **SHAPE, is_causal=causal)
    model.to(torch.bfloat16).save_pretrained(folder)
    write_modules(folder, pooling)


def reference(folder: Path, pooling: str, dtype: torch.dtype) -> torch.Tensor:
    """transformers' [prompts, hidden], each prompt by itself, in float64 and of length 1."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype).to(DEVICE).eval()
    with torch.inference_mode():
        states = [model(torch.tensor([p], device=DEVICE)).last_hidden_state[0] for p in PROMPTS]
    return normalized(torch.stack([POOL[pooling](s.double()) for s in states]).cpu())


def normalized(vectors: Any) -> torch.Tensor:
    """Rows of length 1 in float64."""
    return torch.nn.functional.normalize(torch.as_tensor(vectors, dtype=torch.float64), dim=1)


def assert_as_good(folder: Path, pooling: str, found: list[dict[str, Any]]) -> None:
    """Our vectors turn from the exact ones at most four times as much as transformers' bf16 do."""
    exact = reference(folder, pooling, torch.float32)
    rough = reference(folder, pooling, torch.bfloat16)
    ours = normalized([entry["embedding"] for entry in found])
    explained = (1 - (rough * exact).sum(dim=1)).max()
    assert (1 - (ours * exact).sum(dim=1)).max() <= 4 * explained + 1e-5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pooling", ["lasttoken", "mean_tokens", "cls_token"])
def test_vectors_are_as_good_as_transformers(tmp_path: Path, pooling: str, causal: bool) -> None:
    write(tmp_path, pooling, causal=causal)
    settings: dict[str, Any] = {"chunked_prefill_size": 256, "skip_tokenizer_init": True}
    with Engine(
        model_path=str(tmp_path), device=DEVICE, is_embedding=True, **SMALL_POOL, **settings
    ) as engine:
        found = [engine.encode(input_ids=PROMPTS) for _ in range(2)][1]
    assert_as_good(tmp_path, pooling, found)


def test_a_generating_engine_embeds_between_its_graphs(tmp_path: Path) -> None:
    """Decode graphs run on while prompts are embedded; vectors are those of an embedder."""
    write(tmp_path, "lasttoken", causal=True)
    params = {"temperature": 0, "max_new_tokens": 200, "ignore_eos": True}
    with Engine(
        model_path=str(tmp_path), device=DEVICE, skip_tokenizer_init=True, **SMALL_POOL
    ) as engine:
        stream = engine.generate(input_ids=PROMPTS[:8], sampling_params=params, stream=True)
        next(stream)
        found = engine.encode(input_ids=PROMPTS)
        last = {piece["index"]: piece for piece in stream}
    assert all(len(piece["token_ids"]) == 200 for piece in last.values())
    assert_as_good(tmp_path, "lasttoken", found)
