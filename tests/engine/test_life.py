"""A sequence's life: one terminal event whatever happens, and no page is lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from engine.driver import Driver, Output, driver, greedy, random_prompts, to_bytes
from srt.channel import AbortRequest, Call, CallResult, GenerateRequest, ToEngine, first_id
from srt.types import FinishReason, SamplingParams

MIB = 1 << 20


def call(d: Driver, method: str, **args: Any) -> CallResult:
    raw = {name: msgspec.Raw(msgspec.msgpack.encode(value)) for name, value in args.items()}
    records = d.engine.turn([Call(call_id=9, method=method, args=raw)])
    (result,) = [r for r in records if isinstance(r, CallResult)]
    return result


def test_what_can_never_fit_is_an_error(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        too_long, empty, fine = d.run([[5] * 600, [], [5] * 10], greedy(3))
    assert too_long.finish == FinishReason.ERROR
    assert too_long.error is not None
    assert "600" in too_long.error
    assert "512" in too_long.error
    assert empty.finish == FinishReason.ERROR
    assert fine.finish == FinishReason.LENGTH
    assert [o.num_terminal for o in (too_long, empty, fine)] == [1, 1, 1]


def test_abort_waiting_running_and_unknown(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0], max_running_requests=1) as d:
        for seq_id in (1, 2):
            d.outputs[seq_id] = Output()
            request = GenerateRequest(
                seq_id=seq_id, input_ids=to_bytes([5, 6]), sampling=greedy(400)
            )
            d.turn([request])
        for _ in range(3):
            d.turn([])
        d.abort(2)  # waits
        d.abort(1)  # runs
        d.abort(77)
        while d.engine.is_busy:
            d.turn([])
        assert [d.outputs[i].finish for i in (1, 2)] == [FinishReason.ABORT] * 2
        assert 0 < len(d.outputs[1].tokens) < 400
        assert not d.outputs[2].tokens


def test_flush_cache_only_when_idle(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        d.run([[5] * 64], greedy(2))
        assert d.engine.state()["num_cached_tokens"] > 0
        d.outputs[50] = Output()
        d.turn([GenerateRequest(seq_id=50, input_ids=to_bytes([5] * 9), sampling=greedy(20))])
        busy = call(d, "flush_cache")
        assert not busy.ok
        assert busy.message
        d.abort(50)
        while d.engine.is_busy:
            d.turn([])
        assert call(d, "flush_cache").ok
        assert d.engine.state()["num_cached_tokens"] == 0


def test_calls_that_fail_say_why(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        assert "no_such" in call(d, "no_such").message
        assert not call(d, "stop_profile").ok


def test_profile_writes_a_trace(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    with driver(tiny[0]) as d:
        assert call(d, "start_profile", folder=str(tmp_path)).ok
        d.run([[5] * 20], greedy(3))
        result = call(d, "stop_profile")
    assert result.ok
    assert Path(msgspec.msgpack.decode(result.payload)).stat().st_size > 0


def test_shutdown_drains_and_refuses(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        for seq_id in (1, 2):
            d.outputs[seq_id] = Output()
        d.turn([GenerateRequest(seq_id=1, input_ids=to_bytes([5]), sampling=greedy(10))])
        drain = {"drain": msgspec.Raw(msgspec.msgpack.encode(True))}
        late = GenerateRequest(seq_id=2, input_ids=to_bytes([5]), sampling=greedy(10))
        d.turn([Call(call_id=1, method="shutdown", args=drain), late])
        assert not d.engine.is_done
        while d.engine.is_busy:
            d.turn([])
        assert d.engine.is_done
        assert len(d.outputs[1].tokens) == 10
        assert d.outputs[2].finish == FinishReason.ERROR


def test_shutdown_without_drain_aborts(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        d.outputs[1] = Output()
        d.turn([GenerateRequest(seq_id=1, input_ids=to_bytes([5]), sampling=greedy(400))])
        d.turn([Call(call_id=1, method="shutdown")])
        while d.engine.is_busy:
            d.turn([])
        assert d.engine.is_done
        assert d.outputs[1].finish == FinishReason.ABORT


def random_request(rng: random.Random, seq_id: int, prompts: list[list[int]]) -> GenerateRequest:
    sampling = SamplingParams(
        max_new_tokens=rng.randint(1, 12),
        temperature=rng.choice((0.0, 0.0, 0.8)),
        stop_token_ids=tuple(rng.randrange(320) for _ in range(rng.choice((0, 0, 20)))),
        seed=seq_id,
    )
    return GenerateRequest(
        seq_id=seq_id,
        input_ids=to_bytes(rng.choice(prompts)),
        sampling=sampling,
        return_logprob=rng.random() < 0.05,
        logprob_start=rng.choice((-1, -1, -1, 0)),
    )


@pytest.mark.timeout(600)
def test_soak_of_two_thousand_requests_with_aborts(tiny: tuple[Path, Any]) -> None:
    rng = random.Random(7)
    prompts = random_prompts(40, 60, 320, seed=7)
    total, living_target = 2000, 24
    memory_at_quarter = 0
    process = psutil.Process()
    with driver(tiny[0], max_total_tokens=800, page_size=4, self_check=False) as d:
        next_id, living = 1, set[int]()
        while next_id <= total or d.engine.is_busy:
            records: list[ToEngine] = []
            while next_id <= total and len(living) < living_target:
                d.outputs[next_id] = Output()
                records.append(random_request(rng, next_id, prompts))
                living.add(next_id)
                next_id += 1
            if living and rng.random() < 0.2:
                records.append(AbortRequest([rng.choice(sorted(living)), 10**6]))
            d.turn(records)
            living = {i for i in living if d.outputs[i].finish == FinishReason.NONE}
            if next_id >= total // 4 and not memory_at_quarter:
                memory_at_quarter = process.memory_info().rss
        growth = process.memory_info().rss - memory_at_quarter
        assert [o.num_terminal for o in d.outputs.values()] == [1] * total
        kinds = {o.finish for o in d.outputs.values()}
        assert kinds == {FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT}
        stats = d.engine.scheduler.stats()
        assert stats.num_used_pages == 0
        assert stats.num_free_pages + stats.num_cached_pages == stats.num_total_pages
        assert call(d, "flush_cache").ok
        assert d.engine.scheduler.stats().num_free_pages == stats.num_total_pages
        assert growth < 24 * MIB, f"{growth / MIB:.1f} MiB more after 1,500 requests"


def test_aborting_everyone_frees_every_page_in_the_same_turn(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        requests: list[ToEngine] = []
        for seq_id in range(1, 25):  # 16 run, 8 wait
            d.outputs[seq_id] = Output()
            prompt = to_bytes([seq_id] * 20)
            requests.append(GenerateRequest(seq_id=seq_id, input_ids=prompt, sampling=greedy(100)))
        d.turn(requests)
        for _ in range(5):
            d.turn([])
        assert d.engine.scheduler.stats().num_used_pages > 0
        d.turn([AbortRequest(list(range(1, 25)))])
        assert d.engine.scheduler.stats().num_used_pages == 0
        assert {o.finish for o in d.outputs.values()} == {FinishReason.ABORT}


def test_a_worker_that_is_gone_takes_its_sequences_along(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0]) as d:
        mine, other = first_id(1), first_id(2)
        for seq_id in (mine, other):
            d.outputs[seq_id] = Output()
            d.turn([GenerateRequest(seq_id=seq_id, input_ids=to_bytes([5]), sampling=greedy(20))])
        assert call(d, "forget_worker", worker=1).ok
        while d.engine.is_busy:
            d.turn([])
    assert d.outputs[other].finish == FinishReason.LENGTH
    assert len(d.outputs[mine].tokens) < 20


def test_explain_tells_where_the_time_went(tiny: tuple[Path, Any]) -> None:
    with driver(tiny[0], max_running_requests=1, chunked_prefill_size=16, page_size=4) as d:
        d.run([[5] * 40, [5] * 40], greedy(4))
        unknown, first, second = msgspec.msgpack.decode(
            call(d, "explain", seq_ids=[99, 1, 2]).payload
        )
    assert unknown is None
    for told in (first, second):
        assert told["output_tokens"] == 4
        phases = told["queue_ms"] + told["prefill_ms"] + told["decode_ms"]
        assert phases == pytest.approx(told["total_ms"])
        assert told["prefill_ms"] > 0
        assert told["retractions"] == 0
        assert told["max_batch"] == 1
    assert first["chunks"] == 3
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] == 36  # the last token is computed anew
    assert second["chunks"] == 1
    assert second["queue_ms"] > first["queue_ms"]
    assert second["queue_ms"] >= first["decode_ms"]
