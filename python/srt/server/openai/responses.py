"""What the OpenAI routes answer, for the OpenAPI page and for tests that hold answers to it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from srt.fields import doc

Role = Literal["assistant"]
Finish = Literal["stop", "length", "tool_calls", "abort"]


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer or a part of one."""


class ErrorInfo(Answer, frozen=True, kw_only=True):
    """What went wrong."""

    message: Annotated[str, doc("a sentence that names the field, its value and the limit")]
    type: Annotated[str, doc("the kind of error, as OpenAI's clients know it")]
    param: Annotated[str | None, doc("the field at fault")]
    code: Annotated[str | None, doc("the error's name")]


class ErrorBody(Answer, frozen=True, kw_only=True):
    """Every error."""

    error: ErrorInfo
    type: Annotated[Literal["error"] | msgspec.UnsetType, doc("of /v1/messages alone")] = (
        msgspec.UNSET
    )
    success: Annotated[bool | msgspec.UnsetType, doc("false; of /update_weights alone")] = (
        msgspec.UNSET
    )
    message: Annotated[str | msgspec.UnsetType, doc("of /update_weights alone")] = msgspec.UNSET


class PromptDetails(Answer, frozen=True, kw_only=True):
    """About the prompt's tokens."""

    cached_tokens: Annotated[int, doc("found in the prefix cache", minimum=0)]


class CompletionDetails(Answer, frozen=True, kw_only=True):
    """About the answer's tokens."""

    reasoning_tokens: Annotated[int, doc("spent on thoughts, their marks included", minimum=0)]


class Usage(Answer, frozen=True, kw_only=True):
    """Token counts. A prompt with several choices counts once."""

    prompt_tokens: Annotated[int, doc("tokens of the prompts", minimum=0)]
    completion_tokens: Annotated[int, doc("tokens of the answers", minimum=0)]
    total_tokens: Annotated[int, doc("both", minimum=0)]
    prompt_tokens_details: PromptDetails
    completion_tokens_details: Annotated[
        CompletionDetails | msgspec.UnsetType, doc("where thoughts are told apart")
    ] = msgspec.UNSET


class LikelyToken(Answer, frozen=True, kw_only=True):
    """A token that might have come."""

    token: Annotated[str, doc("its text; bytes that are no character show as U+FFFD")]
    logprob: Annotated[float, doc("its log-probability", maximum=0)]
    bytes: Annotated[list[int], doc("its bytes")]


class TokenLogprob(Answer, frozen=True, kw_only=True):
    """A token of the answer."""

    token: Annotated[str, doc("its text; bytes that are no character show as U+FFFD")]
    logprob: Annotated[float, doc("its log-probability", maximum=0)]
    bytes: Annotated[list[int], doc("its bytes")]
    top_logprobs: Annotated[list[LikelyToken], doc("the likeliest tokens there, best first")]


class ChatLogprobs(Answer, frozen=True, kw_only=True):
    """Logprobs of a choice, token by token."""

    content: Annotated[list[TokenLogprob], doc("the tokens of content, thoughts and calls")]
    refusal: None


class AnsweredFunction(Answer, frozen=True, kw_only=True):
    """Which function, and how."""

    name: Annotated[str, doc("the function's name")]
    arguments: Annotated[str, doc("a JSON object as text, as the model wrote it")]


class AnsweredCall(Answer, frozen=True, kw_only=True):
    """A call of a function."""

    id: Annotated[str, doc("for the message that brings the result")]
    type: Literal["function"]
    function: AnsweredFunction


class AnsweredMessage(Answer, frozen=True, kw_only=True):
    """The assistant's message."""

    role: Role
    content: Annotated[str | None, doc("null where there are calls alone")]
    reasoning_content: Annotated[str | msgspec.UnsetType, doc("the thoughts")] = msgspec.UNSET
    tool_calls: Annotated[list[AnsweredCall] | msgspec.UnsetType, doc("the calls")] = msgspec.UNSET


class ChatChoice(Answer, frozen=True, kw_only=True):
    """One answer."""

    index: Annotated[int, doc("which of the n", minimum=0)]
    message: AnsweredMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    matched_stop: Annotated[int | str | None, doc("the stop id or text that ended it")]
    token_ids: Annotated[
        list[int] | msgspec.UnsetType, doc("with return_token_ids: the tokens, a final stop too")
    ] = msgspec.UNSET


class ChatCompletion(Answer, frozen=True, kw_only=True):
    """A chat's answers."""

    id: str
    object: Literal["chat.completion"]
    created: Annotated[int, doc("seconds since 1970")]
    model: Annotated[str, doc("the served name")]
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: Annotated[
        list[int] | msgspec.UnsetType, doc("with return_token_ids; in a stream in the first event")
    ] = msgspec.UNSET


class FunctionDelta(Answer, frozen=True, kw_only=True):
    """More of a call's function."""

    name: Annotated[str | msgspec.UnsetType, doc("in a call's first delta")] = msgspec.UNSET
    arguments: Annotated[str, doc("more of the arguments")]


class CallDelta(Answer, frozen=True, kw_only=True):
    """More of a call."""

    index: Annotated[int, doc("which call", minimum=0)]
    id: Annotated[str | msgspec.UnsetType, doc("in a call's first delta")] = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET
    function: FunctionDelta


class Delta(Answer, frozen=True, kw_only=True):
    """What is new of a message."""

    role: Annotated[Role | msgspec.UnsetType, doc("in a choice's first delta")] = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[CallDelta] | msgspec.UnsetType = msgspec.UNSET


class ChunkChoice(Answer, frozen=True, kw_only=True):
    """What is new of one answer."""

    index: Annotated[int, doc("which of the n", minimum=0)]
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Annotated[Finish | None, doc("null until the last")]
    matched_stop: int | str | None
    token_ids: Annotated[
        list[int] | msgspec.UnsetType, doc("with return_token_ids: the tokens, a final stop too")
    ] = msgspec.UNSET


class ChatChunk(Answer, frozen=True, kw_only=True):
    """One event of a streamed chat; the last is `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: Annotated[list[ChunkChoice], doc("empty in the chunk that brings the usage")]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    prompt_token_ids: Annotated[
        list[int] | msgspec.UnsetType, doc("with return_token_ids; in a stream in the first event")
    ] = msgspec.UNSET


class Logprobs(Answer, frozen=True, kw_only=True):
    """Parallel lists, one entry a token."""

    tokens: Annotated[list[str], doc("texts; a part of a character as `bytes:\\x..`")]
    token_logprobs: Annotated[list[float | None], doc("null for the prompt's first token")]
    top_logprobs: list[dict[str, float] | None]
    text_offset: Annotated[list[int], doc("where in the choice's text the token begins")]


class CompletionChoice(Answer, frozen=True, kw_only=True):
    """One answer, or what is new of it in a stream."""

    index: Annotated[int, doc("prompt by prompt, n of each", minimum=0)]
    text: str
    logprobs: Logprobs | None
    finish_reason: Annotated[Finish | None, doc("null in a stream until the last")]
    matched_stop: Annotated[int | str | None, doc("the stop id or text that ended it")]
    prompt_token_ids: Annotated[
        list[int] | msgspec.UnsetType, doc("with return_token_ids; in a stream in the first event")
    ] = msgspec.UNSET
    token_ids: Annotated[
        list[int] | msgspec.UnsetType, doc("with return_token_ids: the tokens, a final stop too")
    ] = msgspec.UNSET


class Completion(Answer, frozen=True, kw_only=True):
    """A completion, or one event of a stream, whose last is `[DONE]`."""

    id: str
    object: Literal["text_completion"]
    created: Annotated[int, doc("seconds since 1970")]
    model: Annotated[str, doc("the served name")]
    choices: list[CompletionChoice]
    usage: Annotated[Usage | msgspec.UnsetType | None, doc("in a stream as stream_options say")] = (
        msgspec.UNSET
    )


class ModelCard(Answer, frozen=True, kw_only=True):
    """A served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: Annotated[str, doc("the model's path")]
    parent: None
    max_model_len: Annotated[int, doc("its context window in tokens")]


class ModelList(Answer, frozen=True, kw_only=True):
    """The served models."""

    object: Literal["list"]
    data: list[ModelCard]


class PromptUsage(Answer, frozen=True, kw_only=True):
    """Token counts of prompts that have no answer."""

    prompt_tokens: Annotated[int, doc("tokens of the prompts", minimum=0)]
    total_tokens: Annotated[int, doc("the same", minimum=0)]
    prompt_tokens_details: PromptDetails | msgspec.UnsetType = msgspec.UNSET


class Embedding(Answer, frozen=True, kw_only=True):
    """The vector of one input."""

    object: Literal["embedding"]
    index: Annotated[int, doc("which input", minimum=0)]
    embedding: Annotated[list[float] | str, doc("numbers, or base64 of little-endian float32")]


class EmbeddingList(Answer, frozen=True, kw_only=True):
    """A vector for each input."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class RankedDocument(Answer, frozen=True, kw_only=True):
    """A document's text."""

    text: str


class Ranked(Answer, frozen=True, kw_only=True):
    """A document and how near it is."""

    index: Annotated[int, doc("which document", minimum=0)]
    relevance_score: Annotated[float, doc("the cosine with the query")]
    document: RankedDocument | msgspec.UnsetType = msgspec.UNSET


class Reranked(Answer, frozen=True, kw_only=True):
    """Documents, best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: PromptUsage


class Scored(Answer, frozen=True, kw_only=True):
    """Probabilities of the labels after each item."""

    object: Literal["scoring"]
    model: str
    scores: Annotated[list[list[float]], doc("for each item, one a label")]
    usage: PromptUsage
