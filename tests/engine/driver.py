"""Drives an engine inside the test's process, turn by turn, and judges greedy output."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from srt.channel import AbortRequest, GenerateRequest, SeqLogprobs, StepEvents, ToEngine
from srt.config import Settings
from srt.engine.engine import Engine
from srt.engine.startup import start_rank
from srt.parallel import TensorParallel
from srt.types import FinishReason, SamplingParams

# Two logits closer than this are a tie: float32 sums in another order may swap them.
TIE = 2e-3
MAX_TURNS = 20_000


@dataclass
class Output:
    """What came of one sequence."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason = FinishReason.NONE
    cached_tokens: int = -1
    logprobs: list[SeqLogprobs] = field(default_factory=list)
    error: str | None = None
    num_terminal: int = 0


@dataclass
class Driver:
    """An engine and its sequences by id."""

    engine: Engine
    outputs: dict[int, Output] = field(default_factory=dict)

    def turn(self, records: list[ToEngine]) -> None:
        """One turn; events are filed. Waits a little where a grammar is all there is to do."""
        if not records and not self.engine.is_busy:
            held = [one.compiled for one in self.engine._grammars._held.values()]
            futures.wait(held, 0.05, futures.FIRST_COMPLETED)
        for record in self.engine.turn([*self.engine.own_records(), *records]):
            if isinstance(record, StepEvents):
                self._file(record)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams],
        *,
        arrivals: Sequence[int] | None = None,
        **fields: Any,
    ) -> list[Output]:
        """Runs prompts to their ends; prompt i arrives at turn arrivals[i] (none: all at once)."""
        params = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        first = max(self.outputs, default=0) + 1
        due: dict[int, list[ToEngine]] = {}
        for i, prompt in enumerate(prompts):
            self.outputs[first + i] = Output()
            record = GenerateRequest(
                seq_id=first + i, input_ids=to_bytes(prompt), sampling=params[i], **fields
            )
            due.setdefault(arrivals[i] if arrivals else 0, []).append(record)
        for turn in range(MAX_TURNS):
            self.turn(due.pop(turn, []))
            if not due and self.engine.is_idle:
                return [self.outputs[first + i] for i in range(len(prompts))]
        raise AssertionError(f"not done after {MAX_TURNS} turns")

    def abort(self, seq_id: int) -> None:
        """A turn that aborts."""
        self.turn([AbortRequest([seq_id])])

    def _file(self, record: StepEvents) -> None:
        rows = zip(record.seq_ids, record.tokens, record.finish, strict=True)
        for seq_id, token, finish in rows:
            output = self.outputs[seq_id]
            assert output.finish == FinishReason.NONE, "news after the end"
            if token >= 0:
                output.tokens.append(token)
            output.finish = FinishReason(finish)
            output.num_terminal += output.finish != FinishReason.NONE
            output.cached_tokens = record.cached_tokens.get(seq_id, output.cached_tokens)
            output.error = record.errors.get(seq_id)
            if seq_id in record.logprobs:
                output.logprobs.append(record.logprobs[seq_id].pop(0))


@contextmanager
def driver(folder: Path, **settings: Any) -> Iterator[Driver]:
    """An engine over the checkpoint in `folder`: float32 on the CPU, invariants checked."""
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "max_total_tokens": 4096,
        "max_running_requests": 16,
        "self_check": True,
        "random_seed": 0,
    }
    chosen = Settings(model_path=str(folder), **(defaults | settings))
    engine = Engine(chosen, start_rank(chosen, TensorParallel(), torch.device("cpu")))
    try:
        yield Driver(engine)
        engine.scheduler.check_invariants()
    finally:
        engine.close()


def greedy(max_new_tokens: int = 16) -> SamplingParams:
    """Greedy sampling of exactly so many tokens."""
    return SamplingParams(max_new_tokens=max_new_tokens, temperature=0.0, ignore_eos=True)


def to_bytes(ids: Sequence[int]) -> bytes:
    """Token ids as they cross the channel."""
    return np.asarray(ids, "<i4").tobytes()


def random_prompts(num: int, max_len: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random lengths from 1 on; every third begins like the one before it."""
    rng = random.Random(seed)
    prompts: list[list[int]] = []
    for i in range(num):
        ids = [rng.randrange(3, vocab_size) for _ in range(rng.randint(1, max_len))]
        if i % 3 == 2:
            ids = prompts[-1][: max_len // 2] + ids[: max_len // 2]
        prompts.append(ids)
    return prompts


def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """[len(ids), vocab] of the transformers model, one whole forward."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([list(ids)])).logits[0].float()
    return logits


def assert_greedy(model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """Each token is the transformers model's likeliest, or ties with it.

    One forward over prompt and output tells: by induction this is transformers' greedy output.
    """
    assert tokens, "nothing was generated"
    logits = logits_of(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    gap = logits.max(dim=1).values - chosen
    assert gap.max() <= TIE, f"token {int(gap.argmax())} is {float(gap.max()):.4f} below the best"
