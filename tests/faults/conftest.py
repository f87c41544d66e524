"""The storage tests' fixtures, for those that test storage here."""

from tests.storage.conftest import backend, url

__all__ = ["backend", "url"]
