"""What the small files beside a tokenizer say: named tokens, ends of text, the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from srt.errors import LoadError

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; nothing where there is no file. Raises LoadError."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} must hold a JSON object")
    return value


def model_eos_ids(path: Path) -> tuple[int, ...]:
    """Ids that end an answer, as generation_config.json and config.json say."""
    for name in ("generation_config.json", "config.json"):
        given = read_json(path / name).get("eos_token_id")
        if given is not None:
            return tuple(given) if isinstance(given, list) else (int(given),)
    return ()


def named_tokens(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, … by name; tokenizer_config.json wins."""
    named: dict[str, str] = {}
    for source in (read_json(path / "special_tokens_map.json"), config):
        for name in NAMES:
            token = source.get(name)
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                named[name] = token
    return named


def added_tokens(path: Path, config: dict[str, Any]) -> dict[str, int]:
    """Tokens beside the trained vocabulary: from tokenizer_config.json, or added_tokens.json."""
    listed = config.get("added_tokens_decoder")
    if listed:
        return {spec["content"]: int(token_id) for token_id, spec in listed.items()}
    return {text: int(i) for text, i in read_json(path / "added_tokens.json").items()}


def shown_tokens(config: dict[str, Any]) -> frozenset[str]:
    """Added tokens that are no special ones: text shows them."""
    listed = config.get("added_tokens_decoder") or {}
    return frozenset(spec["content"] for spec in listed.values() if spec.get("special") is False)


def chat_template(path: Path, config: dict[str, Any]) -> str | None:
    """The checkpoint's own chat template."""
    file = path / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = read_json(path / "chat_template.json").get("chat_template")
    template = template or config.get("chat_template")
    if isinstance(template, list):
        by_name = {entry["name"]: entry["template"] for entry in template}
        template = by_name.get("default")
    return template
