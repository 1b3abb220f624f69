"""Keys of caches: hashes of the facts that determine image and text vectors."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from .common.errors import CacheError
from .common.files import regular


@dataclass(frozen=True, eq=False)
class EncoderFacts(Mapping[str, Any]):
    """The facts that identify an encoder: JSON values by name, grouped by what they affect.

    As a mapping it contains the facts of all groups.

    Attributes:
        shared: Facts that affect both image and text vectors, such as the weights.
        image: Facts that affect image vectors only, such as how images are resized.
        text: Facts that affect text vectors only, such as the tokenizer.
        about: Facts that describe the encoder to people and affect no vector.

    Raises:
        CacheError: on construction, if two groups have a fact of the same name.
    """

    shared: Mapping[str, Any] = field(default_factory=dict)
    image: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [name for group in self.groups.values() for name in group]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise CacheError(f"has the encoder fact {repeated!r} in two groups")

    @classmethod
    def from_groups(cls, groups: Any) -> Self:
        """Build the facts from their JSON value, one object per group.

        Raises:
            CacheError: `groups` is anything else, or a fact is in two groups.
        """
        names = [each.name for each in fields(cls)]
        if not isinstance(groups, dict) or sorted(groups) != sorted(names):
            raise CacheError(f"has an encoder whose groups are not {', '.join(names)}")
        if not all(isinstance(group, dict) for group in groups.values()):
            raise CacheError("has an encoder with a group that is not an object")
        return cls(**groups)

    @property
    def groups(self) -> dict[str, dict[str, Any]]:
        """The facts by group, as JSON values."""
        return {each.name: dict(getattr(self, each.name)) for each in fields(self)}

    @cached_property
    def _all(self) -> dict[str, Any]:
        return {**self.shared, **self.image, **self.text, **self.about}

    def __getitem__(self, name: str) -> Any:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


def canonical_json(value: Any) -> str:
    """Format equal values as equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    )


def image_key(encoder: EncoderFacts) -> str:
    """Hash the facts of `encoder` that affect image vectors: SHA-256, 64 hex digits."""
    return _sha256(_image_facts(encoder))


def text_key(
    encoder: EncoderFacts, class_names: Sequence[str] = (), templates: Sequence[str] = ()
) -> str:
    """Hash what determines the text features and their order: SHA-256, 64 hex digits.

    Without classes and templates, the result is the key of the text encoder alone.
    """
    return _sha256([_text_facts(encoder), list(class_names), list(templates)])


def file_sha256(path: Path) -> str:
    """Hash a file, such as an encoder's weights: SHA-256, 64 hex digits."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing_facts(encoder: EncoderFacts, other: EncoderFacts) -> list[str]:
    """List the facts that affect vectors and differ between two encoders, sorted by name."""
    differing: set[str] = set()
    for facts_of in (_image_facts, _text_facts):
        one, two = (
            {name: canonical_json(fact) for name, fact in facts_of(each).items()}
            for each in (encoder, other)
        )
        differing |= {name for name in {*one, *two} if one.get(name) != two.get(name)}
    return sorted(differing)


def _image_facts(encoder: EncoderFacts) -> dict[str, Any]:
    return {**encoder.shared, **encoder.image}


def _text_facts(encoder: EncoderFacts) -> dict[str, Any]:
    return {**encoder.shared, **encoder.text}


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
