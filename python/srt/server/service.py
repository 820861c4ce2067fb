"""What every route works with: engines, text room, limits; and how prompts are started."""

from __future__ import annotations

import array
import asyncio
import logging
import sys
import time
import uuid
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import msgspec

from srt.channel import EngineReady, GenerateRequest
from srt.config import Settings
from srt.errors import ContextLengthExceeded, InvalidParameter, UnsupportedParameter
from srt.server.batches.runner import BatchRunner
from srt.server.engine_client import EngineClient
from srt.server.generation import Generation, Prompt, Sequence
from srt.text.chat import ChatFormat
from srt.text.grammar_checker import GrammarChecker, refuse
from srt.text.reply import ReplyFormat
from srt.text.sampling import Limits, Sampling, check_prompt_len
from srt.text.tokenizer import Tokenizer
from srt.types import Grammar

_log = logging.getLogger("srt.server")
MAX_PROMPTS = 4096
INLINE_CHARS = 16384  # longer texts are encoded beside the event loop


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt and what is wanted of it.

    logprob_start: prompt position, -1: none. new_ending: makes what reads one choice and tells
    where it ends, see `Sequence`.
    """

    prompt: Prompt
    sampling: Sampling
    request_id: str
    choices: int = 1
    return_logprob: bool = False
    logprob_start: int = -1
    top_logprobs: int = 0
    priority: int = 0
    new_ending: Callable[[], Callable[[str], bool]] | None = None

    def summary(self) -> str:
        """What is asked, for the log; the prompt itself is not shown."""
        params = self.sampling.params
        if params.grammar is not None:  # its kind is enough: it may be long
            params = msgspec.structs.replace(params, grammar=Grammar(params.grammar.kind, "…"))
        asked = msgspec.json.encode(params).decode()
        return (
            f"{len(self.prompt.input_ids)} prompt tokens, {self.choices} choices, at most "
            f"{self.sampling.max_new_tokens} new tokens each, sampling {asked}"
        )


@dataclass(slots=True)
class Service:
    """One running server."""

    settings: Settings
    client: EngineClient
    ready: EngineReady
    limits: Limits
    tokenizer: Tokenizer | None
    chat: ChatFormat | None
    reply_format: ReplyFormat = field(default_factory=ReplyFormat)
    grammars: GrammarChecker | None = None
    started: int = field(default_factory=lambda: int(time.time()))
    usual_priority: int = 0  # of requests that name none
    batches: BatchRunner = field(init=False)  # set with the routes that batches are for
    update_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    weights: dict[str, str | None] = field(default_factory=dict)  # what /update_weights served last

    def __post_init__(self) -> None:
        self.weights = {"model_path": self.settings.model_path, "load_format": None}

    def need_tokenizer(self, what: str) -> Tokenizer:
        """The tokenizer. Raises UnsupportedParameter under --skip-tokenizer-init."""
        if self.tokenizer is None:
            raise UnsupportedParameter(
                f"{what} needs a tokenizer, and the server was started with --skip-tokenizer-init",
                what,
            )
        return self.tokenizer

    async def encode(
        self,
        text: str,
        field_name: str,
        *,
        is_answered: bool = True,
        add_special_tokens: bool = True,
    ) -> Prompt:
        """A text prompt, to be answered by tokens or not. Raises RequestError if it cannot fit."""
        tokenizer = self.need_tokenizer(field_name)
        self.check_text_len(len(text), field_name)
        if len(text) <= INLINE_CHARS:
            ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        else:
            encode = partial(tokenizer.encode, text, add_special_tokens=add_special_tokens)
            ids = await asyncio.to_thread(encode)
        return self.check_ids(ids, field_name, text, is_answered=is_answered)

    def check_text_len(self, num_chars: int, field_name: str) -> None:
        """Refuse what cannot fit however well it tokenizes, before any work is done on it."""
        longest = self.need_tokenizer(field_name).longest_piece
        if num_chars > self.limits.max_tokens * longest:
            raise ContextLengthExceeded(
                f"{field_name} has {num_chars} characters; {self.limits.max_tokens} tokens of at "
                f"most {longest} bytes cannot hold them",
                field_name,
            )

    def check_ids(
        self, ids: list[int], field_name: str, text: str | None = None, *, is_answered: bool = True
    ) -> Prompt:
        """A prompt of token ids; `text`: what they encode. Raises RequestError.

        Ids from our own tokenizer are checked too: it may know tokens that the model does not.
        """
        check_prompt_len(len(ids), self.limits, field_name, is_answered=is_answered)
        if min(ids) < 0 or max(ids) >= self.limits.vocab_size:
            at = next(i for i, x in enumerate(ids) if not 0 <= x < self.limits.vocab_size)
            raise InvalidParameter(
                f"{field_name}[{at}] is {ids[at]}; it must be at least 0 and below "
                f"{self.limits.vocab_size}",
                field_name,
            )
        return Prompt(ids, text)

    async def check_grammars(self, jobs: Seq[Job]) -> None:
        """Every grammar compiles. Raises RequestError; call it before `start`."""
        for job in jobs:
            if job.sampling.params.grammar is not None:
                await self.check_grammar(job.sampling.params.grammar, job.sampling.grammar_field)

    async def check_grammar(self, grammar: Grammar, field_name: str) -> None:
        """It compiles. Raises RequestError."""
        if self.grammars is None:
            self.need_tokenizer(field_name)
            raise UnsupportedParameter(
                f"{field_name} is not supported: the server was started with "
                "--grammar-backend none",
                field_name,
            )
        verdict = self.grammars.judge(grammar)
        if isinstance(verdict, Future):  # others may wait for it too: shielded
            verdict = await asyncio.shield(asyncio.wrap_future(verdict))
        refuse(verdict, field_name)

    def check_priority(self, priority: int | None) -> int:
        """A request's priority. Raises UnsupportedParameter if the server does not honour it."""
        if priority is None:
            return self.usual_priority
        if not self.settings.enable_priority_scheduling:
            raise UnsupportedParameter(
                "priority is not honoured; start the server with --enable-priority-scheduling",
                "priority",
            )
        if not -(2**31) <= priority < 2**31:
            raise InvalidParameter(f"priority is {priority}; it must fit 32 bits", "priority")
        return priority

    def start(self, jobs: Seq[Job], *, stream: bool, engine_index: int | None = None) -> Generation:
        """Give all jobs to the engines, or none. Raises RequestError."""
        if not self.ready.is_generation:
            raise UnsupportedParameter(
                f"{self.settings.model_name} is served as an embedder: it gives vectors, not tokens"
            )
        sequences: list[Sequence] = []
        requests: list[GenerateRequest] = []
        for job in jobs:
            params = job.sampling.for_prompt(len(job.prompt.input_ids), self.limits)
            for choice in range(job.choices):
                sequence = Sequence(
                    len(sequences),
                    job.request_id,
                    job.prompt,
                    self.tokenizer,
                    job.sampling.text,
                    None if job.new_ending is None else job.new_ending(),
                )
                sequence.hides_output = job.sampling.max_new_tokens == 0
                sequences.append(sequence)
                requests.append(
                    GenerateRequest(
                        seq_id=0,
                        input_ids=int32_bytes(job.prompt.input_ids),
                        sampling=msgspec.structs.replace(params, seed=job.sampling.seed_of(choice)),
                        return_logprob=job.return_logprob,
                        logprob_start=job.logprob_start if job.return_logprob else -1,
                        top_logprobs=job.top_logprobs if job.return_logprob else 0,
                        priority=job.priority,
                    )
                )
        if self.settings.log_requests:
            for job in jobs:
                _log.info("request %s: %s", job.request_id, job.summary())
        generation = Generation(sequences, self.settings.stream_interval if stream else None)
        self.client.submit(generation, requests, engine_index=engine_index)
        return generation


def new_request_id(prefix: str = "") -> str:
    """A name for a request that brought none."""
    return prefix + uuid.uuid4().hex


def int32_bytes(ids: list[int]) -> bytes:
    """Token ids as they cross the channel."""
    words = array.array("i", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
