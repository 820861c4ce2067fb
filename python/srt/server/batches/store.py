"""What files and batches survive a restart in: one sqlite database, and a folder of contents.

Every change is one transaction, so a killed server leaves a whole state behind. Answers are kept
line by line under (batch, line): a line is answered once, whatever is run again. A folder is
worked off by one process at a time (`take_over`); any number may read it and add to it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

FINAL = ("completed", "failed", "expired", "cancelled")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, filename TEXT NOT NULL, purpose TEXT NOT NULL,
  bytes INTEGER NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
  batch TEXT NOT NULL, line INTEGER NOT NULL, failed INTEGER NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (batch, line)) WITHOUT ROWID;
"""


class StoredFile(msgspec.Struct, frozen=True):
    """One file; its content lies in the store's folder under its id."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: int


class Batch(msgspec.Struct, kw_only=True):
    """One batch as OpenAI tells it, and `model`, which answers name. Times in Unix seconds."""

    id: str
    input_file_id: str
    endpoint: str
    completion_window: str
    status: str
    created_at: int
    expires_at: int
    output_file_id: str
    error_file_id: str
    metadata: dict[str, str] | None = None
    errors: list[dict[str, Any]] = []
    total: int = 0
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None


class Answer(msgspec.Struct, frozen=True):
    """What came of one line, as its line of the output or error file."""

    line: int
    failed: bool
    data: bytes


class Counts(msgspec.Struct, frozen=True):
    """Lines answered so far."""

    completed: int
    failed: int


class BatchStore:
    """Files and batches in `folder`. Not thread-safe: used by one thread at a time."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock: IO[bytes] | None = None
        self._db = sqlite3.connect(
            folder / "batches.sqlite", isolation_level=None, check_same_thread=False, timeout=30
        )
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the folder."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def take_over(self) -> bool:
        """Become the process that works batches off; False while another one is."""
        if self._lock is not None:
            return True
        lock = (self._folder / "runner.lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        return True

    def new_path(self) -> Path:
        """Where a content may be written before `add_file` takes it."""
        return self._folder / f"incoming-{uuid.uuid4().hex}"

    def content_path(self, file_id: str) -> Path:
        """Where a file's content lies."""
        return self._folder / file_id

    def add_file(self, file: StoredFile, content: Path) -> None:
        """Take `content` over as `file`, replacing one of the same id."""
        with content.open("rb") as written:
            os.fsync(written.fileno())
        content.replace(self.content_path(file.id))
        self._db.execute(
            "INSERT OR REPLACE INTO files (id, filename, purpose, bytes, created_at) "
            "VALUES (?, ?, ?, ?, ?)",
            msgspec.structs.astuple(file),
        )

    def get_file(self, file_id: str) -> StoredFile | None:
        """The file of an id."""
        row = self._db.execute(
            "SELECT id, filename, purpose, bytes, created_at FROM files WHERE id = ?", (file_id,)
        ).fetchone()
        return StoredFile(*row) if row else None

    def list_files(
        self, *, purpose: str | None, after: str | None, limit: int, order: Literal["asc", "desc"]
    ) -> list[StoredFile]:
        """Files in the order of their creation, from the one behind `after` on."""
        turn = "<" if order == "desc" else ">"
        rows = self._db.execute(
            "SELECT id, filename, purpose, bytes, created_at FROM files "
            "WHERE (?1 IS NULL OR purpose = ?1) "
            f"AND (?2 IS NULL OR seq {turn} (SELECT seq FROM files WHERE id = ?2)) "
            f"ORDER BY seq {order} LIMIT ?3",
            (purpose, after, limit),
        )
        return [StoredFile(*row) for row in rows]

    def delete_file(self, file_id: str) -> bool:
        """Whether there was such a file."""
        found = self._db.execute("DELETE FROM files WHERE id = ?", (file_id,)).rowcount > 0
        if found:
            self.content_path(file_id).unlink(missing_ok=True)
        return found

    def add_batch(self, batch: Batch) -> None:
        """A new batch."""
        self._db.execute(
            "INSERT INTO batches (id, status, data) VALUES (?, ?, ?)",
            (batch.id, batch.status, msgspec.json.encode(batch)),
        )

    def get_batch(self, batch_id: str) -> Batch | None:
        """The batch of an id."""
        row = self._db.execute("SELECT data FROM batches WHERE id = ?", (batch_id,)).fetchone()
        return msgspec.json.decode(row[0], type=Batch) if row else None

    def list_batches(self, *, after: str | None, limit: int) -> list[Batch]:
        """Batches, the newest first, from the one behind `after` on."""
        rows = self._db.execute(
            "SELECT data FROM batches "
            "WHERE ?1 IS NULL OR seq < (SELECT seq FROM batches WHERE id = ?1) "
            "ORDER BY seq DESC LIMIT ?2",
            (after, limit),
        )
        return [msgspec.json.decode(row[0], type=Batch) for row in rows]

    def open_batches(self) -> list[Batch]:
        """Those that have not ended, the oldest first."""
        marks = ", ".join("?" * len(FINAL))
        rows = self._db.execute(
            f"SELECT data FROM batches WHERE status NOT IN ({marks}) ORDER BY seq", FINAL
        )
        return [msgspec.json.decode(row[0], type=Batch) for row in rows]

    def update_batch(
        self, batch_id: str, changes: dict[str, Any], unless: tuple[str, ...] = FINAL
    ) -> bool:
        """Change fields of a batch; False where its status is one of `unless`."""
        with self._transaction():
            batch = self.get_batch(batch_id)
            if batch is None or batch.status in unless:
                return False
            changed = msgspec.structs.replace(batch, **changes)
            self._db.execute(
                "UPDATE batches SET status = ?, data = ? WHERE id = ?",
                (changed.status, msgspec.json.encode(changed), batch_id),
            )
            return True

    def add_answers(self, batch_id: str, answers: Iterable[Answer]) -> None:
        """Keep answers; a line that has one keeps it."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO answers (batch, line, failed, data) VALUES (?, ?, ?, ?)",
                [(batch_id, a.line, int(a.failed), a.data) for a in answers],
            )

    def answered_lines(self, batch_id: str) -> set[int]:
        """Numbers of the lines that need no work any more."""
        rows = self._db.execute("SELECT line FROM answers WHERE batch = ?", (batch_id,))
        return {line for (line,) in rows}

    def counts(self, batch_id: str) -> Counts:
        """How far a batch is."""
        total, failed = self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(failed), 0) FROM answers WHERE batch = ?", (batch_id,)
        ).fetchone()
        return Counts(completed=total - failed, failed=failed)

    def write_answers(self, batch: Batch, *, failed: bool, created_at: int) -> bool:
        """Make the output file, or the error file, of a batch; False where it would be empty."""
        rows = self._db.execute(
            "SELECT data FROM answers WHERE batch = ? AND failed = ? ORDER BY line",
            (batch.id, int(failed)),
        )
        path = self.new_path()
        size = 0
        with path.open("wb") as out:
            for (data,) in rows:
                size += out.write(data + b"\n")
        if size == 0:
            path.unlink()
            return False
        file_id = batch.error_file_id if failed else batch.output_file_id
        kind = "error" if failed else "output"
        name = f"{batch.id}_{kind}.jsonl"
        self.add_file(StoredFile(file_id, name, "batch_output", size, created_at), path)
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def compact_json(value: Any) -> bytes:
    """One line of a JSON-lines file."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
