"""The main job on real input: 200 sign-ups, a ``kill -9`` in the middle, and not one welcome mail lost.

``python -m examples.demo`` runs the example app under a real uvicorn, in a process of its own, against a real SMTP
server on loopback. That mail server is slow, puts some mails off, and refuses one address for good.
"""
