"""Every sampling parameter: what passes, and how a wrong one is named."""

from __future__ import annotations

from typing import Any

import pytest

from srt.errors import ContextLengthExceeded, InvalidParameter, RequestError, UnsupportedParameter
from srt.text.sampling import Limits, Sampling, SamplingFields, check_sampling
from srt.types import Grammar

LIMITS = Limits(vocab_size=100, max_seq_len=64, max_total_tokens=1000, eos_ids=(2,))


def check(**fields: Any) -> Sampling:
    return check_sampling(SamplingFields(**fields), LIMITS)


def test_defaults() -> None:
    sampling = check()
    params = sampling.for_prompt(10, LIMITS)
    assert params.temperature == params.top_p == params.repetition_penalty == 1.0
    assert params.stop_token_ids == (2,)
    assert params.max_new_tokens == 54  # 128 by default, clipped to the window
    assert sampling.n == 1


def test_ignore_eos_leaves_the_clients_own_ids() -> None:
    assert check(ignore_eos=True, stop_token_ids=[5]).params.stop_token_ids == (5,)
    assert check(stop_token_ids=[5, 2]).params.stop_token_ids == (5, 2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be at least 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": 0}, "top_k is 0; it must be -1 or at least 1"),
        ({"top_k": -2}, "top_k is -2"),
        ({"min_p": 1.5}, "min_p is 1.5; it must be at least 0 and at most 1"),
        (
            {"frequency_penalty": 3.0},
            "frequency_penalty is 3.0; it must be at least -2 and at most 2",
        ),
        ({"presence_penalty": -3.0}, "presence_penalty is -3.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be above 0"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be at least 0"),
        (
            {"min_new_tokens": 5, "max_new_tokens": 4},
            "min_new_tokens is 5; it must be at most max_new_tokens, 4",
        ),
        ({"n": 0}, "n is 0; it must be at least 1"),
        ({"n": 1000}, "n is 1000; it must be at most 128"),
        ({"stop": ""}, 'stop is ""; it must not be empty'),
        ({"stop": ["a"] * 65}, "stop is 65 strings; it must be at most 64"),
        ({"stop": "a" * 1025}, "stop is 1025 characters"),
        ({"stop_token_ids": [100]}, "stop_token_ids is 100; it must be at least 0 and below 100"),
        ({"logit_bias": {"x": 1.0}}, "logit_bias is for 'x'"),
        ({"logit_bias": {"100": 1.0}}, "logit_bias is for '100'"),
        ({"logit_bias": {"1": 101.0}}, "logit_bias is 101.0 for 1; it must be from -100 to 100"),
    ],
)
def test_a_wrong_value_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check(**fields)
    assert said in caught.value.message
    assert caught.value.param is not None


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"regex": "a+"}, Grammar("regex", "a+")),
        ({"ebnf": 'root ::= "a"'}, Grammar("ebnf", 'root ::= "a"')),
        ({"json_schema": '{"type": "null"}'}, Grammar("json_schema", '{"type":"null"}')),
        ({"json_schema": {"type": "null"}}, Grammar("json_schema", '{"type":"null"}')),
        ({"json_schema": True}, Grammar("json_schema", "{}")),
    ],
)
def test_grammars(fields: dict[str, Any], grammar: Grammar) -> None:
    checked = check(**fields)
    assert checked.params.grammar == grammar
    assert checked.grammar_field == next(iter(fields))


def test_an_answer_with_a_grammar_ends_by_an_end_token_even_with_ignore_eos() -> None:
    params = check(regex="a+", ignore_eos=True, stop_token_ids=[7]).params
    assert params.ignore_eos
    assert params.stop_token_ids == (7, *LIMITS.eos_ids)
    endless = Limits(100, 64, 64, ())
    with pytest.raises(UnsupportedParameter, match="no token that ends an answer"):
        check_sampling(SamplingFields(regex="a+"), endless)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"regex": "a", "ebnf": "start: A"}, "regex and ebnf both say"),
        ({"regex": ""}, "regex is empty"),
        ({"ebnf": "  "}, "ebnf is empty"),
        ({"regex": "a" * 20_000}, "regex has 20000 bytes; it must have at most 16384"),
        ({"json_schema": "{"}, "json_schema is not valid JSON"),
        ({"json_schema": "[1]"}, "json_schema is list; a JSON schema is an object or a boolean"),
        ({"json_schema": False}, "json_schema is false"),
        ({"json_schema": "[" * 200_000}, "json_schema is not valid JSON"),
        ({"json_schema": {"x-guidance": {}}}, "json_schema sets x-guidance"),
        ({"json_schema": {"title": "a" * 300_000}}, "it must have at most 262144"),
    ],
)
def test_a_wrong_grammar_is_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(**fields)
    assert said in caught.value.message
    assert caught.value.param in fields


def test_names_are_the_clients() -> None:
    fields = SamplingFields(max_new_tokens=-1)
    with pytest.raises(InvalidParameter, match=r"^max_tokens is -1"):
        check_sampling(fields, LIMITS, names={"max_new_tokens": "max_tokens"})
    with pytest.raises(InvalidParameter, match=r"^sampling_params\.max_new_tokens is -1"):
        check_sampling(fields, LIMITS, prefix="sampling_params.")


def test_a_tiny_temperature_is_greedy() -> None:
    assert check(temperature=1e-9).params.temperature == 0.0


def test_too_long_names_both_numbers() -> None:
    with pytest.raises(
        ContextLengthExceeded, match="prompt has 64 tokens, the context window holds 64"
    ):
        check().for_prompt(64, LIMITS)
    with pytest.raises(
        ContextLengthExceeded, match="prompt has 60 tokens and max_new_tokens is 5, together 65"
    ):
        check(max_new_tokens=5).for_prompt(60, LIMITS)
    pool = Limits(vocab_size=100, max_seq_len=64, max_total_tokens=32, eos_ids=())
    with pytest.raises(ContextLengthExceeded, match="prompt has 40 tokens, the KV pool holds 32"):
        check().for_prompt(40, pool)
    with pytest.raises(RequestError, match="no tokens"):
        check().for_prompt(0, LIMITS)


def test_a_prompt_and_its_answer_may_fill_the_window() -> None:
    assert check(max_new_tokens=4).for_prompt(60, LIMITS).max_new_tokens == 4


def test_seeds() -> None:
    assert check(seed=-1).params.seed == 2**63 - 1
    assert check(seed=7).params.seed == 7
    assert check().params.seed != check().params.seed
    sampling = check(seed=7, n=3)
    seeds = [sampling.seed_of(choice) for choice in range(3)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
