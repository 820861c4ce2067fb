"""Documents of a real SmolLM2 server at temperature 1: what is whole is valid, on every route."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from server.process import TIMEOUT_S, ServerProcess

USER: Any = {"role": "user", "content": "Write one small JSON document."}


def closed(**properties: Any) -> dict[str, Any]:
    names = list(properties)
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }


ITEM = closed(id={"type": "integer", "minimum": 1, "maximum": 99}, unit={"enum": ["kg", None]})
SCHEMAS: list[dict[str, Any]] = [
    closed(name={"type": "string", "maxLength": 8}, age={"type": "integer", "minimum": 0}),
    closed(items={"type": "array", "items": ITEM, "minItems": 1, "maxItems": 2}),
    closed(phone={"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"}),
    closed(p={"type": "number", "minimum": 0.25, "maximum": 0.75, "multipleOf": 0.125}),
    {**closed(x={"$ref": "#/$defs/w"}, y={"$ref": "#/$defs/w"}), "$defs": {"w": {"enum": [1, 2]}}},
    {"type": "array", "items": {"enum": ["é", "日本", "🎉"]}, "minItems": 2, "maxItems": 3},
]


@pytest.fixture(scope="module")
def client(real_server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{real_server.url}/v1", api_key="EMPTY", max_retries=0, timeout=TIMEOUT_S
    )


def chat(client: openai.OpenAI, schema: Any, seed: int, *, stream: bool) -> tuple[str, str]:
    answer: Any = client.chat.completions.create(
        model="smol",
        messages=[USER],
        temperature=1.0,
        seed=seed,
        max_completion_tokens=150,
        stream=stream,
        response_format={"type": "json_schema", "json_schema": {"name": "d", "schema": schema}},
    )
    if not stream:
        return answer.choices[0].message.content, answer.choices[0].finish_reason
    chunks = [chunk.choices[0] for chunk in answer]
    return "".join(c.delta.content or "" for c in chunks), chunks[-1].finish_reason


def test_documents_are_valid_streamed_and_whole(client: openai.OpenAI) -> None:
    jobs = [(schema, stream) for schema in SCHEMAS for stream in (False, True)]

    def run(job: tuple[int, tuple[Any, bool]]) -> tuple[str, str]:
        return chat(client, job[1][0], 7, stream=job[1][1])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, enumerate(jobs)))
    for (schema, _), (text, reason) in zip(jobs, answers, strict=True):
        if reason == "stop":
            jsonschema.validate(json.loads(text), schema)
    assert sum(reason == "stop" for _, reason in answers) >= len(jobs) - 2
    for whole, streamed in zip(answers[::2], answers[1::2], strict=True):
        assert whole == streamed, "one seed, one answer"


class Step(pydantic.BaseModel):
    kind: str = pydantic.Field(pattern="^(add|sub)$")
    amount: int = pydantic.Field(ge=1, le=20)


class Plan(pydantic.BaseModel):
    steps: list[Step] = pydantic.Field(min_length=1, max_length=2)
    done: bool


def test_the_clients_parse_helper(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="smol", messages=[USER], response_format=Plan, max_completion_tokens=150, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Plan)


def test_other_spellings(client: openai.OpenAI, real_server: ServerProcess) -> None:
    def complete(**asked: Any) -> str:
        answer = client.completions.create(
            model="smol", prompt="Answer:", max_tokens=24, extra_body=asked
        )
        return answer.choices[0].text

    assert re.fullmatch("[ab]{3}", complete(regex="[ab]{3}"))
    assert complete(guided_choice=["yes", "no"]) in ("yes", "no")
    assert re.fullmatch(r"[0-9](\+[0-9])?", complete(ebnf='root ::= [0-9] ("+" [0-9])?'))
    answer: Any = client.chat.completions.create(
        model="smol",
        messages=[USER],
        max_completion_tokens=40,
        response_format={"type": "json_object"},
    )
    assert answer.choices[0].message.content.startswith("{")
    native = real_server.client().post(
        "/generate",
        json={
            "text": ["a", "b"],
            "sampling_params": {"json_schema": '{"enum": ["x", "y"]}', "n": 2},
        },
    )
    assert {one["text"] for one in native.json()} <= {'"x"', '"y"'}
    assert all(one["meta_info"]["finish_reason"]["type"] == "stop" for one in native.json())
    with pytest.raises(openai.BadRequestError, match="#/properties/a/not: the keyword not"):
        chat(client, closed(a={"not": {}}), 0, stream=False)
