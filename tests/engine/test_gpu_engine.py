"""The engine on a GPU: greedy tokens against transformers, whatever the engine's settings.

bf16 rounds ties differently with every batch shape, so tokens are judged, not compared: each must
be the float32 model's best token up to the error that transformers' own bf16 forward makes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from srt.llm import Engine
from srt.tiny import write_tiny

pytestmark = pytest.mark.gpu

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "tiny128": {
        "hidden_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
    },
    "wide": {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    },
}
# Several test processes share a GPU: nobody may take what is free.
SMALL_POOL: dict[str, Any] = {"max_total_tokens": 65536}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_graph": {"disable_cuda_graph": True},
    "no_radix": {"disable_radix_cache": True},
    "no_overlap": {"disable_overlap_schedule": True},
    "chunks": {"chunked_prefill_size": 64, "page_size": 1},
    "few": {"max_running_requests": 6},  # decodes run in the fused kernel, some rows are padding
    "few_separate": {"max_running_requests": 6, "disable_fused_decode": True},
    "few_no_graph": {"max_running_requests": 3, "disable_cuda_graph": True, "page_size": 1},
    "retraction": {"max_total_tokens": 1536, "schedule_conservativeness": 0.01},
}


@pytest.fixture(scope="module", params=sorted(SHAPES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bf16 checkpoint of one shape."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    write_tiny(folder, dtype=torch.bfloat16, eos_token_id=None, **SHAPES[request.param])
    return folder


class Judge:
    """The float32 model, and how far bf16 may be from it."""

    def __init__(self, folder: Path) -> None:
        def load(dtype: torch.dtype) -> Any:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            return model.to("cuda").eval()

        self._exact, self._rough = load(torch.float32), load(torch.bfloat16)

    @torch.inference_mode()
    def worst_gap(self, prompt: list[int], output: list[int]) -> tuple[float, float]:
        """How far below the best an output token lies at worst, and what bf16 explains."""
        ids = torch.tensor([prompt + output], device="cuda")
        exact = self._exact(ids).logits[0, len(prompt) - 1 : -1].float()
        rough = self._rough(ids).logits[0, len(prompt) - 1 : -1].float()
        chosen = exact.gather(1, torch.tensor(output, device="cuda")[:, None])[:, 0]
        gap = (exact.max(dim=1).values - chosen).max().item()
        return gap, 4 * (exact - rough).abs().max().item()


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> Iterator[Judge]:
    """The reference of the module's checkpoint."""
    yield Judge(checkpoint)
    torch.cuda.empty_cache()


def make_prompts(count: int) -> list[list[int]]:
    """Prompts of odd lengths; some share a prefix."""
    rng = random.Random(0)
    shared = [rng.randrange(3, 300) for _ in range(97)]
    prompts = []
    for i in range(count):
        own = [rng.randrange(3, 300) for _ in range(rng.choice([1, 2, 15, 16, 17, 63, 130]))]
        prompts.append(shared + own if i % 3 == 0 else own)
    return prompts


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_greedy_tokens_are_the_models(checkpoint: Path, judge: Judge, variant: str) -> None:
    prompts = make_prompts(24)
    params = {"temperature": 0, "max_new_tokens": 40, "ignore_eos": True}
    settings = {"max_running_requests": 16, **SMALL_POOL, **VARIANTS[variant]}
    with Engine(
        model_path=str(checkpoint), skip_tokenizer_init=True, random_seed=0, **settings
    ) as engine:
        for _ in range(2):  # the second round hits the prefix cache
            results = engine.generate(input_ids=prompts, sampling_params=params)
            for prompt, result in zip(prompts, results, strict=True):
                output = result["token_ids"]
                assert len(output) == 40
                gap, allowed = judge.worst_gap(prompt, output)
                assert gap <= allowed
        state = engine.state()[0]
    if variant == "retraction":
        assert state["num_retracted"] > 0


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"disable_cuda_graph": True},
        {"kv_cache_dtype": "fp8_e4m3"},
        {"disable_cascade_attn": True},
        {"disable_overlap_schedule": True, "page_size": 1},
    ],
    ids=["default", "no_graph", "fp8", "apart", "no_overlap"],
)
def test_a_long_shared_prefix_gives_the_models_tokens(
    checkpoint: Path, judge: Judge, settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Read once where that pays: with the eight KV heads of `wide`."""
    rng = random.Random(1)
    shared = [rng.randrange(3, 300) for _ in range(1920)]
    prompts = [shared + [rng.randrange(3, 300) for _ in range(1 + 4 * i)] for i in range(16)]
    params = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
    with Engine(
        model_path=str(checkpoint),
        skip_tokenizer_init=True,
        max_running_requests=16,
        random_seed=0,
        **SMALL_POOL,
        **settings,
    ) as engine:
        results = engine.generate(input_ids=prompts, sampling_params=params)
        state = engine.state()[0]
    slack = 4.0 if settings.get("kv_cache_dtype") else 1.0  # fp8 keys err more than bf16 explains
    for prompt, result in zip(prompts, results, strict=True):
        gap, allowed = judge.worst_gap(prompt, result["token_ids"])
        assert gap <= slack * allowed
    is_wide = request.node.callspec.params["checkpoint"] == "wide"
    may_share = is_wide and "kv_cache_dtype" not in settings
    shares = may_share and "disable_cascade_attn" not in settings
    assert (state["num_shared_prefix_steps"] > 10) == shares


def test_fp8_kv_stays_near(checkpoint: Path) -> None:
    """Logprobs under an fp8 cache stay within what three or two mantissa bits explain.

    The bounds are shares of their spread: about 1.4 times what the CPU's reference shows.
    """
    prompts = make_prompts(8)
    params = {"temperature": 0, "max_new_tokens": 1}
    rows = {}
    for kind, bound in (("auto", 0.0), ("fp8_e4m3", 0.3), ("fp8_e5m2", 0.5)):
        with Engine(
            model_path=str(checkpoint),
            skip_tokenizer_init=True,
            max_running_requests=16,
            kv_cache_dtype=kind,
            **SMALL_POOL,
        ) as engine:
            results = engine.generate(
                input_ids=prompts, sampling_params=params, return_logprob=True, logprob_start_len=0
            )
        rows[kind] = torch.tensor(
            [
                e[0]
                for r in results
                for e in r["meta_info"]["input_token_logprobs"]
                if e[0] is not None
            ]
        )
        error = ((rows[kind] - rows["auto"]).abs().mean() / rows["auto"].std()).item()
        assert error <= bound
