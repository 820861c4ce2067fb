"""The only importer of the native extension."""

from __future__ import annotations

import torch  # noqa: F401  # first: the extension then shares torch's OpenMP threads

from srt import _srt_core as native

__all__ = ["native"]
