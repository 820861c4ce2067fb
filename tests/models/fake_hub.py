"""A hub on loopback that speaks as much of HuggingFace's HTTP API as a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

COMMIT = "a" * 40
REFUSALS = {  # repository -> status and the hub's own word for it
    "org/gated": (403, "GatedRepo"),
    "org/missing": (404, "RepoNotFound"),
}


@dataclass
class FakeHub:
    """Serves `repos`; use as a context manager.

    log: method, path and Range header of every request.
    cut_at: the next download of a big file ends its connection behind so many bytes.
    stall_at: the next one says `stalled` there and waits for `released`.
    """

    repos: dict[str, dict[str, bytes]]
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut_at: int | None = None
    stall_at: int | None = None

    def __post_init__(self) -> None:
        self.stalled, self.released = threading.Event(), threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Nothing on standard error."""

            def do_HEAD(self) -> None:
                hub.answer(self, has_body=False)

            def do_GET(self) -> None:
                hub.answer(self, has_body=True)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def fetched(self) -> list[str]:
        """The files whose content was asked for, in order."""
        paths = [path for method, path, _ in self.log if method == "GET" and "/resolve/" in path]
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in paths]

    def answer(self, request: BaseHTTPRequestHandler, *, has_body: bool) -> None:
        """One request."""
        span = request.headers.get("Range")
        self.log.append((request.command, request.path, span))
        for repo, (status, code) in REFUSALS.items():
            if repo in request.path:
                return _send(request, status, b"", {"X-Error-Code": code}, has_body=has_body)
        found = re.match(
            r"/api/models/([\w-]+/[\w.-]+)(/tree|/revision)?(?:/([\w.-]+))?", request.path
        )
        if found and found[3] not in (None, "main", COMMIT):
            return self._no_revision(request, has_body=has_body)
        if found and found[1] in self.repos:
            body = self._listing(found[1], is_tree=found[2] == "/tree")
            kind = {"Content-Type": "application/json"}
            return _send(request, 200, json.dumps(body).encode(), kind, has_body=has_body)
        resolved = re.match(r"/([\w-]+/[\w.-]+)/resolve/([\w.-]+)/(.*)", request.path)
        if resolved and resolved[2] not in ("main", COMMIT):
            return self._no_revision(request, has_body=has_body)
        data = self.repos.get(resolved[1], {}).get(resolved[3]) if resolved else None
        if data is None:
            code = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return _send(request, 404, b"", code, has_body=has_body)
        return self._send_file(request, data, span, has_body=has_body)

    def _no_revision(self, request: BaseHTTPRequestHandler, *, has_body: bool) -> None:
        _send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"}, has_body=has_body)

    def _listing(self, repo: str, *, is_tree: bool) -> Any:
        files = self.repos[repo]
        if is_tree:
            return [
                {"type": "file", "path": name, "size": len(data), "oid": _sha(data)}
                for name, data in files.items()
            ]
        return {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}

    def _send_file(
        self, request: BaseHTTPRequestHandler, data: bytes, span: str | None, *, has_body: bool
    ) -> None:
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        headers = {"ETag": f'"{_sha(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if span:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        is_big = has_body and len(data) > 1 << 20
        cut, self.cut_at = (self.cut_at, None) if is_big else (None, self.cut_at)
        stall, self.stall_at = (self.stall_at, None) if is_big else (None, self.stall_at)
        if cut is None and stall is None:
            return _send(request, 206 if span else 200, part, headers, has_body=has_body)
        _send_head(request, 206 if span else 200, len(part), headers)
        request.wfile.write(part[: cut or stall])
        request.wfile.flush()
        if stall is not None:
            self.stalled.set()
            self.released.wait(30)
        request.close_connection = True
        return None


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str],
    *,
    has_body: bool,
) -> None:
    _send_head(request, status, len(body), headers)
    if has_body:
        request.wfile.write(body)


def _send_head(
    request: BaseHTTPRequestHandler, status: int, size: int, headers: dict[str, str]
) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(size)}.items():
        request.send_header(name, value)
    request.end_headers()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
