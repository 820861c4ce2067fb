"""Prompts as clients send them: text or token ids, one or many."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from srt.errors import InvalidParameter
from srt.server.generation import Prompt
from srt.server.service import MAX_PROMPTS, Service


async def read_prompts(
    service: Service,
    text: str | list[str] | None,
    input_ids: list[int | list[int]] | None,
    *,
    is_answered: bool = True,
) -> tuple[list[Prompt], bool]:
    """The prompts of a native route, and whether the client sent a list of them.

    Args:
        is_answered: a token of the context must be left for an answer.
    """
    if (text is None) == (input_ids is None):
        raise InvalidParameter("exactly one of text and input_ids is needed", "text")
    if isinstance(text, str):
        return [await service.encode(text, "text", is_answered=is_answered)], False
    if text is not None:
        _check_count(len(text), "text")
        return [await _encoded(service, one, "text", is_answered) for one in text], True
    given = input_ids or []
    if not given or isinstance(given[0], int):
        ids = [x for x in given if isinstance(x, int)]
        if len(ids) != len(given):
            raise _mixed_ids()
        return [service.check_ids(ids, "input_ids", is_answered=is_answered)], False
    _check_count(len(given), "input_ids")
    lists = [x for x in given if isinstance(x, list)]
    if len(lists) != len(given):
        raise _mixed_ids()
    return [
        service.check_ids(ids, f"input_ids[{i}]", is_answered=is_answered)
        for i, ids in enumerate(lists)
    ], True


async def read_mixed_prompts(
    service: Service,
    given: str | list[str | int | list[int]],
    field: str,
    *,
    is_answered: bool,
    add_special_tokens: bool = True,
) -> list[Prompt]:
    """The prompts of an OpenAI route: a text, ids, or a list of texts and lists of ids."""
    encode = partial(service.encode, is_answered=is_answered, add_special_tokens=add_special_tokens)
    if isinstance(given, str):
        return [await encode(given, field)]
    if given and isinstance(given[0], int):
        ids = [x for x in given if isinstance(x, int)]
        if len(ids) == len(given):
            return [service.check_ids(ids, field, is_answered=is_answered)]
    _check_count(len(given), field)
    prompts: list[Prompt] = []
    for i, one in enumerate(given):
        name = f"{field}[{i}]"
        if isinstance(one, str):
            await asyncio.sleep(0)  # others are let in between
            prompts.append(await encode(one, name))
        elif isinstance(one, list):
            prompts.append(service.check_ids(one, name, is_answered=is_answered))
        else:
            raise InvalidParameter(f"{field} must hold texts, or ids, or lists of ids", field)
    return prompts


async def _encoded(service: Service, text: str, field: str, is_answered: bool) -> Prompt:
    """One of many texts; other requests are let in between."""
    await asyncio.sleep(0)
    return await service.encode(text, field, is_answered=is_answered)


def one_each(value: Any, count: int, is_batch: bool, field: str) -> list[Any]:
    """One value for each prompt."""
    if not isinstance(value, list):
        return [value] * count
    check_list(value, count, is_batch, field)
    return value


def check_list(value: list[Any], count: int, is_batch: bool, field: str) -> None:
    """Raises InvalidParameter for a list that is not one value for each prompt."""
    if not is_batch:
        raise InvalidParameter(f"{field} is a list, and there is a single prompt", field)
    if len(value) != count:
        raise InvalidParameter(f"{field} has {len(value)} entries for {count} prompts", field)


def _mixed_ids() -> InvalidParameter:
    return InvalidParameter("input_ids must be one list of ids or a list of lists", "input_ids")


def _check_count(count: int, field: str) -> None:
    if not 1 <= count <= MAX_PROMPTS:
        raise InvalidParameter(
            f"{field} has {count} entries; it must be at least 1 and at most {MAX_PROMPTS}", field
        )
