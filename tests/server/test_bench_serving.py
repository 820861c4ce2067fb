"""The load generator against a fake engine: rows, records, every backend and data set."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from server.running import Running
from srt.bench_serving import main
from srt.benchmark.backends import BACKENDS
from srt.benchmark.datasets import Request, random_requests
from srt.benchmark.http_client import Exchange, HttpError
from srt.benchmark.load import arrivals

SMALL = ["--num-prompt", "6", "--random-input", "20", "--random-output", "9", "--disable-tqdm"]


def bench(server: Running, tmp_path: Path, *argv: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.jsonl"
    assert main(["--base-url", server.url, "--output-file", str(out), *argv]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("backend", ["srt", "sglang", "srt-oai", "sglang-oai", "vllm", "lmdeploy"])
@pytest.mark.parametrize("stream", [[], ["--disable-stream"]])
def test_every_backend_counts_every_token(
    server: Running, tmp_path: Path, backend: str, stream: list[str]
) -> None:
    fixed = ["--random-range-ratio", "1.0"]
    (found,) = bench(server, tmp_path, "--backend", backend, *SMALL, *fixed, *stream)
    assert (found["completed"], found["failed"]) == (6, 0)
    assert found["total_input_tokens"] == 6 * 20
    assert found["total_output_tokens"] == 6 * 9
    assert found["mean_ttft_ms"] <= found["mean_e2e_latency_ms"]
    assert found["model"] == "tiny"


def test_rows_are_printed(server: Running, tmp_path: Path, capsys: Any) -> None:
    bench(server, tmp_path, *SMALL)
    shown = capsys.readouterr().out
    for row in (
        "Successful requests:                     6",
        "Output token throughput (tok/s)",
        "Median TTFT (ms)",
        "P99 TPOT (ms)",
        "Mean ITL (ms)",
        "P99 E2E Latency (ms)",
    ):
        assert row in shown


def test_shared_prefixes(server: Running, tmp_path: Path) -> None:
    argv = [
        *("--dataset-name", "generated-shared-prefix", "--warmup-requests", "0", "--disable-tqdm"),
        *("--gen-num-groups", "2", "--gen-prompts-per-group", "3", "--gen-output-len", "4"),
        *("--gen-system-prompt-len", "30", "--gen-question-len", "5"),
    ]
    before = len(server.engine.requests)
    (found,) = bench(server, tmp_path, *argv)
    assert found["completed"] == 6
    prefixes = {r.input_ids[: 30 * 4] for r in server.engine.requests[before:]}
    assert len(prefixes) == 2


def test_sharegpt(server: Running, model: Path, tmp_path: Path) -> None:
    question = {"value": "Hello world, hello there, how are you today?"}
    turns = [question, {"value": "The capital is Paris."}]
    file = tmp_path / "gpt.json"
    file.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}]))
    (found,) = bench(
        server, tmp_path, "--dataset-path", str(file), "--tokenizer", str(model), "--disable-tqdm"
    )
    assert found["dataset_name"] == "sharegpt"
    assert found["completed"] == 1
    assert found["total_output_tokens_retokenized"] is not None


def test_several_rates_make_several_records(server: Running, tmp_path: Path) -> None:
    rates = ["--multi", "--request-rate-range", "500,700,100"]
    assert [r["request_rate"] for r in bench(server, tmp_path, *SMALL, *rates)] == [500, 600]


def test_extra_body_reaches_the_server(server: Running, tmp_path: Path) -> None:
    bench(server, tmp_path, *SMALL, "--extra-request-body", '{"return_logprob": true}')
    assert server.engine.requests[-1].return_logprob


def test_failures_are_counted_and_told(server: Running, tmp_path: Path, capsys: Any) -> None:
    extra = ["--extra-request-body", '{"nonsense": 1}']
    argv = ["--base-url", server.url, "--output-file", str(tmp_path / "x"), *SMALL, *extra]
    assert main([*argv, "--warmup-requests", "0"]) == 1
    assert "nonsense is not a known field" in capsys.readouterr().err
    assert main(argv) == 2
    assert "the warm-up request failed" in capsys.readouterr().err


def test_a_server_without_a_tokenizer_tells_its_tokens() -> None:
    event = {"token_ids": [5, 6], "meta_info": {"completion_tokens": 2}}
    assert BACKENDS["srt"].news(event) == ("", 2)


def test_the_client_tells_a_cut_answer() -> None:
    async def cut() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            async with Exchange(f"http://127.0.0.1:{port}/") as got:
                await got.read()

    with pytest.raises(HttpError, match="before the end"):
        asyncio.run(cut())


def test_random_lengths_stay_within_their_ratio() -> None:
    requests = random_requests(200, 100, 50, 0.5, 1000)
    assert {len(r.prompt) for r in requests} <= set(range(50, 101))
    assert {r.output_len for r in requests} <= set(range(25, 51))


def test_arrivals_keep_their_order() -> None:
    async def all_of_them() -> list[int]:
        requests = [Request([1], 1, i) for i in range(20)]
        return [r.output_len async for r in arrivals(requests, 5000.0)]

    assert asyncio.run(all_of_them()) == list(range(20))
