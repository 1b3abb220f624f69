"""Features that another program extracted become a cache, or nothing at all."""

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from fedclip.cache import CacheError, FedclipError, import_npz, load_cache, read_cache
from fedclip.cache.common import limits
from fedclip.cache.schema import content_digest

Array = npt.NDArray[Any]
Archive = Callable[..., Path]

IMAGES = np.arange(24, dtype=np.float32).reshape(6, 4) / 8
TEXTS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
LABELS = np.array([0, 1, 1, 0, 1, 0])


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Give a function that saves the smallest archive, with changes; None leaves an array out."""

    def save(**changes: Any) -> Path:
        arrays = {"image_features": IMAGES, "labels": LABELS, "text_features": TEXTS, **changes}
        kept: dict[str, Any] = {
            name: np.asarray(array) for name, array in arrays.items() if array is not None
        }
        np.savez(tmp_path / "features.npz", **kept)
        return tmp_path / "features.npz"

    return save


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """Give the folder that caches are imported to."""
    return tmp_path / "caches"


def left_in(caches: Path) -> list[str]:
    return sorted(str(path.relative_to(caches)) for path in caches.rglob("*"))


def refusal(path: Path, caches: Path, name: str = "pets") -> str:
    """Give the message that refuses an archive: one line, after which nothing is on disk."""
    with pytest.raises(FedclipError) as caught:
        import_npz(path, caches, name)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert left_in(caches) == []
    return message


def with_member(path: Path, name: str, content: bytes) -> Path:
    """Copy an archive with one member's bytes swapped."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path.with_name("other.npz"), "w") as archive:
        for member, kept in members.items():
            archive.writestr(member, content if member == name else kept)
    return path.with_name("other.npz")


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_the_smallest_archive_becomes_one_client(archive: Archive, caches: Path) -> None:
    imported = import_npz(archive(), caches, "pets")
    (cache,) = load_cache(imported.folder)
    assert (cache.dataset, cache.client, cache.logit_scale) == ("pets", "pets", 100.0)
    assert (cache.class_names, cache.templates) == (("class 0", "class 1"), ("{}",))
    assert cache.ids == ("0", "1", "2", "3", "4", "5")
    assert not cache.normalized
    assert imported.ignored == ()
    np.testing.assert_array_equal(cache.image_features, IMAGES)
    np.testing.assert_array_equal(cache.text_features, TEXTS[:, None, :])
    np.testing.assert_array_equal(cache.labels, LABELS)
    assert [digest.tobytes() for digest in cache.digests] == [
        content_digest(row.tobytes()) for row in IMAGES
    ]


def test_a_whole_archive_becomes_a_client_for_each_domain(archive: Archive, caches: Path) -> None:
    path = archive(
        domain=["Real World", "Art", "Real World", "Art", "Clip-Art", "Art"],
        class_names=["größer", "dog"],
        logit_scale=50.5,
        split=np.zeros(6),
        extra=["x"],
    )
    imported = import_npz(path, caches, "pets")
    clients = load_cache(imported.folder)
    assert [cache.client for cache in clients] == ["art", "clip-art", "real_world"]
    assert [cache.client for cache in imported.clients] == ["art", "clip-art", "real_world"]
    assert [cache.ids for cache in clients] == [("1", "3", "5"), ("4",), ("0", "2")]
    assert [cache.labels.tolist() for cache in clients] == [[1, 0, 0], [1], [0, 1]]
    np.testing.assert_array_equal(clients[0].image_features, IMAGES[[1, 3, 5]])
    assert all(cache.class_names == ("größer", "dog") for cache in clients)
    assert all(cache.logit_scale == 50.5 for cache in clients)
    assert len({cache.key for cache in clients}) == 1
    assert imported.ignored == ("extra", "split")


def test_the_import_is_filed_under_its_name_with_a_manifest(archive: Archive, caches: Path) -> None:
    path = archive(domain=["a", "b"] * 3, split=np.zeros(6))
    imported = import_npz(path, caches, "pets")
    key = imported.clients[0].key
    folder = f"pets/imported-{key[:8]}"
    assert imported.folder.name == folder
    assert left_in(caches) == [
        "pets",
        folder,
        f"{folder}/a.h5",
        f"{folder}/b.h5",
        f"{folder}/manifest.json",
    ]
    manifest = imported.folder.read_manifest()
    assert manifest["key"] == key
    assert manifest["imported"] == {"file": str(path), "ignored": ["split"]}
    assert manifest["clients"] == {name: {"rows": 3, "skipped": []} for name in ("a", "b")}


def test_equal_archives_give_equal_files(archive: Archive, caches: Path) -> None:
    first, second = (import_npz(archive(), caches / place, "pets") for place in "ab")
    assert first.folder.file("pets").read_bytes() == second.folder.file("pets").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [{"text_features": TEXTS + 1}, {"logit_scale": 99}, {"image_features": IMAGES / 1e3 + 0.5}],
    ids=["texts", "scale", "norm"],
)
def test_what_an_archive_says_of_its_encoder_is_in_the_key(
    archive: Archive, caches: Path, changes: dict[str, Any]
) -> None:
    first = import_npz(archive(), caches, "first").clients[0].key
    assert import_npz(archive(**changes), caches, "second").clients[0].key != first


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.dtype(">f4")])
def test_floats_of_any_precision_become_single(
    archive: Archive, caches: Path, dtype: npt.DTypeLike
) -> None:
    path = archive(image_features=IMAGES.astype(dtype), text_features=TEXTS.astype(dtype))
    cache = read_cache(import_npz(path, caches, "pets").folder.file("pets"))
    assert {cache.image_features.dtype, cache.text_features.dtype} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(cache.image_features, IMAGES)
    np.testing.assert_array_equal(cache.text_features[:, 0], TEXTS)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_in_memory_does_not_matter(archive: Archive, caches: Path, order: Any) -> None:
    path = archive(image_features=np.asarray(IMAGES, order=order))
    (cache,) = import_npz(path, caches, "pets").clients
    np.testing.assert_array_equal(cache.image_features, IMAGES)
    assert cache.digests[1].tobytes() == content_digest(IMAGES[1].tobytes())


@pytest.mark.parametrize(
    ("norms", "normalized"),
    [
        ([1] * 6, True),
        ([0.991, 1.009, 1, 1, 1, 1], True),
        ([1, 1, 1, 1, 1, 1.011], False),
        ([0.989, 1, 1, 1, 1, 1], False),
        ([10] * 6, False),
    ],
)
def test_unit_norm_means_within_a_hundredth_in_every_row(
    archive: Archive, caches: Path, norms: list[float], normalized: bool
) -> None:
    images = np.zeros((6, 4))
    images[:, 2] = norms
    (cache,) = import_npz(archive(image_features=images), caches, "pets").clients
    assert cache.normalized is normalized


@pytest.mark.parametrize("rows", [1, 9, 10, 11, 100, 101])
def test_ids_sort_in_the_order_of_rows(archive: Archive, caches: Path, rows: int) -> None:
    path = archive(image_features=np.ones((rows, 4)), labels=np.zeros(rows, int))
    (cache,) = import_npz(path, caches, "pets").clients
    assert sorted(cache.ids) == list(cache.ids)
    assert [int(name) for name in cache.ids] == list(range(rows))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("class_names", np.array([b"cat", b"dog"]), ("cat", "dog")),
        ("class_names", np.array([3, 7]), ("3", "7")),
        ("class_names", np.array([3.0, 7.0]), ("3", "7")),
        ("logit_scale", np.array([20]), 20.0),
        ("logit_scale", np.float16(20), 20.0),
    ],
)
def test_names_and_the_scale_are_taken_in_several_forms(
    archive: Archive, caches: Path, field: str, value: Any, expected: Any
) -> None:
    (cache,) = import_npz(archive(**{field: value}), caches, "pets").clients
    assert getattr(cache, field) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_labels_may_be_any_integers(archive: Archive, caches: Path, dtype: npt.DTypeLike) -> None:
    (cache,) = import_npz(archive(labels=LABELS.astype(dtype)), caches, "pets").clients
    assert cache.labels.dtype == np.int32
    np.testing.assert_array_equal(cache.labels, LABELS)


ONE_HOT = np.eye(2)[LABELS]
NAMES = ["cat", "caf\u00e9"]

FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "integers": ({}, "class numbers from 0"),
    "integral floats": ({"labels": LABELS / 1}, "class numbers from 0"),
    "half floats": ({"labels": LABELS.astype(np.float16)}, "class numbers from 0"),
    "truths": ({"labels": LABELS == 1}, "class numbers from 0"),
    "a column": ({"labels": LABELS[:, None]}, "class numbers from 0"),
    "a column of floats": ({"labels": LABELS[:, None] / 1}, "class numbers from 0"),
    "one-hot floats": ({"labels": ONE_HOT}, "one-hot rows"),
    "one-hot integers": ({"labels": ONE_HOT.astype(np.int64)}, "one-hot rows"),
    "one-hot truths": ({"labels": ONE_HOT == 1}, "one-hot rows"),
    "names": ({"labels": np.array(NAMES)[LABELS]}, "class names"),
    "a column of names": ({"labels": np.array(NAMES)[LABELS][:, None]}, "class names"),
    "names in bytes": ({"labels": np.array([n.encode() for n in NAMES])[LABELS]}, "class names"),
    "names with accents apart": (
        {"labels": np.array(["cat", "cafe\u0301"])[LABELS]},
        "class names",
    ),
    "names in another case": (
        {"labels": np.array(["Cat", NAMES[1]])[LABELS]},
        "class names in another spelling ('Cat' as 'cat')",
    ),
    "numbers as texts": ({"labels": LABELS.astype("U")}, "class numbers from 0"),
    "floats as texts": ({"labels": (LABELS / 1).astype("U")}, "class numbers from 0"),
}


@pytest.mark.parametrize(("changes", "form"), FORMS.values(), ids=FORMS)
def test_labels_are_what_they_plainly_are_and_one_line_says_what(
    archive: Archive, caches: Path, changes: dict[str, Any], form: str
) -> None:
    imported = import_npz(archive(class_names=NAMES, **changes), caches, "pets")
    (cache,) = imported.clients
    assert cache.labels.dtype == np.int32
    np.testing.assert_array_equal(cache.labels, LABELS)
    assert imported.understood == f"labels as {form}, 2 of 2 classes have rows"


def test_a_class_of_its_own_in_a_column_is_one_hot_or_a_number(
    archive: Archive, caches: Path
) -> None:
    for number, labels in enumerate((np.ones((6, 1)), np.zeros((6, 1)))):
        path = archive(labels=labels, text_features=TEXTS[:1])
        (cache,) = import_npz(path, caches, f"pets-{number}").clients
        assert cache.labels.tolist() == [0] * 6


def test_names_are_taken_without_spaces_around_them_and_composed(
    archive: Archive, caches: Path
) -> None:
    path = archive(
        class_names=[[" cat"], ["cafe\u0301 "]], domain=[["U\u0308bung "], ["\u00dcbung"]] * 3
    )
    (cache,) = import_npz(path, caches, "pets").clients
    assert cache.class_names == ("cat", "caf\u00e9")
    assert cache.client == "\u00fcbung"


def test_domains_in_any_script_become_clients_with_files_of_safe_names(
    archive: Archive, caches: Path
) -> None:
    domains = ["real/world", "Real World (old)", "東京", "../up", "all", "Real World"]
    imported = import_npz(archive(domain=domains), caches, "pets")
    clients = load_cache(imported.folder)
    assert sorted(cache.client for cache in clients) == sorted([*domains[:5], "real_world"])
    assert all(
        re.fullmatch(r"[a-z0-9_]+(~[0-9a-f]{16})?\.h5", f.name) for f in imported.folder.files
    )
    for cache in clients:
        assert read_cache(imported.folder.file(cache.client)).client == cache.client
    assert imported.folder.file("real_world").name == "real_world.h5"
    assert set(imported.folder.read_manifest()["clients"]) == {cache.client for cache in clients}


def test_domains_may_be_numbers(archive: Archive, caches: Path) -> None:
    path = archive(domain=np.array([[0.0], [1.0]] * 3))
    assert [each.client for each in import_npz(path, caches, "pets").clients] == ["0", "1"]


@pytest.mark.parametrize("named", [False, True])
def test_texts_in_three_dimensions_are_several_prompts(
    archive: Archive, caches: Path, named: bool
) -> None:
    texts = np.stack([TEXTS, TEXTS + 1, TEXTS + 2], axis=1)
    templates = [f"{letter} {{}}" for letter in "abc"] if named else None
    imported = import_npz(archive(text_features=texts, templates=templates), caches, "pets")
    (cache,) = load_cache(imported.folder)
    np.testing.assert_array_equal(cache.text_features, texts)
    expected = (
        ("a {}", "b {}", "c {}") if named else ("prompt 1: {}", "prompt 2: {}", "prompt 3: {}")
    )
    assert cache.templates == expected
    assert "; text_features as 3 prompts per class, for --prompt" in imported.understood
    one = import_npz(archive(text_features=TEXTS[:, None]), caches, "one").clients[0]
    assert one.key == import_npz(archive(), caches, "other").clients[0].key
    assert one.templates == ("{}",)


def test_a_scale_that_is_ln_100_is_100(archive: Archive, caches: Path) -> None:
    imported = import_npz(archive(logit_scale=np.float32(4.6052)), caches, "pets")
    assert imported.clients[0].logit_scale == 100.0
    assert imported.understood.endswith("; logit_scale as 100, as 4.6052 is its logarithm")
    assert imported.clients[0].key == import_npz(archive(), caches, "other").clients[0].key


WARNINGS: dict[str, tuple[dict[str, Any], str]] = {
    "a scale that may be a logarithm": (
        {"logit_scale": 2.6593},
        "logit_scale: 2.6593 is taken as it is; if it is a logarithm, as CLIP stores it, import "
        "14.29 instead",
    ),
    "classes that differ in case": (
        {"class_names": ["Dog", "dog"]},
        "class_names: 'Dog' and 'dog' differ only in case, spaces or underscores; merge them if "
        "they are one class",
    ),
    "no rows of the lowest class": (
        {"labels": np.ones(6, int)},
        "labels: class 'class 0', number 0, has no rows; if the labels count from 1, subtract 1 "
        "from each, as otherwise all of them are wrong",
    ),
}


@pytest.mark.parametrize(("changes", "warning"), WARNINGS.values(), ids=WARNINGS)
def test_what_may_be_meant_otherwise_is_taken_with_a_warning(
    archive: Archive,
    caches: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    warning: str,
) -> None:
    import_npz(archive(**changes), caches, "pets")
    assert [record.getMessage() for record in caplog.records] == [warning]


def test_what_is_plain_is_taken_without_a_warning(
    archive: Archive, caches: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import_npz(archive(class_names=["cat", "dog"], logit_scale=20.0), caches, "pets")
    assert caplog.records == []


def changed(array: Array, place: Any, value: Any) -> Array:
    copy = array.copy()
    copy[place] = value
    return copy


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"labels": None}, "has no array 'labels', only image_features, text_features"),
    "no image features": ({"image_features": None}, "has no array 'image_features'"),
    "no text features": ({"text_features": None}, "has no array 'text_features'"),
    "an object array": ({"class_names": np.array(["a", None], object)}, "without object arrays"),
    "labels that are objects": ({"labels": LABELS.astype(object)}, "without object arrays"),
    "NaN": ({"image_features": changed(IMAGES, (3, 1), np.nan)}, "the first is row 3 (3)"),
    "Inf": ({"image_features": changed(IMAGES, 5, np.inf)}, "the first is row 5 (5)"),
    "too large for single precision": (
        {"image_features": IMAGES + np.float64(1e300)},
        "NaN or Inf",
    ),
    "texts too large for single precision": (
        {"text_features": TEXTS + np.float64(1e300)},
        "NaN or Inf",
    ),
    "NaN in texts": ({"text_features": changed(TEXTS, (1, 1), np.nan)}, "of class 'class 1'"),
    "labels from 1": (
        {"labels": LABELS + 1},
        "has label 2 in row 1, outside its 2 classes; the labels seem to count from 1, so subtract "
        "1 from each",
    ),
    "a label too high": ({"labels": LABELS + 2}, "has label 2 in row 0, outside its 2 classes"),
    "a label too low": ({"labels": LABELS - 1}, "has label -1 in row 0, outside its 2 classes"),
    "a label beyond 32 bits": ({"labels": changed(LABELS, 4, 2**32)}, "has label 4294967296"),
    "a huge unsigned label": ({"labels": np.full(6, 2**64 - 1, np.uint64)}, "in row 0"),
    "a label between classes": ({"labels": LABELS / 2}, "has label 0.5 in row 1, which is not"),
    "a label of NaN": ({"labels": changed(LABELS / 1, 3, np.nan)}, "has label nan in row 3, which"),
    "a label of Inf": ({"labels": changed(LABELS / 1, 3, np.inf)}, "has label inf in row 3, which"),
    "labels that are texts without classes": (
        {"labels": ["cat"] * 6},
        "has labels that are texts such as 'cat', but no class_names",
    ),
    "a label that is no class's name": (
        {"labels": ["cat"] * 5 + ["cow"], "class_names": ["cat", "dog"]},
        "has the label 'cow', which is not in class_names; choose cat or dog",
    ),
    "texts that count from 1": (
        {"labels": ["1", "2"] * 3, "class_names": ["cat", "dog"]},
        "has the label '2', which is neither one of the 2 classes nor the number of one, from 0; "
        "the labels seem to count from 1, so subtract 1 from each",
    ),
    "labels of half a class each": ({"labels": np.full((6, 2), 0.5)}, "labels of shape (6, 2)"),
    "labels of two classes": ({"labels": np.ones((6, 2), int)}, "or (6, 2) one-hot rows"),
    "labels that are not UTF-8": (
        {"labels": [b"caf\xe9"] * 6, "class_names": ["a", "b"]},
        "has a labels that is not UTF-8",
    ),
    "too few labels": ({"labels": LABELS[:5]}, "labels of shape (5,)"),
    "labels as a row": ({"labels": LABELS[None]}, "labels of shape (1, 6)"),
    "rows that were not filled in": (
        {"image_features": changed(IMAGES, slice(3, 6), 0)},
        "has 3 of 6 rows of image_features that are all zeros, the first is row 3",
    ),
    "a row of zeros": ({"image_features": changed(IMAGES, 5, 0)}, "has 1 of 6 rows of image_feat"),
    "widths that differ": ({"text_features": TEXTS[:, :3]}, "4 wide and text_features 3 wide"),
    "images as a cube": ({"image_features": IMAGES[..., None]}, "of shape (6, 4, 1)"),
    "a single image": ({"image_features": IMAGES[0]}, "image_features of shape (4,)"),
    "images that are integers": ({"image_features": IMAGES.astype(int)}, "dtype int64"),
    "images that are complex": ({"image_features": IMAGES * 1j}, "dtype complex64"),
    "no rows": ({"image_features": IMAGES[:0], "labels": LABELS[:0]}, "of shape (0, 4)"),
    "texts in four dimensions": (
        {"text_features": TEXTS[:, None, None]},
        "expected a non-empty (rows, width) or (classes, prompts, width) array of floats",
    ),
    "too few templates": (
        {"text_features": np.stack([TEXTS] * 3, axis=1), "templates": ["a {}", "b {}"]},
        "templates of shape (2,)",
    ),
    "a prompt of zeros": (
        {"text_features": np.stack([TEXTS, 0 * TEXTS], axis=1)},
        "has a row of zeros in text_features",
    ),
    "no classes": ({"text_features": TEXTS[:0]}, "text_features of shape (0, 4)"),
    "no width": ({"image_features": IMAGES[:, :0]}, "of shape (6, 0)"),
    "a text of zeros": (
        {"text_features": changed(TEXTS, 1, 0.0)},
        "has a row of zeros in text_features",
    ),
    "too many class names": ({"class_names": ["a", "b", "c"]}, "class_names of shape (3,)"),
    "class names that are floats": ({"class_names": [0.5, 1.5]}, "dtype float64"),
    "a class named twice": ({"class_names": ["a", "a"]}, "has the class 'a' twice"),
    "classes that differ in a space": ({"class_names": ["a", "a "]}, "has the class 'a' twice"),
    "classes that differ in how accents are written": (
        {"class_names": ["caf\u00e9", "cafe\u0301"]},
        "has the class 'caf\u00e9' twice",
    ),
    "a class name with NUL": ({"class_names": ["a\0b", "c"]}, "NUL"),
    "class names that are not UTF-8": ({"class_names": [b"caf\xe9", b"dog"]}, "class_names"),
    "a class name of half a character": ({"class_names": ["caf\udce9", "dog"]}, ""),
    "too few domains": ({"domain": ["a"] * 5}, "domain of shape (5,)"),
    "a domain that leads up": ({"domain": [".."] * 6}, "domain '..' has no letter"),
    "a domain without a name": ({"domain": [""] * 6}, "domain '' has no letter"),
    "a domain on two lines": ({"domain": ["a\nb"] * 6}, r"domain 'a\nb' contains a line break"),
    "domains that differ in case": ({"domain": ["Art", "art"] * 3}, "'art'"),
    "domains that differ in a space": ({"domain": ["a b", "a_b"] * 3}, "'a_b'"),
    "a scale of zero": ({"logit_scale": 0}, "has logit_scale 0.0, which must be positive"),
    "a scale of NaN": ({"logit_scale": np.nan}, "has logit_scale nan"),
    "a scale that is text": ({"logit_scale": "100"}, "logit_scale that is not a single number"),
    "two scales": ({"logit_scale": [1.0, 2.0]}, "logit_scale that is not a single number"),
}


@pytest.mark.parametrize(("changes", "complaint"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
@pytest.mark.filterwarnings("error")
def test_arrays_that_make_no_cache_are_refused_with_what_is_wrong(
    archive: Archive, caches: Path, changes: dict[str, Any], complaint: str
) -> None:
    path = archive(**changes)
    message = refusal(path, caches)
    assert message.startswith(f"{path}: ")
    assert complaint in message


BAD_MEMBERS = {
    "bytes": b"no array",
    "nothing": b"",
    "a header cut in its dictionary": header("{'descr': '<i8', 'fortran_order': Fal"),
    "a header that is code": header("__import__('os').getcwd()\n"),
    "no data": header("{'descr': '<i8', 'fortran_order': False, 'shape': (6,), }\n"),
    "a claim of petabytes": header(
        "{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999999,), }\n"
    ),
}


@pytest.mark.parametrize("content", BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_an_archive_with_a_member_that_is_no_array_is_refused(
    archive: Archive, caches: Path, content: bytes
) -> None:
    path = with_member(archive(), "labels.npy", content)
    assert refusal(path, caches).startswith(f"{path}: ")


def test_an_archive_with_a_damaged_byte_is_imported_or_refused(
    tmp_path: Path, caches: Path
) -> None:
    path = tmp_path / "features.npz"
    np.savez_compressed(
        path,
        image_features=np.tile(IMAGES, (50, 9)),
        labels=np.tile(LABELS, 50),
        text_features=np.tile(TEXTS, (1, 9)),
    )
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        place = caches / str(position)
        try:
            import_npz(path, place, "pets")
        except CacheError:
            assert refusal(path, place).startswith(f"{path}: ")


class Bomb:
    """Makes a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(archive: Archive, tmp_path: Path, caches: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    plain = tmp_path / "plain.npz"
    plain.write_bytes(bomb)
    refusal(plain, caches)
    objects = header("{'descr': '|O', 'fortran_order': False, 'shape': (6,), }\n") + bomb
    refusal(with_member(archive(), "labels.npy", objects), caches)
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, caches: Path, content: bytes) -> None:
    path = tmp_path / "features.npz"
    path.write_bytes(content)
    assert refusal(path, caches).startswith(f"{path}: ")


def test_a_single_array_is_refused(tmp_path: Path, caches: Path) -> None:
    np.save(tmp_path / "features.npy", IMAGES)
    message = refusal(tmp_path / "features.npy", caches)
    assert message == (
        f"{tmp_path / 'features.npy'}: is a single array; save a .npz with named arrays"
    )


def test_a_folder_is_refused(tmp_path: Path, caches: Path) -> None:
    assert refusal(tmp_path, caches) == f"{tmp_path}: is a folder; pass the .npz file"


def test_a_file_that_is_not_there_is_named(tmp_path: Path, caches: Path) -> None:
    message = refusal(tmp_path / "no.npz", caches)
    assert message == f"{tmp_path / 'no.npz'}: file not found; check the path"


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".", "..", ".x", "a b", "x\n", "x\0"])
def test_an_unsafe_name_is_refused(archive: Archive, caches: Path, name: str) -> None:
    assert f"cache {name!r} cannot name a file" in refusal(archive(), caches, name)
    assert sorted(path.name for path in caches.parent.iterdir()) == ["features.npz"]


def test_a_cache_that_exists_is_kept(archive: Archive, caches: Path) -> None:
    first = import_npz(archive(), caches, "pets")
    before = {path: path.read_bytes() for path in first.folder.path.iterdir()}
    with pytest.raises(CacheError, match=r"--name pets: .* exists .* \(fedclip cache rm pets\)"):
        import_npz(archive(image_features=IMAGES + 1), caches, "pets")
    assert {path: path.read_bytes() for path in first.folder.path.iterdir()} == before


def test_real_clip_features_are_imported(shared_data: Path, caches: Path) -> None:
    path = shared_data / "features" / "caltech101-vitb32.npz"
    imported = import_npz(path, caches, "caltech101")
    (cache,) = load_cache(imported.folder)
    assert (cache.client, cache.image_features.shape) == ("caltech101", (2776, 512))
    assert (len(cache.class_names), cache.text_features.shape) == (55, (55, 1, 512))
    assert cache.normalized
    assert imported.ignored == ("split",)
    assert (cache.ids[0], cache.ids[-1]) == ("0000", "2775")
    with np.load(path) as archive:
        np.testing.assert_array_equal(
            cache.image_features, archive["image_features"].astype(np.float32)
        )
        np.testing.assert_array_equal(cache.labels, archive["labels"])
        assert list(cache.class_names) == archive["class_names"].tolist()
    predicted = (cache.image_features @ cache.text_features[:, 0].T).argmax(axis=1)
    assert (predicted == cache.labels).sum() == 2680


def test_an_archive_that_would_fill_the_memory_is_refused(
    archive: Archive, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_ALWAYS_FINE", 1 << 20)
    rows = 1 << 16
    path = archive(image_features=np.ones((rows, 4), "f4"), labels=np.zeros(rows, "i4"))
    with np.load(path) as arrays:
        np.savez_compressed(path.with_name("packed.npz"), **arrays)
    message = refusal(path.with_name("packed.npz"), caches)
    assert "packed.npz: cannot be read as .npz (the archive would unpack" in message
    assert len(import_npz(path, caches, "pets").clients) == 1
