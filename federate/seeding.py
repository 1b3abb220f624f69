"""Random draws that depend on what they are for, and on nothing that ran before."""

import hashlib
import json

import numpy as np


def seed_of(*words: str | int) -> int:
    """Turn words, such as a purpose, the run's seed and a client, into a 63-bit seed."""
    digest = hashlib.sha256(json.dumps(words).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(*words: str | int) -> np.random.Generator:
    """Make the generator that belongs to `words`: equal words, equal draws."""
    return np.random.default_rng(seed_of(*words))
