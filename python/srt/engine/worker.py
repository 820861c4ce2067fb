"""One rank: copies a planned step to the device, runs the forward, samples, and brings tokens back.

`launch` never waits for the device. On CUDA everything is ordered on one stream; on the CPU one
thread of its own runs the steps in order, so that planning overlaps with computing there too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from srt.engine.bound import Masks, mask_words
from srt.engine.decode_plan import DecodePlanner
from srt.engine.device_state import DeviceState, Limits
from srt.engine.logprobs import StepLogprobs
from srt.engine.pooling import Pooler
from srt.engine.runner import GetMasks, StepRunner
from srt.engine.step import StepShape
from srt.models.decoder import Decoder

NUM_IN_FLIGHT = 2  # steps: arenas, masks and result buffers come in as many copies
FillMasks = Callable[[Masks], int]  # writes rows of the bitmask; returns how many


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step brought to the host.

    tokens: int32 [num_samples].  pooled: float32 [num_seqs, size], if a prompt ends to be embedded.
    """

    tokens: Tensor
    logprobs: StepLogprobs | None
    pooled: Tensor | None = None


class Worker:
    """Runs steps on one device.

    Args:
        message_words: the longest message that the scheduler writes.
        planner: of the decode attention, where the device has a kernel for it.
        pooler: of the prompts that end, where they may be embedded.

    Attributes:
        device_s, came_early: of the last result on a GPU, how long the device took for the step,
            and whether it was still at work when `result` was called.
        was_late: whether the step ahead had ended before the newest was launched.
    """

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        limits: Limits,
        message_words: int,
        planner: DecodePlanner | None = None,
        pooler: Pooler | None = None,
    ) -> None:
        self.limits = limits
        self.model = model
        self.state = state
        self._planner = planner
        self._device = state.page_table.device
        pinned = self._device.type == "cuda"
        if planner is not None:
            message_words += planner.max_words(limits.max_running)
        self._messages = [
            torch.zeros(message_words, dtype=torch.int32, pin_memory=pinned)
            for _ in range(NUM_IN_FLIGHT)
        ]
        self._tokens = [
            torch.zeros(limits.max_running, dtype=torch.int32, pin_memory=pinned)
            for _ in range(NUM_IN_FLIGHT)
        ]
        self._masks = [
            torch.zeros(
                limits.max_running,
                mask_words(model.config.vocab_size),
                dtype=torch.int32,
                pin_memory=pinned,
            )
            for _ in range(NUM_IN_FLIGHT)
        ]
        self._device_masks = torch.zeros_like(self._masks[0], device=self._device)
        self._turn = 0
        # A replayed graph reads the message at a fixed address; the CPU reads the host's arena.
        message = (
            self._messages[0]
            if not pinned
            else torch.zeros_like(self._messages[0], device=self._device)
        )
        self.runner = StepRunner(model, state, limits, message, planner, pooler)
        self._starts = [_event() for _ in range(NUM_IN_FLIGHT)] if pinned else []
        self._events = [_event() for _ in range(NUM_IN_FLIGHT)] if pinned else []
        self.device_s = 0.0
        self.came_early = self.was_late = False
        self._thread = None if pinned else ThreadPoolExecutor(1, "srt-forward")
        self._in_flight: list[Future[StepResult] | StepResult] = []

    @property
    def message(self) -> Tensor:
        """The arena into which the next step must be planned."""
        return self._messages[self._turn]

    def launch(self, shape: StepShape, fill_masks: FillMasks | None = None) -> None:
        """Starts the step that `message` holds. At most NUM_IN_FLIGHT steps may be in flight.

        Args:
            fill_masks: writes the grammar bitmask of each masked sample; called here, on this
                thread, while the device (or the forward thread) is at work on the step.
        """
        turn = self._turn
        self._turn = (turn + 1) % NUM_IN_FLIGHT
        if self._thread is None:
            # Asked before: a step of many launches starts long before all of them are made.
            self.was_late = bool(self._in_flight) and self._has_ended(self._turn)
            self._starts[turn].record()
            self._in_flight.append(self._run_on_device(shape, turn, fill_masks))
            self._events[turn].record()
            return
        if fill_masks is None:
            self._in_flight.append(self._thread.submit(self._run_on_host, shape, turn, None))
            return
        filled: Future[Tensor] = Future()
        self._in_flight.append(self._thread.submit(self._run_on_host, shape, turn, filled.result))
        try:
            fill_masks(self._masks[turn].numpy())
        except BaseException as e:
            filled.set_exception(e)  # or the forward thread waits for ever
            raise
        filled.set_result(self._masks[turn])

    def result(self) -> StepResult:
        """Waits for the oldest step in flight. Raises what its forward raised.

        The tokens stay valid until the step after the next is launched.
        """
        oldest = self._in_flight.pop(0)
        if isinstance(oldest, Future):
            return oldest.result()
        turn = (self._turn - len(self._in_flight) - 1) % NUM_IN_FLIGHT
        self.came_early = not self._has_ended(turn)
        self._events[turn].synchronize()
        self.device_s = self._starts[turn].elapsed_time(self._events[turn]) / 1e3
        return oldest

    def _has_ended(self, turn: int) -> bool:
        return bool(self._events[turn].query())  # type: ignore[no-untyped-call]

    @property
    def num_shared_prefix_steps(self) -> int:
        """Steps so far whose decodes read shared prefixes once."""
        return self._planner.num_shared_steps if self._planner is not None else 0

    @property
    def is_cuda(self) -> bool:
        """Whether steps run on a GPU."""
        return self._thread is None

    def call(self, function: Callable[[], object]) -> None:
        """Calls `function` on the thread that runs the steps, between two of them."""
        if self._thread is None:
            function()
        else:
            self._thread.submit(function).result()

    def close(self) -> None:
        """Waits for what is in flight; ends the forward thread, or lets go of the graphs.

        Ranks cannot leave their group while a graph holds its calls: that would wait for ever.
        """
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            return
        torch.cuda.synchronize(self._device)
        self.runner.graphs = self.runner.extend_graphs = None

    @torch.inference_mode()
    def _run_on_host(self, shape: StepShape, turn: int, masks: GetMasks | None) -> StepResult:
        self.runner.message = self._messages[turn]
        output, logprobs = self.runner.run(shape, masks)
        tokens = self._tokens[turn][: shape.num_samples]
        if output.tokens is not None:
            tokens.copy_(output.tokens)
        return StepResult(tokens, logprobs, output.pooled)

    @torch.inference_mode()
    def _run_on_device(
        self, shape: StepShape, turn: int, fill_masks: FillMasks | None
    ) -> StepResult:
        def masks() -> Tensor:
            """Called when the forward is launched: the host works while the device does."""
            assert fill_masks is not None
            rows = fill_masks(self._masks[turn].numpy())
            self._device_masks[:rows].copy_(self._masks[turn][:rows], non_blocking=True)
            return self._device_masks

        host, num_bytes = self._messages[turn], shape.num_bytes
        if self._planner is not None:
            num_bytes = self._planner.plan(host, shape.prefixes, self.limits.page_size)
        words = num_bytes // 4
        self.runner.message[:words].copy_(host[:words], non_blocking=True)
        output, logprobs = self.runner.run(shape, masks if fill_masks is not None else None)
        tokens = self._tokens[turn][: shape.num_samples]
        if output.tokens is not None:
            tokens.copy_(output.tokens[: shape.num_samples], non_blocking=True)
        return StepResult(tokens, logprobs, output.pooled)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
