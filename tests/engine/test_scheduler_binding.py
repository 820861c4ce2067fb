"""The scheduler as Python sees it: a request's life, the message's layout, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from srt.core import native

SEQ, TOKEN, UPDATE, LOGIT, SAMPLING = 8, 4, 4, 4, 16


def make_config(**changes: object) -> native.SchedulerConfig:
    settings: dict[str, object] = {
        "num_pages": 65,
        "page_size": 4,
        "max_running": 4,
        "max_seq_len": 64,
        "max_step_tokens": 16,
        "max_prefill_tokens": 16,
        "self_check": True,
    }
    return native.SchedulerConfig(**(settings | changes))


def make_buffer(config: native.SchedulerConfig) -> torch.Tensor:
    return torch.full((native.message_words(config),), -7, dtype=torch.int32)


def section(message: torch.Tensor, offset_word: int, count_word: int, width: int) -> np.ndarray:
    words = message.numpy()
    start, count = words[offset_word], words[count_word]
    return words[start : start + count * width].reshape(count, width)


def test_a_request_runs_from_prompt_to_length() -> None:
    config = make_config()
    scheduler, message = native.Scheduler(config), make_buffer(config)
    prompt = np.arange(10, 16, dtype=np.int32)
    scheduler.add(7, prompt.tobytes(), max_new_tokens=2, temperature=0.0, seed=1 << 40)

    plan = scheduler.schedule(message)
    assert (plan.num_seqs, plan.num_decode, plan.num_tokens, plan.num_samples) == (1, 0, 6, 1)
    assert plan.all_greedy
    assert not plan.is_decode_only
    assert plan.sample_seq_ids.tolist() == [7]
    assert plan.logit_positions.tolist() == [6]
    tokens = section(message, 9, 3, TOKEN)
    assert tokens[:, 0].tolist() == prompt.tolist()
    assert tokens[:, 1].tolist() == list(range(6))
    updates = section(message, 10, 6, UPDATE)
    row = scheduler.row_of(7)
    assert updates[:, :2].tolist() == [[row, 0], [row, 1]]
    pages = updates[:, 2]
    assert tokens[:, 2].tolist() == [int(pages[i // 4]) * 4 + i % 4 for i in range(6)]
    record = section(message, 12, 4, SAMPLING)[0]
    assert (record[9], record[10], record[11]) == (0, 1 << 8, 0)  # seed halves, stream position
    assert plan.num_bytes == int(message[15]) * 4

    second = scheduler.schedule(message)  # before the first token is known
    assert (second.num_decode, second.is_decode_only, second.num_samples) == (1, True, 1)
    assert section(message, 9, 3, TOKEN)[:, :2].tolist() == [[-1, 6]]
    scheduler.commit(plan.step, np.array([50], dtype=np.int32))
    assert scheduler.schedule(message) is None  # its last token is in flight
    scheduler.commit(second.step, torch.tensor([51], dtype=torch.int32))

    events = scheduler.drain_events()
    assert len(events) == events.num_events == 2
    assert events.seq_ids.tolist() == [7, 7]
    assert events.tokens.tolist() == [50, 51]
    assert events.finish.tolist() == [0, 2]
    assert events.cached_tokens.tolist() == [0, -1]
    assert events.sample_idx.tolist() == [0, 0]
    assert events.num_finished == 1
    assert scheduler.stats().num_running == 0


def test_a_second_request_finds_the_first_ones_prefix() -> None:
    config = make_config()
    scheduler, message = native.Scheduler(config), make_buffer(config)
    prompt = np.arange(9, dtype=np.int32)
    for seq_id in (1, 2):
        scheduler.add(seq_id, prompt, max_new_tokens=1)
    plan = scheduler.schedule(message)
    assert (plan.num_tokens, plan.num_cached_tokens) == (9 + 1, 8)
    scheduler.commit(plan.step, np.array([3, 4], dtype=np.int32))
    assert scheduler.drain_events().cached_tokens.tolist() == [0, 8]
    assert scheduler.stats().num_prompt_cached_tokens == 8
    assert scheduler.flush()
    assert scheduler.stats().num_cached_tokens == 0


def test_prompt_logprob_rows_name_sequence_position_and_target() -> None:
    config = make_config()
    scheduler, message = native.Scheduler(config), make_buffer(config)
    prompt = np.array([5, 6, 7, 8], dtype=np.int32)
    scheduler.add(1, prompt, max_new_tokens=0, return_logprob=True, logprob_start=1, top_logprobs=3)
    plan = scheduler.schedule(message)
    assert (plan.num_samples, plan.num_logits, plan.max_top_logprobs) == (0, 3, 3)
    assert plan.logit_seq_ids.tolist() == [1, 1, 1]
    assert plan.logit_positions.tolist() == [1, 2, 3]
    assert section(message, 11, 5, LOGIT)[:, [0, 2]].tolist() == [[0, 6], [1, 7], [2, 8]]
    scheduler.commit(plan.step, np.empty(0, dtype=np.int32))
    events = scheduler.drain_events()
    assert (events.tokens.tolist(), events.finish.tolist()) == ([-1], [2])


def test_abort_is_a_terminal_event_and_unknown_ids_are_fine() -> None:
    scheduler = native.Scheduler(make_config())
    scheduler.add(1, np.arange(3, dtype=np.int32), max_new_tokens=1)
    assert not scheduler.flush()
    scheduler.abort(1)
    scheduler.abort(99)
    events = scheduler.drain_events()
    assert (events.seq_ids.tolist(), events.finish.tolist()) == ([1], [3])
    assert scheduler.flush()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.arange(64, dtype=np.int32), "prompt has 64 tokens, the context window holds 64"),
        (np.empty(0, dtype=np.int32), "empty"),
        (np.arange(4, dtype=np.int64), "int32"),
        (b"abc", "whole int32 words"),
    ],
)
def test_a_prompt_that_cannot_run_is_refused(tokens: object, message: str) -> None:
    scheduler = native.Scheduler(make_config())
    with pytest.raises(ValueError, match=message):
        scheduler.add(1, tokens, max_new_tokens=1)
    assert scheduler.stats().num_waiting == 0


def test_misuse_is_a_value_error() -> None:
    config = make_config()
    scheduler, message = native.Scheduler(config), make_buffer(config)
    with pytest.raises(ValueError, match="policy"):
        make_config(policy="lifo")
    with pytest.raises(ValueError, match="needs"):
        scheduler.schedule(message[:16])
    with pytest.raises(ValueError, match="int32"):
        scheduler.schedule(message.float())
    with pytest.raises(ValueError, match="no step is in flight"):
        scheduler.commit(1, np.empty(0, dtype=np.int32))
    scheduler.add(1, np.arange(3, dtype=np.int32), max_new_tokens=9)
    with pytest.raises(ValueError, match="already in use"):
        scheduler.add(1, np.arange(3, dtype=np.int32), max_new_tokens=9)
    plan = scheduler.schedule(message)
    with pytest.raises(ValueError, match="has 1 samples, commit brings 2"):
        scheduler.commit(plan.step, np.array([1, 2], dtype=np.int32))
    scheduler.schedule(message)
    with pytest.raises(ValueError, match="two steps are in flight"):
        scheduler.schedule(message)
