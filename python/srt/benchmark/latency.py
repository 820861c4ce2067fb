"""One static batch from prompt to last token, timed step by step, without a server."""

from __future__ import annotations

import statistics
import threading
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from srt.channel import EngineReady, GenerateRequest, SeqLogprobs
from srt.engine.client import EngineClient, Sink
from srt.errors import InternalServerError
from srt.types import FinishReason, SamplingParams


@dataclass(frozen=True, slots=True)
class Row:
    """One combination's figures; seconds, and tokens per second."""

    run_name: str
    batch_size: int
    input_len: int
    output_len: int
    prefill_latency: float
    prefill_throughput: float
    median_decode_latency: float | None
    median_decode_throughput: float | None
    total_latency: float
    total_throughput: float

    def record(self) -> dict[str, str | float | None]:
        """For the result file."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Timing:
    """`steps_s[k]`: seconds until every sequence had its k-th token, from the start or the last."""

    steps_s: list[float]


def fits(batch_size: int, input_len: int, output_len: int, ready: EngineReady) -> bool:
    """Whether the batch can run at once."""
    per_sequence = input_len + output_len
    return (
        per_sequence <= ready.max_seq_len
        and batch_size <= ready.max_running
        and batch_size * per_sequence <= ready.max_total_tokens
    )


def time_batch(client: EngineClient, batch_size: int, input_len: int, output_len: int) -> Timing:
    """Run prompts of ones, greedy, eos ignored. Raises InternalServerError if a sequence fails."""
    prompt = array("i", [1] * input_len).tobytes()
    sampling = SamplingParams(max_new_tokens=output_len, temperature=0.0, ignore_eos=True)
    clock = _Clock(batch_size, output_len)
    start = time.perf_counter()
    request = GenerateRequest(seq_id=0, input_ids=prompt, sampling=sampling)
    client.submit([(request, clock.sink()) for _ in range(batch_size)])
    clock.done.wait()
    if clock.failure is not None:
        raise InternalServerError(clock.failure)
    edges = [start, *clock.ended_at]
    return Timing([later - earlier for earlier, later in pairwise(edges)])


class _Clock:
    """Notes when the last sequence got its k-th token. All calls come on the client's thread."""

    def __init__(self, batch_size: int, output_len: int) -> None:
        self.ended_at = [0.0] * output_len
        self.failure: str | None = None
        self.done = threading.Event()
        self._running = batch_size

    def sink(self) -> Sink:
        """For one sequence."""
        count = 0

        def take(
            seq_id: int,  # noqa: ARG001
            token: int,
            finish: int,
            cached_tokens: int,  # noqa: ARG001
            logprobs: SeqLogprobs | None,  # noqa: ARG001
            error: str | None,
            jumped: bool,  # noqa: ARG001
        ) -> None:
            nonlocal count
            if token >= 0:
                self.ended_at[count] = time.perf_counter()
                count += 1
            self.failure = self.failure or error
            if finish != FinishReason.NONE:
                self._running -= 1
                if self._running == 0:
                    self.done.set()

        return take


def make_row(
    run_name: str, batch_size: int, input_len: int, output_len: int, timing: Timing
) -> Row:
    """Figures of one run."""
    prefill_s, *decodes_s = timing.steps_s
    total_s = sum(timing.steps_s)
    median_s = statistics.median(decodes_s) if decodes_s else None
    return Row(
        run_name=run_name,
        batch_size=batch_size,
        input_len=input_len,
        output_len=output_len,
        prefill_latency=prefill_s,
        prefill_throughput=batch_size * input_len / prefill_s,
        median_decode_latency=median_s,
        median_decode_throughput=batch_size / median_s if median_s else None,
        total_latency=total_s,
        total_throughput=batch_size * (input_len + output_len) / total_s,
    )


def lines(row: Row, timing: Timing) -> list[str]:
    """What is printed of a run: prefill, the first five decodes, the median, the total."""
    shown = [
        f"Prefill. latency: {row.prefill_latency:6.5f} s, "
        f"throughput: {row.prefill_throughput:9.2f} token/s"
    ]
    shown += [
        f"Decode.  latency: {step_s:6.5f} s, throughput: {row.batch_size / step_s:9.2f} token/s"
        for step_s in timing.steps_s[1:6]
    ]
    if row.median_decode_latency is not None:
        shown.append(
            f"Decode.  median latency: {row.median_decode_latency:6.5f} s, "
            f"median throughput: {row.median_decode_throughput:9.2f} token/s"
        )
    shown.append(
        f"Total. latency: {row.total_latency:6.3f} s, "
        f"throughput: {row.total_throughput:9.2f} token/s"
    )
    return shown


def sweep(
    batch_sizes: Sequence[int], input_lens: Sequence[int], output_lens: Sequence[int]
) -> list[tuple[int, int, int]]:
    """All combinations, in the order given."""
    return [(b, i, o) for b in batch_sizes for i in input_lens for o in output_lens]
