"""The load generator against a fake engine: rows, records, every backend and data set."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from server.running import Running
from srt.bench_serving import main
from srt.benchmark.backends import BACKENDS
from srt.benchmark.datasets import Request, random_requests, words
from srt.benchmark.http_client import Exchange, HttpError
from srt.benchmark.load import Traffic, arrivals
from srt.text.tokenizer import load_tokenizer

SMALL = ["--num-prompt", "6", "--random-input", "20", "--random-output", "9", "--disable-tqdm"]


def bench(server: Running, tmp_path: Path, *argv: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.jsonl"
    assert main(["--base-url", server.url, "--output-file", str(out), *argv]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if not BACKENDS[name].is_chat])
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


@pytest.mark.parametrize("stream", [[], ["--disable-stream"]])
@pytest.mark.parametrize("backend", ["srt-oai-chat", "openai-chat", "vllm-chat"])
def test_chat_backends_send_messages(
    server: Running, tmp_path: Path, backend: str, stream: list[str]
) -> None:
    before = len(server.engine.requests)
    (found,) = bench(server, tmp_path, "--backend", backend, *SMALL, *stream)
    assert (found["completed"], found["failed"]) == (6, 0)
    sent = server.engine.requests[before + 1 :]
    assert found["total_input_tokens"] == sum(len(r.input_ids) // 4 for r in sent), "as told"
    assert found["total_output_tokens"] == sum(r.sampling.max_new_tokens for r in sent)


@pytest.mark.parametrize("backend", ["srt", "srt-oai", "srt-oai-chat"])
def test_turns_of_a_dialogue_build_on_their_answers(
    server: Running, tmp_path: Path, backend: str
) -> None:
    before = len(server.engine.requests)
    found = bench(
        server, tmp_path, "--backend", backend, "--dataset-name", "multi-turn", *SMALL[2:],
        "--num-prompts", "3", "--num-turns", "4", "--warmup-requests", "0",
    )[0]  # fmt: skip
    assert found["completed"] == 12
    assert found["total_output_tokens"] == 12 * 9
    sent = [bytes(r.input_ids) for r in server.engine.requests[before:]]
    assert len(sent) == 12
    lengths = sorted(map(len, sent))
    assert lengths[0] * 3 < lengths[-1], "the last turn says all that was said"
    first = min(sent, key=len)
    assert sum(ids.startswith(first[: len(first) // 2]) for ids in sent) >= 4


def test_a_failed_turn_ends_its_dialogue(server: Running, tmp_path: Path, capsys: Any) -> None:
    argv = ["--base-url", server.url, "--output-file", str(tmp_path / "x"), "--num-turns", "3"]
    argv += ["--dataset-name", "multi-turn", *SMALL, "--warmup-requests", "0"]
    assert main([*argv, "--extra-request-body", '{"nonsense": 1}']) == 1
    assert "an earlier turn failed" in capsys.readouterr().err
    record = json.loads((tmp_path / "x").read_text())
    assert (record["completed"], record["failed"]) == (0, 18)


def test_waiting_for_a_place_is_no_part_of_the_servers_time(
    server: Running, tmp_path: Path
) -> None:
    few = ["--num-prompts", "12", *SMALL[2:], "--max-concurrency", "1"]
    (found,) = bench(server, tmp_path, *few)
    assert found["max_concurrency"] == 1
    assert found["p99_client_queue_ms"] > 2 * found["p99_ttft_ms"]
    assert found["mean_concurrency"] <= 1.0
    assert found["median_client_lag_ms"] is None or found["median_client_lag_ms"] >= 0


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
        "Mean Client Queue (ms)",
        "Burstiness of arrivals (1: Poisson):     1.0",
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


def test_several_rates_make_several_records_and_a_chart(server: Running, tmp_path: Path) -> None:
    chart = tmp_path / "sweep.png"
    rates = ["--multi", "--request-rate-range", "500,700,100", "--plot-file", str(chart)]
    found = bench(server, tmp_path, *SMALL, *rates, "--burstiness", "0.5")
    assert [r["request_rate"] for r in found] == [500, 600]
    assert [r["burstiness"] for r in found] == [0.5, 0.5]
    pixels = imread(chart)
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 800
    assert pixels.std() > 0.05, "something is drawn"


def test_sharegpt_dialogues(server: Running, model: Path, tmp_path: Path) -> None:
    turns = [{"value": "Hello world, hello there?"}, {"value": "The capital is Paris."}] * 3
    file = tmp_path / "gpt.json"
    file.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:3]}]))
    source = ["--dataset-path", str(file), "--tokenizer", str(model), "--num-turns", "2"]
    (found,) = bench(server, tmp_path, "--dataset-name", "multi-turn", *source, "--disable-tqdm")
    assert found["completed"] == 3, "two turns of the first, one of the second"


@pytest.mark.parametrize("text", ["[1]", '[{"conversations": [{}, {}]}]', "{"])
def test_what_is_no_sharegpt_file_is_said(
    server: Running, model: Path, tmp_path: Path, capsys: Any, text: str
) -> None:
    file = tmp_path / "gpt.json"
    file.write_text(text)
    argv = ["--base-url", server.url, "--dataset-path", str(file), "--tokenizer", str(model)]
    assert main(argv) == 2
    assert f"--dataset-path {file}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--num-prompts", "0"], "--num-prompts is 0; it must be at least 1"),
        (["--request-rate", "0"], "--request-rate is 0; it must be greater than 0"),
        (["--burstiness", "-1"], "--burstiness is -1; it must be greater than 0"),
        (["--max-concurrency", "0"], "--max-concurrency is 0"),
        (["--random-range-ratio", "1.5"], "it must be from 0 to 1"),
        (["--plot-file", "x.png"], "it needs --multi"),
        (["--multi", "--plot-file", "x.pdf"], "it must end in .png"),
        (["--multi", "--plot-file", "/nowhere/x.png"], "there is no such folder"),
        (["--multi", "--request-rate-range", "9,1,2"], "start < stop"),
        (["--multi", "--request-rate-range", "a"], "it must be numbers"),
        (["--extra-request-body", "[]"], "must be a JSON object"),
        (["--dataset-name", "sharegpt"], "needs --dataset-path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_named(server: Running, capsys: Any, argv: list[str], why: str) -> None:
    assert main(["--base-url", server.url, *argv]) == 2
    assert why in capsys.readouterr().err


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
    assert BACKENDS["srt"].news(event) == ("", 2, 0)


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
        dialogues = [[Request([1], 1, i)] for i in range(20)]
        return [d[0].output_len async for d, _ in arrivals(dialogues, Traffic(5000.0))]

    assert asyncio.run(all_of_them()) == list(range(20))


@pytest.mark.parametrize(
    ("burstiness", "low", "high"), [(1, 0.8, 1.2), (0.1, 2.5, 4), (25, 0, 0.3)]
)
def test_gaps_have_their_mean_and_their_spread(burstiness: float, low: float, high: float) -> None:
    """A gamma distribution of shape k varies by 1 / sqrt(k) of its mean."""
    rate = 20_000.0

    async def due_times() -> list[float]:
        dialogues = [[Request([1], 1, 1)] for _ in range(2000)]
        return [due async for _, due in arrivals(dialogues, Traffic(rate, burstiness))]

    random.seed(3)
    gaps = [b - a for a, b in itertools.pairwise(asyncio.run(due_times()))]
    assert 0.75 < statistics.mean(gaps) * rate < 1.25
    assert low < statistics.stdev(gaps) / statistics.mean(gaps) < high


@pytest.mark.parametrize("count", [1, 7, 300])
def test_words_are_as_many_tokens_as_wanted(model: Path, count: int) -> None:
    tokenizer = load_tokenizer(model)
    num_tokens = len(tokenizer.encode(words(count, tokenizer)))
    assert num_tokens <= count or count == 1
    assert len(words(count, None).split()) == count
