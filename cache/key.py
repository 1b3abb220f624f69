"""What makes two caches the same: the facts that shape an image's or a text's vector."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Facts that tell a person what the encoder is called; they shape no vector.
DESCRIPTIVE = frozenset({"model", "pretrained", "parameters"})

# Facts that shape the vectors of one kind alone.
_TEXT_ONLY = frozenset({"tokenizer"})
_IMAGE_ONLY = frozenset(
    {
        "image_size",
        "mode",
        "mean",
        "std",
        "interpolation",
        "resize",
        "fill_color",
        "decoder",
        "resizer",
    }
)


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
    """Hash the facts of `encoder` that shape an image's vector: SHA-256, 64 hex digits.

    A fact that nobody listed as descriptive or as a text's counts, so a new one can
    only tell caches apart, never mix them.
    """
    return _sha256(_without(encoder, DESCRIPTIVE | _TEXT_ONLY))


def text_key(
    encoder: Mapping[str, Any], class_names: Sequence[str] = (), templates: Sequence[str] = ()
) -> str:
    """Hash what shapes the class texts' vectors, and in which order: SHA-256, 64 hex digits.

    Without classes and templates it is the key of the text encoder itself.
    """
    facts = _without(encoder, DESCRIPTIVE | _IMAGE_ONLY)
    return _sha256([facts, list(class_names), list(templates)])


def file_sha256(path: Path) -> str:
    """Hash a file, such as an encoder's weights: SHA-256, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing_facts(encoder: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Name the facts in which two encoders differ and that shape vectors, alphabetically."""
    one, two = (
        {name: canonical_json(fact) for name, fact in _without(each, DESCRIPTIVE).items()}
        for each in (encoder, other)
    )
    return sorted(name for name in {*one, *two} if one.get(name) != two.get(name))


def _without(encoder: Mapping[str, Any], left_out: frozenset[str]) -> dict[str, Any]:
    return {name: fact for name, fact in encoder.items() if name not in left_out}


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
