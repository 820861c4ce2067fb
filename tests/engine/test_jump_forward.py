"""Forced tokens come many a step, and what is said stays the same to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench._schemas import SERVED

from byte_vocabulary import END, byte_vocabulary, text_of
from engine.driver import Driver, Output, driver, to_bytes
from srt.channel import GenerateRequest
from srt.core import native
from srt.engine.bound import Bound
from srt.types import FinishReason, Grammar, SamplingParams

VOCABULARY = byte_vocabulary(320)
PROMPT = [5, 9, 30, 7]
LONG = "temperature_in_degrees_celsius"
ROOM = {"max_running_requests": 24, "max_total_tokens": 16384}


def bound(kind: str, source: str, **fields: Any) -> SamplingParams:
    given: dict[str, Any] = {"max_new_tokens": 120, "seed": 1, "stop_token_ids": (END,)}
    return SamplingParams(grammar=Grammar(kind, source), **(given | fields))  # type: ignore[arg-type]


def regex(pattern: str, **fields: Any) -> SamplingParams:
    return bound("regex", pattern, **fields)


def taught(folder: Path, **settings: Any) -> Iterator[Driver]:
    with driver(folder, **(ROOM | settings)) as d:
        d.turn([VOCABULARY])
        yield d


@pytest.fixture(scope="module")
def jumping(tiny: tuple[Path, Any]) -> Iterator[Driver]:
    yield from taught(tiny[0])


@pytest.fixture(scope="module")
def plain(tiny: tuple[Path, Any]) -> Iterator[Driver]:
    yield from taught(tiny[0], disable_regex_jump_forward=True)


def drafts(d: Driver) -> tuple[int, int]:
    """Run so far, and of these right."""
    stats = d.engine.scheduler.stats()
    return stats.num_drafts, stats.num_right_drafts


def alone(d: Driver, params: SamplingParams, **fields: Any) -> Output:
    return d.run([PROMPT], params, **fields)[0]


def turns_of(d: Driver, params: SamplingParams) -> tuple[Output, int]:
    """The answer, and the turns it took once its grammar was compiled."""
    alone(d, params)
    seq_id = max(d.outputs) + 1
    d.outputs[seq_id] = Output()
    d.turn([GenerateRequest(seq_id=seq_id, input_ids=to_bytes(PROMPT), sampling=params)])
    turns = 1
    while not d.engine.is_idle:
        d.turn([])
        turns += 1
    return d.outputs[seq_id], turns


def scores(output: Output) -> list[Any]:
    return [(entry.token, entry.top) for entry in output.logprobs]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_schemas_are_answered_alike_with_jumps_and_without(
    jumping: Driver, plain: Driver, temperature: float
) -> None:
    params = [
        bound("json_schema", json.dumps(schema), temperature=temperature, seed=i)
        for i, schema in enumerate(SERVED.values())
    ]
    assert len(params) >= 40
    before = drafts(jumping)
    wanted: dict[str, Any] = {
        "arrivals": [3 * i for i in range(len(params))],
        "return_logprob": True,
        "top_logprobs": 2,
    }
    ours = jumping.run([PROMPT] * len(params), params, **wanted)
    theirs = plain.run([PROMPT] * len(params), params, **wanted)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.tokens == other.tokens
        assert mine.finish == other.finish
        assert scores(mine) == scores(other)
        assert len(mine.logprobs) == len(mine.tokens)
    num_run, num_right = (now - then for now, then in zip(drafts(jumping), before, strict=True))
    assert num_right > 300
    assert num_run >= num_right
    assert drafts(plain) == (0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.8, "frequency_penalty": 1.5, "presence_penalty": 0.5},
        {"top_k": 3, "min_p": 0.01},
        {"logit_bias": ((5, 3.0),), "min_new_tokens": 40},
        {"ignore_eos": True, "max_new_tokens": 70},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_parameters_mean_what_they_mean(
    jumping: Driver, plain: Driver, fields: dict[str, Any]
) -> None:
    pattern = f'[a-z]{{6}}"{LONG}":[0-9]{{3}}{LONG}[a-z]*'
    params = [regex(pattern, seed=i, **fields) for i in range(3)]
    before = drafts(jumping)
    ours = jumping.run([PROMPT] * 3, params)
    theirs = plain.run([PROMPT] * 3, params)
    assert [o.tokens for o in ours] == [o.tokens for o in theirs]
    assert drafts(jumping)[1] > before[1] + 30


def test_forced_tokens_take_a_step_for_sixteen(jumping: Driver, plain: Driver) -> None:
    params = regex("[ab]" + "x" * 4 * (native.MAX_DRAFTS + 1))
    output, turns = turns_of(jumping, params)
    slow, slow_turns = turns_of(plain, params)
    assert output.tokens == slow.tokens
    assert turns <= 14 < 60 < slow_turns
    text = text_of(VOCABULARY, output.tokens)
    assert text[1:] == "x" * 4 * (native.MAX_DRAFTS + 1)
    assert output.finish == FinishReason.STOP


@pytest.mark.parametrize("max_new_tokens", [1, 2, 7, 30])
def test_the_token_limit_cuts_inside_a_jump(jumping: Driver, max_new_tokens: int) -> None:
    output = alone(jumping, regex("[ab]" + LONG, max_new_tokens=max_new_tokens))
    assert len(output.tokens) == max_new_tokens
    assert output.finish == FinishReason.LENGTH
    assert text_of(VOCABULARY, output.tokens)[1:] == LONG[: max_new_tokens - 1]


def test_a_stop_id_ends_an_answer_inside_a_jump(jumping: Driver, plain: Driver) -> None:
    """`c?` is not forced, so the answer may end before it; the stop id is allowed there."""
    stop = VOCABULARY.pieces.index(b"#")
    params = regex(f"{LONG}(c{LONG})?", stop_token_ids=(stop, END), logit_bias=((stop, 100.0),))
    ours, theirs = alone(jumping, params), alone(plain, params)
    assert ours.tokens == theirs.tokens
    assert ours.tokens[-1] == stop
    assert ours.finish == FinishReason.STOP


@pytest.mark.parametrize(
    "settings",
    [
        {"disable_overlap_schedule": True},
        {"disable_cuda_graph": True, "page_size": 4},
        {"chunked_prefill_size": 16},
        {"max_total_tokens": 384, "page_size": 4, "schedule_conservativeness": 0.0},
        {"disable_radix_cache": True, "disable_mixed_chunk": True},
    ],
    ids=lambda s: next(iter(s)),
)
def test_the_way_it_runs_changes_nothing(
    tiny: tuple[Path, Any], plain: Driver, settings: dict[str, Any]
) -> None:
    prompts = [[7 + i] * (20 + 5 * i) for i in range(8)]
    params = [regex(f"[a-c]{{3}}{LONG}[0-9]{{4}}{LONG}[xy]+", seed=i) for i in range(8)]
    expected = plain.run(prompts, params)
    for d in taught(tiny[0], **settings):
        d.run([PROMPT], params[0])
        outputs = d.run(prompts, params)  # compiled: all start at once
        num_retracted = d.engine.scheduler.stats().num_retracted
        assert drafts(d)[1] > 50
    assert [o.tokens for o in outputs] == [o.tokens for o in expected]
    assert (num_retracted > 0) == ("max_total_tokens" in settings)


def test_a_wrong_draft_costs_nothing_but_its_row(
    jumping: Driver, plain: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced text may be spelled otherwise than the drafts have it: the model decides."""
    truth = Bound.draft

    def half_wrong(self: Bound) -> list[int]:
        found = truth(self)
        found[len(found) // 2 :] = [VOCABULARY.pieces.index(b"?")] * (len(found) - len(found) // 2)
        return found

    monkeypatch.setattr(Bound, "draft", half_wrong)
    params = [regex(f"[a-c]{{3}}{LONG}[0-9]{{4}}{LONG}", seed=i) for i in range(4)]
    before = drafts(jumping)
    ours = jumping.run([PROMPT] * 4, params)
    num_run, num_right = (now - then for now, then in zip(drafts(jumping), before, strict=True))
    assert num_right < num_run
    theirs = plain.run([PROMPT] * 4, params)
    assert [o.tokens for o in ours] == [o.tokens for o in theirs]


def test_an_abort_inside_a_jump_frees_everything(jumping: Driver) -> None:
    seq_id = max(jumping.outputs) + 1
    jumping.outputs[seq_id] = Output()
    params = regex("[ab]" + "x" * 110)
    jumping.turn([GenerateRequest(seq_id=seq_id, input_ids=to_bytes(PROMPT), sampling=params)])
    while len(jumping.outputs[seq_id].tokens) < 20:
        jumping.turn([])
    jumping.abort(seq_id)
    while not jumping.engine.is_idle:
        jumping.turn([])
    assert jumping.outputs[seq_id].finish == FinishReason.ABORT
    assert jumping.engine.scheduler.flush()
    stats = jumping.engine.scheduler.stats()
    assert stats.num_free_pages == stats.num_total_pages
