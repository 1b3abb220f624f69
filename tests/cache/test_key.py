"""What makes two caches the same."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import image_key
from fedclip.cache.key import canonical_json, differing_facts, text_key

Facts = dict[str, Any]

DESCRIPTIVE = ("model", "parameters", "pretrained")

NAMES = st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda name: name not in DESCRIPTIVE)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(NAMES, SCALARS))
FACTS = st.dictionaries(NAMES, VALUES, max_size=6)


def test_a_key_is_the_sha256_of_the_facts_as_canonical_json() -> None:
    encoder = {"size": 224, "mean": [0.5, 0.25], "library": "é", "model": "ViT-B-32"}
    text = '{"library":"é","mean":[0.5,0.25],"size":224}'
    assert image_key(encoder) == hashlib.sha256(text.encode()).hexdigest()


@given(FACTS, st.fixed_dictionaries(dict.fromkeys(DESCRIPTIVE, SCALARS)))
def test_descriptive_facts_never_change_a_key(facts: Facts, descriptive: Facts) -> None:
    assert image_key({**facts, **descriptive}) == image_key(facts)
    assert differing_facts({**facts, **descriptive}, facts) == []


@given(FACTS, NAMES, VALUES)
def test_any_other_fact_changes_a_key(facts: Facts, name: str, value: Any) -> None:
    without = {other: fact for other, fact in facts.items() if other != name}
    assert image_key({**without, name: value}) != image_key(without)


@given(FACTS.flatmap(lambda facts: st.tuples(st.just(facts), st.permutations(list(facts)))))
def test_the_order_of_facts_does_not_matter(drawn: tuple[Facts, list[str]]) -> None:
    facts, order = drawn
    assert image_key({name: facts[name] for name in order}) == image_key(facts)


@given(FACTS, FACTS)
def test_facts_are_named_exactly_where_keys_differ(facts: Facts, other: Facts) -> None:
    names = differing_facts(facts, other)
    assert names == sorted(names)
    assert (names == []) == (image_key(facts) == image_key(other))


@pytest.mark.parametrize(
    ("fact", "other"),
    [({"size": 1}, {"size": 1.0}), ({"size": 1}, {"size": True}), ({"size": None}, {})],
)
def test_a_fact_that_only_the_key_tells_apart_is_named(fact: Facts, other: Facts) -> None:
    assert image_key(fact) != image_key(other)
    assert differing_facts(fact, other) == ["size"]


def test_differing_facts_are_named_in_alphabetical_order() -> None:
    encoder = {"size": 224, "library": "a", "mean": [1], "model": "x"}
    other = {"size": 336, "library": "b", "mean": [1], "model": "y"}
    assert differing_facts(encoder, other) == ["library", "size"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_a_fact_that_equals_nothing_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"fact": value})


NAME_LISTS = st.lists(st.text(max_size=4), max_size=3)


@given(FACTS, SCALARS)
def test_the_tokenizer_counts_for_texts_alone(facts: Facts, tokenizer: Any) -> None:
    other = {**facts, "tokenizer": tokenizer}
    assert image_key(other) == image_key(facts)
    assert text_key(other) != text_key(facts)
    assert differing_facts(other, facts) == ["tokenizer"]


@pytest.mark.parametrize(
    "fact", ["image_size", "mean", "std", "resize", "interpolation", "resizer"]
)
def test_what_is_done_to_pixels_counts_for_images_alone(fact: str) -> None:
    encoder = {"weights_sha256": "a", fact: 1}
    other = {"weights_sha256": "a", fact: 2}
    assert text_key(encoder) == text_key(other)
    assert image_key(encoder) != image_key(other)


@pytest.mark.parametrize("fact", ["weights_sha256", "architecture", "precision", "new"])
def test_every_other_fact_counts_for_both(fact: str) -> None:
    assert text_key({fact: 1}) != text_key({fact: 2})
    assert image_key({fact: 1}) != image_key({fact: 2})


@given(FACTS, NAME_LISTS, NAME_LISTS, NAME_LISTS, NAME_LISTS)
def test_equal_text_keys_mean_equal_classes_and_templates(
    facts: Facts, classes: list[str], templates: list[str], others: list[str], more: list[str]
) -> None:
    same = text_key(facts, classes, templates) == text_key(facts, others, more)
    assert same == (classes == others and templates == more)
