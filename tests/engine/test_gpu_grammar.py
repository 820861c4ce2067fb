"""Constrained decoding on a GPU: masked rows beside free ones, with decode graphs and without."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import tiny_tokenizer
from srt.llm import Engine
from srt.tiny import write_tiny

pytestmark = pytest.mark.gpu

PATTERN = "[a-f]{3}-[0-9]{2,5}(x|yz)"
SCHEMA = {
    "type": "object",
    "properties": {
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "ok": {"enum": [1, 2]},
    },
    "required": ["age", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("grammar")
    # Heads of 64: the kernels take no smaller ones.
    write_tiny(folder, vocab_size=512, dtype=torch.bfloat16, hidden_size=256, num_attention_heads=4)
    tiny_tokenizer.write_chat_checkpoint(folder)
    return folder


@pytest.mark.parametrize("settings", [{}, {"disable_cuda_graph": True}], ids=["graphs", "eager"])
def test_bound_answers_match_beside_free_ones(checkpoint: Path, settings: dict[str, Any]) -> None:
    bound = {"max_new_tokens": 60, "temperature": 1.0}
    params: list[dict[str, Any]] = [{**bound, "regex": PATTERN, "seed": i} for i in range(8)]
    params += [{**bound, "json_schema": json.dumps(SCHEMA), "seed": i} for i in range(8)]
    free: dict[str, Any] = {"max_new_tokens": 24, "temperature": 0, "ignore_eos": True}
    params += [free] * 4
    with Engine(
        model_path=str(checkpoint), max_total_tokens=8192, max_running_requests=32, **settings
    ) as engine:
        alone = engine.generate("Hello there", free, return_logprob=True)["meta_info"]
        answers = engine.generate(["Hello there"] * len(params), params, return_logprob=True)
    ended = [a for a in answers[:16] if a["meta_info"]["finish_reason"]["type"] == "stop"]
    assert len(ended) >= 8
    for answer in ended:
        if answer["text"].startswith("{"):
            jsonschema.validate(json.loads(answer["text"]), SCHEMA)
        else:
            assert re.fullmatch(PATTERN, answer["text"])
    assert len({a["text"] for a in answers[:8]}) > 1
    assert len({a["text"] for a in answers[16:]}) == 1
    # Alone they take other kernels, which may break a tie of bfloat16 logits otherwise.
    first, first_alone = (
        meta["output_token_logprobs"][0] for meta in (answers[16]["meta_info"], alone)
    )
    assert abs(first[0] - first_alone[0]) < 0.5


@pytest.mark.parametrize("settings", [{}, {"disable_cuda_graph": True}], ids=["graphs", "eager"])
def test_forced_tokens_share_steps(checkpoint: Path, settings: dict[str, Any]) -> None:
    pattern = '[ab]{2}"temperature_in_degrees_celsius":[0-9]{2},"is_it_snowing":(yes|no)'
    params = [
        {"max_new_tokens": 120, "temperature": 1.0, "regex": pattern, "seed": i} for i in range(6)
    ]
    with Engine(
        model_path=str(checkpoint), max_total_tokens=8192, max_running_requests=64, **settings
    ) as engine:
        answers = engine.generate(["Hello there"] * len(params), params)
    for answer in answers:
        meta = answer["meta_info"]
        assert re.fullmatch(pattern, answer["text"])
        assert meta["finish_reason"]["type"] == "stop"
        assert 2 * meta["completion_tokens_wo_jump_forward"] < meta["completion_tokens"]


@pytest.mark.parametrize("settings", [{}, {"disable_cuda_graph": True}], ids=["graphs", "eager"])
def test_drafts_see_the_tokens_before_them(checkpoint: Path, settings: dict[str, Any]) -> None:
    """Whatever kernels run a step with drafts: a forced text is scored as without them."""
    text = "".join(chr(97 + i * 7 % 26) for i in range(120))
    params = {"max_new_tokens": 200, "temperature": 0, "regex": text}
    scores, steps = [], []
    for disabled in (False, True):
        with Engine(
            model_path=str(checkpoint),
            max_total_tokens=8192,
            max_running_requests=64,
            disable_regex_jump_forward=disabled,
            **settings,
        ) as engine:
            meta = engine.generate("Hello there", params, return_logprob=True)["meta_info"]
        scores.append([entry[0] for entry in meta["output_token_logprobs"]])
        steps.append(meta["completion_tokens_wo_jump_forward"])
    assert 4 * steps[0] < steps[1]
    jumped, stepped = (torch.tensor(one[1:]) for one in scores)
    # Random weights spread logprobs over tens, where bfloat16 rounds logits to quarters.
    assert (jumped - stepped).abs().mean() < 0.05 * stepped.std()
