"""One rank: copies a planned step to the device, runs the forward, samples, and brings tokens back.

`launch` never waits for the device. On CUDA everything is ordered on one stream; on the CPU one
thread of its own runs the steps in order, so that planning overlaps with computing there too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from srt import ops
from srt.batch import ForwardBatch, KvPool, StepBuffers
from srt.engine.bound import Masks, mask_words
from srt.engine.compile import CompiledDecode, decode_logits
from srt.engine.cpu_tape import DecodeTapes
from srt.engine.decode_plan import DecodePlanner
from srt.engine.extend_graph import Bucket, ExtendGraphs
from srt.engine.graph import DecodeGraphs, GraphPool, StepOutput
from srt.engine.logprobs import StepLogprobs, compute_logprobs
from srt.engine.pooling import Pooler
from srt.engine.step import ANY_FLAGS, TOTAL_WORDS, StepShape
from srt.models.decoder import Decoder
from srt.ops import message as msg

NUM_DECODE_WORD = slice(msg.NUM_DECODE, msg.NUM_DECODE + 1)
NUM_IN_FLIGHT = 2  # steps: arenas, masks and result buffers come in as many copies
FillMasks = Callable[[Masks], int]  # writes rows of the bitmask; returns how many
GetMasks = Callable[[], Tensor]  # the step's bitmask on the device, when it must be there


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that are fixed for the engine's life.

    max_step_tokens: query tokens of one step. max_logits: rows of logits of one step.
    """

    max_running: int
    max_seq_len: int
    max_step_tokens: int
    max_logits: int
    page_size: int

    @property
    def max_pages_per_seq(self) -> int:
        """Columns of the page table."""
        return -(-self.max_seq_len // self.page_size)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The device tensors that live from step to step; docs/contracts.md sections 1 to 3."""

    buffers: StepBuffers
    page_table: Tensor
    last_tokens: Tensor
    slot_tokens: Tensor
    kv: KvPool

    @classmethod
    def allocate(cls, limits: Limits, kv: KvPool, device: torch.device) -> DeviceState:
        """Zeroed tensors around a pool."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        rows = limits.max_running + 1
        return cls(
            buffers=StepBuffers.allocate(
                limits.max_step_tokens, limits.max_running, limits.max_logits, device
            ),
            page_table=zeros(rows, limits.max_pages_per_seq),
            last_tokens=zeros(rows),
            slot_tokens=zeros(kv.k[0].shape[0] * limits.page_size),
            kv=kv,
        )


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
        self._pooler = pooler
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
        self.graphs: DecodeGraphs | None = None
        self.extend_graphs: ExtendGraphs | None = None
        self.tapes: DecodeTapes | None = None
        self.compiled: CompiledDecode | None = None
        # A replayed graph reads the message at a fixed address; the CPU reads the host's arena.
        self._message = (
            self._messages[0]
            if not pinned
            else torch.zeros_like(self._messages[0], device=self._device)
        )
        self._events = [_event() for _ in range(NUM_IN_FLIGHT)] if pinned else []
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
        self._events[turn].synchronize()
        return oldest

    @property
    def num_shared_prefix_steps(self) -> int:
        """Steps so far whose decodes read shared prefixes once."""
        return self._planner.num_shared_steps if self._planner is not None else 0

    @property
    def extend_buckets(self) -> list[Bucket]:
        """The sizes of captured extend steps."""
        return self.extend_graphs.buckets if self.extend_graphs is not None else []

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
        """Waits for what is in flight and ends the forward thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        else:
            torch.cuda.synchronize(self._device)

    @torch.inference_mode()
    def _run_on_host(self, shape: StepShape, turn: int, masks: GetMasks | None) -> StepResult:
        self._message = self._messages[turn]
        output, logprobs = self._run(shape, masks)
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
        self._message[:words].copy_(host[:words], non_blocking=True)
        output, logprobs = self._run(shape, masks if fill_masks is not None else None)
        tokens = self._tokens[turn][: shape.num_samples]
        if output.tokens is not None:
            tokens.copy_(output.tokens[: shape.num_samples], non_blocking=True)
        return StepResult(tokens, logprobs, output.pooled)

    def _run(
        self, shape: StepShape, masks: GetMasks | None
    ) -> tuple[StepOutput, StepLogprobs | None]:
        """The step whose message lies on the device: a graph if one fits, else launch by launch."""
        output = self._replay(shape)
        if output is None:
            return self._run_eager(shape, masks)
        if masks is not None:
            output = self._sample_again(shape, output, masks)
        if not shape.flags & msg.FLAG_LOGPROBS:
            return output, None
        assert output.tokens is not None
        assert output.logits is not None
        logits, tokens = output.logits[: shape.num_samples], output.tokens[: shape.num_samples]
        return output, compute_logprobs(self.model, shape, self.state.buffers, logits, tokens, None)

    def _replay(self, shape: StepShape) -> StepOutput | None:
        """Replays the graph that fits the step; None: there is none."""
        if shape.is_decode:
            size = self.graphs.padded(shape.num_seqs) if self.graphs else None
            return self.graphs.replay(size) if self.graphs and size is not None else None
        if self.extend_graphs is None or shape.num_logits != shape.num_samples:
            return None
        if self._pooler is not None and (shape.num_prompt_ends or self._pooler.needs_all_steps):
            return None
        bucket = self.extend_graphs.find(shape.num_seqs, shape.num_tokens)
        return None if bucket is None else self.extend_graphs.replay(bucket)

    def _sample_again(self, shape: StepShape, output: StepOutput, masks: GetMasks) -> StepOutput:
        """After a graph, which cannot wait for masks: draws all rows anew, now with their masks.

        A row without a mask draws the same token again, for what it draws depends on it alone.
        """
        assert output.logits is not None
        logits = output.logits[: shape.num_samples]
        return StepOutput(self._sample(logits, shape.flags, masks()), output.logits)

    def _run_eager(
        self, shape: StepShape, masks: GetMasks | None
    ) -> tuple[StepOutput, StepLogprobs | None]:
        buffers = self.state.buffers
        self._prepare(shape.num_seqs, shape.num_tokens)
        if self.tapes is not None and shape.is_decode:
            return self._run_taped(self.tapes, shape, masks)
        batch = self._batch(shape)
        hidden = self.model(batch)
        logits = tokens = None
        if shape.num_samples and self.model.lm_head is not None:
            rows = hidden
            if not shape.is_decode:
                rows = hidden.index_select(0, buffers.logit_idx[: shape.num_samples])
            logits = self.model.compute_logits(rows)
            tokens = self._sample(logits, shape.flags, masks() if masks is not None else None)
        logprobs = None
        if shape.flags & msg.FLAG_LOGPROBS or shape.num_logits > shape.num_samples:
            logprobs = compute_logprobs(self.model, shape, buffers, logits, tokens, hidden)
        pooled = None
        if self._pooler is not None and (shape.num_prompt_ends or self._pooler.needs_all_steps):
            pooled = self._pooler.pool(hidden, batch)
        return StepOutput(tokens, logits, pooled), logprobs

    def _run_taped(
        self, tapes: DecodeTapes, shape: StepShape, masks: GetMasks | None
    ) -> tuple[StepOutput, StepLogprobs | None]:
        def forward() -> Tensor:
            return self.model.compute_logits(self.model(self._batch(shape)))

        logits = tapes.logits(shape.num_seqs, forward)
        tokens = self._sample(logits, shape.flags, masks() if masks is not None else None)
        if not shape.flags & msg.FLAG_LOGPROBS:
            return StepOutput(tokens, logits), None
        buffers = self.state.buffers
        logprobs = compute_logprobs(self.model, shape, buffers, logits, tokens, None)
        return StepOutput(tokens, logits), logprobs

    def run_decode(self, size: int) -> StepOutput:
        """A decode step padded to `size`: what a graph captures. Only launches."""
        self._prepare(size, size)
        shape = StepShape(
            num_seqs=size,
            num_decode=size,
            num_tokens=size,
            num_samples=size,
            num_logits=size,
            num_bytes=0,
            flags=ANY_FLAGS,
            max_q_len=1,
            max_seq_len=self.limits.max_seq_len,
        )
        batch = self._batch(shape)
        if self.compiled is not None and size <= self.compiled.max_bs:
            logits = self.compiled.logits(batch)
        else:
            logits = decode_logits(self.model, batch)
        return StepOutput(self._sample(logits, ANY_FLAGS, None), logits)

    def run_extend(self, bucket: Bucket) -> StepOutput:
        """A step padded to `bucket`, whose decodes are counted on the device. Only launches."""
        self._prepare(bucket.num_seqs, bucket.num_tokens)
        shape = StepShape(
            num_seqs=bucket.num_seqs,
            num_decode=0,
            num_tokens=bucket.num_tokens,
            num_samples=bucket.num_seqs,
            num_logits=bucket.num_seqs,
            num_bytes=0,
            flags=ANY_FLAGS,
            max_q_len=bucket.num_tokens,
            max_seq_len=self.limits.max_seq_len,
        )
        batch = replace(self._batch(shape), device_num_decode=self._message[NUM_DECODE_WORD])
        rows = self.model(batch).index_select(0, batch.logit_idx)
        logits = self.model.compute_logits(rows)
        return StepOutput(self._sample(logits, ANY_FLAGS, None), logits)

    def write_empty_message(self) -> None:
        """Puts a step of no sequences on the device: in a padded step every row is padding."""
        self._message.zero_()
        self._message[msg.OFF_SEQS : TOTAL_WORDS + 1] = msg.HEADER_WORDS

    @torch.inference_mode()
    def capture(self, sizes: list[int], buckets: list[Bucket]) -> None:
        """Captures decode graphs, then extend graphs. The page table must still be zero."""
        self.write_empty_message()
        pool = GraphPool(torch.cuda.current_stream(self._device))
        graphs = DecodeGraphs(self.run_decode, pool)
        graphs.capture(sizes)
        extends = ExtendGraphs(self.run_extend, pool)
        extends.capture(buckets)
        self.graphs, self.extend_graphs = graphs, extends

    def _prepare(self, padded_seqs: int, padded_tokens: int) -> None:
        state = self.state
        ops.prepare_step(
            self._message,
            state.page_table,
            state.last_tokens,
            state.slot_tokens,
            state.buffers,
            padded_seqs,
            padded_tokens,
        )

    def _batch(self, shape: StepShape) -> ForwardBatch:
        buffers, seqs, tokens = self.state.buffers, shape.num_seqs, shape.num_tokens
        planner = self._planner
        return ForwardBatch(
            num_tokens=tokens,
            num_seqs=seqs,
            num_decode=shape.num_decode,
            token_ids=buffers.token_ids[:tokens],
            positions=buffers.positions[:tokens],
            slots=buffers.slots[:tokens],
            rows=buffers.rows[:seqs],
            q_indptr=buffers.q_indptr[: seqs + 1],
            seq_lens=buffers.seq_lens[:seqs],
            page_table=self.state.page_table,
            logit_idx=buffers.logit_idx[: shape.num_logits],
            max_q_len=shape.max_q_len,
            max_seq_len=shape.max_seq_len,
            kv=self.state.kv,
            decode_work=self._message if planner is not None else None,
            decode_plans=planner.offsets if planner is not None else {},
            attn_workspace=planner.workspace if planner is not None else None,
        )

    def _sample(self, logits: Tensor, flags: int, masks: Tensor | None) -> Tensor:
        state = self.state
        return ops.sample(
            logits,
            self._message,
            state.buffers,
            state.page_table,
            state.slot_tokens,
            state.last_tokens,
            page_size=self.limits.page_size,
            flags=flags,
            bitmask=masks,
        )


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
