"""What makes two caches the same."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import CacheError, EncoderFacts, image_key
from fedclip.cache.key import canonical_json, differing_facts, text_key
from fedclip.cache.reader import group_flat_facts

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


def shared(facts: Facts) -> EncoderFacts:
    return EncoderFacts(shared=facts)


def test_a_key_is_the_sha256_of_the_facts_of_its_groups_as_canonical_json() -> None:
    encoder = EncoderFacts(
        shared={"size": 224, "library": "é"},
        image={"mean": [0.5, 0.25]},
        text={"tokenizer": "t"},
        about={"model": "ViT-B-32"},
    )
    images = '{"library":"é","mean":[0.5,0.25],"size":224}'
    assert image_key(encoder) == hashlib.sha256(images.encode()).hexdigest()
    texts = '[{"library":"é","size":224,"tokenizer":"t"},["cat"],["a {}"]]'
    assert text_key(encoder, ["cat"], ["a {}"]) == hashlib.sha256(texts.encode()).hexdigest()


@given(FACTS, st.fixed_dictionaries(dict.fromkeys(DESCRIPTIVE, SCALARS)))
def test_descriptive_facts_never_change_a_key(facts: Facts, descriptive: Facts) -> None:
    described = EncoderFacts(shared=facts, about=descriptive)
    assert image_key(described) == image_key(shared(facts))
    assert text_key(described) == text_key(shared(facts))
    assert differing_facts(described, shared(facts)) == []


@given(FACTS, NAMES, VALUES)
def test_any_other_fact_changes_a_key(facts: Facts, name: str, value: Any) -> None:
    without = {other: fact for other, fact in facts.items() if other != name}
    assert image_key(shared({**without, name: value})) != image_key(shared(without))


@given(FACTS.flatmap(lambda facts: st.tuples(st.just(facts), st.permutations(list(facts)))))
def test_the_order_of_facts_does_not_matter(drawn: tuple[Facts, list[str]]) -> None:
    facts, order = drawn
    assert image_key(shared({name: facts[name] for name in order})) == image_key(shared(facts))


@given(FACTS, FACTS)
def test_facts_are_named_exactly_where_keys_differ(facts: Facts, other: Facts) -> None:
    names = differing_facts(shared(facts), shared(other))
    assert names == sorted(names)
    assert (names == []) == (image_key(shared(facts)) == image_key(shared(other)))


@pytest.mark.parametrize(
    ("fact", "other"),
    [({"size": 1}, {"size": 1.0}), ({"size": 1}, {"size": True}), ({"size": None}, {})],
)
def test_a_fact_that_only_the_key_tells_apart_is_named(fact: Facts, other: Facts) -> None:
    assert image_key(shared(fact)) != image_key(shared(other))
    assert differing_facts(shared(fact), shared(other)) == ["size"]


def test_differing_facts_are_named_in_alphabetical_order() -> None:
    encoder = EncoderFacts({"size": 224, "library": "a"}, {"mean": [1]}, {}, {"model": "x"})
    other = EncoderFacts({"size": 336, "library": "b"}, {"mean": [1]}, {}, {"model": "y"})
    assert differing_facts(encoder, other) == ["library", "size"]


def test_a_fact_that_changes_its_group_is_named() -> None:
    facts = {"precision": "fp32"}
    assert differing_facts(EncoderFacts(shared=facts), EncoderFacts(image=facts)) == ["precision"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_a_fact_that_equals_nothing_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"fact": value})


NAME_LISTS = st.lists(st.text(max_size=4), max_size=3)


@given(FACTS, SCALARS)
def test_a_text_fact_counts_for_texts_alone(facts: Facts, tokenizer: Any) -> None:
    other = EncoderFacts(shared=facts, text={"tokenizer": tokenizer})
    assert image_key(other) == image_key(shared(facts))
    assert text_key(other) != text_key(shared(facts))
    assert differing_facts(other, shared(facts)) == ["tokenizer"]


@given(FACTS, SCALARS)
def test_an_image_fact_counts_for_images_alone(facts: Facts, resize: Any) -> None:
    other = EncoderFacts(shared=facts, image={"resize!": resize})
    assert text_key(other) == text_key(shared(facts))
    assert image_key(other) != image_key(shared(facts))
    assert differing_facts(other, shared(facts)) == ["resize!"]


@given(FACTS, NAME_LISTS, NAME_LISTS, NAME_LISTS, NAME_LISTS)
def test_equal_text_keys_mean_equal_classes_and_templates(
    facts: Facts, classes: list[str], templates: list[str], others: list[str], more: list[str]
) -> None:
    same = text_key(shared(facts), classes, templates) == text_key(shared(facts), others, more)
    assert same == (classes == others and templates == more)


def test_facts_are_a_mapping_of_all_groups() -> None:
    encoder = EncoderFacts({"a": 1}, {"b": 2}, {"c": 3}, {"d": 4})
    assert encoder == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert encoder["c"] == 3
    assert encoder.get("e") is None
    assert EncoderFacts.from_groups(encoder.groups).groups == encoder.groups


@pytest.mark.parametrize(("one", "two"), [("shared", "image"), ("text", "about")])
def test_a_fact_in_two_groups_is_refused(one: str, two: str) -> None:
    with pytest.raises(CacheError, match="has the encoder fact 'size' in two groups"):
        EncoderFacts(**{one: {"size": 1}, two: {"size": 1}})


# The keys of version 1, whose facts were flat and whose groups were known by the facts' names.


@pytest.mark.parametrize(
    "fact",
    [
        *("image_size", "mode", "mean", "std", "interpolation", "resize", "fill_color"),
        *("decoder", "resizer"),
    ],
)
def test_in_version_1_what_is_done_to_pixels_counts_for_images_alone(fact: str) -> None:
    encoder = group_flat_facts({"weights_sha256": "a", fact: 1})
    other = group_flat_facts({"weights_sha256": "a", fact: 2})
    assert text_key(encoder) == text_key(other)
    assert image_key(encoder) != image_key(other)


@pytest.mark.parametrize(
    "fact", ["weights_sha256", "architecture", "precision", "compiled", "random_weights", "new"]
)
def test_in_version_1_every_other_fact_counts_for_both(fact: str) -> None:
    one, two = group_flat_facts({fact: 1}), group_flat_facts({fact: 2})
    assert text_key(one) != text_key(two)
    assert image_key(one) != image_key(two)


@given(FACTS, st.fixed_dictionaries(dict.fromkeys((*DESCRIPTIVE, "tokenizer"), SCALARS)))
def test_in_version_1_neither_tokenizer_nor_description_counts_for_images(
    facts: Facts, others: Facts
) -> None:
    text = canonical_json(facts)
    encoder = group_flat_facts({**facts, **others})
    assert image_key(encoder) == hashlib.sha256(text.encode()).hexdigest()
    assert encoder == {**facts, **others}
    assert [*encoder.text] == ["tokenizer"]
    assert {*encoder.about} == {*DESCRIPTIVE}
