"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from srt.server.answers import json_response
from srt.server.openai.answer import check_model
from srt.server.service import Service


async def list_models(service: Service, request: Request) -> Response:  # noqa: ARG001
    """The one model that is served."""
    return json_response({"object": "list", "data": [_card(service)]})


async def get_model(service: Service, request: Request) -> Response:
    """The model by its id. Raises NotFound."""
    check_model(service, request.path_params["model"])
    return json_response(_card(service))


def _card(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.model_name,
        "object": "model",
        "created": service.started,
        "owned_by": "srt",
        "root": service.settings.model_path,
        "parent": None,
        "max_model_len": service.limits.max_seq_len,
    }
