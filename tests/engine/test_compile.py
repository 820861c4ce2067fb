"""A decode step under torch.compile: one graph without breaks, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.runner import load, random_tokens
from srt.config import Settings
from srt.engine.compile import CompiledDecode, check_compiles, decode_logits
from srt.errors import ConfigError
from srt.parallel import TensorParallel
from srt.tiny import write_tiny

PROMPTS = [random_tokens(n, seed=n) for n in (1, 6, 9)]
CASES: list[tuple[str, str | None]] = [
    ("LlamaForCausalLM", "fp8"),
    ("Qwen2ForCausalLM", None),
    ("Qwen3ForCausalLM", None),  # norms on heads
    ("Gemma2ForCausalLM", None),  # soft caps, sandwich norms
]


@pytest.mark.parametrize(("family", "quantization"), CASES)
def test_decode_compiles_as_one_graph(
    tmp_path: Path, family: str, quantization: str | None
) -> None:
    """fullgraph=True raises at a break; the kernels are the same ones, so the bits are too."""
    write_tiny(tmp_path, family, num_hidden_layers=2)
    plain = load(tmp_path, quantization=quantization)
    traced = load(tmp_path, quantization=quantization)
    torch.compiler.reset()
    compiled = torch.compile(decode_logits, fullgraph=True, dynamic=False, backend="aot_eager")
    steps = []
    for runner in (plain, traced):
        runner.lens = {}
        with torch.inference_mode():
            runner.step(dict(enumerate(PROMPTS)))
            token = {row: [7 + row] for row in range(len(PROMPTS))}
            steps.append(
                runner.step(token) if runner is plain else runner.step_with(token, compiled)
            )
    assert torch.equal(*steps)
    pools = zip(plain.kv.k + plain.kv.v, traced.kv.k + traced.kv.v, strict=True)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pools)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own code generator
def test_by_the_default_backend(tmp_path: Path) -> None:
    """What CUDA graphs record on a GPU, here in C++."""
    write_tiny(tmp_path, num_hidden_layers=1)
    plain, traced = load(tmp_path), load(tmp_path)
    torch.compiler.reset()
    decode = CompiledDecode(traced.model, max_bs=8)
    outputs = []
    with torch.inference_mode():
        for runner in (plain, traced):
            runner.lens = {}
            runner.step({0: PROMPTS[1], 1: PROMPTS[2]})
        for token in (5, 6):
            rows = {0: [token], 1: [token + 1]}
            outputs.append(
                (plain.step(rows), traced.step_with(rows, lambda _, batch: decode.logits(batch)))
            )
    assert all(torch.equal(a, b) for a, b in outputs)
    assert decode.sizes == [2]
    assert decode.seconds > 0.0


def test_a_step_that_does_not_compile_names_the_model(tmp_path: Path) -> None:
    write_tiny(tmp_path, num_hidden_layers=1)
    runner = load(tmp_path)
    layer: Any = runner.model.layers[0]
    layer.attn.rope_breaks = True
    torch.compiler.reset()
    forward = layer.forward

    def broken(*args: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(*args)

    layer.forward = broken
    decode = CompiledDecode(runner.model, max_bs=8)
    with pytest.raises(ConfigError, match="LlamaForCausalLM does not compile as a whole"):
        runner.step_with({0: [5]}, lambda _, batch: decode.logits(batch))


@pytest.mark.parametrize(
    ("changes", "tp", "message"),
    [({}, 1, "needs a GPU"), ({"disable_cuda_graph": True}, 1, "needs a GPU")],
)
def test_where_it_has_nothing_to_compile_for(
    changes: dict[str, Any], tp: int, message: str
) -> None:
    settings = Settings(model_path="m", enable_torch_compile=True, **changes)
    with pytest.raises(ConfigError, match=message):
        check_compiles(settings, TensorParallel(0, tp), torch.device("cpu"))
    with pytest.raises(ConfigError, match="not --tp-size 2"):
        check_compiles(
            Settings(model_path="m", enable_torch_compile=True),
            TensorParallel(0, 2),
            torch.device("cuda"),
        )
