"""Requests made from /openapi.json: no 500, no hang, and every answer is what the page says.

A few hundred by default; `SRT_FUZZ_REQUESTS=5000 pytest tests/server/test_fuzz.py` makes as many,
new ones each time.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core import NotSet

import tiny_tokenizer
from server.fake_engine import READY
from server.running import Running
from server.test_tools import TEMPLATE
from srt.server.app import ROUTES
from srt.server.openai.responses import ErrorBody
from srt.server.openapi import EVENTS, answer_of, describe

NUM_REQUESTS = int(os.environ.get("SRT_FUZZ_REQUESTS", "0"))
TIMEOUT_S = 20.0
PAGE = describe(ROUTES)
EMPTY = ("/ping", "/health", "/health_generate", "/ready", "/readyz")


def sharpened() -> dict[str, Any]:
    """The page with what can only be refused left out, so that many requests are answered."""
    page = copy.deepcopy(PAGE)
    schemas = page["components"]["schemas"]
    for schema in schemas.values():
        fields = schema.get("properties", {})
        for name in [name for name, field in fields.items() if "x-refused" in field]:
            del fields[name]
        for name, field in fields.items():
            if name == "model":
                field.pop("anyOf", None)
                field.update(type="string", enum=["default"])
            elif name in ("max_tokens", "max_new_tokens", "max_completion_tokens", "n", "best_of"):
                field.update(maximum=8)
            elif name in ("tool_choice", "response_format", "logit_bias", "priority", "min_tokens"):
                fields[name] = {"type": "null"}
    message = schemas["Message"]
    message["required"] = ["role", "content"]
    message["properties"] = {
        "role": {"enum": ["system", "user", "assistant"]},
        "content": {"type": "string", "maxLength": 20},
    }
    schemas["ChatBody"]["properties"]["messages"].update(minItems=1, maxItems=3)
    schemas["FunctionSpec"]["properties"]["strict"] = {"type": "null"}
    return page


def operations(page: dict[str, Any]) -> dict[str, Any]:
    found = (result.ok() for result in schemathesis.openapi.from_dict(page).get_all_operations())
    return {operation.label: operation for operation in found}


AS_IT_IS, SHARPENED = operations(PAGE), operations(sharpened())
WITH_BODY = [label for label, operation in AS_IT_IS.items() if operation.body]
# operations and mode; each kind gets the same share of the requests
KINDS = [
    *[(AS_IT_IS[label], GenerationMode.POSITIVE) for label in AS_IT_IS],
    *[(AS_IT_IS[label], GenerationMode.NEGATIVE) for label in WITH_BODY],
    *[(SHARPENED[label], GenerationMode.POSITIVE) for label in WITH_BODY for _ in range(2)],
]
NUM_KINDS = sum(1 for operation, _ in KINDS if operation.body)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tiny_tokenizer.write_checkpoint(
        tmp_path_factory.mktemp("fuzzed"),
        tiny_tokenizer.byte_level(),
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )
    short = msgspec.structs.replace(READY, max_seq_len=300)
    storage = str(tmp_path_factory.mktemp("storage"))
    with Running(
        folder, short, enable_metrics=True, log_level="warning", file_storage_path=storage
    ) as running:
        yield running
        running.wait_idle()
        assert running.generate(text="Hello", sampling_params={"max_new_tokens": 2})


def send(running: Running, case: Any) -> httpx.Response:
    asked: dict[str, Any] = {"params": case.query, "timeout": TIMEOUT_S}
    if case.media_type == "multipart/form-data" and isinstance(case.body, dict):
        asked["files"] = {
            name: (name if name == "file" else None, str(value))
            for name, value in case.body.items()
        }
    elif isinstance(case.body, bytes):
        asked["content"] = case.body
    elif not isinstance(case.body, NotSet):
        asked["content"] = json.dumps(case.body)
    return running.http.request(case.method, case.formatted_path, **asked)


def check(case: Any, answer: httpx.Response) -> None:
    """The answer is one that the page foresees for this operation."""
    foreseen = PAGE["paths"][case.path][case.method.lower()]["responses"]
    assert str(answer.status_code) in foreseen, (answer.status_code, answer.text, case.body)
    kind = answer_of(f"{case.method} {case.path}")
    if answer.status_code != 200:
        error = msgspec.json.decode(answer.content, type=ErrorBody).error
        assert error.message
        assert answer.status_code != 400 or error.type == "invalid_request_error"
    elif answer.headers.get("content-type", "").startswith("text/event-stream"):
        *events, done, empty = answer.text.split("\n\n")
        assert (done, empty) == ("data: [DONE]", "")
        for event in events:
            assert event.startswith("data: ")
            msgspec.json.decode(event[6:].encode(), type=EVENTS[case.path])
    elif kind is not None:
        msgspec.json.decode(answer.content, type=kind)


def test_generated_requests(fuzzed: Running) -> None:
    share = max(4, -(-NUM_REQUESTS // NUM_KINDS))
    statuses: dict[int, int] = {}
    for operation, mode in KINDS:
        with_input = operation.body or operation.path_parameters or operation.query

        @settings(
            max_examples=share if with_input else 1,
            deadline=None,
            database=None,
            derandomize=NUM_REQUESTS == 0,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            answer = send(fuzzed, case)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            check(case, answer)

        run()
    assert statuses[200] >= 20
    assert statuses[400] >= 20
    assert sum(statuses.values()) >= NUM_REQUESTS // 2  # what few fields allow is made once
    assert not [status for status in statuses if status >= 500]


def test_the_page_describes_every_route_and_field() -> None:
    for path, methods in PAGE["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            assert operation["responses"]["200"].get("content", path in EMPTY), (path, method)
            for status, answer in operation["responses"].items():
                assert answer["description"], (path, method, status)
    bodies = {kind.__name__ for *_, kind in ROUTES if kind is not None} | {"SamplingFields"}
    for name in bodies:
        for field, schema in PAGE["components"]["schemas"][name]["properties"].items():
            assert schema.get("description"), f"{name}.{field} is not described"
