"""One step on its device: replayed from a graph or a tape, or launched piece by piece.

Nothing here waits for the device. The step's message lies in `message`; tokens, logits and logprobs
come back as tensors of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from srt import ops
from srt.batch import ForwardBatch
from srt.engine.compile import CompiledDecode, decode_logits
from srt.engine.cpu_tape import DecodeTapes
from srt.engine.decode_plan import DecodePlanner
from srt.engine.device_state import DeviceState, Limits
from srt.engine.extend_graph import Bucket, ExtendGraphs
from srt.engine.graph import DecodeGraphs, GraphPool, StepOutput
from srt.engine.logprobs import StepLogprobs, compute_logprobs
from srt.engine.pooling import Pooler
from srt.engine.step import ANY_FLAGS, TOTAL_WORDS, StepShape
from srt.models.decoder import Decoder
from srt.ops import message as msg

NUM_DECODE_WORD = slice(msg.NUM_DECODE, msg.NUM_DECODE + 1)
GetMasks = Callable[[], Tensor]  # the step's bitmask on the device, when it must be there


class StepRunner:
    """Runs the steps of one model over one device state.

    Args:
        message: where the step's message lies when `run` is called. A graph reads it there, so on
            CUDA it never changes; on the CPU each step has its own.
        planner, pooler: as the worker's.

    Attributes:
        graphs, extend_graphs, tapes, compiled: faster ways to run a step, where there are any.
    """

    def __init__(
        self,
        model: Decoder,
        state: DeviceState,
        limits: Limits,
        message: Tensor,
        planner: DecodePlanner | None,
        pooler: Pooler | None,
    ) -> None:
        self.model = model
        self.state = state
        self.limits = limits
        self.message = message
        self.graphs: DecodeGraphs | None = None
        self.extend_graphs: ExtendGraphs | None = None
        self.tapes: DecodeTapes | None = None
        self.compiled: CompiledDecode | None = None
        self._planner = planner
        self._pooler = pooler

    @property
    def extend_buckets(self) -> list[Bucket]:
        """The sizes of captured extend steps."""
        return self.extend_graphs.buckets if self.extend_graphs is not None else []

    def run(
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
            return self._replay_decode(shape)
        if self.extend_graphs is None or shape.num_logits != shape.num_samples:
            return None
        if self._pooler is not None and (shape.num_prompt_ends or self._pooler.needs_all_steps):
            return None
        bucket = self.extend_graphs.find(shape.num_seqs, shape.num_tokens)
        return None if bucket is None else self.extend_graphs.replay(bucket)

    def _replay_decode(self, shape: StepShape) -> StepOutput | None:
        if self.graphs is None:
            return None
        num_seqs = shape.num_seqs
        if shape.num_drafts and self.model.fused is not None:
            num_seqs = max(num_seqs, self.model.fused.max_rows + 1)  # see ForwardBatch.has_drafts
        size = self.graphs.padded(num_seqs)
        return None if size is None else self.graphs.replay(size)

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
        batch = replace(self._batch(shape), device_num_decode=self.message[NUM_DECODE_WORD])
        rows = self.model(batch).index_select(0, batch.logit_idx)
        logits = self.model.compute_logits(rows)
        return StepOutput(self._sample(logits, ANY_FLAGS, None), logits)

    def write_empty_message(self) -> None:
        """Puts a step of no sequences on the device: in a padded step every row is padding."""
        self.message.zero_()
        self.message[msg.OFF_SEQS : TOTAL_WORDS + 1] = msg.HEADER_WORDS

    @torch.inference_mode()
    def capture(self, sizes: list[int], buckets: list[Bucket]) -> None:
        """Captures decode graphs, then extend graphs. The page table must still be zero."""
        self.write_empty_message()
        pool = GraphPool(torch.cuda.current_stream(self.state.page_table.device))
        graphs = DecodeGraphs(self.run_decode, pool)
        graphs.capture(sizes)
        extends = ExtendGraphs(self.run_extend, pool)
        extends.capture(buckets)
        self.graphs, self.extend_graphs = graphs, extends

    def _prepare(self, padded_seqs: int, padded_tokens: int) -> None:
        state = self.state
        ops.prepare_step(
            self.message,
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
            decode_work=self.message if planner is not None else None,
            decode_plans=planner.offsets if planner is not None else {},
            attn_workspace=planner.workspace if planner is not None else None,
            has_drafts=shape.num_drafts > 0,
        )

    def _sample(self, logits: Tensor, flags: int, masks: Tensor | None) -> Tensor:
        state = self.state
        return ops.sample(
            logits,
            self.message,
            state.buffers,
            state.page_table,
            state.slot_tokens,
            state.last_tokens,
            page_size=self.limits.page_size,
            flags=flags,
            bitmask=masks,
        )
