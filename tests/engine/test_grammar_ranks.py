"""Grammars over several ranks and copies: the same answers, and nobody falls out of step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import tiny_tokenizer
from srt.errors import InvalidParameter, UnsupportedParameter
from srt.llm import Engine
from srt.tiny import write_tiny

SCHEMA = {
    "type": "object",
    "properties": {"ab": {"type": "string", "maxLength": 3}, "c": {"enum": [1, None]}},
    "required": ["ab", "c"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write_tiny(made, vocab_size=512)
    return tiny_tokenizer.write_chat_checkpoint(made)


def start(folder: Path, **settings: Any) -> Engine:
    return Engine(
        model_path=str(folder), dtype="float32", device="cpu", max_total_tokens=4096, **settings
    )


def answers(engine: Engine) -> list[str]:
    """Bound and free sequences together; grammars that are new, and one that is known."""
    params = [
        *({"json_schema": SCHEMA, "seed": i} for i in range(4)),
        *({"regex": f"[a-z]{{{i},9}}", "seed": i} for i in range(2, 5)),
        {"temperature": 0, "ignore_eos": True},
    ]
    results = engine.generate(
        ["Hello"] * len(params), [{"max_new_tokens": 40, **one} for one in params]
    )
    for result in results[:4]:
        if result["meta_info"]["finish_reason"]["type"] == "stop":
            jsonschema.validate(json.loads(result["text"]), SCHEMA)
    for i, result in enumerate(results[4:7], start=2):
        assert re.fullmatch(f"[a-z]{{{i},9}}", result["text"])
    return [result["text"] for result in results]


def test_ranks_and_copies_answer_alike(folder: Path) -> None:
    with start(folder, dp_size=2) as engine:  # copies of one rank each
        expected = answers(engine)
        with pytest.raises(UnsupportedParameter, match="#/properties/a/not: the keyword not"):
            engine.generate("a", {"json_schema": {"properties": {"a": {"not": {}}}}})
        with pytest.raises(InvalidParameter, match="regex: unclosed group"):
            engine.generate("a", {"regex": "("})
    with start(folder, tp_size=2) as engine:
        assert answers(engine) == expected
        assert answers(engine) == expected, "grammars that are known start at once"
