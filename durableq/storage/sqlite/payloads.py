"""Replaces arguments and results by the same ones, encrypted otherwise. What has changed meanwhile stays."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from pydantic_core import to_json

from durableq.encryption import Rewrite
from durableq.storage.sqlite.statements import SQL

READ_AT_ONCE: Final = 4 * 1024 * 1024
"""Characters of arguments and results that are read, and then rewritten in one transaction."""


def rewrite(connection: sqlite3.Connection, args: Sequence[Rewrite], results: Sequence[Rewrite]) -> tuple[int, int]:
    """Return how many of each were replaced."""
    return _rewrite(connection, "rewrite_args", args), _rewrite(connection, "rewrite_results", results)


def _rewrite(connection: sqlite3.Connection, statement: str, rewrites: Sequence[Rewrite]) -> int:
    return connection.execute(SQL[statement], {"rewrites": to_json(rewrites).decode()}).rowcount if rewrites else 0
