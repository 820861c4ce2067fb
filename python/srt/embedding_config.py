"""How an embedding model turns hidden states into a vector, as its checkpoint says; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from srt.errors import LoadError
from srt.hf_config import HfConfig, read_json

POOLINGS = {  # sentence-transformers' words: ours
    "lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
}
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, slots=True)
class EmbeddingConfig:
    """How hidden states become one vector.

    pooling: "last" (token), "mean" (of all tokens) or "cls" (the first token).
    normalize: the vector is divided by its Euclidean length.
    """

    pooling: str = "last"
    normalize: bool = True

    @property
    def needs_all_tokens(self) -> bool:
        """Whether a cached prefix would hide hidden states that the vector is made of."""
        return self.pooling != "last"

    def __str__(self) -> str:
        words = {"last": "last token", "mean": "mean of all tokens", "cls": "first token"}
        return f"{words[self.pooling]}, {'L2-normalised' if self.normalize else 'not normalised'}"


LAST_TOKEN = EmbeddingConfig()


def read_embedding(source: Path) -> EmbeddingConfig:
    """What modules.json and its Pooling folder say; without them the last token, normalised.

    Raises:
        LoadError: a pooling or a module that is not supported, named.
    """
    modules = source / "modules.json"
    if not source.is_dir() or not modules.exists():
        return LAST_TOKEN
    pooling, normalize = "last", False
    for kind, folder in _modules(modules):
        if kind == "Pooling":
            pooling = _read_pooling(source / folder / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise LoadError(f"{modules}: a module of type {kind} is not supported")
    return EmbeddingConfig(pooling, normalize)


def matryoshka_dimensions(hf: HfConfig) -> tuple[int, ...] | None:
    """The lengths that the vector may be cut to; empty: any; None: it may not be cut.

    `matryoshka_dimensions` or `is_matryoshka` in config.json, or in --json-model-override-args.
    """
    given = tuple(int(x) for x in hf.numbers("matryoshka_dimensions"))
    if given:
        return given
    return () if hf.flag("is_matryoshka", default=False) else None


def _modules(path: Path) -> Iterator[tuple[str, str]]:
    """The kind and the folder of each module, in order."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise LoadError(f"{path} is not readable JSON: {e}") from e
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise LoadError(f"{path} must hold a list of objects")
    for entry in entries:
        where = HfConfig(entry, str(path))
        yield where.text("type").rpartition(".")[2], where.text("path", default="")


def _read_pooling(path: Path) -> str:
    hf = HfConfig(read_json(path), str(path))
    name = hf.text_or(None, "pooling_mode")
    named = [name] if name is not None else []
    chosen = named or [
        mode for flag, mode in _POOLING_FLAGS.items() if hf.flag(flag, default=False)
    ]
    known = POOLINGS | {ours: ours for ours in POOLINGS.values()}
    if len(chosen) != 1 or chosen[0] not in known:
        raise LoadError(
            f"{path}: pooling {' and '.join(chosen) or 'of no kind'} is not supported; one of "
            f"{', '.join(POOLINGS)} is"
        )
    return known[chosen[0]]
