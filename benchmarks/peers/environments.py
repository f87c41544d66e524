"""A virtual environment for each peer, made once: their requirements need not agree with one another, or with ours."""

import hashlib
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.peers.systems import System

PROJECT: Final = Path(__file__).resolve().parents[2]
ENVIRONMENTS: Final = PROJECT / ".venv-peers"
SERVING: Final = ("fastapi", "uvicorn", "uvloop", "httptools")
"""For the route that adds a job."""


def python_of(system: System) -> Path:
    """Return the interpreter of a peer's environment, which is made if it is not there. Raises `CalledProcessError`."""
    if not system.requirements:  # it is ourselves
        return Path(sys.executable)
    requirements = [*system.requirements, *SERVING]
    digest = hashlib.sha256("\n".join([platform.python_version(), *requirements]).encode()).hexdigest()[:8]
    directory = ENVIRONMENTS / f"{system.adapter}-{digest}"
    ready = directory / "ready"
    if not ready.exists():
        print(f"installing {', '.join(system.requirements)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        pip = [str(directory / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(pip, check=True)
        ready.touch()
    return directory / "bin" / "python"
