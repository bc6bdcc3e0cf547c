"""Plaudit's contract: what the server, the learner and the clients share, and nothing else."""

__version__ = "0.1.0"
