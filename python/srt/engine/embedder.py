"""What an engine that embeds does otherwise, and what it tells the server and the log."""

from __future__ import annotations

from dataclasses import replace

from srt.channel import EmbeddingInfo
from srt.config import Settings
from srt.model_config import ModelConfig


def fit_to_model(settings: Settings, config: ModelConfig) -> Settings:
    """`settings` without what would make an embedder's vectors wrong."""
    if config.has_lm_head:
        return settings
    if not config.causal:  # a state depends on all that follows: no part of a prompt stands alone
        return replace(settings, disable_radix_cache=True, chunked_prefill_size=-1)
    if config.embedding.needs_all_tokens and not config.num_labels:
        return replace(settings, disable_radix_cache=True)
    return settings


def embedding_info(config: ModelConfig) -> EmbeddingInfo:
    """What the server must know to serve the model's vectors."""
    refusal = ""
    if config.has_lm_head and config.embedding.needs_all_tokens:
        refusal = (
            f"the checkpoint pools the {config.embedding}, which needs the prefix cache off; "
            "start the server with --is-embedding"
        )
    return EmbeddingInfo(
        size=config.num_labels or config.hidden_size,
        kind="scores" if config.num_labels else "embedding",
        is_normalized=config.embedding.normalize and not config.num_labels,
        cuts=None if config.cuts is None or config.num_labels else list(config.cuts),
        refusal=refusal,
    )


def embedding_rows(config: ModelConfig) -> list[tuple[str, str]]:
    """How vectors are made, for the start-up table of a launch that makes nothing else."""
    if config.has_lm_head:
        return []
    rows = [("embedding", f"{config.hidden_size} numbers, {config.embedding}")]
    if config.num_labels:
        rows = [("scores", f"{config.num_labels}, of the last token")]
    if not config.causal:
        rows.append(("attention", "bidirectional: no prefix cache, no chunked prefill"))
    elif config.embedding.needs_all_tokens and not config.num_labels:
        rows.append(("prefix cache", "off: the pooling needs every token's state"))
    return rows
