"""Tiny checkpoints of families without a transformers class, made from a relative that has one.

Each maker writes the family's own names, packing and config keys, and returns the relative: the
mathematics must be the same. They are Llama for Exaone 3 and InternLM 2, Qwen 2 for Qwen 1, GLM for
ChatGLM, Qwen 2 MoE for DeepSeek (v1), DBRX itself for its second spelling; Grok-1 has none and is
written out in plain torch below.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from srt.tiny import BASE, make_hf_model

State = dict[str, Tensor]
HEAD_DIM, HEADS, KV_HEADS = 16, 4, 2


def write(folder: Path, config: dict[str, Any], state: State) -> None:
    contiguous = {name: value.clone().contiguous() for name, value in state.items()}
    save_file(contiguous, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", **config}))


def rename(state: State, names: dict[str, str]) -> State:
    """Every name with the given pieces replaced, longest first."""
    out = {}
    for name, value in state.items():
        for old in sorted(names, key=len, reverse=True):
            name = name.replace(old, names[old])
        out[name] = value
    return out


def pop(state: State, prefix: str, *names: str) -> list[Tensor]:
    return [state.pop(f"{prefix}.{name}") for name in names]


def exaone(folder: Path) -> Any:
    model: Any = make_hf_model("LlamaForCausalLM")
    names = {
        "model.embed_tokens": "transformer.wte",
        "model.norm": "transformer.ln_f",
        "model.layers": "transformer.h",
        "self_attn": "attn.attention",
        "o_proj": "out_proj",
        "gate_proj": "c_fc_0",
        "up_proj": "c_fc_1",
        "down_proj": "c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
    }
    config = {**BASE, "architectures": ["ExaoneForCausalLM"], "layer_norm_epsilon": 1e-6}
    config |= {"num_layers": config.pop("num_hidden_layers"), "activation_function": "silu"}
    write(folder, config, rename(model.state_dict(), names))
    return model


def internlm2(folder: Path) -> Any:
    model: Any = make_hf_model("LlamaForCausalLM", attention_bias=True)
    state = dict(model.state_dict())
    for i in range(BASE["num_hidden_layers"]):
        attn = f"model.layers.{i}.self_attn"
        for kind in ("weight", "bias"):
            q, k, v = pop(state, attn, *(f"{x}_proj.{kind}" for x in "qkv"))
            rows = q.view(KV_HEADS, HEADS // KV_HEADS, HEAD_DIM, *q.shape[1:])
            kv = (x.view(KV_HEADS, 1, HEAD_DIM, *x.shape[1:]) for x in (k, v))
            state[f"{attn}.wqkv.{kind}"] = torch.cat([rows, *kv], dim=1).reshape(-1, *q.shape[1:])
    names = {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "self_attn": "attention",
        "o_proj": "wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    config = {**BASE, "architectures": ["InternLM2ForCausalLM"], "bias": True, "rms_norm_eps": 1e-6}
    write(folder, config, rename(state, names))
    return model


def qwen(folder: Path) -> Any:
    model: Any = make_hf_model("Qwen2ForCausalLM", num_key_value_heads=4, tie_word_embeddings=False)
    state = dict(model.state_dict())
    for i in range(BASE["num_hidden_layers"]):
        attn = f"model.layers.{i}.self_attn"
        for kind in ("weight", "bias"):
            fused = torch.cat(pop(state, attn, *(f"{x}_proj.{kind}" for x in "qkv")))
            state[f"{attn}.c_attn.{kind}"] = fused
    names = {
        "model.embed_tokens": "transformer.wte",
        "model.norm": "transformer.ln_f",
        "model.layers": "transformer.h",
        "self_attn.o_proj": "attn.c_proj",
        "self_attn": "attn",
        "mlp.gate_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w1",
        "mlp.down_proj": "mlp.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
    }
    config = {**BASE, "architectures": ["QWenLMHeadModel"], "layer_norm_epsilon": 1e-6}
    config |= {"intermediate_size": 2 * BASE["intermediate_size"], "seq_length": 512}
    config |= {"kv_channels": HEAD_DIM, "rotary_emb_base": 10000, "num_key_value_heads": None}
    write(folder, config, rename(state, names))
    return model


def chatglm(folder: Path) -> Any:
    model: Any = make_hf_model(
        "GlmForCausalLM", rope_parameters={"rope_theta": 20000.0, "partial_rotary_factor": 0.5}
    )
    state = dict(model.state_dict())
    for i in range(BASE["num_hidden_layers"]):
        attn = f"model.layers.{i}.self_attn"
        for kind in ("weight", "bias"):
            fused = torch.cat(pop(state, attn, *(f"{x}_proj.{kind}" for x in "qkv")))
            state[f"{attn}.query_key_value.{kind}"] = fused
    names = {
        "model.embed_tokens": "transformer.embedding.word_embeddings",
        "model.norm": "transformer.encoder.final_layernorm",
        "model.layers": "transformer.encoder.layers",
        "lm_head": "transformer.output_layer",
        "self_attn": "self_attention",
        "o_proj": "dense",
        "gate_up_proj": "dense_h_to_4h",
        "down_proj": "dense_4h_to_h",
    }
    config = {
        "architectures": ["ChatGLMModel"],
        "num_layers": BASE["num_hidden_layers"],
        "hidden_size": BASE["hidden_size"],
        "ffn_hidden_size": BASE["intermediate_size"],
        "num_attention_heads": HEADS,
        "multi_query_attention": True,
        "multi_query_group_num": KV_HEADS,
        "kv_channels": HEAD_DIM,
        "padded_vocab_size": BASE["vocab_size"],
        "seq_length": 512,
        "rope_ratio": 2,
        "layernorm_epsilon": model.config.rms_norm_eps,
        "add_qkv_bias": True,
    }
    write(folder, config, rename(state, names))
    return model


def deepseek(folder: Path) -> Any:
    """Qwen 2 MoE with a shared gate of zero halves its shared expert: so do we in `down`."""
    model: Any = make_hf_model("Qwen2MoeForCausalLM", qkv_bias=False, mlp_only_layers=[0])
    state = dict(model.state_dict())
    for i in range(1, BASE["num_hidden_layers"]):
        mlp = f"model.layers.{i}.mlp"
        state.pop(f"{mlp}.shared_expert_gate.weight").zero_()
        state[f"{mlp}.shared_expert.down_proj.weight"] = (
            state[f"{mlp}.shared_expert.down_proj.weight"] / 2
        )
        gate_up, down = pop(state, f"{mlp}.experts", "gate_up_proj", "down_proj")
        for e in range(gate_up.shape[0]):
            gate, up = gate_up[e].chunk(2)
            for name, value in (("gate", gate), ("up", up), ("down", down[e])):
                state[f"{mlp}.experts.{e}.{name}_proj.weight"] = value
    config = {**BASE, "architectures": ["DeepseekForCausalLM"], "rms_norm_eps": 1e-6}
    config |= {"n_routed_experts": 6, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    config |= {"moe_intermediate_size": 24, "n_shared_experts": 2, "norm_topk_prob": False}
    write(folder, config, rename(state, {"shared_expert": "shared_experts"}))
    return model


class GrokReference(nn.Module):
    """Grok-1 written out plainly, one token's neighbours at a time: nothing shared with srt."""

    def __init__(self, state: State, cap: float) -> None:
        super().__init__()
        self.state, self.cap = state, cap

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.state[f"{name}.scale"]

    def attention(self, x: Tensor, name: str) -> Tensor:
        length = x.shape[0]
        q, k, v = (
            (x @ self.state[f"{name}.{p}_proj.weight"].t()).view(length, -1, HEAD_DIM)
            for p in "qkv"
        )
        freq = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        turn = torch.polar(torch.ones(()), torch.outer(torch.arange(length), freq))[:, None]

        def rotate(y: Tensor) -> Tensor:
            z = torch.complex(*y.chunk(2, dim=-1)) * turn
            return torch.cat([z.real, z.imag], dim=-1)

        q, k = rotate(q), rotate(k).repeat_interleave(HEADS // KV_HEADS, dim=1)
        v = v.repeat_interleave(HEADS // KV_HEADS, dim=1)
        scores = self.cap * torch.tanh(torch.einsum("qhd,khd->hqk", q, k) * 0.3 / self.cap)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        probs = scores.masked_fill(future, -torch.inf).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", probs, v).flatten(1)
        return out @ self.state[f"{name}.o_proj.weight"].t()

    def experts(self, x: Tensor, name: str) -> Tensor:
        logits = 30 * torch.tanh(x @ self.state[f"{name}.gate.weight"].t() / 30)
        rows = []
        for row, probs in zip(x, logits.softmax(-1), strict=True):
            best = probs.topk(2)
            outs = []
            for weight, e in zip(best.values, best.indices.tolist(), strict=True):
                gate, up, down = (
                    self.state[f"{name}.experts.{e}.{n}.weight"]
                    for n in ("linear", "linear_v", "linear_1")
                )
                gated = functional.gelu(gate @ row, approximate="tanh") * (up @ row)
                outs.append(weight * (down @ gated))
            rows.append(torch.stack(outs).sum(0))
        return torch.stack(rows)

    def forward(self, ids: Tensor) -> Any:
        x = self.state["model.embed_tokens.weight"][ids[0]] * 2.5
        for i in range(BASE["num_hidden_layers"]):
            name = f"model.layers.{i}"
            y = self.attention(self.norm(x, f"{name}.pre_attn_norm"), f"{name}.attn")
            x = x + self.norm(y, f"{name}.post_attn_norm")
            y = self.experts(self.norm(x, f"{name}.pre_moe_norm"), f"{name}.moe_block")
            x = x + self.norm(y, f"{name}.post_moe_norm")
        x = self.norm(x, "model.norm")
        logits = x @ self.state["model.embed_tokens.weight"].t() * 0.5
        return SimpleNamespace(logits=logits[None])


def grok(folder: Path) -> Any:
    hidden, size, vocab = BASE["hidden_size"], BASE["intermediate_size"], BASE["vocab_size"]
    torch.manual_seed(0)
    state = {"model.embed_tokens.weight": torch.randn(vocab, hidden)}
    state["model.norm.scale"] = 1 + 0.2 * torch.randn(hidden)

    def matrix(rows: int, columns: int) -> Tensor:
        return 1.5 * torch.randn(rows, columns) * columns**-0.5

    for i in range(BASE["num_hidden_layers"]):
        name = f"model.layers.{i}"
        for norm in ("pre_attn", "post_attn", "pre_moe", "post_moe"):
            state[f"{name}.{norm}_norm.scale"] = 1 + 0.2 * torch.randn(hidden)
        for p, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            state[f"{name}.attn.{p}_proj.weight"] = matrix(heads * HEAD_DIM, hidden)
        state[f"{name}.attn.o_proj.weight"] = matrix(hidden, HEADS * HEAD_DIM)
        state[f"{name}.moe_block.gate.weight"] = matrix(4, hidden)
        for e in range(4):
            expert = f"{name}.moe_block.experts.{e}"
            state[f"{expert}.linear.weight"] = matrix(size, hidden)
            state[f"{expert}.linear_v.weight"] = matrix(size, hidden)
            state[f"{expert}.linear_1.weight"] = matrix(hidden, size)
    config = {**BASE, "architectures": ["Grok1ModelForCausalLM"], "num_experts": 4}
    config |= {"max_attn_value": 3.0, "attn_output_multiplier": 0.3, "rms_norm_eps": 1e-5}
    config |= {"embedding_multiplier_scale": 2.5, "output_multiplier_scale": 0.5}
    write(folder, config | {"tie_word_embeddings": True}, state)
    return GrokReference(state, cap=3.0)


def dbrx_by_expert(folder: Path) -> Any:
    """DBRX as it was converted for quantization: single experts, and q, k and v apart."""
    model: Any = make_hf_model("DbrxForCausalLM")
    state = dict(model.state_dict())
    experts = model.config.ffn_config.moe_num_experts
    for i in range(BASE["num_hidden_layers"]):
        attn = f"transformer.blocks.{i}.norm_attn_norm.attn"
        fused = state.pop(f"{attn}.Wqkv.weight")
        parts = fused.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM])
        state |= {f"{attn}.{x}_proj.weight": part for x, part in zip("qkv", parts, strict=True)}
        mlp = f"transformer.blocks.{i}.ffn.experts"
        for name in ("w1", "v1", "w2"):
            for e, rows in enumerate(state.pop(f"{mlp}.mlp.{name}").chunk(experts)):
                weight = rows.t() if name == "w2" else rows
                state[f"{mlp}.mlp_experts.{e}.{name}.weight"] = weight
    write(folder, model.config.to_dict(), state)
    return model


def write_presharded(source: Path, folder: Path, size: int) -> None:
    """A Grok-1 checkpoint as files by rank: experts cut, the rest whole, under Mixtral's names."""
    (folder / "config.json").write_text((source / "config.json").read_text())
    names = {"moe_block": "block_sparse_moe", "linear.": "w1.", "linear_v.": "w3."}
    names |= {"linear_1.": "w2.", ".attn.": ".self_attn.", "norm.scale": "norm.weight"}
    state = rename(load_file(source / "model.safetensors"), names)
    for rank in range(size):
        own = dict(state)
        for name, value in state.items():
            if ".experts." in name:
                dim = 1 if name.endswith("w2.weight") else 0
                own[name] = value.chunk(size, dim=dim)[rank].clone()
        torch.save(own, folder / f"pytorch_model-{rank:03d}.bin")


MAKERS: dict[str, Callable[[Path], Any]] = {
    "ChatGLMModel": chatglm,
    "DbrxForCausalLM, expert by expert": dbrx_by_expert,
    "DeepseekForCausalLM": deepseek,
    "ExaoneForCausalLM": exaone,
    "Grok1ModelForCausalLM": grok,
    "InternLM2ForCausalLM": internlm2,
    "QWenLMHeadModel": qwen,
}
