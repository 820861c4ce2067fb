"""Loading: every format gives the same weights, and what does not fit is an error naming it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.runner import load, random_tokens
from srt.errors import LoadError
from srt.families import load_model_config
from srt.models.registry import build_model
from srt.parallel import TensorParallel
from srt.tiny import write_tiny
from srt.weights.checkpoint import open_checkpoint
from srt.weights.loader import load_weights

TOKENS = random_tokens(20)
Weights = dict[str, Tensor]
TiedLlama = tuple[Path, Any]


def rewrite(source: Path, out: Path, change: Callable[[Weights], None]) -> Path:
    """A copy of a checkpoint folder with changed weights."""
    out.mkdir()
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text((source / "config.json").read_text())
    return out


def test_sharded_safetensors(tmp_path: Path, tiny_llama: TiedLlama) -> None:
    write_tiny(tmp_path, max_shard_size="100KB")
    assert len(open_checkpoint(tmp_path, "auto").files) > 1
    assert torch.equal(load(tmp_path).logits(TOKENS), load(tiny_llama[0]).logits(TOKENS))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_bin(tmp_path: Path, tiny_llama: TiedLlama, zipped: bool) -> None:
    folder, hf = tiny_llama
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    torch.save(
        hf.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped
    )
    assert torch.equal(load(tmp_path).logits(TOKENS), load(folder).logits(TOKENS))


def test_sharded_bin(tmp_path: Path, tiny_llama: TiedLlama) -> None:
    """Five-digit shards with an index: no files by rank, though they end in digits too."""
    folder, hf = tiny_llama
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    items = list(hf.state_dict().items())
    weight_map = {}
    for i, part in enumerate((items[: len(items) // 2], items[len(items) // 2 :])):
        name = f"pytorch_model-{i + 1:05d}-of-00002.bin"
        torch.save(dict(part), tmp_path / name)
        weight_map |= {key: name for key, _ in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(load(tmp_path).logits(TOKENS), load(folder).logits(TOKENS))


def test_bin_with_code_is_refused(tmp_path: Path, tiny_llama: TiedLlama) -> None:
    (tmp_path / "config.json").write_text((tiny_llama[0] / "config.json").read_text())
    torch.save({"model.norm.weight": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"pytorch_model\.bin is not a readable file of tensors"):
        load(tmp_path)


def test_half_precision_checkpoint_in_float32(tmp_path: Path) -> None:
    hf: Any = write_tiny(tmp_path, dtype=torch.bfloat16)
    weight = load(tmp_path).model.get_parameter("layers.1.mlp.down.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, hf.state_dict()["model.layers.1.mlp.down_proj.weight"].float())


def unknown(weights: Weights) -> None:
    weights["model.layers.0.mlp.extra.weight"] = torch.zeros(3)


def left_out(weights: Weights) -> None:
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def missing(weights: Weights) -> None:
    del weights["model.layers.2.self_attn.k_proj.weight"]


def misshapen(weights: Weights) -> None:
    weights["model.layers.1.self_attn.o_proj.weight"] = torch.zeros(64, 63)


def integers(weights: Weights) -> None:
    weights["model.norm.weight"] = torch.zeros(64, dtype=torch.int32)


def double(weights: Weights) -> None:
    weights["model.layers.0.mlp.gate_up_proj.weight"] = torch.zeros(192, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown, r"tensor model.layers.0.mlp.extra.weight \[3\] in model.safetensors is not in"),
        (left_out, r"q_proj.bias \[64\] in model.safetensors belongs to layers.0.attn.qkv.bias"),
        (missing, r"does not fill 1 parameters: layers.2.attn.qkv.weight"),
        (
            misshapen,
            r"o_proj.weight \[64, 63\] in model.safetensors must have the shape \[64, 64\]",
        ),
        (integers, r"model.norm.weight \[64\] in model.safetensors is torch.int32"),
        (double, r"fills layers.0.mlp.gate_up.weight part (gate|up) a second time"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, tiny_llama: TiedLlama, change: Callable[[Weights], None], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        load(rewrite(tiny_llama[0], tmp_path / "changed", change))


def test_what_a_rule_skips_is_skipped(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tied", tie_word_embeddings=True)

    def add(weights: Weights) -> None:
        weights["lm_head.weight"] = torch.zeros(320, 64)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)

    changed = rewrite(tmp_path / "tied", tmp_path / "changed", add)
    assert torch.equal(load(changed).logits(TOKENS), load(tmp_path / "tied").logits(TOKENS))


def test_broken_files_are_named(tmp_path: Path, tiny_llama: TiedLlama) -> None:
    (tmp_path / "config.json").write_text((tiny_llama[0] / "config.json").read_text())
    with pytest.raises(LoadError, match="holds no weights in the format safetensors or pt or gguf"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a header")
    with pytest.raises(LoadError, match=r"model\.safetensors is not a readable safetensors file"):
        load(tmp_path)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="names files that are missing: model-00001-of-00002"):
        load(tmp_path)


def test_unsupported_format_is_refused(tiny_llama: TiedLlama) -> None:
    with pytest.raises(LoadError, match="--load-format npcache is not supported"):
        open_checkpoint(tiny_llama[0], "npcache")


def test_dummy_weights_are_deterministic_and_tame(tiny_llama: TiedLlama) -> None:
    config = load_model_config(tiny_llama[0])

    def dummy() -> Tensor:
        model = build_model(config, TensorParallel(), torch.device("cpu"), torch.float32)
        load_weights(model, model.weights(), Path("nowhere"), TensorParallel(), load_format="dummy")
        from_params: Tensor = torch.cat([p.flatten() for p in model.parameters()])
        return from_params

    first = dummy()
    assert torch.equal(first, dummy())
    assert first.isfinite().all()
    assert first.std() > 0.01


def test_progress_is_logged_by_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a terminal: one line a file, and the last says that all is done."""
    write_tiny(tmp_path, max_shard_size="100KB")
    with caplog.at_level("INFO", logger="srt.weights.progress"):
        load(tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(open_checkpoint(tmp_path, "auto").files)
    assert all(line.startswith("loaded model-0") for line in lines)
    assert lines[-1].endswith(("(99 %)", "(100 %)"))
