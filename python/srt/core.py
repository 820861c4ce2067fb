"""The only importer of the native extension."""

from __future__ import annotations

from srt import _srt_core as native

__all__ = ["native"]
