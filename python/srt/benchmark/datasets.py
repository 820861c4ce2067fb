"""Requests to send: random ids, ShareGPT conversations, groups that share a prefix, dialogues."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from srt.errors import ConfigError
from srt.text.tokenizer import Tokenizer

Message = dict[str, str]  # role, content

FIRST_ID = 10  # below stand the special tokens of most vocabularies
_MAX_SHAREGPT_PROMPT = 1024
_MAX_SHAREGPT_TOTAL = 2048
_MIN_SHAREGPT = 4
# Frequent words that most vocabularies hold as one token behind a blank.
_WORDS = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world"),
    *("school", "state", "family", "student", "group", "country", "problem", "hand", "part"),
    *("place", "case", "week", "company", "system", "program", "question", "work", "government"),
    *("number", "night", "point", "home", "water", "room", "mother", "area", "money", "story"),
    *("fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "business"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, as ids, as text or as a chat, and how many tokens are wanted.

    prompt_len: in tokens; where a server tells, what it says counts.
    """

    prompt: list[int] | str | list[Message]
    prompt_len: int
    output_len: int


Dialogue = list[Request]  # turns; each is asked once the one before it has been answered


def random_requests(
    count: int, input_len: int, output_len: int, range_ratio: float, vocab_size: int
) -> list[Request]:
    """Random ids; lengths are uniform between `range_ratio` times the given and the given."""
    requests = []
    for _ in range(count):
        num_in = random.randint(max(int(input_len * range_ratio), 1), input_len)
        num_out = random.randint(max(int(output_len * range_ratio), 1), output_len)
        requests.append(Request(_ids(num_in, vocab_size), num_in, num_out))
    return requests


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Sizes of the generated-shared-prefix data set, in prompts and tokens."""

    num_groups: int
    prompts_per_group: int
    system_prompt_len: int
    question_len: int
    output_len: int


def shared_prefix_requests(sizes: SharedPrefix, vocab_size: int) -> list[Request]:
    """Each group has its own system prompt; the order is shuffled."""
    requests = []
    for _ in range(sizes.num_groups):
        prefix = _ids(sizes.system_prompt_len, vocab_size)
        for _ in range(sizes.prompts_per_group):
            ids = prefix + _ids(sizes.question_len, vocab_size)
            requests.append(Request(ids, len(ids), sizes.output_len))
    random.shuffle(requests)
    return requests


def sharegpt_requests(
    path: str, count: int, output_len: int | None, tokenizer: Tokenizer
) -> list[Request]:
    """First turns of ShareGPT conversations, neither tiny nor huge. Raises ConfigError."""
    pairs = [(turns[0], turns[1]) for turns in _conversations(path)]
    random.shuffle(pairs)
    requests: list[Request] = []
    for prompt, answer in pairs:
        num_in = len(tokenizer.encode(prompt))
        num_out = len(tokenizer.encode(answer)) if output_len is None else output_len
        is_small = min(num_in, num_out) < _MIN_SHAREGPT
        is_large = num_in > _MAX_SHAREGPT_PROMPT or num_in + num_out > _MAX_SHAREGPT_TOTAL
        if is_small or (is_large and output_len is None):
            continue
        requests.append(Request(prompt, num_in, num_out))
        if len(requests) == count:
            break
    if not requests:
        raise ConfigError(f"--dataset-path {path} has no conversation of usable length")
    return requests


def random_dialogues(
    count: int, num_turns: int, input_len: int, output_len: int, tokenizer: Tokenizer | None
) -> list[Dialogue]:
    """Dialogues of made-up questions; each turn says only what is new."""
    return [
        [Request(words(input_len, tokenizer), input_len, output_len) for _ in range(num_turns)]
        for _ in range(count)
    ]


def sharegpt_dialogues(
    path: str, count: int, num_turns: int, output_len: int | None, tokenizer: Tokenizer
) -> list[Dialogue]:
    """ShareGPT conversations with at most `num_turns` questions. Raises ConfigError."""
    conversations = _conversations(path)
    random.shuffle(conversations)
    dialogues: list[Dialogue] = []
    for turns in conversations:
        asked = list(zip(turns[::2], turns[1::2], strict=False))[:num_turns]
        dialogue = [
            Request(
                question, len(tokenizer.encode(question)), output_len or _num_out(answer, tokenizer)
            )
            for question, answer in asked
        ]
        if sum(r.prompt_len + r.output_len for r in dialogue) <= _MAX_SHAREGPT_TOTAL:
            dialogues.append(dialogue)
        if len(dialogues) == count:
            break
    if not dialogues:
        raise ConfigError(f"--dataset-path {path} has no conversation of usable length")
    return dialogues


def words(count: int, tokenizer: Tokenizer | None) -> str:
    """Text of about `count` tokens; of exactly so many or few less where a tokenizer tells."""
    chosen = random.choices(_WORDS, k=count)
    while tokenizer is not None and len(chosen) > 1:
        excess = len(tokenizer.encode(" ".join(chosen))) - count
        if excess <= 0:
            break
        del chosen[-excess:]
    return " ".join(chosen)


def as_text(request: Request, tokenizer: Tokenizer | None) -> Request:
    """For servers that take no ids: the ids' text, or, without a tokenizer, as many words."""
    if not isinstance(request.prompt, list):
        return request
    ids = [token for token in request.prompt if isinstance(token, int)]
    text = words(len(ids), None) if tokenizer is None else tokenizer.decode(ids)
    return replace(request, prompt=text)


def _conversations(path: str) -> list[list[str]]:
    """The texts of each conversation, a question first, with at least one answer."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        turns = [c.get("conversations", c.get("conversation", [])) for c in found]
        return [[turn["value"] for turn in one] for one in turns if len(one) >= 2]
    except (OSError, ValueError) as error:
        raise ConfigError(f"--dataset-path {path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"--dataset-path {path} is no list of conversations") from error


def _num_out(answer: str, tokenizer: Tokenizer) -> int:
    return max(1, len(tokenizer.encode(answer)))


def _ids(count: int, vocab_size: int) -> list[int]:
    return [random.randrange(FIRST_ID, vocab_size) for _ in range(count)]
