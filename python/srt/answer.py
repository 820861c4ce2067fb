"""One sequence's result as it grows, for offline use: the dict that /generate answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from srt.channel import SeqLogprobs
from srt.text.detokenizer import OutputText, TextOptions
from srt.text.tokenizer import Tokenizer
from srt.types import FinishReason

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """Which logprobs a result brings. prompt_start: first prompt position, -1: none."""

    return_logprob: bool = False
    prompt_start: int = -1
    top_k: int = 0


class Answer:
    """Collects the events of one sequence; without a tokenizer it gives token ids only."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        text_options: TextOptions,
        input_ids: Sequence[int],
        options: AnswerOptions,
    ) -> None:
        self.error: str | None = None
        self.tokens: list[int] = []
        self._id = uuid.uuid4().hex
        self._input_ids = input_ids
        self._options = options
        self._output = None if tokenizer is None else OutputText(tokenizer, text_options)
        self._shows_stop = text_options.no_stop_trim
        self._parts: list[str] = []
        self._finish = FinishReason.NONE
        self._cached_tokens = 0
        self._num_jumped = 0
        self._logprobs: list[SeqLogprobs] = []

    @property
    def is_done(self) -> bool:
        """Whether it has ended, by the engine's word or by a stop string."""
        return self._finish != FinishReason.NONE

    def push(
        self,
        token: int,
        finish: int,
        cached_tokens: int,
        logprobs: SeqLogprobs | None,
        *,
        jumped: bool = False,
    ) -> bool:
        """Takes one event in; none may follow once `is_done`.

        jumped: the token came with the step of the one before it.
        Returns whether a stop string has ended what still runs: the engine must be told.
        """
        if finish:
            self._finish = FinishReason(finish)
        if cached_tokens >= 0:
            self._cached_tokens = cached_tokens
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if token >= 0:
            self.tokens.append(token)
            self._num_jumped += jumped
        if self._output is not None:
            self._push_text(self._output, token, finish)
        return not finish and self.is_done

    def result(self) -> Result:
        """Everything so far."""
        meta: Result = {
            "id": self._id,
            "prompt_tokens": len(self._input_ids),
            "completion_tokens": len(self.tokens),
            "completion_tokens_wo_jump_forward": len(self.tokens) - self._num_jumped,
            "cached_tokens": self._cached_tokens,
            "finish_reason": self._finish_reason(),
        }
        if self._options.return_logprob:
            self._add_logprobs(meta)
        if self._output is None:
            return {"token_ids": list(self.tokens), "meta_info": meta}
        self._parts = ["".join(self._parts)]
        return {"text": self._parts[0], "meta_info": meta}

    def _push_text(self, output: OutputText, token: int, finish: int) -> None:
        is_hidden_stop = finish == FinishReason.STOP and not self._shows_stop
        if token >= 0 and not is_hidden_stop:
            self._parts.append(output.push([token]))
        if finish and output.matched is None:
            self._parts.append(output.finish())
        if output.matched is not None:
            self._finish = FinishReason.STOP

    def _finish_reason(self) -> Result | None:
        if self._finish == FinishReason.NONE:
            return None
        if self._finish == FinishReason.STOP:
            matched = self._output.matched if self._output is not None else None
            return {"type": "stop", "matched": self.tokens[-1] if matched is None else matched}
        if self._finish == FinishReason.LENGTH:
            return {"type": "length", "length": len(self.tokens)}
        return {"type": "abort", "message": "the request was aborted"}

    def _add_logprobs(self, meta: Result) -> None:
        prompt = [x for entry in self._logprobs for x in entry.prompt]
        prompt_top = [x for entry in self._logprobs for x in entry.prompt_top]
        prompt_ids = self._input_ids[len(self._input_ids) - len(prompt) :]
        known = [x for x in prompt if x is not None]
        output = [entry for entry in self._logprobs if entry.token is not None]
        meta["input_token_logprobs"] = [
            (x, token, None) for x, token in zip(prompt, prompt_ids, strict=True)
        ]
        meta["input_top_logprobs"] = [None if top is None else _triples(top) for top in prompt_top]
        meta["output_token_logprobs"] = [
            (entry.token, token, None) for entry, token in zip(output, self.tokens, strict=True)
        ]
        meta["output_top_logprobs"] = [_triples(entry.top) for entry in output]
        meta["normalized_prompt_logprob"] = sum(known) / len(known) if known else None


def _triples(top: list[tuple[int, float]]) -> list[tuple[float, int, None]]:
    return [(logprob, token, None) for token, logprob in top]
