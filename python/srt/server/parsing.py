"""POST /parse_function_call and /separate_reasoning: the reply parsers by themselves."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.errors import InvalidParameter
from srt.fields import doc
from srt.server.answers import json_response
from srt.server.body import BodyReader
from srt.server.openai.message_schemas import Tool
from srt.server.openai.tools import check_names, functions_of
from srt.server.service import Service
from srt.text.reasoning import REASONING_FORMATS, find_reasoning_format
from srt.text.reply import ReplyParser, join
from srt.text.tools.formats import TOOL_FORMATS, find_tool_format


class ParseCallBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /parse_function_call."""

    text: Annotated[str, doc("what a model wrote")]
    tools: Annotated[list[Tool], doc("the functions that it may have called")]
    tool_call_parser: Annotated[
        str | None, doc("a name that --tool-call-parser takes; null: the server's")
    ] = None


class SeparateBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /separate_reasoning."""

    text: Annotated[str, doc("what a model wrote")]
    reasoning_parser: Annotated[
        str | None, doc("a name that --reasoning-parser takes; null: the server's")
    ] = None


_calls_reader = BodyReader(ParseCallBody)
_thoughts_reader = BodyReader(SeparateBody)


async def parse_function_call(service: Service, request: Request) -> Response:
    """Find the tool calls in a text."""
    body = await _calls_reader.read(request, service.settings.max_request_bytes)
    check_names(body.tools)
    found = service.reply_format.tools
    if body.tool_call_parser is not None:
        found = find_tool_format(body.tool_call_parser)
    if found is None:
        raise _unknown("tool_call_parser", body.tool_call_parser, list(TOOL_FORMATS))
    parser = ReplyParser(tools=found, functions=functions_of(body.tools))
    pieces = join(parser.push(body.text) + parser.finish())
    calls = [
        {"tool_index": piece.index, "name": piece.text, "parameters": ""}
        for piece in pieces
        if piece.kind == "call"
    ]
    for piece in pieces:
        if piece.kind == "arguments":
            calls[piece.index]["parameters"] = piece.text
    text = "".join(piece.text for piece in pieces if piece.kind == "text")
    return json_response({"normal_text": text, "calls": calls})


async def separate_reasoning(service: Service, request: Request) -> Response:
    """Split the thoughts in a text from the rest."""
    body = await _thoughts_reader.read(request, service.settings.max_request_bytes)
    found = service.reply_format.reasoning
    if body.reasoning_parser is not None:
        found = find_reasoning_format(body.reasoning_parser)
    if found is None:
        raise _unknown("reasoning_parser", body.reasoning_parser, list(REASONING_FORMATS))
    parser = ReplyParser(reasoning=found, opens=found.opens(""))
    pieces = parser.push(body.text) + parser.finish()
    thoughts = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    text = "".join(piece.text for piece in pieces if piece.kind == "text")
    return json_response({"reasoning_text": thoughts, "text": text})


def _unknown(field: str, name: str | None, known: list[str]) -> InvalidParameter:
    return InvalidParameter(f"{field} is {name!r}; it must be one of {', '.join(known)}", field)
