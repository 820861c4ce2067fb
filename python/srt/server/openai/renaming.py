"""Errors about a chat's body, in the words of the route that made it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from srt.errors import RequestError

Names = Sequence[tuple[re.Pattern[str], str]]


@contextmanager
def in_words_of(names: Names) -> Iterator[None]:
    """Errors raised inside name the fields that the client sent: each pattern by its text."""
    try:
        yield
    except RequestError as error:
        error.message = _renamed(error.message, names)
        error.param = None if error.param is None else _renamed(error.param, names)
        raise


def _renamed(text: str, names: Names) -> str:
    for pattern, ours in names:
        text = pattern.sub(ours, text)
    return text
