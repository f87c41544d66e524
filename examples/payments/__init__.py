"""A payment service that tells merchants of their orders: each order once, whatever dies on the way.

``python -m examples.payments`` runs it as a real server, in a process of its own, against a moody merchant; kills it in
the middle; and then compares the books of both sides.
"""
