"""`srt-server plan`: its sizes are those of the models that it plans for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoints import ALL, Cache
from srt import cli
from srt.families import load_model_config
from srt.footprint import indivisible, weight_counts
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.plan import Choice, gpu_memory, make_budget
from srt.tiny import write_tiny

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}
V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16",
}


def write_config(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def plan(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["plan", *argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp)


@pytest.mark.parametrize("tp_size", [1, 2, 4])
@pytest.mark.parametrize("family", ALL)
def test_weights_are_the_models(checkpoints: Cache, family: str, tp_size: int) -> None:
    config = load_model_config(checkpoints[family].folder)
    if indivisible(config, tp_size):
        with pytest.raises(ValueError, match="cannot be divided"):
            build_model(config, TensorParallel(0, tp_size), torch.device("cpu"), torch.bfloat16)
        return
    tp = TensorParallel(tp_size - 1, tp_size)
    model = build_model(config, tp, torch.device("cpu"), torch.bfloat16)
    held = sum(p.numel() * p.itemsize for p in model.parameters())
    assert weight_counts(config, tp_size).num_bytes(2, fp8=False) == held


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Phi3ForCausalLM", "MixtralForCausalLM"])
def test_fp8_weights_are_the_models(checkpoints: Cache, family: str, tp_size: int) -> None:
    """A byte each and a float32 scale a row; norms, tables and routers stay wide."""
    config = load_model_config(checkpoints[family].folder, quantization="fp8")
    tp = TensorParallel(0, tp_size)
    model = build_model(config, tp, torch.device("cpu"), torch.bfloat16)
    held = sum(p.numel() * p.itemsize for p in model.parameters())
    assert weight_counts(config, tp_size).num_bytes(2, fp8=True) == held


def test_figures_of_a_known_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, write_config(tmp_path, LLAMA_8B), "--gpu", "H100")
    assert code == 0
    budget = out["budget"]
    assert budget["weight_bytes"] == 2 * 8030261248
    assert budget["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert 55 * 2**30 < budget["pool_bytes"] < 64 * 2**30
    assert budget["pool_tokens"] * (131072 + 4) <= budget["pool_bytes"]
    assert out["fits"]
    assert out["command"] == f"srt-server --model-path {tmp_path}"


def test_latent_kv_is_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """V2-Lite holds 576 values a token and layer, on every rank."""
    model = write_config(tmp_path, V2_LITE)
    for tp_size in ("1", "2"):
        _, out = plan(capsys, model, "--tp", tp_size)
        assert out["budget"]["kv_bytes_per_token"] == 27 * 576 * 2
    _, out = plan(capsys, model, "--kv-cache-dtype", "fp8_e4m3")
    assert out["budget"]["kv_bytes_per_token"] == 27 * 576


def test_what_would_fit_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path, LLAMA_8B)
    code, out = plan(capsys, model, "--gpu", "16GB")
    assert code == 3
    assert not out["fits"]
    assert "GiB are left for KV" in out["reason"]
    assert "--quantization fp8" in out["alternatives"]
    assert any(other.startswith("--tp-size 2") for other in out["alternatives"])
    assert cli.main(["plan", model, "--gpu", "16GB"]) == 3
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "would fit with           --quantization fp8" in text


def test_alternatives_do_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(tmp_path, V2_LITE)
    _, out = plan(capsys, model, "--gpu", "24GB")
    assert out["alternatives"]
    for other in out["alternatives"]:
        code, again = plan(capsys, model, "--gpu", "24GB", *other.split())
        assert code == 0, other
        assert again["fits"]


def test_uneven_ranks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(capsys, write_config(tmp_path, LLAMA_8B), "--tp", "3")
    assert code == 3
    assert out["reason"] == "intermediate_size (14336) cannot be divided over 3 GPUs"


def test_files_are_held_against_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path, dtype=torch.bfloat16, max_shard_size="100KB")
    _, out = plan(capsys, str(tmp_path))
    assert "of safetensors" in out["checkpoint"]
    assert "do not belong together" not in out["checkpoint"]
    config = json.loads((tmp_path / "config.json").read_text())
    write_config(tmp_path, config | {"num_hidden_layers": 9, "layer_types": None})
    _, out = plan(capsys, str(tmp_path))
    assert "they do not belong together" in out["checkpoint"]


def test_gpu_names_and_sizes() -> None:
    assert gpu_memory("24GB") == gpu_memory("24 gib") == 24 * 2**30
    assert gpu_memory("h100") == 81559 * 2**20


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", write_config(tmp_path, LLAMA_8B), "--gpu", "abacus"]) == 2
    assert "--gpu abacus is neither a size such as 24GB nor one of" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["plan", str(tmp_path)]) == 2
    assert "architectures must name one of" in capsys.readouterr().err


def test_running_fewer_leaves_more_kv(tmp_path: Path) -> None:
    config = load_model_config(Path(write_config(tmp_path, LLAMA_8B)))
    many = Choice(1, "auto", fp8=False, context_len=131072, max_running=1024)
    gpu = gpu_memory("H100")
    few = replace(many, max_running=16)
    assert (
        make_budget(config, "bfloat16", few, gpu).pool_bytes
        > make_budget(config, "bfloat16", many, gpu).pool_bytes
    )


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    model = write_config(tmp_path, LLAMA_8B)
    code = (
        "import sys; from srt.plan import main; "
        f"main([{model!r}]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
