"""What makes two caches the same: the facts that shape an image's vector."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Facts that tell a person what the encoder is called; they shape no vector.
DESCRIPTIVE = frozenset({"model", "pretrained", "parameters"})


def canonical_json(value: Any) -> str:
    """Give equal values equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )


def image_key(encoder: Mapping[str, Any]) -> str:
    """Hash the facts of `encoder` that shape a vector: SHA-256, 64 hex digits.

    A fact that nobody listed as descriptive counts, so a new one can only tell
    caches apart, never mix them.
    """
    return hashlib.sha256(canonical_json(_shaping(encoder)).encode()).hexdigest()


def differing_facts(encoder: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the facts in which the keys of two encoders differ, in alphabetical order."""
    one, two = (
        {name: canonical_json(fact) for name, fact in _shaping(each).items()}
        for each in (encoder, other)
    )
    return sorted(name for name in {*one, *two} if one.get(name) != two.get(name))


def _shaping(encoder: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in encoder.items() if name not in DESCRIPTIVE}
