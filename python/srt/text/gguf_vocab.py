"""The tokenizer inside a GGUF file, as a tokenizer.json; reads the metadata alone: quick."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

from srt.errors import LoadError

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9

_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def modern_split(*, digits: str) -> str:
    """GPT-4's regular expression and its relatives. digits: how many go together, as `{1,3}`."""
    return _MODERN_SPLIT.format(digits=digits)


_SPLITS = {  # llama.cpp's names of pre-tokenizers: their regular expression
    "gpt-2": _GPT2_SPLIT,
    "smollm": _GPT2_SPLIT,
    "llama-bpe": modern_split(digits="{1,3}"),
    "qwen2": modern_split(digits=""),
}


class _Kind(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """tokenizer_json: for `tokenizers.Tokenizer.from_str`. named_ids: `bos_token` … by name."""

    tokenizer_json: str
    chat_template: str | None
    named_ids: dict[str, int]
    eos_ids: tuple[int, ...]
    adds_bos: bool
    adds_eos: bool


def read_gguf_tokenizer(path: Path) -> GgufTokenizer:
    """Raises LoadError for a file without tokenizer, or of a kind we do not know."""
    try:
        with path.open("rb") as file:
            values = _read_metadata(file)
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not a readable GGUF file: {error}") from error
    kind = values.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise LoadError(f"{path}: its tokenizer is of kind {kind!r}; known are gpt2 and llama")
    pre = values.get("tokenizer.ggml.pre", "gpt-2")
    if kind == "gpt2" and pre not in _SPLITS:
        raise LoadError(f"{path}: pre-tokenizer {pre!r} is unknown; known are {', '.join(_SPLITS)}")
    document = _byte_level(values, pre) if kind == "gpt2" else _sentence_piece(values)
    named_ids = {
        f"{ours}_token": values[key]
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (key := f"tokenizer.ggml.{theirs}_token_id") in values
    }
    ends = [values.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return GgufTokenizer(
        tokenizer_json=json.dumps(document),
        chat_template=values.get("tokenizer.chat_template"),
        named_ids=named_ids,
        eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        adds_bos=bool(values.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        adds_eos=bool(values.get("tokenizer.ggml.add_eos_token", False)),
    )


def _byte_level(values: dict[str, Any], pre: str) -> dict[str, Any]:
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    split = {
        "type": "Split",
        "pattern": {"Regex": _SPLITS[pre]},
        "behavior": "Isolated",
        "invert": False,
    }
    steps: list[dict[str, Any]] = [split]
    if pre == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    steps.append(byte_level)
    return {
        "version": "1.0",
        "added_tokens": _added(values),
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in values["tokenizer.ggml.merges"]],
            "ignore_merges": pre == "llama-bpe",
        },
    }


def _sentence_piece(values: dict[str, Any]) -> dict[str, Any]:
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    ]
    if values.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": "\u2581"})
    return {
        "version": "1.0",
        "added_tokens": _added(values),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": tokens[values.get("tokenizer.ggml.unknown_token_id", 0)],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": _merges(tokens, values["tokenizer.ggml.scores"], ids),
        },
    }


def _merges(
    tokens: Sequence[str], scores: Sequence[float], ids: dict[str, int]
) -> list[tuple[str, str]]:
    """SentencePiece knows how good each token is; BPE wants to know which pairs make it."""
    merges: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _added(values: dict[str, Any]) -> list[dict[str, Any]]:
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    kinds: list[int] = values["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, "special": kind != _Kind.USER, **flags}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_Kind.CONTROL, _Kind.USER, _Kind.UNKNOWN)
    ]


def _read_metadata(file: BinaryIO) -> dict[str, Any]:
    """GGUF versions 2 and 3: magic, version, two counts, then key, type, value."""
    magic, version = file.read(4), _scalar(file, "<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise LoadError(f"not a GGUF file of version 2 or 3 (magic {magic!r}, version {version})")
    _scalar(file, "<Q")  # tensors; not our concern
    return {_string(file): _value(file, _scalar(file, "<I")) for _ in range(_scalar(file, "<Q"))}


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _scalar(file, _SCALARS[kind])
    inner, count = _scalar(file, "<I"), _scalar(file, "<Q")
    if inner in (_STRING, _ARRAY):
        return [_value(file, inner) for _ in range(count)]
    code = _SCALARS[inner]
    return list(struct.unpack(f"<{count}{code[1]}", file.read(count * struct.calcsize(code))))


def _scalar(file: BinaryIO, code: str) -> Any:
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_scalar(file, "<Q")).decode("utf-8")
