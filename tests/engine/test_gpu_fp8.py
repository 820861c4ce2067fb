"""The engine on a GPU with `--quantization fp8`: greedy tokens, whatever the engine's settings.

Products of few, of many and of a prompt's rows round e4m3 differently, so tokens are judged, not
compared: in the float32 model with the same quantized weights they must lie as near to the best as
those of a forward in plain torch do, whose activations are e4m3, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from engine.test_gpu_engine import make_prompts
from srt.llm import Engine
from srt.ops.fp8 import dequantize, quantize_rows
from srt.tiny import write_tiny

pytestmark = pytest.mark.gpu

# Heads of 128 and 12288 columns of gate: attention and gate_up store e4m3 for the next product.
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 12288,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
NUM_PROMPTS, NUM_TOKENS = 80, 24  # steps of up to 80 rows: more than the skinny product takes
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no_graph": {"disable_cuda_graph": True},
    "no_radix": {"disable_radix_cache": True},
    "no_overlap": {"disable_overlap_schedule": True},
    "few": {"max_running_requests": 6},
    "e5m2_pool": {"kv_cache_dtype": "fp8_e5m2"},
    "retraction": {"max_total_tokens": 4096, "schedule_conservativeness": 0.01},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bf16 checkpoint."""
    folder: Path = tmp_path_factory.mktemp("fp8_engine")
    write_tiny(folder, dtype=torch.bfloat16, eos_token_id=None, **SHAPE)
    return folder


def quantize_input(_: nn.Module, args: tuple[Tensor]) -> Tensor:
    """A linear layer's input as e4m3 says it, a scale a row."""
    return dequantize(*quantize_rows(args[0]), args[0].dtype)


class Judge:
    """The float32 model of the quantized weights, and the same with e4m3 activations in bf16."""

    def __init__(self, folder: Path) -> None:
        def load(dtype: torch.dtype) -> Any:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
            for name, layer in model.named_modules():
                if isinstance(layer, nn.Linear) and name != "lm_head":
                    layer.weight.data = dequantize(*quantize_rows(layer.weight.data), torch.float32)
            for name, weight in model.named_parameters():
                if ".experts." in name:
                    weight.data = dequantize(*quantize_rows(weight.data), torch.float32)
            return model.to("cuda", dtype).eval()

        self._exact, self._rough = load(torch.float32), load(torch.bfloat16)
        for name, layer in self._rough.named_modules():
            if isinstance(layer, nn.Linear) and name != "lm_head":
                layer.register_forward_pre_hook(quantize_input)

    @torch.inference_mode()
    def gaps(self, prompts: list[list[int]], outputs: list[list[int]]) -> tuple[float, float]:
        """How far below the best the output tokens lie on average, and e4m3's own choices."""
        ours, theirs = [], []
        for prompt, output in zip(prompts, outputs, strict=True):
            ids = torch.tensor([prompt + output], device="cuda")
            exact = self._exact(ids).logits[0, len(prompt) - 1 : -1]
            rough = self._rough(ids).logits[0, len(prompt) - 1 : -1]
            best = exact.max(dim=1).values
            for chosen, gaps in ((ids[0, len(prompt) :], ours), (rough.argmax(dim=1), theirs)):
                gaps.append(best - exact.gather(1, chosen.unsqueeze(1))[:, 0])
        return torch.cat(ours).mean().item(), torch.cat(theirs).mean().item()


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> Iterator[Judge]:
    """The reference of the module's checkpoint."""
    yield Judge(checkpoint)
    torch.cuda.empty_cache()


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_greedy_tokens_are_the_models(checkpoint: Path, judge: Judge, variant: str) -> None:
    prompts = make_prompts(NUM_PROMPTS)
    params = {"temperature": 0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
    settings = {
        "max_running_requests": NUM_PROMPTS,
        "max_total_tokens": 16384,  # small, so that engines run beside each other
        **VARIANTS[variant],
    }
    with Engine(
        model_path=str(checkpoint),
        skip_tokenizer_init=True,
        quantization="fp8",
        random_seed=0,
        **settings,
    ) as engine:
        rounds = [  # the second round hits the prefix cache
            engine.generate(input_ids=prompts, sampling_params=params) for _ in range(2)
        ]
        state = engine.state()[0]
    slack = 3.0 if "kv_cache_dtype" in settings else 1.25  # e5m2 keys and values err more
    for results in rounds:
        outputs = [result["token_ids"] for result in results]
        assert all(len(output) == NUM_TOKENS for output in outputs)
        gap, of_torch = judge.gaps(prompts, outputs)
        assert gap <= slack * of_torch
    assert (state["num_retracted"] > 0) == (variant == "retraction")


@pytest.mark.parametrize("max_running", [6, NUM_PROMPTS])
def test_experts_in_fp8(tmp_path: Path, max_running: int) -> None:
    """Their weights stay in fp8, and what they take stays wide."""
    sizes = SHAPE | {"intermediate_size": 768, "num_local_experts": 4}
    write_tiny(tmp_path, "MixtralForCausalLM", dtype=torch.bfloat16, eos_token_id=None, **sizes)
    prompts = make_prompts(NUM_PROMPTS)
    with Engine(
        model_path=str(tmp_path),
        skip_tokenizer_init=True,
        quantization="fp8",
        max_running_requests=max_running,
        max_total_tokens=16384,
    ) as engine:
        params = {"temperature": 0, "max_new_tokens": NUM_TOKENS, "ignore_eos": True}
        results = engine.generate(input_ids=prompts, sampling_params=params)
    outputs = [result["token_ids"] for result in results]
    gap, of_torch = Judge(tmp_path).gaps(prompts, outputs)
    assert gap <= 1.25 * of_torch
