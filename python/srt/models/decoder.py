"""What the engine may ask of every model, and the parts that all decoder families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor, nn

from srt import ops
from srt.batch import ForwardBatch
from srt.kv_spec import GPU_HEAD_DIMS, kv_spec
from srt.layers.build import Build, lay_out
from srt.layers.embedding import LmHead, VocabParallelEmbedding
from srt.layers.linear import Replicated
from srt.layers.norm import LayerNorm, Norm, RmsNorm
from srt.model_config import ModelConfig
from srt.ops.decode_step import DecodeStep
from srt.parallel import TensorParallel
from srt.weights.scales import scale_rules
from srt.weights.table import Rule


class KvScales(nn.Module):
    """What an fp8 checkpoint scales K and V of each layer with, if it says so; 1 otherwise."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.parts = lay_out({"k": (1, 0, 1), "v": (1, 0, 1)})
        self.values = nn.Parameter(torch.ones(num_layers, 2), requires_grad=False)

    def pairs(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Those of K, and those of V, by layer."""
        k, v = self.values.unbind(1)
        return tuple(k.tolist()), tuple(v.tolist())


class Decoder(nn.Module, ABC):
    """Token ids to logits. A family adds its layers and its weight table.

    kv_spec: what the KV pool must hold on this rank.
    fused: runs all layers of a step of few decodes at once, see `models.fused`; None: never.
    """

    embed: VocabParallelEmbedding
    layers: nn.ModuleList
    norm: Norm

    def __init__(self, config: ModelConfig, build: Build) -> None:
        super().__init__()
        self.config = config
        head_dims = GPU_HEAD_DIMS if build.device.type == "cuda" else ()
        self.kv_spec = kv_spec(config, build.tp.size, build.tp.rank, head_dims)
        self.embed = VocabParallelEmbedding(config.vocab_size, config.hidden_size, build)
        self.norm = make_norm(config, build)
        self.lm_head: LmHead | None = None
        if config.has_lm_head:
            tied = self.embed if config.tie_word_embeddings else None
            sizes = (config.vocab_size, config.hidden_size)
            self.lm_head = LmHead(*sizes, build, bias=config.lm_head_bias, tied=tied)
        self.score: Replicated | None = None
        if config.num_labels:
            self.score = Replicated(config.hidden_size, config.num_labels, build)
        # HF rounds the factor to the model's dtype before it multiplies (Gemma: sqrt(hidden)).
        self.embed_scale = torch.tensor(config.embed_scale, dtype=build.dtype).item()

        self.fused: DecodeStep | None = None
        self.kv_scales: KvScales | None = None
        if config.quant is not None and config.quant.in_checkpoint:
            self.kv_scales = KvScales(config.num_layers)

    @abstractmethod
    def weights(self) -> tuple[Rule, ...]:
        """The weight table of the family's own checkpoints."""

    def weight_table(self) -> tuple[Rule, ...]:
        """`weights`, with the scales of an fp8 checkpoint.

        Without a head its tensors are skipped, and the `model.` prefix may lack.
        """
        rules = self._named_weights()
        quant = self.config.quant
        return rules + (scale_rules(rules, quant) if quant and quant.in_checkpoint else ())

    def _named_weights(self) -> tuple[Rule, ...]:
        rules = self.weights()
        if self.lm_head is not None:
            return rules
        kept = tuple(_skipped(r) if (r.target or "").startswith("lm_head.") else r for r in rules)
        prefix = "model."
        bare = (
            replace(r, source=r.source.removeprefix(prefix))
            for r in kept
            if r.source.startswith(prefix)
        )
        return (*kept, *bare)

    def kv_scale_pairs(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The checkpoint's scales of K and of V, one a layer; None: it has none."""
        return None if self.kv_scales is None else self.kv_scales.pairs()

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """int32 [T] → [T, hidden], scaled as the layers expect it."""
        x: Tensor = self.embed(token_ids)
        return x if self.embed_scale == 1.0 else x * self.embed_scale

    @abstractmethod
    def forward(self, batch: ForwardBatch, embeds: Tensor | None = None) -> Tensor:
        """One step. `embeds` [T, hidden] replaces the embeddings of the batch's token ids.

        Returns: [T, hidden] after the final norm.
        """

    def run_layers(self, batch: ForwardBatch, embeds: Tensor | None) -> Tensor:
        """`forward` for layers that take and return (what is still to be added, the stream)."""
        x = self.embed_tokens(batch.token_ids) if embeds is None else embeds
        if self.fused is not None and embeds is None and self.fused.takes(batch):
            self.fused.run(x, batch)
            normed: Tensor = self.norm(x)
            return normed
        residual: Tensor | None = None
        for layer in self.layers:
            x, residual = layer(x, residual, batch)
        return self.norm(x) if residual is None else self.norm.add(x, residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[L, hidden], rows of what `forward` returned → [L, vocab_size] in the model's dtype.

        Raises ValueError for an embedding model.
        """
        if self.lm_head is None:
            raise ValueError(f"{self.config.architecture} has no lm_head")
        logits: Tensor = self.lm_head(hidden)
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        if self.config.logit_softcap > 0.0:
            logits = ops.softcap(logits, self.config.logit_softcap)
        return logits


def _skipped(rule: Rule) -> Rule:
    return Rule(rule.source, None)


def late_sums(
    config: ModelConfig, build: Build
) -> tuple[TensorParallel | None, TensorParallel | None]:
    """The ranks over whom the norm behind attention sums it, and the one behind the MLP.

    None: nobody need, or the part itself sums, since it adds a bias to the sum.
    """
    ranks = build.tp if build.tp.size > 1 else None
    return None if config.o_bias else ranks, None if config.mlp_bias else ranks


def make_norm(config: ModelConfig, build: Build) -> Norm:
    """A norm over the hidden size, of the kind that the family uses."""
    if config.norm == "rms":
        return RmsNorm(config.hidden_size, config.norm_eps, build, offset=config.norm_offset)
    return LayerNorm(config.hidden_size, config.norm_eps, build, bias=config.norm_bias)
