"""Subscribers to events: what turns them into logs (and, later, metrics and traces)."""
