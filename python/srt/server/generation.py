"""What a request waits for: its sequences, fed by the engine client, read by the response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from srt.channel import SeqLogprobs
from srt.errors import RequestError
from srt.text.detokenizer import OutputText, TextOptions
from srt.text.tokenizer import Tokenizer
from srt.types import FinishReason


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. text: as the client wrote it, None where it sent token ids."""

    input_ids: list[int]
    text: str | None = None


class Sequence:
    """One answer as it grows.

    tokens: all sampled ids, a final stop id included. num_jumped: those that came with the step of
    the one before. matched: the stop id or string that ended it.
    error: set instead of an answer. hides_output: the client wanted zero tokens.
    ends_at: gets the text as it comes; True: the answer ends there.
    """

    __slots__ = (
        "_ends_at", "_flushed", "_is_read", "_noted", "_options", "_output", "_parts", "_taken",
        "arrived_s", "cached_tokens", "embedding", "engine", "error", "finish", "first_token_s",
        "generation", "hides_output", "index", "last_token_s", "logprobs", "matched", "num_jumped",
        "prompt", "prompt_logprobs", "prompt_top_logprobs", "request_id", "seq_id", "submitted_s",
        "tokens", "traceparent",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        request_id: str,
        prompt: Prompt,
        tokenizer: Tokenizer | None,
        options: TextOptions,
        ends_at: Callable[[str], bool] | None = None,
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.prompt = prompt
        self.seq_id = -1
        self.engine = -1
        self.generation: Generation | None = None
        self.tokens: list[int] = []
        self.num_jumped = 0
        self.cached_tokens = 0
        self.arrived_s = self.submitted_s = time.monotonic()
        self.traceparent = ""
        self.first_token_s = 0.0  # 0: none has come
        self.last_token_s = 0.0  # kept where there are metrics
        self.finish = FinishReason.NONE
        self.matched: int | str | None = None
        self.error: RequestError | None = None
        self.hides_output = False
        self.embedding = b""  # float32 little-endian, once it has come
        self.logprobs: list[SeqLogprobs] = []
        self.prompt_logprobs: list[float | None] = []
        self.prompt_top_logprobs: list[list[tuple[int, float]] | None] = []
        self._options = options
        self._ends_at = ends_at
        self._is_read = bool(options.stop) or ends_at is not None  # token by token
        self._output = OutputText(tokenizer, options) if tokenizer is not None else None
        self._parts: list[str] = []
        self._taken = 0
        self._noted = 0
        self._flushed = False

    @property
    def num_shown(self) -> int:
        """Tokens that the text shows: all but a stop id that is trimmed."""
        is_trimmed = isinstance(self.matched, int) and not self._options.no_stop_trim
        return len(self.tokens) - 1 if is_trimmed else len(self.tokens)

    def feed(self, token: int, finish: int) -> bool:
        """One event. Returns True if the text ends the answer here: the engine must be told."""
        if token >= 0 and not self.hides_output:
            self.tokens.append(token)
        if finish:
            self.finish = FinishReason(finish)
            if self.hides_output and finish == FinishReason.STOP:
                self.finish = FinishReason.LENGTH
            elif finish == FinishReason.STOP:
                self.matched = token
        if not self._is_read or self._output is None:
            return False
        is_cut = self._read(finish)
        if is_cut:  # more may have come with the same step
            del self.logprobs[len(self.tokens) :]
        return is_cut

    def feed_logprobs(self, entry: SeqLogprobs) -> None:
        """What comes with an event beside its token."""
        self.prompt_logprobs += entry.prompt
        self.prompt_top_logprobs += entry.prompt_top
        if entry.token is not None and not self.hides_output:
            self.logprobs.append(entry)

    def fail(self, error: RequestError) -> None:
        """End without an answer."""
        self.finish, self.error = FinishReason.ERROR, error

    def take_text(self) -> str:
        """The text that became certain since the last call."""
        if self._output is None:
            return ""
        if self._is_read:
            text = "".join(self._parts)
            self._parts.clear()
            return text
        shown = self.num_shown
        text = self._output.push(self.tokens[self._taken : shown])
        self._taken = shown
        if self.finish and not self._flushed:
            self._flushed = True
            text += self._output.finish()
        return text

    def is_news(self, interval: int) -> bool:
        """Whether a stream should hear of it: the first token, every `interval`-th, the end."""
        count = len(self.tokens)
        if self.finish or self._noted == 0 or count - self._noted >= interval:
            self._noted = count
            return True
        return False

    def _read(self, finish: int) -> bool:
        output = self._output
        assert output is not None
        shown = self.num_shown
        if self._taken < shown:
            text = output.push(self.tokens[self._taken : shown])
            self._parts.append(text)
            self._taken = shown
            if self._ends_at is not None and self._ends_at(text) and not finish:
                self.finish, self.matched = FinishReason.STOP, output.matched
                return True
        if finish and output.matched is None:
            self._parts.append(output.finish())
        if output.matched is None:
            return False
        self.finish, self.matched = FinishReason.STOP, output.matched
        return not finish


class Generation:
    """The sequences of one request, and who waits for them: a task for the end of all, or a
    stream for every news.

    interval: tokens between two news of a stream; None: only the end of all counts.
    """

    __slots__ = ("_done", "_interval", "_news", "_num_running", "_on_news", "sequences")

    def __init__(self, sequences: Seq[Sequence], interval: int | None) -> None:
        self.sequences = sequences
        self._interval = interval
        self._num_running = len(sequences)
        self._news: dict[int, Sequence] = {}
        self._done: asyncio.Future[None] | None = None
        self._on_news: Callable[[], object] | None = None
        for sequence in sequences:
            sequence.generation = self

    @property
    def is_done(self) -> bool:
        """Whether every sequence has ended."""
        return self._num_running == 0

    @property
    def has_news(self) -> bool:
        """Whether `take_news` would give anything."""
        return bool(self._news)

    def note(self, sequence: Sequence) -> bool:
        """Called after each event of `sequence`; True if `wake` should be called soon."""
        if sequence.finish:
            self._num_running -= 1
        if self._interval is not None and sequence.is_news(self._interval):
            self._news[sequence.index] = sequence
            return True
        return self._num_running == 0

    def wake(self) -> None:
        """Tell who waits. The engine client calls this once for all events that came together."""
        if self._on_news is not None:
            self._on_news()
        elif self._num_running == 0 and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def on_news(self, call: Callable[[], object] | None) -> None:
        """From now on `call` is called at every wake; None: nobody."""
        self._on_news = call

    def take_news(self) -> list[Sequence]:
        """Sequences with new tokens or an end since the last call, by index."""
        news = self._news
        told = list(news.values()) if len(news) < 2 else [news[index] for index in sorted(news)]
        news.clear()
        return told

    async def ended(self) -> None:
        """Wait for the end of all. Raises the error of the first that has one."""
        if self._num_running:
            self._done = asyncio.get_running_loop().create_future()
            await self._done
        for sequence in self.sequences:
            if sequence.error is not None:
                raise sequence.error
