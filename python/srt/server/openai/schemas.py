"""The bodies of the OpenAI routes: what we honour, what we know and refuse; all else is unknown."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from srt.fields import doc, refused
from srt.server.openai.message_schemas import (
    AllowedToolChoice,
    Closed,
    Message,
    NamedToolChoice,
    Tool,
)
from srt.text.sampling import MAX_CHOICES, SamplingFields

MAX_TOP_LOGPROBS = 20
_NOT_KEPT = "nothing is stored here"
_CACHE = "prefixes stay cached until the room is needed"
# What OpenAI calls our sampling fields.
COMPLETION_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
CHAT_NAMES = {"max_new_tokens": "max_completion_tokens", "min_new_tokens": "min_tokens"}


class StreamOptions(Closed, frozen=True, kw_only=True):
    """What a stream brings beside the text."""

    include_usage: Annotated[
        bool | None, doc("a last chunk with the token counts of the whole request")
    ] = None
    continuous_usage_stats: Annotated[
        bool | None, doc("beyond OpenAI: token counts so far on every chunk")
    ] = None


class JsonSchemaFormat(Closed, frozen=True, kw_only=True):
    """`response_format.json_schema`."""

    name: Annotated[str, doc("names the schema; changes nothing")]
    schema: Annotated[
        dict[str, Any] | bool | None, doc("the JSON schema; without it any object")
    ] = None
    description: Annotated[str | None, doc("for the reader; changes nothing")] = None
    strict: Annotated[
        bool | None, doc("changes nothing: a schema is enforced, and refused where it cannot be")
    ] = None


class ResponseFormat(Closed, frozen=True, kw_only=True):
    """What kind of text the answer is."""

    type: Annotated[
        Literal["text", "json_object", "json_schema"], doc("json_object: any JSON object")
    ]
    json_schema: Annotated[JsonSchemaFormat | None, doc("with the type json_schema")] = None


class StructuredOutputs(Closed, frozen=True, kw_only=True):
    """vLLM's spelling of what the answer must match: one of these."""

    choice: Annotated[list[str] | None, doc("as guided_choice")] = None
    grammar: Annotated[str | None, doc("as ebnf")] = None
    json: Annotated[str | dict[str, Any] | bool | None, doc("as json_schema")] = None
    json_object: Annotated[bool | None, doc("any JSON object")] = None
    regex: Annotated[str | None, doc("as regex")] = None


class Common(Closed, frozen=True, kw_only=True):
    """What both kinds of completion share."""

    model: Annotated[
        str, doc("the served name, the model's path, or `default`; any other is a 404")
    ] = "default"
    frequency_penalty: Annotated[
        float | None,
        doc(
            "taken off a token's logit for each time it stands in the answer", minimum=-2, maximum=2
        ),
    ] = None
    logit_bias: Annotated[
        dict[str, float] | None,
        doc("token ids and what is added to their logits, from -100 to 100"),
    ] = None
    max_tokens: Annotated[int | None, doc("the longest answer, in tokens", minimum=0)] = None
    n: Annotated[int | None, doc("answers to each prompt", minimum=1, maximum=MAX_CHOICES)] = None
    presence_penalty: Annotated[
        float | None,
        doc("taken off a logit once it stands in the answer", minimum=-2, maximum=2),
    ] = None
    response_format: Annotated[
        ResponseFormat | None, doc("text, any JSON object, or a JSON document of a schema")
    ] = None
    seed: Annotated[
        int | None, doc("repeats the draws: the same seed and request give the same answer")
    ] = None
    stop: Annotated[
        str | list[str] | None,
        doc("up to 64 texts that end the answer and do not show in it"),
    ] = None
    stream: Annotated[bool | None, doc("server-sent events as tokens come")] = None
    stream_options: Annotated[StreamOptions | None, doc("only with stream")] = None
    temperature: Annotated[
        float | None, doc("1 by default; 0 always takes the likeliest token", minimum=0)
    ] = None
    top_p: Annotated[
        float | None,
        doc("draw from the likeliest tokens of this mass", exclusiveMinimum=0, maximum=1),
    ] = None
    user: Annotated[str | None, doc("names the end user; changes nothing")] = None
    # beyond OpenAI
    ebnf: Annotated[
        str | None, doc("a grammar of the answer, GBNF (`root ::= …`) or Lark (`start: …`)")
    ] = None
    guided_choice: Annotated[list[str] | None, doc("the answer is one of these texts")] = None
    guided_grammar: Annotated[str | None, doc("vLLM's name for ebnf")] = None
    guided_json: Annotated[
        str | dict[str, Any] | bool | None, doc("vLLM's name for json_schema")
    ] = None
    guided_regex: Annotated[str | None, doc("vLLM's name for regex")] = None
    ignore_eos: Annotated[bool | None, doc("go on after the model's own end")] = None
    include_stop_str_in_output: Annotated[bool | None, doc("vLLM's name for no_stop_trim")] = None
    json_schema: Annotated[
        str | dict[str, Any] | bool | None,
        doc("the answer is a JSON document that it describes; an object, or one as text"),
    ] = None
    min_p: Annotated[
        float | None,
        doc("drop tokens below this share of the likeliest one", minimum=0, maximum=1),
    ] = None
    min_tokens: Annotated[int | None, doc("no end before so many tokens", minimum=0)] = None
    no_stop_trim: Annotated[bool | None, doc("show the stop text that ended the answer")] = None
    priority: Annotated[
        int | None, doc("larger runs earlier; needs --enable-priority-scheduling")
    ] = None
    regex: Annotated[str | None, doc("the answer matches it as a whole")] = None
    rid: Annotated[str | None, doc("the answer's id, for /abort_request")] = None
    repetition_penalty: Annotated[
        float | None,
        doc("divides the logits of tokens of prompt and answer", exclusiveMinimum=0, maximum=2),
    ] = None
    return_token_ids: Annotated[
        bool | None,
        doc(
            "also tell token_ids of each choice and prompt_token_ids, and logprobs of a final stop"
        ),
    ] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, doc("logprobs name tokens `token_id:ID` rather than by their text")
    ] = None
    skip_special_tokens: Annotated[
        bool | None, doc("leave special tokens out of the text; true by default")
    ] = None
    spaces_between_special_tokens: Annotated[
        bool | None, doc("where special tokens are shown, set them apart by spaces")
    ] = None
    stop_token_ids: Annotated[list[int] | None, doc("token ids that end the answer")] = None
    structural_tag: Annotated[Any, refused("give a grammar of the whole answer as ebnf")] = None
    structured_outputs: Annotated[
        StructuredOutputs | None, doc("vLLM's spelling of what the answer must match")
    ] = None
    top_k: Annotated[
        int | None, doc("draw from so many likeliest tokens; -1: from all", minimum=-1)
    ] = None
    allowed_token_ids: Annotated[Any, refused("use a grammar, or logit_bias")] = None
    bad_words: Annotated[Any, refused("use logit_bias")] = None
    lora_path: Annotated[Any, refused("LoRA adapters are not served in this version")] = None
    prompt_logprobs: Annotated[
        Any, refused("completions score the prompt by echo and logprobs")
    ] = None
    return_hidden_states: Annotated[Any, refused("/encode tells vectors")] = None
    truncate_prompt_tokens: Annotated[Any, refused("a prompt that is too long is an error")] = None
    use_beam_search: Annotated[Any, refused("beam search is not available")] = None


class CompletionBody(Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: Annotated[
        str | list[str | int | list[int]], doc("a text, token ids, or a list of either")
    ]
    add_special_tokens: Annotated[
        bool | None,
        doc("begin a text as the tokenizer does, by a beginning token say; true by default"),
    ] = None
    best_of: Annotated[
        int | None,
        doc(
            "sample so many and keep the n likeliest; not in a stream",
            minimum=1,
            maximum=MAX_CHOICES,
        ),
    ] = None
    echo: Annotated[bool | None, doc("begin the answer with the prompt")] = None
    logprobs: Annotated[
        int | None,
        doc(
            "logprobs of the tokens, and so many likeliest others",
            minimum=0,
            maximum=MAX_TOP_LOGPROBS,
        ),
    ] = None
    suffix: Annotated[Any, refused("the models served here do not fill in the middle")] = None


class ChatBody(Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], doc("the chat so far")]
    logprobs: Annotated[bool | None, doc("logprobs of the answer's tokens")] = None
    max_completion_tokens: Annotated[
        int | None,
        doc("the longest answer, in tokens; by default as much as fits", minimum=0),
    ] = None
    modalities: Annotated[list[Literal["text"]] | None, doc("answers are text")] = None
    parallel_tool_calls: Annotated[
        bool | None, doc("false: at most one call in an answer; true by default")
    ] = None
    prompt_cache_key: Annotated[
        str | None, doc("requests of one key go to the same copy of the model")
    ] = None
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None,
        doc("given to the chat template; refused where the template does not know it"),
    ] = None
    safety_identifier: Annotated[str | None, doc("names the end user; changes nothing")] = None
    service_tier: Annotated[
        Literal["auto", "default"] | None, doc("there is one tier; see priority")
    ] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice | None,
        doc("whether functions may, must, or must not be called; auto where there are tools"),
    ] = None
    tools: Annotated[list[Tool] | None, doc("functions that the model may call")] = None
    top_logprobs: Annotated[
        int | None,
        doc("so many likeliest others for each token", minimum=0, maximum=MAX_TOP_LOGPROBS),
    ] = None
    verbosity: Annotated[
        Literal["low", "medium", "high"] | None,
        doc("only medium, the default: ask for more or less in the messages"),
    ] = None
    # beyond OpenAI
    add_generation_prompt: Annotated[
        bool | None,
        doc("false: the prompt ends with the last message; true by default"),
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, doc("more names for the chat template, as enable_thinking")
    ] = None
    continue_final_message: Annotated[
        bool | None,
        doc("go on with a final message of role assistant; true by default, false answers it"),
    ] = None
    separate_reasoning: Annotated[
        bool | None,
        doc("tell thoughts in reasoning_content and not in content; true by default"),
    ] = None
    # known and refused
    audio: Annotated[Any, refused("answers are text")] = None
    echo: Annotated[Any, refused("an answer does not repeat the message that it goes on with")] = (
        None
    )
    function_call: Annotated[Any, refused("use tool_choice")] = None
    functions: Annotated[Any, refused("use tools")] = None
    metadata: Annotated[Any, refused(_NOT_KEPT)] = None
    moderation: Annotated[Any, refused("answers are not moderated here")] = None
    prediction: Annotated[Any, refused("predicted outputs are not available")] = None
    prompt_cache_options: Annotated[Any, refused(_CACHE)] = None
    prompt_cache_retention: Annotated[Any, refused(_CACHE)] = None
    store: Annotated[Any, refused(_NOT_KEPT)] = None
    web_search_options: Annotated[Any, refused("there is no web search here")] = None


def sampling_fields(body: Common, max_new_tokens: int | None) -> SamplingFields:
    """The sampling part of a body in our words."""
    return SamplingFields(
        max_new_tokens=max_new_tokens,
        min_new_tokens=body.min_tokens,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=body.repetition_penalty,
        ignore_eos=body.ignore_eos,
        skip_special_tokens=body.skip_special_tokens,
        spaces_between_special_tokens=body.spaces_between_special_tokens,
        no_stop_trim=body.no_stop_trim or body.include_stop_str_in_output,
        n=body.n,
        seed=body.seed,
        logit_bias=body.logit_bias,
    )
