"""What the routes of files and batches answer, for the OpenAPI page and for tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from srt.fields import doc
from srt.server.openai.responses import Answer

Moment = Annotated[int | None, doc("seconds since 1970")]


class File(Answer, frozen=True, kw_only=True):
    """A file that is kept."""

    id: str
    object: Literal["file"]
    bytes: Annotated[int, doc("its size", minimum=0)]
    created_at: Moment
    filename: str
    purpose: Annotated[str, doc("`batch`, or `batch_output` where a batch wrote it")]
    status: Literal["processed"]
    expires_at: None
    status_details: None


class FileList(Answer, frozen=True, kw_only=True):
    """Files, or a page of them."""

    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(Answer, frozen=True, kw_only=True):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


class BatchErrors(Answer, frozen=True, kw_only=True):
    """Why a batch failed as a whole."""

    object: Literal["list"]
    data: list[dict[str, Any]]


class RequestCounts(Answer, frozen=True, kw_only=True):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class BatchInfo(Answer, frozen=True, kw_only=True):
    """A batch and how far it is."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling",
        "cancelled",
    ]  # fmt: skip
    output_file_id: Annotated[str | None, doc("answers, once it has ended")]
    error_file_id: Annotated[str | None, doc("lines that failed, once it has ended")]
    created_at: Moment
    in_progress_at: Moment
    expires_at: Moment
    finalizing_at: Moment
    completed_at: Moment
    failed_at: Moment
    expired_at: Moment
    cancelling_at: Moment
    cancelled_at: Moment
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(Answer, frozen=True, kw_only=True):
    """Batches, or a page of them."""

    object: Literal["list"]
    data: list[BatchInfo]
    first_id: str | None
    last_id: str | None
    has_more: bool
