"""Requests to send: random ids, ShareGPT conversations, groups that share a prefix."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from srt.errors import ConfigError
from srt.text.tokenizer import Tokenizer

FIRST_ID = 10  # below stand the special tokens of most vocabularies
_MAX_SHAREGPT_PROMPT = 1024
_MAX_SHAREGPT_TOTAL = 2048
_MIN_SHAREGPT = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, as ids or as text, and how many tokens are wanted."""

    prompt: list[int] | str
    prompt_len: int
    output_len: int


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
    try:
        conversations = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"--dataset-path {path}: {error}") from error
    turns = [c.get("conversations", c.get("conversation", [])) for c in conversations]
    pairs = [(t[0]["value"], t[1]["value"]) for t in turns if len(t) >= 2]
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


def _ids(count: int, vocab_size: int) -> list[int]:
    return [random.randrange(FIRST_ID, vocab_size) for _ in range(count)]
