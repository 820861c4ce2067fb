"""Routes that change or watch the running engines: new weights, torch profiles."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from srt.channel import CallResult
from srt.config import LOAD_FORMATS
from srt.errors import EngineBusy, InvalidParameter, RequestError
from srt.fields import doc
from srt.server.answers import error_body, json_response
from srt.server.body import BodyReader
from srt.server.service import Service

_PROFILE_TIMEOUT_S = 300.0


class UpdateWeightsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /update_weights_from_disk, /update_weights."""

    model_path: Annotated[str, doc("a folder, a GGUF file or a hub id, of the same model")]
    load_format: Annotated[
        str | None,
        doc("how its weights are stored; null: as at the start", enum=list(LOAD_FORMATS)),
    ] = None
    abort_all_requests: Annotated[
        bool | None, doc("abort what runs or waits instead of waiting for it")
    ] = None


class ProfileBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /start_profile; the body may be left out."""

    output_dir: Annotated[str | None, doc("where traces are written; null: --profiler-dir")] = None


_update_reader = BodyReader(UpdateWeightsBody)
_profile_reader = BodyReader(ProfileBody)


async def update_weights(service: Service, request: Request) -> Response:
    """Load other weights in place; running requests end first, new ones wait. All or nothing."""
    body = await _update_reader.read(request, service.settings.max_request_bytes)
    if not body.model_path:
        raise InvalidParameter("model_path is empty", "model_path")
    if body.load_format is not None and body.load_format not in LOAD_FORMATS:
        raise InvalidParameter(
            f"load_format is {body.load_format!r}; it must be one of {', '.join(LOAD_FORMATS)}",
            "load_format",
        )
    # Shielded: a client that leaves must not leave copies of the model that differ.
    return await asyncio.shield(_update_alone(service, body))


def join_updates(service: Service) -> None:
    """Takes part in what the server's HTTP workers tell each other about weight updates."""

    async def answer(told: dict[str, Any]) -> bool:
        """Whether this worker updates itself, before it has heard of the other's."""
        worker, weights = told["worker"], told.get("weights")
        if told["begins"]:
            service.client.engines.updating_elsewhere.add(worker)
        else:
            service.client.engines.end_update_elsewhere(worker)
            service.weights = weights or service.weights
        return service.update_lock.locked()

    service.client.crew.answers("update", answer)


async def _update_alone(service: Service, body: UpdateWeightsBody) -> Response:
    """One update at a time, whichever HTTP workers they come to. Raises EngineBusy."""
    crew, busy = service.client.crew, "the weights are being updated by another request"
    if service.update_lock.locked():
        raise EngineBusy(busy)
    async with service.update_lock:
        mine, before = {"worker": crew.worker}, service.weights
        is_busy = any(await crew.ask("update", {**mine, "begins": True}))
        try:
            if is_busy:
                raise EngineBusy(busy)
            if body.abort_all_requests:
                await service.client.cancel_everywhere(None)
            return await _update(service, body)
        finally:
            new = None if service.weights is before else service.weights
            await crew.ask("update", {**mine, "begins": False, "weights": new})


async def _update(service: Service, body: UpdateWeightsBody) -> Response:
    given = {"model_path": body.model_path, "load_format": body.load_format}
    results = await service.client.calls.ask_all("update_weights", None, **given)
    failed = [result for result in results if not result.ok]
    if not failed:
        service.weights = given
        message = f"the weights of {body.model_path} are served"
        return json_response({"success": True, "message": message})
    message = failed[0].message
    for index, result in enumerate(results):
        if result.ok:  # one copy failed: the others go back
            undone = await service.client.calls.ask(
                index, "update_weights", None, **service.weights
            )
            _check_undone(undone, index)
    refused = error_body(InvalidParameter(message, "model_path"))
    return json_response({"success": False, "message": message, **refused}, 400)


def _check_undone(result: CallResult, index: int) -> None:
    if not result.ok:
        raise RuntimeError(f"copy {index} has other weights than the rest: {result.message}")


async def start_profile(service: Service, request: Request) -> Response:
    """Begin a torch profile on every rank; /stop_profile writes the traces."""
    body = ProfileBody()
    if request.method == "POST" and request.headers.get("content-length", "0") != "0":
        body = await _profile_reader.read(request, service.settings.max_request_bytes)
    folder = body.output_dir or service.settings.profiler_dir
    many = len(service.client.engines) > 1
    folders = [f"{folder}/dp{i}" if many else folder for i in range(len(service.client.engines))]
    calls = [
        service.client.calls.ask(i, "start_profile", folder=where)
        for i, where in enumerate(folders)
    ]
    return _files(await asyncio.gather(*calls))


async def stop_profile(service: Service, request: Request) -> Response:  # noqa: ARG001
    """End the profile; tells the trace file of each copy's first rank."""
    return _files(await service.client.calls.ask_all("stop_profile", _PROFILE_TIMEOUT_S))


def _files(results: list[CallResult]) -> Response:
    failed = next((result for result in results if not result.ok), None)
    if failed is not None:
        raise ProfileRefused(failed.message)
    files: list[Any] = [msgspec.msgpack.decode(result.payload) for result in results]
    return json_response({"files": files})


class ProfileRefused(RequestError):
    """A profile is running already, none is, or its folder cannot be written."""

    code = "profile_refused"
