"""Measures durableq against the raw disk and FastAPI's own background tasks: ``python -m benchmarks``."""
