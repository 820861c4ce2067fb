"""How far loading is: a bar on a terminal, a line per file in a log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import TracebackType

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """Counts whole files; `add` is told the file of every tensor as it is loaded."""

    def __init__(self, total_bytes: int, *, visible: bool) -> None:
        self._visible = visible
        self._total_bytes = total_bytes
        self._done_bytes = 0
        self._file: Path | None = None
        shown = visible and sys.stderr.isatty()
        self._bar = tqdm(
            total=total_bytes, desc="loading weights", unit="B", unit_scale=True, disable=not shown
        )

    def add(self, file: Path) -> None:
        """One tensor of `file` is loaded; a new file means that the one before it is done."""
        if file != self._file:
            self._finish_file()
            self._file = file

    def _finish_file(self) -> None:
        if self._file is None:
            return
        num_bytes = self._file.stat().st_size
        self._done_bytes += num_bytes
        self._bar.update(num_bytes)
        if self._visible and self._bar.disable:
            percent = 100 * self._done_bytes // max(1, self._total_bytes)
            logger.info("loaded %s (%d %%)", self._file.name, percent)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish_file()
        self._bar.close()
