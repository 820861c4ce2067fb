"""`python -m srt.launch_server`: the same as `srt-server`."""

from __future__ import annotations

import sys

from srt.cli import main

if __name__ == "__main__":
    sys.exit(main())
