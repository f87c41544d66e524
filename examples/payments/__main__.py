"""Tell the story, or serve: ``python -m examples.payments`` or ``python -m examples.payments --serve --port 8000``."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import uvicorn

from examples.payments.story import tell


def main() -> int:
    """Return 0 when the books balance."""
    options = _options()
    if options.serve:
        uvicorn.run("examples.payments.app:app", host="127.0.0.1", port=options.port, log_level="warning")
        return 0
    with tempfile.TemporaryDirectory(prefix="durableq-payments-") as temporary:
        try:
            return 0 if asyncio.run(tell(options.directory or Path(temporary), options.seed)) else 1
        except (KeyboardInterrupt, asyncio.CancelledError):
            return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.payments", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="only serve, with the settings of the environment")
    parser.add_argument("--port", type=int, default=8000, help="port to serve on (default: %(default)s)")
    parser.add_argument("--directory", type=Path, help="empty one, to keep the story's files (default: not kept)")
    parser.add_argument("--seed", type=int, default=3, help="other seeds, other moods of the merchant")
    options = parser.parse_args()
    if options.directory and (not options.directory.is_dir() or any(options.directory.iterdir())):
        parser.error(f"expected an empty directory, got {options.directory}")
    return options


if __name__ == "__main__":
    sys.exit(main())
