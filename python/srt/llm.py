"""Offline use, without HTTP: `srt.llm.Engine` generates from prompts in Python.

    with Engine(model_path="…") as engine:
        print(engine.generate("The capital of France is", {"max_new_tokens": 8})["text"])

The model runs in processes of its own, as under the server; results are the dicts of /generate.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import msgspec

from srt.answer import Answer, AnswerOptions, Result
from srt.channel import GenerateRequest, SeqLogprobs
from srt.config import Settings
from srt.engine.client import EngineClient, Sink
from srt.engine.vectors import VectorWaiter
from srt.errors import InternalServerError, InvalidParameter, UnsupportedParameter
from srt.hub import HubOptions, resolve_model
from srt.text.checkpoint_files import model_eos_ids
from srt.text.grammar_checker import (
    GrammarChecker,
    check_settings,
    open_checker,
    refuse,
    vocabulary_of,
)
from srt.text.sampling import (
    Limits,
    Sampling,
    SamplingFields,
    check_prompt_len,
    check_sampling,
)
from srt.text.tokenizer import Tokenizer, load_tokenizer
from srt.types import Grammar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to run: a prompt's choice."""

    input_ids: list[int]
    sampling: Sampling
    choice: int
    options: AnswerOptions


class Engine:
    """A loaded model. Methods may be called from several threads.

    Args:
        settings: everything `srt-server` takes, as keywords: `Engine(model_path=…, tp_size=2)`.

    Raises:
        ConfigError: a setting cannot be honoured.  LoadError: there is no such tokenizer.
        EngineDead: the model could not be loaded; the message says why.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        check_settings(self.settings)
        self._client = EngineClient(self.settings)
        try:
            self.tokenizer, eos_ids = _open_tokenizer(self.settings)
        except BaseException:
            self._client.close(drain=False)
            raise
        self.ready = self._client.wait_ready()[0]
        self._limits = Limits(
            vocab_size=self.ready.vocab_size,
            max_seq_len=self.ready.max_seq_len,
            max_total_tokens=self.ready.max_total_tokens,
            eos_ids=eos_ids,
        )
        if self.tokenizer is not None:
            self.tokenizer.cover(self.ready.vocab_size)
        self._grammars = self._open_grammars()

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        return_logprob: bool = False,
        logprob_start_len: int = -1,
        top_logprobs_num: int = 0,
        stream: bool = False,
    ) -> Any:
        """Runs one prompt or many to their ends.

        Args:
            prompt: text; or `input_ids` instead: token ids. A list of either gives a list.
            sampling_params: as in /generate, one for all prompts or one each.
            return_logprob: logprobs of output tokens, and of prompt tokens from
                `logprob_start_len` on (-1: none), with `top_logprobs_num` alternatives each.
            stream: gives an iterator instead: a result with all text so far for each piece of
                news; with several sequences, `index` says whose.

        Returns:
            A result, or a list in prompt order (choices of `n` > 1 side by side).

        Raises:
            RequestError: a value cannot be honoured, or the engine died.
        """
        options = AnswerOptions(return_logprob, logprob_start_len, top_logprobs_num)
        jobs, is_list = self._jobs(prompt, input_ids, sampling_params, options)
        if stream:
            return self._stream(jobs)
        results = self._run(jobs)
        return results if is_list else results[0]

    async def async_generate(self, *args: Any, stream: bool = False, **kwargs: Any) -> Any:
        """`generate` for asyncio: awaits results, or returns an async iterator if `stream`."""
        if not stream:
            return await asyncio.to_thread(self.generate, *args, **kwargs)
        return _iterate_in_thread(self.generate(*args, stream=True, **kwargs))

    def encode(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    ) -> Any:
        """The vector of a prompt, or of each of several, pooled as the checkpoint says.

        Args:
            prompt: text; or `input_ids` instead: token ids. A list of either gives a list.

        Returns:
            `{"embedding": [float, …], "meta_info": {…}}`, or a list of them; a sequence
            classifier's scores stand for the embedding.

        Raises:
            RequestError: a prompt cannot be embedded, or the engine died.
        """
        prompts, is_list = self._prompts(prompt, input_ids)
        for ids in prompts:
            check_prompt_len(len(ids), self._limits, is_answered=False)
        results = VectorWaiter(self._client).run(prompts)
        return results if is_list else results[0]

    def flush_cache(self) -> None:
        """Empties the prefix cache. Raises InternalServerError while sequences run."""
        self._client.call("flush_cache")

    def state(self) -> list[dict[str, Any]]:
        """Sizes and figures of each copy of the model."""
        return self._client.call("get_state")

    def update_weights(self, model_path: str, load_format: str | None = None) -> None:
        """Serves other weights of the same model; waits for what runs; copies go each its way.

        Raises:
            InternalServerError: they do not fit; those served before still are.
        """
        self._client.call("update_weights", None, model_path=model_path, load_format=load_format)

    def start_profile(self, folder: str, *, with_host: bool = True) -> None:
        """Records a torch profile; `stop_profile` writes a trace per rank into `folder`.

        Args:
            with_host: record the host's operators too, which slows it down.
        """
        self._client.call("start_profile", folder=folder, with_host=with_host)

    def stop_profile(self) -> None:
        """Ends the recording."""
        self._client.call("stop_profile", timeout_s=300.0)

    def shutdown(self) -> None:
        """Ends the engine; what still runs ends with an error. May be called twice."""
        self._client.close(drain=False)
        if self._grammars is not None:
            self._grammars.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def _jobs(
        self,
        prompt: str | Sequence[str] | None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None,
        sampling_params: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        options: AnswerOptions,
    ) -> tuple[list[Job], bool]:
        """The sequences that a call asks for, and whether the answer is a list."""
        prompts, is_list = self._prompts(prompt, input_ids)
        params = sampling_params or {}
        each = [params] * len(prompts) if isinstance(params, Mapping) else list(params)
        if len(each) != len(prompts):
            raise InvalidParameter(
                f"sampling_params has {len(each)} entries for {len(prompts)} prompts",
                "sampling_params",
            )
        jobs: list[Job] = []
        for ids, fields in zip(prompts, each, strict=True):
            sampling = self._sampling(fields)
            jobs += [Job(ids, sampling, choice, options) for choice in range(sampling.n)]
        return jobs, is_list or len(jobs) > 1

    def _prompts(
        self,
        prompt: str | Sequence[str] | None,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | None,
    ) -> tuple[list[list[int]], bool]:
        if (prompt is None) == (input_ids is None):
            raise InvalidParameter("exactly one of prompt and input_ids must be given", "prompt")
        if input_ids is not None:
            is_list = len(input_ids) > 0 and not isinstance(input_ids[0], int)
            lists: list[Any] = list(input_ids) if is_list else [input_ids]
            return [list(ids) for ids in lists], is_list
        if self.tokenizer is None:
            raise InvalidParameter(
                "prompt is text, but skip_tokenizer_init is set; give input_ids", "prompt"
            )
        texts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        return [self.tokenizer.encode(text) for text in texts], not isinstance(prompt, str)

    def _sampling(self, fields: Mapping[str, Any]) -> Sampling:
        try:
            given = msgspec.convert(dict(fields), SamplingFields)
        except msgspec.ValidationError as e:
            raise InvalidParameter(f"sampling_params: {e}", "sampling_params") from e
        sampling = check_sampling(given, self._limits)
        if self.tokenizer is None and sampling.text.stop:
            raise InvalidParameter("stop needs a tokenizer, but skip_tokenizer_init is set", "stop")
        if sampling.params.grammar is not None:
            self._check_grammar(sampling.params.grammar, sampling.grammar_field)
        return sampling

    def _open_grammars(self) -> GrammarChecker | None:
        tokenizer, eos_ids, settings = self.tokenizer, self._limits.eos_ids, self.settings
        if tokenizer is None or not eos_ids or settings.grammar_backend == "none":
            return None
        vocabulary = vocabulary_of(tokenizer, eos_ids)
        self._client.send_all(vocabulary)
        return open_checker(vocabulary, self._limits.vocab_size, settings)

    def _check_grammar(self, grammar: Grammar, field: str) -> None:
        if self._grammars is None:
            raise UnsupportedParameter(
                f"{field} needs a tokenizer and a grammar_backend, and one is turned off", field
            )
        verdict = self._grammars.judge(grammar)
        refuse(verdict.result() if isinstance(verdict, Future) else verdict, field)

    def _start(
        self, jobs: list[Job], on_news: Callable[[int, Answer], None]
    ) -> tuple[list[int], list[Answer]]:
        """Submits sequences together; `on_news(index, answer)` is called when one has grown.

        It is called on the client's thread, and must return soon.
        """
        answers = [
            Answer(self.tokenizer, job.sampling.text, job.input_ids, job.options) for job in jobs
        ]
        requests = [
            (self._request(job), self._sink(i, answers[i], on_news)) for i, job in enumerate(jobs)
        ]
        return self._client.submit(requests), answers

    def _request(self, job: Job) -> GenerateRequest:
        params = job.sampling.for_prompt(len(job.input_ids), self._limits)
        options = job.options
        return GenerateRequest(
            seq_id=0,  # the client gives it
            input_ids=array("i", job.input_ids).tobytes(),
            sampling=msgspec.structs.replace(params, seed=job.sampling.seed_of(job.choice)),
            return_logprob=options.return_logprob,
            logprob_start=options.prompt_start if options.return_logprob else -1,
            top_logprobs=options.top_k if options.return_logprob else 0,
        )

    def _sink(self, index: int, answer: Answer, on_news: Callable[[int, Answer], None]) -> Sink:
        def sink(
            seq_id: int,
            token: int,
            finish: int,
            cached_tokens: int,
            logprobs: SeqLogprobs | None,
            error: str | None,
            jumped: bool,
        ) -> None:
            if answer.is_done:
                return  # ended by a stop string; the engine has learnt of it only now
            answer.error = error
            if answer.push(token, finish, cached_tokens, logprobs, jumped=jumped):
                self._client.abort([seq_id])
            on_news(index, answer)

        return sink

    def _run(self, jobs: list[Job]) -> list[Result]:
        finished = threading.Semaphore(0)

        def on_news(index: int, answer: Answer) -> None:  # noqa: ARG001
            if answer.is_done:
                finished.release()

        seq_ids, answers = self._start(jobs, on_news)
        try:
            for _ in jobs:
                finished.acquire()
        except BaseException:  # Ctrl-C: nobody waits for them any more
            self._client.abort(seq_ids)
            raise
        return [_result(answer) for answer in answers]

    def _stream(self, jobs: list[Job]) -> Iterator[Result]:
        news: queue.SimpleQueue[tuple[int, Result | Exception, bool]] = queue.SimpleQueue()

        def on_news(index: int, answer: Answer) -> None:
            try:
                news.put((index, _result(answer), answer.is_done))
            except InternalServerError as e:
                news.put((index, e, True))

        seq_ids, _ = self._start(jobs, on_news)
        num_running = len(jobs)
        try:
            while num_running:
                index, result, is_done = news.get()
                num_running -= is_done
                if isinstance(result, Exception):
                    raise result
                yield {**result, "index": index} if len(jobs) > 1 else result
        finally:
            if num_running:
                self._client.abort(seq_ids)


def _result(answer: Answer) -> Result:
    """The dict of /generate. Raises InternalServerError for a sequence that failed."""
    if answer.error is not None:
        raise InternalServerError(answer.error)
    return answer.result()


def _open_tokenizer(settings: Settings) -> tuple[Tokenizer | None, tuple[int, ...]]:
    """The tokenizer, if one is wanted, and the ids that end a sequence."""
    options = HubOptions(
        revision=settings.revision,
        download_dir=settings.download_dir,
        use_modelscope=settings.use_modelscope,
        with_code=settings.trust_remote_code,
    )
    if settings.skip_tokenizer_init:
        source = resolve_model(settings.model_path, options, with_weights=False)
        return None, model_eos_ids(source)
    source = resolve_model(settings.tokenizer_source, options, with_weights=False)
    tokenizer = load_tokenizer(
        source, mode=settings.tokenizer_mode, trust_remote_code=settings.trust_remote_code
    )
    return tokenizer, tokenizer.eos_ids


async def _iterate_in_thread(results: Iterator[T]) -> AsyncIterator[T]:
    """A blocking iterator's items without blocking the loop; closes it when left early."""
    end = object()
    try:
        while True:
            item = await asyncio.to_thread(next, results, end)
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        close = getattr(results, "close", None)
        if close is not None:
            close()
