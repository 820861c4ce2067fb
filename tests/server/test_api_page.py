"""docs/api.md is current, and knows every field that the `openai` client may send."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.types import batch_create_params, completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params

from srt.server import api_page
from srt.server.openai.batches import BatchBody
from srt.server.openai.embeddings import EmbeddingBody
from srt.server.openai.schemas import ChatBody, CompletionBody

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == api_page.page(), (
        "run `python -m srt.server.api_page > docs/api.md`"
    )


@pytest.mark.parametrize(
    ("params", "body"),
    [
        (chat_create_params.CompletionCreateParamsStreaming, ChatBody),
        (completion_create_params.CompletionCreateParamsStreaming, CompletionBody),
        (embedding_create_params.EmbeddingCreateParams, EmbeddingBody),
        (batch_create_params.BatchCreateParams, BatchBody),
    ],
)
def test_every_field_of_the_client_is_known(params: Any, body: type[msgspec.Struct]) -> None:
    assert set(typing.get_type_hints(params)) <= set(body.__struct_fields__)
