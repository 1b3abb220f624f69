"""What a cache holds: the block before the HDF5 part, and what FeatureCache refuses."""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import CacheError, EncoderFacts, FeatureCache, FedclipError
from fedclip.cache.schema import (
    BLOCK_SIZE,
    FORMAT_VERSION,
    MAGIC,
    body_sha256,
    content_digest,
    pack_block,
    unpack_block,
)

MakeFeatures = Callable[..., FeatureCache]

HASH = bytes(range(32))


def test_the_block_is_magic_version_hash_and_zeros() -> None:
    block = pack_block(HASH)
    assert block == b"\x89FEDCLIP\r\n\x1a\n" + struct.pack("<I", 2) + HASH + bytes(464)
    assert (len(block), BLOCK_SIZE, FORMAT_VERSION) == (512, 512, 2)


@given(st.binary(min_size=32, max_size=32))
def test_the_block_gives_back_its_hash(sha256: bytes) -> None:
    assert unpack_block(pack_block(sha256)) == (2, sha256)


@given(st.just(0) | st.integers(FORMAT_VERSION + 1, 2**32 - 1))
def test_an_unknown_format_version_is_refused_with_those_that_are_read(version: int) -> None:
    block = MAGIC + struct.pack("<I", version) + pack_block(HASH)[len(MAGIC) + 4 :]
    with pytest.raises(CacheError, match=rf"version {version}, .* reads versions 1 to 2$"):
        unpack_block(block)


@pytest.mark.parametrize("length", [0, 1, len(MAGIC), BLOCK_SIZE - 1])
def test_a_block_cut_short_is_refused(length: int) -> None:
    with pytest.raises(CacheError, match="is not a fedclip cache file"):
        unpack_block(pack_block(HASH)[:length])


@pytest.mark.parametrize("position", [len(MAGIC) + 36, 300, 511])
def test_a_block_with_anything_after_its_hash_is_refused(position: int) -> None:
    block = bytearray(pack_block(HASH))
    block[position] = 1
    with pytest.raises(CacheError, match="its first block was altered"):
        unpack_block(bytes(block))


def test_the_hash_covers_every_byte_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(512) + b"content")
    with path.open("rb") as file:
        assert body_sha256(file) == hashlib.sha256(b"content").digest()


def test_a_digest_is_blake2b_of_128_bits() -> None:
    assert content_digest(b"image").hex() == hashlib.blake2b(b"image", digest_size=16).hexdigest()


def test_features_know_their_width_and_their_key(make_features: MakeFeatures) -> None:
    cache = make_features(
        width=6,
        encoder=EncoderFacts(shared={"library": "test"}, about={"model": "called anything"}),
    )
    assert cache.embed_dim == 6
    assert cache.key == hashlib.sha256(b'{"library":"test"}').hexdigest()


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a\\b", "a b", "-x", "a\n"])
def test_a_dataset_that_cannot_name_a_file_is_refused(
    make_features: MakeFeatures, name: str
) -> None:
    with pytest.raises(FedclipError, match="cannot name a file"):
        make_features(dataset=name)


@pytest.mark.parametrize("name", ["", "..", "a\n", "a\0"])
def test_a_client_that_cannot_be_stored_is_refused(make_features: MakeFeatures, name: str) -> None:
    with pytest.raises(FedclipError, match="rename it"):
        make_features(client=name)


def test_names_are_stored_composed(make_features: MakeFeatures) -> None:
    apart, composed = "cafe\u0301", "caf\u00e9"
    cache = make_features(
        dataset=apart, client=f"{apart} (old)", classes=(apart, "b"), templates=(f"{apart} {{}}",)
    )
    assert (cache.dataset, cache.client) == (composed, f"{composed} (old)")
    assert (cache.class_names, cache.templates) == ((composed, "b"), (f"{composed} {{}}",))
    with pytest.raises(FedclipError, match="has the class 'caf\u00e9' twice"):
        make_features(classes=(apart, composed))


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("labels", np.zeros(3, np.int32), "has image/labels of shape (3,), but (4,) is expected"),
        ("labels", np.zeros((4, 1), np.int32), "has image/labels of shape (4, 1)"),
        ("ids", ("a", "b", "c"), "has image/ids of shape (3,), but (4,) is expected"),
        ("digests", np.zeros((4, 15), np.uint8), "has image/digests of shape (4, 15)"),
        ("digests", np.zeros((5, 16), np.uint8), "but (4, 16) is expected"),
        ("class_names", ("cat", "dog"), "has text/features of shape (3, 1, 8), but (2, 1, 8)"),
        ("templates", ("a {}", "the {}"), "but (3, 2, 8) is expected"),
        ("text_features", np.zeros((2, 1, 8), np.float32), "has text/features of shape (2, 1, 8)"),
        ("text_features", np.zeros((3, 0, 0), np.float32), "but (3, 1, 0) is expected"),
        ("templates", (), "has text/features of shape (3, 1, 8), but (3, 0, 0) is expected"),
        ("text_features", np.zeros((3, 8), np.float32), "has text/features of shape (3, 8)"),
        ("image_features", np.zeros(8, np.float32), "image/features of shape (8,)"),
        ("image_features", np.zeros((4, 8, 1), np.float32), "image/features of shape (4, 8, 1)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    make_features: MakeFeatures, field: str, value: Any, complaint: str
) -> None:
    with pytest.raises(CacheError) as caught:
        replace(make_features(rows=4), **{field: value})
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "empty",
    [
        {"image_features": np.zeros((20, 0), np.float32)},
        {"text_features": np.zeros((3, 1, 0), np.float32)},
        {
            "image_features": np.zeros((0, 8), np.float32),
            "labels": np.zeros(0, np.int32),
            "ids": (),
            "digests": np.zeros((0, 16), np.uint8),
        },
        {
            "labels": np.zeros(20, np.int32),
            "class_names": (),
            "text_features": np.zeros((0, 1, 8), np.float32),
        },
    ],
    ids=["width", "text width", "rows", "classes"],
)
def test_nothing_may_be_empty(make_features: MakeFeatures, empty: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match=r"may be 0|are 0 wide"):
        replace(make_features(), **empty)


def test_class_texts_may_be_of_another_width(make_features: MakeFeatures) -> None:
    cache = make_features(width=8, text_features=np.ones((3, 1, 5), np.float32))
    assert (cache.embed_dim, cache.text_features.shape) == (8, (3, 1, 5))


def test_class_texts_may_be_missing(make_features: MakeFeatures) -> None:
    cache = make_features(templates=())
    assert cache.class_names == ("cat", "dog", "fish")
    assert cache.content == make_features().content
    assert cache.key == make_features().key


def test_the_text_key_without_templates_is_that_of_no_template(make_features: MakeFeatures) -> None:
    cache = make_features(templates=())
    assert (
        cache.text_key
        == hashlib.sha256(b'[{"library":"test"},["cat","dog","fish"],[]]').hexdigest()
    )


@pytest.mark.parametrize(
    ("field", "names", "complaint"),
    [
        ("class_names", ("cat", "dog", "cat"), "has the class 'cat' twice"),
        ("ids", ("a", "b", "c", "a"), "has the image 'a' twice"),
    ],
)
def test_what_is_named_twice_is_refused(
    make_features: MakeFeatures, field: str, names: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(CacheError, match=complaint):
        make_features(rows=4, **{field: names})


def test_a_template_named_twice_is_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(CacheError, match=r"has the template .* twice"):
        make_features(templates=("a {}", "a {}"))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_a_logit_scale_that_is_not_positive_is_refused(
    make_features: MakeFeatures, scale: float
) -> None:
    with pytest.raises(CacheError, match=f"has logit_scale {scale}, which must be positive"):
        make_features(logit_scale=scale)


@pytest.mark.parametrize("label", [-1, 3, 2**31 - 1])
def test_a_label_outside_the_classes_is_named_with_its_row(
    make_features: MakeFeatures, label: int
) -> None:
    labels = np.array([0, 1, label, 2], np.int32)
    with pytest.raises(CacheError) as caught:
        make_features("photo", rows=4, labels=labels)
    assert str(caught.value) == (
        f"has label {label} in row 2 (photo/0002.png), outside its 3 classes"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_image_features_that_are_not_finite_are_named_by_row(
    make_features: MakeFeatures, value: float
) -> None:
    images = np.ones((6, 8), np.float32)
    images[[3, 5], [7, 0]] = value
    with pytest.raises(CacheError) as caught:
        make_features("photo", rows=6, image_features=images)
    assert "of 2 rows, the first is row 3 (photo/0003.png)" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_text_features_that_are_not_finite_are_named_by_class(
    make_features: MakeFeatures, value: float
) -> None:
    texts = np.ones((3, 2, 8), np.float32)
    texts[1, 1, 4] = value
    with pytest.raises(CacheError, match="text features of class 'dog'"):
        make_features(templates=("a {}", "the {}"), text_features=texts)


def test_the_content_is_that_of_the_rows_and_not_of_the_templates(
    make_features: MakeFeatures,
) -> None:
    cache = make_features("photo", 6)
    assert make_features("photo", 6).content == cache.content
    more = make_features("photo", 6, templates=("a {}", "the {}"), digests=cache.digests)
    assert more.content == cache.content
    labels = cache.labels.copy()
    labels[2] = 1 - labels[2] % 2
    digests = cache.digests.copy()
    digests[5, 15] ^= 1
    others = [
        replace(cache, labels=labels),
        replace(cache, digests=digests),
        replace(cache, client="sketch"),
        replace(cache, ids=("x", *cache.ids[1:])),
        replace(cache, class_names=("cat", "dog", "bird")),
    ]
    assert len({cache.content, *(other.content for other in others)}) == 6
