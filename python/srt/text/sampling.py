"""Sampling parameters as clients write them, checked, and as the engine wants them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec

from srt.errors import ContextLengthExceeded, InvalidParameter, UnsupportedParameter
from srt.fields import doc, refuse_unsupported, refused
from srt.text.detokenizer import TextOptions
from srt.text.grammar import ebnf_grammar, regex_grammar, schema_grammar
from srt.types import Grammar, SamplingParams

MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_CHOICES = 128
DEFAULT_NEW_TOKENS = 128
_SEED_BITS = 63


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`sampling_params` of /generate. None stands for the default everywhere."""

    max_new_tokens: Annotated[
        int | None, doc("the longest answer, in tokens; 0 scores the prompt", minimum=0)
    ] = None
    min_new_tokens: Annotated[int | None, doc("no end before so many tokens", minimum=0)] = None
    stop: Annotated[
        str | list[str] | None,
        doc("up to 64 texts of at most 1024 characters that end the answer"),
    ] = None
    stop_token_ids: Annotated[list[int] | None, doc("token ids that end the answer")] = None
    temperature: Annotated[
        float | None, doc("1 by default; 0 always takes the likeliest token", minimum=0)
    ] = None
    top_p: Annotated[
        float | None,
        doc("draw from the likeliest tokens of this mass", exclusiveMinimum=0, maximum=1),
    ] = None
    top_k: Annotated[
        int | None, doc("draw from so many likeliest tokens; -1: from all", minimum=-1)
    ] = None
    min_p: Annotated[
        float | None,
        doc("drop tokens below this share of the likeliest one", minimum=0, maximum=1),
    ] = None
    frequency_penalty: Annotated[
        float | None,
        doc("taken off a logit for each time it stands in the answer", minimum=-2, maximum=2),
    ] = None
    presence_penalty: Annotated[
        float | None,
        doc("taken off a logit once it stands in the answer", minimum=-2, maximum=2),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        doc("divides the logits of tokens of prompt and answer", exclusiveMinimum=0, maximum=2),
    ] = None
    ignore_eos: Annotated[bool | None, doc("go on after the model's own end")] = None
    skip_special_tokens: Annotated[
        bool | None, doc("leave special tokens out of the text; true by default")
    ] = None
    spaces_between_special_tokens: Annotated[
        bool | None, doc("where special tokens are shown, set them apart by spaces")
    ] = None
    no_stop_trim: Annotated[bool | None, doc("show the stop text that ended the answer")] = None
    n: Annotated[int | None, doc("answers to each prompt", minimum=1, maximum=MAX_CHOICES)] = None
    seed: Annotated[
        int | None, doc("repeats the draws: the same seed and request give the same answer")
    ] = None
    sampling_seed: Annotated[int | None, doc("SGLang's name for seed")] = None
    logit_bias: Annotated[
        dict[str, float] | None,
        doc("token ids and what is added to their logits, from -100 to 100"),
    ] = None
    regex: Annotated[str | None, doc("the answer matches it as a whole")] = None
    json_schema: Annotated[
        str | dict[str, Any] | bool | None,
        doc("the answer is a JSON document that it describes; an object, or one as text"),
    ] = None
    ebnf: Annotated[
        str | None, doc("a grammar of the answer, GBNF (`root ::= …`) or Lark (`start: …`)")
    ] = None
    custom_params: Annotated[Any, refused("no code of clients runs here")] = None
    stop_regex: Annotated[Any, refused("use stop, or a regex of the whole answer")] = None
    structural_tag: Annotated[Any, refused("give a grammar of the whole answer as ebnf")] = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What the loaded model allows. max_total_tokens: KV pool; max_seq_len: context window."""

    vocab_size: int
    max_seq_len: int
    max_total_tokens: int
    eos_ids: tuple[int, ...]

    @property
    def max_tokens(self) -> int:
        """The longest sequence, prompt and answer together."""
        return min(self.max_seq_len, self.max_total_tokens)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Checked parameters of one prompt: `params` but for the length, which depends on the prompt.

    max_new_tokens: as asked; None: as much as fits. is_exact: asked for, so it must fit.
    grammar_field: what the client calls the grammar in `params`.
    """

    params: SamplingParams
    text: TextOptions
    n: int
    max_new_tokens: int | None
    is_exact: bool
    max_tokens_field: str
    grammar_field: str = ""

    def with_grammar(self, grammar: Grammar, field: str, limits: Limits) -> Sampling:
        """The same, its answer bound by `grammar`; a second one is refused.

        Such an answer ends by an end token of the model, even with ignore_eos: where the grammar
        ends nothing else may follow. Raises InvalidParameter, UnsupportedParameter.
        """
        if self.params.grammar is not None:
            raise InvalidParameter(
                f"{self.grammar_field} and {field} both say what the answer must match; give one",
                field,
            )
        if not limits.eos_ids:
            raise UnsupportedParameter(
                f"{field} is not supported: the model has no token that ends an answer", field
            )
        stops = tuple(dict.fromkeys((*self.params.stop_token_ids, *limits.eos_ids)))
        params = msgspec.structs.replace(self.params, grammar=grammar, stop_token_ids=stops)
        return replace(self, params=params, grammar_field=field)

    def for_prompt(self, prompt_len: int, limits: Limits) -> SamplingParams:
        """Parameters for a prompt of `prompt_len` tokens. Raises ContextLengthExceeded."""
        check_prompt_len(prompt_len, limits)
        room = limits.max_tokens - prompt_len
        wanted = room if self.max_new_tokens is None else self.max_new_tokens
        if wanted > room and self.is_exact:
            raise ContextLengthExceeded(
                f"prompt has {prompt_len} tokens and {self.max_tokens_field} is {wanted}, "
                f"together {prompt_len + wanted}; {_holder(limits)} {limits.max_tokens}",
                self.max_tokens_field,
            )
        wanted = min(wanted, room)
        return msgspec.structs.replace(
            self.params,
            max_new_tokens=max(wanted, 1),
            min_new_tokens=min(self.params.min_new_tokens, wanted),
        )

    def seed_of(self, choice: int) -> int:
        """The seed of one of `n` choices, in [0, 2**63)."""
        return (self.params.seed + choice * 0x9E3779B97F4A7C15) % (1 << _SEED_BITS)


def check_prompt_len(
    prompt_len: int, limits: Limits, field: str = "prompt", *, is_answered: bool = True
) -> None:
    """Raise unless a prompt fits, with one token more if it is answered by tokens."""
    if prompt_len == 0:
        raise InvalidParameter("the prompt has no tokens; at least one is needed", field)
    if prompt_len + is_answered > limits.max_tokens:
        room = ", one of them for the answer" if is_answered else ""
        raise ContextLengthExceeded(
            f"prompt has {prompt_len} tokens, {_holder(limits)} {limits.max_tokens}{room}", field
        )


def _holder(limits: Limits) -> str:
    if limits.max_seq_len <= limits.max_total_tokens:
        return "the context window holds"
    return "the KV pool holds"


def check_sampling(
    given: SamplingFields,
    limits: Limits,
    *,
    names: Mapping[str, str] | None = None,
    prefix: str = "",
    default_new_tokens: int | None = DEFAULT_NEW_TOKENS,
) -> Sampling:
    """Check every field. Raises RequestError naming the field, the value and the limit.

    Args:
        given: the client's fields.
        limits: the model's.
        names: what the client calls our fields, where it differs.
        prefix: put before field names.
        default_new_tokens: where max_new_tokens is not given; None: as much as fits.
    """
    refuse_unsupported(given, prefix)
    if given.sampling_seed is not None and given.seed is not None:
        raise InvalidParameter(
            f"{prefix}seed and {prefix}sampling_seed mean the same; give one",
            f"{prefix}sampling_seed",
        )
    checks = _Checks(given, {**(names or {})}, prefix)
    max_new = checks.integer("max_new_tokens", None, 0, None)
    min_new = checks.integer("min_new_tokens", 0, 0, max_new) or 0
    top_k = checks.integer("top_k", -1, -1, None)
    if top_k == 0:
        name = checks.name("top_k")
        raise InvalidParameter(f"{name} is 0; it must be -1 or at least 1", name)
    stops = checks.stop_strings()
    ids = checks.token_ids(limits.vocab_size)
    ignores_eos = bool(given.ignore_eos)
    params = SamplingParams(
        max_new_tokens=1,
        min_new_tokens=min_new,
        temperature=_greedy_below(checks.number("temperature", 1.0, 0.0, math.inf)),
        top_p=checks.number("top_p", 1.0, 0.0, 1.0, above=True),
        top_k=-1 if top_k is None else min(top_k, limits.vocab_size),
        min_p=checks.number("min_p", 0.0, 0.0, 1.0),
        frequency_penalty=checks.number("frequency_penalty", 0.0, -2.0, 2.0),
        presence_penalty=checks.number("presence_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=checks.number("repetition_penalty", 1.0, 0.0, 2.0, above=True),
        stop_token_ids=ids if ignores_eos else tuple(dict.fromkeys((*ids, *limits.eos_ids))),
        ignore_eos=ignores_eos,
        seed=checks.seed(),
        logit_bias=checks.logit_bias(limits.vocab_size),
    )
    text = TextOptions(
        stop=stops,
        skip_special_tokens=given.skip_special_tokens is not False,
        spaces_between_special_tokens=bool(given.spaces_between_special_tokens),
        no_stop_trim=bool(given.no_stop_trim),
    )
    sampling = Sampling(
        params=params,
        text=text,
        n=checks.integer("n", 1, 1, MAX_CHOICES) or 1,
        max_new_tokens=default_new_tokens if max_new is None else max_new,
        is_exact=max_new is not None,
        max_tokens_field=checks.name("max_new_tokens"),
    )
    for field, grammar in checks.grammars():
        sampling = sampling.with_grammar(grammar, field, limits)
    return sampling


def _greedy_below(temperature: float) -> float:
    """Temperatures under 1e-6 overflow the logits; they mean the likeliest token."""
    return 0.0 if temperature < 1e-6 else temperature


class _Checks:
    """One request's fields, and what the client calls them."""

    def __init__(self, given: SamplingFields, names: Mapping[str, str], prefix: str) -> None:
        self._given = given
        self._names = names
        self._prefix = prefix

    def name(self, field: str) -> str:
        return self._prefix + self._names.get(field, field)

    def grammars(self) -> list[tuple[str, Grammar]]:
        """What the answer must match, by the client's name for the field."""
        makers = (("regex", regex_grammar), ("json_schema", schema_grammar), ("ebnf", ebnf_grammar))
        return [
            (name, make(value, name))
            for field, make in makers
            if (value := getattr(self._given, field)) is not None
            for name in (self.name(field),)
        ]

    def number(
        self, field: str, default: float, low: float, high: float, *, above: bool = False
    ) -> float:
        """A finite number in [low, high], or (low, high] if `above`."""
        value = getattr(self._given, field)
        if value is None:
            return default
        if math.isfinite(value) and low <= value <= high and not (above and value == low):
            return float(value)
        side = "above" if above else "at least"
        limit = "" if high == math.inf else f" and at most {high:g}"
        raise self._invalid(field, value, f"must be {side} {low:g}{limit}")

    def integer(self, field: str, default: int | None, low: int, high: int | None) -> int | None:
        value: int | None = getattr(self._given, field)
        if value is None:
            return default
        if value < low:
            raise self._invalid(field, value, f"must be at least {low}")
        if high is not None and value > high:
            limit = f"{self.name('max_new_tokens')}, {high}" if field == "min_new_tokens" else high
            raise self._invalid(field, value, f"must be at most {limit}")
        return min(value, 2**31 - 1)

    def stop_strings(self) -> tuple[str, ...]:
        stop = self._given.stop
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        if len(stops) > MAX_STOP_STRINGS:
            raise self._invalid(
                "stop", f"{len(stops)} strings", f"must be at most {MAX_STOP_STRINGS}"
            )
        for text in stops:
            if not text:
                raise self._invalid("stop", '""', "must not be empty")
            if len(text) > MAX_STOP_CHARS:
                raise self._invalid(
                    "stop", f"{len(text)} characters", f"must be at most {MAX_STOP_CHARS}"
                )
        return stops

    def token_ids(self, vocab_size: int) -> tuple[int, ...]:
        ids = tuple(self._given.stop_token_ids or ())
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise self._invalid(
                    "stop_token_ids", token_id, f"must be at least 0 and below {vocab_size}"
                )
        return ids

    def seed(self) -> int:
        field = "seed" if self._given.sampling_seed is None else "sampling_seed"
        seed: int | None = getattr(self._given, field)
        if seed is None:
            return secrets.randbits(_SEED_BITS)
        if not -(1 << _SEED_BITS) <= seed < 1 << _SEED_BITS:
            raise self._invalid(field, seed, "must be at least -2**63 and below 2**63")
        return seed % (1 << _SEED_BITS)

    def logit_bias(self, vocab_size: int) -> tuple[tuple[int, float], ...]:
        pairs = []
        for key, bias in (self._given.logit_bias or {}).items():
            if not key.isdecimal() or int(key) >= vocab_size:
                raise self._invalid(
                    "logit_bias", f"for {key!r}", f"must name token ids below {vocab_size}"
                )
            if not -100.0 <= bias <= 100.0:
                raise self._invalid("logit_bias", f"{bias} for {key}", "must be from -100 to 100")
            pairs.append((int(key), float(bias)))
        return tuple(pairs)

    def _invalid(self, field: str, value: object, rule: str) -> InvalidParameter:
        name = self.name(field)
        return InvalidParameter(f"{name} is {value}; it {rule}", name)
