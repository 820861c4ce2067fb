"""GET /: the playground, one page that needs nothing but this server."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from srt.server.service import Service

_PAGE = (Path(__file__).parent / "playground.html").read_text(encoding="utf-8")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}


async def playground(service: Service, request: Request) -> Response:  # noqa: ARG001
    """The playground page."""
    return HTMLResponse(_PAGE, headers=_HEADERS)
