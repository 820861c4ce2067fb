"""`srt-server`: one command from a model to a serving process; `srt-server plan` sizes one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from srt.config import always_so, parse_settings
from srt.errors import ConfigError, LoadError
from srt.plan import main as plan_command
from srt.server.engine_process import start_engine
from srt.server.serve import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, serve, and say in one line what went wrong. Returns the exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] == "plan":
        return plan_command(given[1:])
    try:
        settings = parse_settings(given)
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        for sentence in always_so(given):
            logging.getLogger("srt").warning("%s", sentence)
        return serve(settings, start_engine)
    except (ConfigError, LoadError) as error:
        sys.stderr.write(f"srt-server: error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
