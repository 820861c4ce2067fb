"""JSON documents from a running server, five for each of 41 schemas at temperature 1, all judged.

Requests take turns over the routes, streamed and not. A document counts as whole when the answer
ended by itself; every whole one must be valid, and none may be cut off by its token limit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from bench._schemas import SERVED
from bench.grammar import FORMATS
from bench.record import Record, write

MAX_TOKENS = 400
TIMEOUT_S = 600.0
PROMPT = "Write one JSON document for a test. Only JSON."


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request. reason: stop or length; wrong: why it is not valid, or empty."""

    schema: str
    way: str
    text: str
    reason: str
    wrong: str
    num_tokens: int


def generate(schema: Any, seed: int, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """A request to /generate."""
    sampling = {"temperature": 1.0, "seed": seed, "max_new_tokens": MAX_TOKENS}
    body = {"text": PROMPT, "sampling_params": {**sampling, "json_schema": json.dumps(schema)}}
    return "/generate", {**body, "stream": stream}


def chat(schema: Any, seed: int, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """A request to /v1/chat/completions."""
    asked = {"type": "json_schema", "json_schema": {"name": "doc", "schema": schema}}
    body = {
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 1.0,
        "seed": seed,
        "max_tokens": MAX_TOKENS,
        "response_format": asked,
    }
    options = {"stream_options": {"include_usage": True}} if stream else {}
    return "/v1/chat/completions", {**body, "stream": stream, **options}


WAYS: tuple[tuple[str, Callable[..., tuple[str, dict[str, Any]]], bool], ...] = (
    ("chat", chat, False),
    ("chat, streamed", chat, True),
    ("generate", generate, False),
    ("generate, streamed", generate, True),
)


def read_events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream."""
    for line in response.iter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def ask(client: httpx.Client, path: str, body: dict[str, Any]) -> tuple[str, str, int]:
    """Text, finish reason and tokens of one answer."""
    if not body["stream"]:
        response = client.post(path, json=body)
        response.raise_for_status()
        return told(path, [response.json()], "message")
    with client.stream("POST", path, json=body) as response:
        response.raise_for_status()
        return told(path, list(read_events(response)), "delta")


def told(path: str, events: list[dict[str, Any]], part: str) -> tuple[str, str, int]:
    """The same from whole answers or from all events of a stream."""
    if path == "/generate":
        last = events[-1]
        meta = last["meta_info"]
        return last["text"], meta["finish_reason"]["type"], meta["completion_tokens"]
    choices = [event["choices"][0] for event in events if event["choices"]]
    text = "".join(choice[part].get("content") or "" for choice in choices)
    return text, choices[-1]["finish_reason"], events[-1]["usage"]["completion_tokens"]


def judge(schema: Any, text: str) -> str:
    """Why `text` is no document of `schema`; empty if it is one."""
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)
    except ValueError as error:
        return f"no JSON: {error}"
    except jsonschema.ValidationError as error:
        return error.message
    return ""


def run(base_url: str, per_schema: int, clients: int) -> list[Answer]:
    """All answers, in no order."""
    jobs = [(name, i) for name in SERVED for i in range(per_schema)]

    def one(job: tuple[int, tuple[str, int]]) -> Answer:
        number, (name, i) = job
        way, make, stream = WAYS[number % len(WAYS)]
        path, body = make(SERVED[name], i, stream=stream)
        text, reason, num_tokens = ask(client, path, body)
        return Answer(name, way, text, reason, judge(SERVED[name], text), num_tokens)

    with (
        httpx.Client(base_url=base_url, timeout=TIMEOUT_S) as client,
        ThreadPoolExecutor(clients) as pool,
    ):
        return list(pool.map(one, enumerate(jobs)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:30000")
    parser.add_argument("--per-schema", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path, help="where to write the records")
    args = parser.parse_args()
    answers = run(args.base_url, args.per_schema, args.clients)
    records = []
    for way, _, _ in WAYS:
        of_way = [a for a in answers if a.way == way]
        params = {"way": way, "schemas": len({a.schema for a in of_way})}
        valid = sum(not a.wrong for a in of_way)
        records.append(Record("documents", params, len(of_way), "answers"))
        records.append(Record("valid documents", params, valid, "answers", limit=len(of_way)))
    tokens = sum(a.num_tokens for a in answers)
    records.append(Record("tokens of all documents", {}, tokens, "tokens"))
    for record in records:
        print(record.row(), record.params)
    for answer in answers:
        if answer.wrong:
            print(answer.schema, answer.way, answer.reason, answer.wrong, repr(answer.text))
    if args.json is not None:
        write(records, args.json)


if __name__ == "__main__":
    main()
