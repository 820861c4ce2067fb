"""Constrained decoding in the engine: what comes out matches, whatever else the engine does."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from byte_vocabulary import BYTES, END, byte_vocabulary, text_of
from engine.driver import Driver, Output, driver, greedy, to_bytes
from srt.channel import GenerateRequest
from srt.engine import grammar as engine_grammar
from srt.types import FinishReason, Grammar, SamplingParams

VOCABULARY = byte_vocabulary(320)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
PROMPT = [5, 9, 30, 7]


def regex(pattern: str, **fields: Any) -> SamplingParams:
    return bound(Grammar("regex", pattern), **fields)


def bound(grammar: Grammar, **fields: Any) -> SamplingParams:
    given: dict[str, Any] = {"max_new_tokens": 100, "seed": 1, "stop_token_ids": (END,)}
    return SamplingParams(grammar=grammar, **(given | fields))


def schema(source: Any, **fields: Any) -> SamplingParams:
    return bound(Grammar("json_schema", json.dumps(source)), **fields)


@contextmanager
def taught(folder: Path, **settings: Any) -> Iterator[Driver]:
    """An engine that knows the vocabulary."""
    with driver(folder, **settings) as d:
        d.turn([VOCABULARY])
        yield d
        assert d.engine._grammars.num_bound == 0
        assert d.engine.is_idle


def said(output: Output) -> str:
    assert output.error is None
    assert output.num_terminal == 1
    return text_of(VOCABULARY, output.tokens)


def test_answers_match_at_temperature_1_beside_free_ones(tiny: tuple[Path, Any]) -> None:
    params = [
        *(regex(r"[a-f]{3}-[0-9]+(x|yz)", seed=i) for i in range(5)),
        *(schema(PERSON, seed=i, max_new_tokens=300) for i in range(5)),
        *(bound(Grammar("ebnf", 'root ::= ("ab" | "é")+ "."'), seed=i) for i in range(3)),
        *(greedy(20) for _ in range(3)),
    ]
    with taught(tiny[0]) as d:
        outputs = d.run([PROMPT] * len(params), params, arrivals=[i // 4 for i in range(16)])
        alone = d.run([PROMPT], greedy(20))[0]
    for output in outputs[:5]:
        text = said(output)
        if output.finish == FinishReason.STOP:
            assert re.fullmatch(r"[a-f]{3}-[0-9]+(x|yz)", text)
        else:  # digits until the tokens ran out
            assert re.fullmatch(r"[a-f]{3}-[0-9]+", text)
    finished = [o for o in outputs[5:10] if o.finish == FinishReason.STOP]
    assert len(finished) >= 3
    for output in finished:
        jsonschema.validate(json.loads(said(output)), PERSON)
    for output in outputs[10:13]:
        assert re.fullmatch("((ab)|é)*(a|\\.)?", said(output))
    assert [o.tokens for o in outputs[13:]] == [alone.tokens] * 3
    assert len({tuple(o.tokens) for o in outputs[:5]}) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"disable_overlap_schedule": True},
        {"disable_cuda_graph": True},
        {"chunked_prefill_size": 16},
        {"max_total_tokens": 256, "page_size": 4, "schedule_conservativeness": 0.0},
        {"disable_radix_cache": True, "disable_mixed_chunk": True},
    ],
    ids=lambda s: next(iter(s)),
)
def test_the_way_it_runs_changes_nothing(tiny: tuple[Path, Any], settings: dict[str, Any]) -> None:
    prompts = [[7 + i] * (20 + 5 * i) for i in range(6)]
    params = [schema(PERSON, seed=i, max_new_tokens=60) for i in range(3)]
    params += [regex("[a-z]{58}é?", seed=i) for i in range(3)]
    with taught(tiny[0]) as d:
        expected = d.run(prompts, params)
    with taught(tiny[0], **settings) as d:
        d.run([PROMPT] * 2, [schema(PERSON, max_new_tokens=1), regex("[a-z]{58}é?")])
        outputs = d.run(prompts, params)  # compiled: all start at once
        retracted = d.engine.scheduler.stats().num_retracted
    assert [o.tokens for o in outputs] == [o.tokens for o in expected]
    assert (retracted > 0) == ("max_total_tokens" in settings)


def test_neighbours_keep_overlapping(tiny: tuple[Path, Any]) -> None:
    with taught(tiny[0]) as d:
        d.run([PROMPT], regex("[a-z]{1,3}"))  # compiled: starts at once from now on
        for seq_id, params in ((8, greedy(40)), (9, regex("[a-z]{1,80}"))):
            d.outputs[seq_id] = Output()
            d.turn([GenerateRequest(seq_id=seq_id, input_ids=to_bytes(PROMPT), sampling=params)])
        turns = 0
        while not d.outputs[8].num_terminal:
            d.turn([])
            turns += 1
        in_between = len(d.outputs[9].tokens)
        d.abort(9)
        while not d.engine.is_idle:
            d.turn([])
    assert turns <= 42, "the free sequence has a token in every turn"
    assert in_between >= 15, "the bound one in every other"


def test_the_end_of_the_grammar_ends_the_answer(tiny: tuple[Path, Any]) -> None:
    with taught(tiny[0]) as d:
        plain, ignoring, early, open_end = d.run(
            [PROMPT] * 4,
            [
                regex("ab"),
                regex("ab", ignore_eos=True),
                regex("ab", min_new_tokens=50),
                regex("a{2,}", ignore_eos=True, max_new_tokens=9),
            ],
        )
    for output in (plain, ignoring, early):
        assert said(output) == "ab"
        assert output.finish == FinishReason.STOP
        assert output.tokens[-1] == END
    assert open_end.finish == FinishReason.LENGTH
    assert said(open_end) == "a" * 9


def test_min_new_tokens_holds_while_the_grammar_can_go_on(tiny: tuple[Path, Any]) -> None:
    a = BYTES + ord("a")
    with taught(tiny[0]) as d:
        at_least, both = d.run(
            [PROMPT] * 2,
            [
                regex("a*", min_new_tokens=12, logit_bias=((END, 100.0),)),
                regex("[ab]*", min_new_tokens=5, stop_token_ids=(a, END), logit_bias=((a, 100.0),)),
            ],
        )
    assert at_least.tokens == [a] * 12 + [END]
    assert both.tokens[:5] == [BYTES + ord("b")] * 5
    assert both.tokens[5:] == [a]
    assert both.finish == FinishReason.STOP


def test_a_stop_id_of_the_client_may_end_only_a_whole_answer(tiny: tuple[Path, Any]) -> None:
    stop = BYTES + ord("#")
    with taught(tiny[0]) as d:
        (output,) = d.run(
            [PROMPT], [regex("xyz?", stop_token_ids=(stop, END), logit_bias=((stop, 100.0),))]
        )
    assert text_of(VOCABULARY, output.tokens) == "xy#"
    assert output.finish == FinishReason.STOP


def test_a_bias_cannot_lift_the_mask(tiny: tuple[Path, Any]) -> None:
    ids = {c: BYTES + ord(c) for c in "abz"}
    with taught(tiny[0]) as d:
        lifted, lowered = d.run(
            [PROMPT] * 2,
            [
                regex("[ab]{4}", logit_bias=((ids["z"], 100.0), (ids["a"], 90.0))),
                regex("[ab]{4}", logit_bias=((ids["a"], -100.0),), temperature=0.0),
            ],
        )
    assert said(lifted) == "aaaa"
    assert said(lowered) == "bbbb"


def test_special_tokens_are_no_text(tiny: tuple[Path, Any]) -> None:
    with taught(tiny[0]) as d:
        (output,) = d.run([PROMPT], [regex("(.|\n){40}", logit_bias=((0, 50.0), (1, 50.0)))])
    assert 0 not in output.tokens
    assert 1 not in output.tokens


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Grammar("regex", "a("), "unclosed group"),
        (Grammar("ebnf", "root ::= nothing"), "nothing"),
        (Grammar("json_schema", '{"not": {}}'), "not"),
    ],
)
def test_what_does_not_compile_is_an_error(
    tiny: tuple[Path, Any], grammar: Grammar, why: str
) -> None:
    with taught(tiny[0]) as d:
        bad, good = d.run([PROMPT] * 2, [bound(grammar), regex("ab")])
    assert (bad.finish, bad.num_terminal, bad.tokens) == (FinishReason.ERROR, 1, [])
    assert why in str(bad.error)
    assert said(good) == "ab"


def test_without_a_vocabulary_a_grammar_is_an_error(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        bad, good = d.run([PROMPT] * 2, [regex("ab"), greedy(3)])
    assert bad.finish == FinishReason.ERROR
    assert "vocabulary" in str(bad.error)
    assert good.finish == FinishReason.LENGTH


def test_a_grammar_that_grows_too_large_fails_alone(tiny: tuple[Path, Any]) -> None:
    many = {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(3000)}}
    with taught(tiny[0]) as d:
        bad, good = d.run([PROMPT] * 2, [schema(many), regex("[ab]{30}")])
    assert (bad.finish, bad.num_terminal) == (FinishReason.ERROR, 1)
    assert "the grammar cannot be followed: " in str(bad.error)
    assert len(said(good)) == 30


class Stuck:
    """Compiling waits for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = threading.Event()
        compile_grammar = engine_grammar.compile_grammar

        def slow(*args: Any) -> Any:
            assert self.go.wait(60.0)
            return compile_grammar(*args)

        monkeypatch.setattr(engine_grammar, "compile_grammar", slow)


def test_compiling_holds_up_nobody(tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = Stuck(monkeypatch)
    with taught(tiny[0]) as d:
        for seq_id in (100, 101, 102):
            d.outputs[seq_id] = Output()
            held = GenerateRequest(seq_id=seq_id, input_ids=to_bytes(PROMPT), sampling=regex("ab"))
            d.turn([held])
        d.outputs[200] = Output()
        d.turn([GenerateRequest(seq_id=200, input_ids=to_bytes(PROMPT), sampling=greedy(10))])
        while not d.outputs[200].num_terminal:
            d.turn([])
        assert not d.engine.is_idle
        d.abort(101)
        assert d.outputs[101].finish == FinishReason.ABORT
        stuck.go.set()
        while not d.engine.is_idle:
            d.turn([])
        assert said(d.outputs[100]) == said(d.outputs[102]) == "ab"


def test_a_late_grammar_is_an_error(
    tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(monkeypatch)
    try:
        with taught(tiny[0], grammar_timeout=0.1) as d:
            (late,) = d.run([PROMPT], [regex("ab")])
    finally:
        stuck.go.set()
    assert (late.finish, late.error) == (FinishReason.ERROR, "the grammar was not compiled in time")


def test_an_abort_forgets_the_matcher(tiny: tuple[Path, Any]) -> None:
    with taught(tiny[0]) as d:
        d.outputs[1] = Output()
        request = GenerateRequest(seq_id=1, input_ids=to_bytes(PROMPT), sampling=regex("[ab]{90}"))
        d.turn([request])
        while len(d.outputs[1].tokens) < 3:
            d.turn([])
        assert d.engine._grammars.num_bound == 1
        d.abort(1)
        assert d.engine._grammars.num_bound == 0
        while not d.engine.is_idle:
            d.turn([])
        assert d.outputs[1].finish == FinishReason.ABORT


def test_many_masks_are_computed_together(tiny: tuple[Path, Any]) -> None:
    with taught(tiny[0]) as d:
        params = [regex("[a-f]{5,9}", seed=i) for i in range(14)]
        together = d.run([PROMPT] * 14, params)
        apart = [d.run([PROMPT], one)[0] for one in params[:3]]
    assert all(re.fullmatch("[a-f]{5,9}", said(o)) for o in together)
    assert [o.tokens for o in together[:3]] == [o.tokens for o in apart]
