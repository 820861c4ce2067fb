"""What both kinds of completion say: model names, usage, finish reasons, logprobs."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Any

from srt.channel import SeqLogprobs
from srt.errors import InvalidParameter, NotFound, RequestError
from srt.server.generation import Generation, Sequence
from srt.server.openai.schemas import MAX_TOP_LOGPROBS, StreamOptions
from srt.server.service import Service
from srt.server.stream import DONE, TextEvent, error_event, event
from srt.text.tokenizer import Tokenizer
from srt.types import FinishReason

_FINISH = {
    FinishReason.NONE: None,
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
}
_utf8 = codecs.getincrementaldecoder("utf-8")


def check_model(service: Service, name: str) -> None:
    """`default`, the served name and the model's path are one model. Raises NotFound."""
    settings = service.settings
    known = settings.model_name
    if name not in ("default", known, settings.model_path):
        raise NotFound(f"the model {name!r} is not served here; {known!r} is", "model")


def check_stream_options(options: StreamOptions | None, stream: bool | None) -> StreamOptions:
    """Options, or their defaults. Raises InvalidParameter without a stream."""
    if options is not None and not stream:
        raise InvalidParameter("stream_options is only allowed with stream", "stream_options")
    return options or StreamOptions()


def check_top_logprobs(count: int, field: str) -> int:
    """Raises InvalidParameter."""
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise InvalidParameter(
            f"{field} is {count}; it must be at least 0 and at most {MAX_TOP_LOGPROBS}", field
        )
    return count


def finish_reason(sequence: Sequence) -> str | None:
    """OpenAI's word for it."""
    return _FINISH[sequence.finish]


def matched_stop(sequence: Sequence) -> int | str | None:
    """The stop id or string that ended it."""
    return sequence.matched


def usage(sequences: Iterable[Sequence]) -> dict[str, Any]:
    """Token counts; a prompt with several choices counts once."""
    prompts: dict[int, Sequence] = {}
    completion = 0
    for sequence in sequences:
        prompts.setdefault(id(sequence.prompt), sequence)
        completion += len(sequence.tokens)
    num_prompt = sum(len(s.prompt.input_ids) for s in prompts.values())
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": completion,
        "total_tokens": num_prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(s.cached_tokens for s in prompts.values())},
    }


class Chunks:
    """The chunks of a stream, those of one moment in one block.

    Args:
        head: what every chunk begins with.
        text_choice: the choice (by index) that only brings a text.
        new_choices: what there is to tell of a sequence now; may be nothing. A string is short
            for `text_choice` of it, and cheaper.
        count_usage: token counts of sequences.
        prompt_ids: told in the first chunk.
    """

    def __init__(
        self,
        generation: Generation,
        head: dict[str, Any],
        options: StreamOptions,
        *,
        text_choice: Callable[[int, str], dict[str, Any]],
        new_choices: Callable[[Sequence], str | list[dict[str, Any]]],
        count_usage: Callable[[Iterable[Sequence]], dict[str, Any]],
        prompt_ids: list[int] | None = None,
    ) -> None:
        self._generation = generation
        self._prompt_ids: list[int] | None = None
        self._head = head
        self._options = options
        self._new_choices = new_choices
        self._count_usage = count_usage
        self._text_events = [
            TextEvent(partial(self._text_chunk, text_choice, sequence))
            if not options.continuous_usage_stats
            else None
            for sequence in generation.sequences
        ]
        self._text_choice = text_choice
        self._counted = [0] * len(generation.sequences)  # tokens that chunks have told
        self._prompt_ids = prompt_ids  # behind the text events, which are not the first

    def news(self, sequences: Seq[Sequence]) -> bytes:
        """Chunks about sequences with new tokens or an end."""
        if len(sequences) == 1:
            return self._told(sequences[0])
        return b"".join([self._told(sequence) for sequence in sequences])

    def end(self) -> bytes:
        """The usage, if it is wanted, and the stream's end."""
        if not self._options.include_usage:
            return DONE
        counted = self._count_usage(self._generation.sequences)
        return event({**self._head, "choices": [], "usage": counted}) + DONE

    def failure(self, error: RequestError) -> bytes:
        """An error as one event."""
        return error_event(error)

    def _told(self, sequence: Sequence) -> bytes:
        new = self._new_choices(sequence)
        if not new:
            return b""
        if isinstance(new, str):
            text_event = self._text_events[sequence.index]
            if text_event is not None:
                return text_event.with_text(new)
            new = [self._text_choice(sequence.index, new)]
        return b"".join([event(self._chunk(c, sequence, is_last=c is new[-1])) for c in new])

    def _text_chunk(
        self, text_choice: Callable[[int, str], dict[str, Any]], sequence: Sequence, text: str
    ) -> dict[str, Any]:
        return self._chunk(text_choice(sequence.index, text), sequence)

    def _chunk(
        self, choice: dict[str, Any], sequence: Sequence, *, is_last: bool = True
    ) -> dict[str, Any]:
        """is_last: of the chunks of this moment; it is the one that brings the new tokens."""
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._options.continuous_usage_stats:
            counted = self._count_usage([sequence])
            if is_last:
                self._counted[sequence.index] = counted["completion_tokens"]
            before = self._counted[sequence.index]
            total = counted["prompt_tokens"] + before
            chunk["usage"] = {**counted, "completion_tokens": before, "total_tokens": total}
        elif self._options.include_usage:
            chunk["usage"] = None
        if self._prompt_ids is not None:
            chunk["prompt_token_ids"], self._prompt_ids = self._prompt_ids, None
        return chunk


class TokenIds:
    """The token ids of each choice as they come, final stop ids included."""

    def __init__(self, generation: Generation) -> None:
        self._told = [0] * len(generation.sequences)

    def take(self, sequence: Sequence) -> list[int]:
        """Those that are new."""
        start, self._told[sequence.index] = self._told[sequence.index], len(sequence.tokens)
        return sequence.tokens[start:]


def chat_logprobs(
    tokenizer: Tokenizer, tokens: Seq[int], entries: Seq[SeqLogprobs], *, as_ids: bool
) -> dict[str, Any]:
    """Chat's form: one record per token. as_ids: tokens are named `token_id:ID`."""
    return {
        "content": [
            {
                **_token_record(tokenizer, token, entry.token, as_ids),
                "top_logprobs": [_token_record(tokenizer, i, x, as_ids) for i, x in entry.top],
            }
            for token, entry in zip(tokens, entries, strict=True)
        ],
        "refusal": None,
    }


def _token_record(
    tokenizer: Tokenizer, token: int, logprob: float | None, as_ids: bool
) -> dict[str, Any]:
    piece = tokenizer.pieces[token]
    return {
        "token": f"token_id:{token}" if as_ids else piece.decode("utf-8", "replace"),
        "logprob": logprob,
        "bytes": list(piece),
    }


class CompletionLogprobs:
    """Completions' form: parallel lists. `text_offset` counts characters of the choice's text.

    hidden: tokens that the text does not show. as_ids: tokens are named `token_id:ID`.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._as_ids = as_ids
        self._decoder = _utf8("replace")
        self._offset = 0

    def lists(
        self,
        tokens: Seq[int],
        logprobs: Seq[float | None],
        tops: Seq[list[tuple[int, float]] | None],
    ) -> dict[str, list[Any]]:
        """The next tokens of the choice. A token stands in its own top, wherever it ranks."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            if token not in self._hidden:
                self._offset += len(self._decoder.decode(self._tokenizer.pieces[token]))
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": list(logprobs),
            "top_logprobs": list(map(self._top, tokens, logprobs, tops)),
            "text_offset": offsets,
        }

    def _top(
        self, token: int, logprob: float | None, pairs: list[tuple[int, float]] | None
    ) -> dict[str, float] | None:
        if logprob is None:
            return None
        named: dict[str, float] = {}
        for likely, value in [*(pairs or []), (token, logprob)]:
            named.setdefault(self._name(likely), value)
        return named

    def _name(self, token: int) -> str:
        """A token's text; a part of a character shows its bytes."""
        if self._as_ids:
            return f"token_id:{token}"
        piece = self._tokenizer.pieces[token]
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
