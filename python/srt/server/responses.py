"""What the routes beside OpenAI's answer, for the OpenAPI page and for tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from srt.fields import doc
from srt.server.openai.responses import Answer

TokenLogprob = tuple[float | None, int, str | None]  # logprob, id, text


class FinishReason(Answer, frozen=True, kw_only=True):
    """How an answer ended."""

    type: Literal["stop", "length", "abort"]
    matched: Annotated[int | str | msgspec.UnsetType, doc("the stop id or text")] = msgspec.UNSET
    length: Annotated[int | msgspec.UnsetType, doc("tokens of the answer")] = msgspec.UNSET
    message: str | msgspec.UnsetType = msgspec.UNSET


class MetaInfo(Answer, frozen=True, kw_only=True):
    """About an answer."""

    id: Annotated[str, doc("the request's id")]
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_wo_jump_forward: int
    cached_tokens: Annotated[int, doc("prompt tokens found in the prefix cache")]
    finish_reason: Annotated[FinishReason | None, doc("null while it runs")]
    input_token_logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET
    output_token_logprobs: list[TokenLogprob] | msgspec.UnsetType = msgspec.UNSET
    input_top_logprobs: list[list[TokenLogprob] | None] | msgspec.UnsetType = msgspec.UNSET
    output_top_logprobs: list[list[TokenLogprob] | None] | msgspec.UnsetType = msgspec.UNSET
    normalized_prompt_logprob: float | msgspec.UnsetType | None = msgspec.UNSET


class Generated(Answer, frozen=True, kw_only=True):
    """One answer; in a stream all of it so far."""

    text: Annotated[str | msgspec.UnsetType, doc("absent with --skip-tokenizer-init")] = (
        msgspec.UNSET
    )
    token_ids: Annotated[list[int] | msgspec.UnsetType, doc("instead of text")] = msgspec.UNSET
    meta_info: MetaInfo
    index: Annotated[int, doc("prompt by prompt, n of each", minimum=0)]


class SequenceInfo(Answer, frozen=True, kw_only=True):
    """Where one sequence's time went. From `queue_ms` on: as far as the engine remembers."""

    index: int
    engine: Annotated[int, doc("copy of the model that had it")]
    phase: Literal["waiting", "prefill", "decode", "ended", "unknown to the engine"]
    finish_reason: str | None
    told_tokens: Annotated[int, doc("output tokens that the server has")]
    queue_ms: Annotated[float | msgspec.UnsetType, doc("from arrival in the engine to a step")] = (
        msgspec.UNSET
    )
    prefill_ms: Annotated[float | msgspec.UnsetType, doc("from then to the first token")] = (
        msgspec.UNSET
    )
    decode_ms: Annotated[float | msgspec.UnsetType, doc("from then to the end")] = msgspec.UNSET
    requeued_ms: Annotated[float | msgspec.UnsetType, doc("waiting after retractions")] = (
        msgspec.UNSET
    )
    total_ms: float | msgspec.UnsetType = msgspec.UNSET
    prompt_tokens: int | msgspec.UnsetType = msgspec.UNSET
    cached_tokens: int | msgspec.UnsetType = msgspec.UNSET
    output_tokens: int | msgspec.UnsetType = msgspec.UNSET
    chunks: Annotated[int | msgspec.UnsetType, doc("steps that ran a part of the prompt")] = (
        msgspec.UNSET
    )
    extend_tokens: Annotated[int | msgspec.UnsetType, doc("tokens that these ran")] = msgspec.UNSET
    retractions: int | msgspec.UnsetType = msgspec.UNSET
    steps: Annotated[int | msgspec.UnsetType, doc("that it took part in")] = msgspec.UNSET
    mean_batch: Annotated[float | msgspec.UnsetType, doc("sequences in these steps")] = (
        msgspec.UNSET
    )
    max_batch: int | msgspec.UnsetType = msgspec.UNSET


class RequestInfo(Answer, frozen=True, kw_only=True):
    """Where a request's time went."""

    id: str
    status: Literal["running", "ended"]
    arrived_at: Annotated[float, doc("Unix seconds")]
    worker: Annotated[int, doc("HTTP worker that has it")]
    prepare_ms: Annotated[float, doc("parsing, templates, tokenizing")]
    total_ms: float
    num_sequences: int
    sequences: Annotated[list[SequenceInfo], doc("the first 64")]


class ModelInfo(Answer, frozen=True, kw_only=True):
    """What is served."""

    model_path: str
    tokenizer_path: str
    is_generation: bool


class Version(Answer, frozen=True, kw_only=True):
    """The server's version."""

    version: str


class Tokenized(Answer, frozen=True, kw_only=True):
    """Token ids."""

    tokens: Annotated[list[int | list[int]], doc("a list for each text where there are several")]
    count: int | list[int]
    token_strs: Annotated[
        list[str | list[str]] | msgspec.UnsetType, doc("with return_token_strs: their texts")
    ] = msgspec.UNSET
    max_model_len: Annotated[int, doc("the context window in tokens")]


class Detokenized(Answer, frozen=True, kw_only=True):
    """A text."""

    text: str
    prompt: Annotated[str, doc("the same, by vLLM's name for it")]


class Aborted(Answer, frozen=True, kw_only=True):
    """What an abort came to."""

    aborted: Annotated[int, doc("how many sequences ended by it", minimum=0)]


class VectorInfo(Answer, frozen=True, kw_only=True):
    """About a vector's prompt."""

    id: Annotated[str, doc("the request's id")]
    prompt_tokens: int
    cached_tokens: Annotated[int, doc("prompt tokens found in the prefix cache")]


class Vector(Answer, frozen=True, kw_only=True):
    """The vector of one prompt, or its scores."""

    embedding: list[float]
    meta_info: VectorInfo
    index: Annotated[int, doc("which prompt", minimum=0)]


class Updated(Answer, frozen=True, kw_only=True):
    """What became of an update."""

    success: bool
    message: str


class ProfileFiles(Answer, frozen=True, kw_only=True):
    """Where traces are."""

    files: Annotated[list[str | None], doc("of each copy's first rank")]


class ParsedCall(Answer, frozen=True, kw_only=True):
    """A call that was found."""

    tool_index: Annotated[int, doc("which of the calls", minimum=0)]
    name: str
    parameters: Annotated[str, doc("a JSON object as text, as the model wrote it")]


class ParsedCalls(Answer, frozen=True, kw_only=True):
    """A text and the calls in it."""

    normal_text: Annotated[str, doc("what is no call")]
    calls: list[ParsedCall]


class Separated(Answer, frozen=True, kw_only=True):
    """A text without its thoughts."""

    reasoning_text: str
    text: str


ServerInfo = dict[str, Any]
