"""What was written is what is read, and nothing else is ever read."""

import ctypes
import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedclip.cache import CacheError, EncoderFacts, FeatureCache, read_cache, write_cache
from fedclip.cache.key import canonical_json
from fedclip.cache.schema import ATTRIBUTES, DATASETS, MAGIC, pack_block

MakeFeatures = Callable[..., FeatureCache]
Edit = Callable[[h5py.File], None]

# A test may use one folder for all its examples: every example writes its file anew.
shared_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(shared_folder, max_examples=400)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
SAFE_NAMES = st.from_regex(r"[a-zé0-9][a-z_.+-]{0,9}", fullmatch=True)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
FACTS = st.dictionaries(TEXT, SCALARS.filter(lambda fact: fact not in (np.inf, -np.inf)))
GROUPS = ("shared", "image", "text", "about")


def grouped(facts: dict[str, Any]) -> EncoderFacts:
    """Spread facts over the groups."""
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for index, (name, fact) in enumerate(facts.items()):
        groups[GROUPS[index % 4]][name] = fact
    return EncoderFacts(**groups)


ENCODERS = FACTS.map(grouped)


def assert_same(cache: FeatureCache, other: FeatureCache) -> None:
    for field in fields(FeatureCache):
        value, other_value = getattr(cache, field.name), getattr(other, field.name)
        if isinstance(value, np.ndarray):
            assert value.dtype == other_value.dtype
            np.testing.assert_array_equal(value, other_value)
        else:
            assert value == other_value
    assert cache.encoder.groups == other.encoder.groups


def refusal(path: Path) -> str:
    """Give the message that refuses a file, which is one line and names it."""
    with pytest.raises(CacheError) as caught:
        read_cache(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message


def sealed(body: bytes, version: int = 2) -> bytes:
    """Put the block of a format version before a file's body."""
    return (
        MAGIC + struct.pack("<I", version) + pack_block(hashlib.sha256(body).digest())[16:] + body
    )


def seal(path: Path) -> None:
    """Give a file's block the hash of what the file holds now."""
    content = path.read_bytes()
    path.write_bytes(sealed(content[512:], content[12]))


def as_version_1(path: Path) -> None:
    """Make a file what version 1 of the format would have been."""
    with h5py.File(path, "r+") as file:
        encoder = EncoderFacts.from_groups(json.loads(file.attrs["encoder"]))
        file.attrs["encoder"] = np.bytes_(canonical_json(dict(encoder)).encode())
        file.attrs["encoding-version"] = np.bytes_(b"1")
        file.move("class_names", "text/class_names")
    path.write_bytes(sealed(path.read_bytes()[512:], 1))


@pytest.fixture(params=[1, 2], ids=["version 1", "version 2"])
def version(request: pytest.FixtureRequest) -> int:
    """Give each format version."""
    return int(request.param)


@pytest.fixture
def path(make_features: MakeFeatures, tmp_path: Path, version: int) -> Path:
    """Give a small cache file of each format version."""
    path = tmp_path / "photo.h5"
    write_cache(make_features("photo", rows=6, width=4), path)
    if version == 1:
        as_version_1(path)
    return path


@pytest.fixture
def written(make_features: MakeFeatures, tmp_path: Path) -> Path:
    """Give a small cache file of the version that is written."""
    path = tmp_path / "photo.h5"
    write_cache(make_features("photo", rows=6, width=4), path)
    return path


@pytest.fixture
def textless(make_features: MakeFeatures, tmp_path: Path) -> Path:
    """Give a small cache file without class texts."""
    path = tmp_path / "photo.h5"
    write_cache(make_features("photo", rows=6, width=4, templates=()), path)
    return path


@pytest.fixture
def edited(path: Path) -> Callable[[Edit], Path]:
    """Give a function that edits the file with HDF5 and seals it again."""

    def edit(change: Edit) -> Path:
        with h5py.File(path, "r+") as file:
            change(file)
        seal(path)
        return path

    return edit


@shared_folder
@given(data=st.data())
def test_what_was_written_is_what_is_read(
    make_features: MakeFeatures, tmp_path: Path, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 12))
    classes = data.draw(st.lists(TEXT, min_size=1, max_size=4, unique=True))
    templates = data.draw(st.lists(TEXT, max_size=3, unique=True))
    text_width = data.draw(st.integers(1, 9)) if templates else 0
    cache = make_features(
        client=data.draw(SAFE_NAMES),
        dataset=data.draw(SAFE_NAMES),
        rows=rows,
        width=data.draw(st.integers(1, 9)),
        classes=classes,
        templates=templates,
        text_features=np.full((len(classes), len(templates), text_width), 7, np.float32),
        seed=data.draw(st.integers(0, 9)),
        ids=tuple(data.draw(st.lists(TEXT, min_size=rows, max_size=rows, unique=True))),
        encoder=data.draw(ENCODERS),
        logit_scale=data.draw(st.floats(0, exclude_min=True, allow_infinity=False)),
        normalized=data.draw(st.booleans()),
    )
    write_cache(cache, tmp_path / "cache.h5")
    assert_same(read_cache(tmp_path / "cache.h5"), cache)


@pytest.mark.parametrize("rows", [255, 256, 257, 1000])
def test_rows_of_several_chunks_come_back_in_order(
    make_features: MakeFeatures, tmp_path: Path, rows: int
) -> None:
    cache = make_features(rows=rows)
    write_cache(cache, tmp_path / "cache.h5")
    assert_same(read_cache(tmp_path / "cache.h5"), cache)


def test_half_precision_features_are_read_as_single(
    edited: Callable[[Edit], Path], path: Path
) -> None:
    whole = read_cache(path)
    halves = whole.image_features.astype(np.float16)
    cache = read_cache(edited(put("image/features", halves)))
    assert_same(cache, replace(whole, image_features=halves.astype(np.float32)))


@pytest.mark.parametrize(
    ("field", "dtype"),
    [
        ("image_features", np.float64),
        ("text_features", np.float64),
        ("labels", np.int64),
        ("digests", np.int64),
    ],
)
def test_arrays_that_could_not_be_read_back_are_not_written(
    make_features: MakeFeatures, tmp_path: Path, field: str, dtype: type
) -> None:
    cache = make_features()
    with pytest.raises(CacheError):
        write_cache(replace(cache, **{field: getattr(cache, field).astype(dtype)}), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_equal_caches_give_equal_bytes_whenever_they_are_written(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    write_cache(make_features(), tmp_path / "a.h5")
    time.sleep(1.1)
    write_cache(make_features(), tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_the_first_512_bytes_vouch_for_the_rest(written: Path) -> None:
    content = written.read_bytes()
    assert content[:12] == b"\x89FEDCLIP\r\n\x1a\n"
    assert content[12:16] == struct.pack("<I", 2)
    assert content[16:48] == hashlib.sha256(content[512:]).digest()
    assert content[48:512] == bytes(464)
    assert content[512:520] == b"\x89HDF\r\n\x1a\n"


def test_any_hdf5_tool_reads_the_attributes(make_features: MakeFeatures, written: Path) -> None:
    cache = make_features("photo", rows=6, width=4)
    with h5py.File(written) as file:
        attributes = dict(file.attrs)
        strings = {
            name: h5py.check_string_dtype(file.attrs.get_id(name).dtype) for name in file.attrs
        }
    assert {name: attributes[name] for name in ("embed_dim", "logit_scale", "normalized")} == {
        "embed_dim": 4,
        "logit_scale": 20.0,
        "normalized": False,
    }
    assert [attributes[name].dtype for name in ("embed_dim", "logit_scale", "normalized")] == [
        np.int64,
        np.float64,
        np.bool_,
    ]
    texts = {name: attributes[name].decode() for name, info in strings.items() if info}
    assert texts == {
        "encoding-type": "fedclip-features",
        "encoding-version": "2",
        "dataset": "tiny",
        "client": "photo",
        "key": cache.key,
        "encoder": '{"about":{"model":"drawn","parameters":1000000},"image":{},'
        '"shared":{"library":"test"},"text":{}}',
    }
    assert set(attributes) == set(ATTRIBUTES)
    for name, text in texts.items():
        assert strings[name] == ("utf-8", len(text))


def test_any_hdf5_tool_reads_the_datasets(make_features: MakeFeatures, written: Path) -> None:
    cache = make_features("photo", rows=6, width=4)
    with h5py.File(written) as file:
        found: list[str] = []
        file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
        )
        assert sorted(found) == sorted(DATASETS)
        np.testing.assert_array_equal(file["image/features"][()], cache.image_features)
        np.testing.assert_array_equal(file["image/digests"][()], cache.digests)
        assert file["image/ids"].asstr()[()].tolist() == list(cache.ids)
        assert file["class_names"].asstr()[()].tolist() == ["cat", "dog", "fish"]
        assert {name: (file[name].dtype.str, file[name].shape) for name in DATASETS} == {
            "image/features": ("<f4", (6, 4)),
            "image/labels": ("<i4", (6,)),
            "image/ids": ("|S14", (6,)),
            "image/digests": ("|u1", (6, 16)),
            "class_names": ("|S4", (3,)),
            "text/templates": ("|S17", (1,)),
            "text/features": ("<f4", (3, 1, 4)),
        }
        for name in ("image/ids", "class_names", "text/templates"):
            info = h5py.check_string_dtype(file[name].dtype)
            assert info == ("utf-8", file[name].dtype.itemsize)
        assert all(file[name].fletcher32 for name in DATASETS)
        assert not any(file[name].compression for name in DATASETS)


def test_features_are_chunked_by_rows(make_features: MakeFeatures, tmp_path: Path) -> None:
    write_cache(make_features(rows=600, width=5), tmp_path / "cache.h5")
    with h5py.File(tmp_path / "cache.h5") as file:
        assert file["image/features"].chunks == (256, 5)


@pytest.mark.parametrize(
    "name",
    ["a\0b.png", "a.png\0", os.fsdecode(b"caf\xe9.png")],
    ids=["NUL inside", "NUL at the end", "bytes that are not UTF-8"],
)
def test_a_name_that_cannot_be_kept_leaves_the_old_file_alone(
    make_features: MakeFeatures, path: Path, name: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(CacheError):
        write_cache(make_features(rows=6, ids=(name, *"cdefg")), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_that_is_full_at_any_byte_is_an_error_that_leaves_the_old_file_alone(
    make_features: MakeFeatures, path: Path, tmp_path: Path, hangs: int
) -> None:
    before = path.read_bytes()
    source = tmp_path / "elsewhere" / "source.h5"
    source.parent.mkdir()
    write_cache(make_features(rows=1000), source)
    size = source.stat().st_size
    # In a process of its own, as HDF5 can crash it.
    code = f"""
import resource
from pathlib import Path
from fedclip.cache import read_cache, write_cache
cache = read_cache(Path({str(source)!r}))
refused = 0
limits = [*range(0, 8000, 61), *range(8000, {size}, 997), {size} - 1]
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_cache(cache, Path({str(path)!r}))
    except OSError as error:
        assert error.strerror == "File too large"
        refused += 1
assert refused == len(limits) > 150, refused
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=hangs
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == sorted([path, source.parent])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "photo.h5").endswith(
        "file not found; extract the dataset again or restore a copy"
    )


@many
@given(data=st.data())
def test_any_one_byte_changed_is_refused(path: Path, data: st.DataObject) -> None:
    check_changed(path, data)


@many
@given(data=st.data())
def test_any_one_byte_changed_is_refused_without_class_texts(
    textless: Path, data: st.DataObject
) -> None:
    check_changed(textless, data)


def check_changed(path: Path, data: st.DataObject) -> None:
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1), "position")
    content[position] ^= data.draw(st.integers(1, 255), "xor")
    altered = path.with_name("altered.h5")
    altered.write_bytes(content)
    refusal(altered)


@shared_folder
@given(data=st.data())
def test_a_file_cut_short_is_refused(path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    length = data.draw(st.integers(0, len(content) - 1), "length")
    cut = path.with_name("cut.h5")
    cut.write_bytes(content[:length])
    refusal(cut)


@shared_folder
@given(more=st.binary(min_size=1))
@example(more=b"\0")
def test_a_file_with_more_at_its_end_is_refused(path: Path, more: bytes) -> None:
    longer = path.with_name("longer.h5")
    longer.write_bytes(path.read_bytes() + more)
    assert "is truncated or altered" in refusal(longer)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"\x89HDF\r\n\x1a\n" + b"\0" * 5000])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photo.h5"
    path.write_bytes(content)
    assert "is not a fedclip cache file" in refusal(path)


@pytest.mark.parametrize("unknown", [0, 3, 256, 2**32 - 1])
def test_a_file_of_an_unknown_format_version_is_refused_with_those_that_are_read(
    path: Path, unknown: int
) -> None:
    content = bytearray(path.read_bytes())
    content[len(MAGIC) : len(MAGIC) + 4] = struct.pack("<I", unknown)
    path.write_bytes(content)
    assert f"version {unknown}, but this fedclip only reads versions 1 to 2;" in refusal(path)


def test_a_file_of_the_other_format_version_than_it_says_is_refused(
    path: Path, version: int
) -> None:
    path.write_bytes(sealed(path.read_bytes()[512:], 3 - version))
    assert f"version '{version}', but its first block declares" in refusal(path)


def test_a_file_of_version_1_is_read_as_it_was(make_features: MakeFeatures, tmp_path: Path) -> None:
    flat = {"library": "test", "mean": [0.5], "tokenizer": "t", "model": "m"}
    facts = EncoderFacts({"library": "test"}, {"mean": [0.5]}, {"tokenizer": "t"}, {"model": "m"})
    cache = make_features("photo", rows=6, width=4, encoder=facts, templates=("a {}", "the {}"))
    write_cache(cache, tmp_path / "photo.h5")
    as_version_1(tmp_path / "photo.h5")
    with h5py.File(tmp_path / "photo.h5") as file:
        assert json.loads(file.attrs["encoder"]) == flat
        assert "class_names" not in file
    assert_same(read_cache(tmp_path / "photo.h5"), cache)


def test_a_cache_without_class_texts_has_no_group_of_them(
    make_features: MakeFeatures, textless: Path
) -> None:
    with h5py.File(textless) as file:
        assert sorted(file) == ["class_names", "image"]
    assert_same(read_cache(textless), make_features("photo", rows=6, width=4, templates=()))


# From here on every file has a valid hash: somebody meant it to be read.


def attribute(name: str, value: Any) -> Edit:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def at(file: h5py.File, name: str) -> str:
    """Where a file of its version has the dataset of this name."""
    return "text/class_names" if name == "class_names" and name not in file else name


def dataset(name: str, **options: Any) -> Edit:
    def change(file: h5py.File) -> None:
        path = at(file, name)
        del file[path]
        if options:
            file.create_dataset(path, **options)

    return change


def encoder(facts: Any) -> Edit:
    """Swap the encoder for another of these shared facts, together with its key."""

    def change(file: h5py.File) -> None:
        text = facts if isinstance(facts, str) else canonical_json(facts)
        groups = '{"shared":' + text + ',"image":{},"text":{},"about":{}}'
        file.attrs["encoder"] = text if at(file, "class_names") != "class_names" else groups
        file.attrs["key"] = hashlib.sha256(text.encode()).hexdigest()

    return change


def all_of(*changes: Edit) -> Edit:
    def change(file: h5py.File) -> None:
        for one in changes:
            one(file)

    return change


def soft_link(name: str) -> Edit:
    def change(file: h5py.File) -> None:
        path = at(file, name)
        file.move(path, "elsewhere")
        file[path] = h5py.SoftLink("/elsewhere")

    return change


def put(name: str, item: Any) -> Edit:
    def change(file: h5py.File) -> None:
        path = at(file, name)
        del file[path]
        file[path] = item

    return change


def group_instead(name: str) -> Edit:
    def change(file: h5py.File) -> None:
        path = at(file, name)
        del file[path]
        file.create_group(path)

    return change


def value_at(name: str, place: Any, value: Any) -> Edit:
    def change(file: h5py.File) -> None:
        values = file[at(file, name)][()]
        values[place] = value
        file[at(file, name)][...] = values

    return change


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_missing_attribute_is_named(edited: Callable[[Edit], Path], name: str) -> None:
    assert f"lacks the attribute {name!r}" in refusal(edited(attribute(name, None)))


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("change", [dataset, soft_link, group_instead])
def test_a_dataset_that_is_not_there_itself_is_named(
    edited: Callable[[Edit], Path], change: Callable[[str], Edit], name: str
) -> None:
    assert name in refusal(edited(change(name)))


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("data", [np.zeros((2, 3), complex), np.zeros(6, "<f8"), 7, "text"])
def test_a_dataset_of_another_kind_is_named(
    edited: Callable[[Edit], Path], name: str, data: Any
) -> None:
    assert f"{name} as " in refusal(edited(dataset(name, data=data)))


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_with_another_number_of_dimensions_is_named(
    edited: Callable[[Edit], Path], name: str
) -> None:
    def add_dimension(file: h5py.File) -> None:
        path = at(file, name)
        data = file[path][()]
        del file[path]
        file[path] = data[..., None]

    assert f"{name} as " in refusal(edited(add_dimension))


@pytest.mark.parametrize("rows", [10_000, 2**40, 2**62])
@pytest.mark.parametrize("name", ["image/features", "image/labels", "image/ids"])
def test_a_dataset_that_claims_more_than_the_file_has_is_never_allocated(
    edited: Callable[[Edit], Path], name: str, rows: int
) -> None:
    def claim(file: h5py.File) -> None:
        shape, dtype = (rows, *file[name].shape[1:]), file[name].dtype
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=(6, *shape[1:]))

    message = refusal(edited(claim))
    assert f"bytes of {name}, more than the file has" in message


@pytest.mark.parametrize(
    "filters", [{"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}], ids=str
)
@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_is_compressed_is_refused(
    edited: Callable[[Edit], Path], name: str, filters: dict[str, Any]
) -> None:
    def compress(file: h5py.File) -> None:
        path = at(file, name)
        data = file[path][()]
        del file[path]
        file.create_dataset(path, data=data, chunks=data.shape, fletcher32=True, **filters)

    assert f"{name} compressed, which fedclip never does" in refusal(edited(compress))


def test_a_chunk_that_claims_more_than_the_file_has_is_never_allocated(
    edited: Callable[[Edit], Path],
) -> None:
    def claim(file: h5py.File) -> None:
        data = file["image/labels"][()]
        del file["image/labels"]
        options = {"chunks": (1 << 28,), "maxshape": (None,), "fletcher32": True}
        file.create_dataset("image/labels", data.shape, data.dtype, **options)

    message = refusal(edited(claim))
    assert f"declares {1 << 30} bytes of image/labels, more than the file has" in message


WRONG_PARTS = {
    "no group": dataset("image"),
    "a link instead of a group": soft_link("image"),
    "a dataset instead of a group": put("image", np.zeros(3)),
    "a type instead of a group": put("text", np.dtype("<f4")),
    "a type instead of a dataset": put("image/ids", np.dtype("<f4")),
    "a null dataset": dataset("image/features", data=h5py.Empty("<f4")),
    "no template": dataset("text/templates", data=[], dtype="S3"),
    "ids that are not UTF-8": dataset("image/ids", data=[b"\xff%d" % row for row in range(6)]),
    "ids of variable length": dataset("image/ids", data=list("abcdef"), dtype=h5py.string_dtype()),
    "ids that are all zeros": dataset("image/ids", data=np.zeros(6, "S4")),
    "big-endian labels": dataset("image/labels", data=np.zeros(6, ">i4")),
    "a label outside": value_at("image/labels", 3, 3),
    "a class named twice": value_at("class_names", 0, b"dog"),
    "Inf in text features": value_at("text/features", (0, 0, 0), np.inf),
    "NaN in a row": value_at("image/features", (2, 1), np.nan),
    "NaN in a row named in two lines": all_of(
        value_at("image/ids", 2, b"a\nb"), value_at("image/features", (2, 1), np.nan)
    ),
    "a label outside in a row named in two lines": all_of(
        value_at("image/ids", 2, b"a\nb"), value_at("image/labels", 2, 9)
    ),
}


@pytest.mark.parametrize("change", WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_a_sealed_file_with_wrong_parts_is_refused(
    edited: Callable[[Edit], Path], change: Edit
) -> None:
    refusal(edited(change))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoding-type", "other-features"),
        ("encoding-type", "other\nfeatures"),
        ("encoding-version", "3"),
        ("encoding-version", "1 "),
        ("encoding-version", 1),
        ("encoding-version", 2),
        ("dataset", "../up"),
        ("dataset", h5py.Empty("S3")),
        ("client", ".."),
        ("client", "a\nb"),
        ("client", 3),
        ("client", ["photo", "sketch"]),
        ("client", np.bytes_(b"caf\xe9")),
        ("key", "0" * 64),
        ("key", ["0" * 64, "1" * 64]),
        ("embed_dim", 5),
        ("embed_dim", 4.5),
        ("embed_dim", np.inf),
        ("embed_dim", np.nan),
        ("embed_dim", "4"),
        ("embed_dim", [4, 4]),
        ("logit_scale", 0.0),
        ("logit_scale", np.nan),
        ("logit_scale", "20"),
        ("logit_scale", 20 + 1j),
        ("logit_scale", h5py.Empty("<f8")),
        ("normalized", "False"),
        ("normalized", 0.5),
        ("normalized", [True, False]),
        ("normalized", h5py.Empty("|b1")),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_sealed_file_with_a_wrong_attribute_is_refused(
    edited: Callable[[Edit], Path], name: str, value: Any
) -> None:
    refusal(edited(attribute(name, value)))


def test_a_sealed_file_with_a_reference_for_a_number_is_refused(
    edited: Callable[[Edit], Path],
) -> None:
    def change(file: h5py.File) -> None:
        file.attrs["logit_scale"] = file["image"].ref

    refusal(edited(change))


WRONG_ENCODERS = {
    "not what the key is of": attribute("encoder", '{"library":"another"}'),
    "a list": encoder("[]"),
    "a text": encoder('"text"'),
    "null": encoder("null"),
    "not JSON": encoder("{"),
    "NaN": encoder('{"size":NaN}'),
    "Infinity": encoder('{"size":Infinity}'),
    "half a character": encoder('{"size":"\\ud800"}'),
    "a number of 6000 digits": encoder('{"size":' + "9" * 6000 + "}"),
    "lists 30000 deep": encoder("[" * 30_000 + "]" * 30_000),
    "objects 9000 deep": encoder('{"a":' * 9_000 + "1" + "}" * 9_000),
    "a number": attribute("encoder", 3),
    "not UTF-8": attribute("encoder", np.bytes_(b'{"a":"\xff"}')),
}


@pytest.mark.parametrize("change", WRONG_ENCODERS.values(), ids=WRONG_ENCODERS)
def test_a_sealed_file_with_a_wrong_encoder_is_refused(
    edited: Callable[[Edit], Path], change: Edit
) -> None:
    refusal(edited(change))


def test_a_sealed_file_with_another_encoder_and_its_key_is_read(
    edited: Callable[[Edit], Path],
) -> None:
    facts = {"library": "another", "mean": [0.5, {"deep": None}]}
    assert read_cache(edited(encoder(facts))).encoder == facts


@pytest.mark.parametrize("body", [b"", b"text", b"\x89HDF\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" * 500])
def test_a_sealed_file_that_is_no_hdf5_is_refused(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "photo.h5"
    for version in (1, 2):
        path.write_bytes(sealed(body, version))
        refusal(path)


@settings(shared_folder, derandomize=True, max_examples=300)
@given(data=st.data())
def test_a_sealed_file_with_damaged_hdf5_is_read_or_refused(
    path: Path, version: int, data: st.DataObject
) -> None:
    check_damaged(path, version, data)


@settings(shared_folder, derandomize=True, max_examples=300)
@given(data=st.data())
def test_a_sealed_file_without_class_texts_with_damaged_hdf5_is_read_or_refused(
    textless: Path, data: st.DataObject
) -> None:
    check_damaged(textless, 2, data)


def check_damaged(path: Path, version: int, data: st.DataObject) -> None:
    body = bytearray(path.read_bytes()[512:])
    # HDF5 keeps what it parses first at the beginning.
    positions = st.integers(0, 1000) | st.integers(0, len(body) - 1)
    for position, xor in data.draw(
        st.lists(st.tuples(positions, st.integers(1, 255)), min_size=1, max_size=3)
    ):
        body[position] ^= xor
    damaged = path.with_name("sealed.h5")
    damaged.write_bytes(sealed(bytes(body), version))
    try:
        read_cache(damaged)
    except CacheError:
        refusal(damaged)


def external_link(name: str, other: Path) -> Edit:
    return put(name, h5py.ExternalLink(str(other), name))


def external_storage(name: str, other: Path) -> Edit:
    return dataset(name, shape=(6,), dtype="<i4", external=[(str(other), 0, 24)])


def virtual_dataset(name: str, other: Path) -> Edit:
    def change(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((6,), "<i4")
        layout[:] = h5py.VirtualSource(str(other), name, (6,))
        del file[name]
        file.create_virtual_dataset(name, layout)

    return change


IN_OPEN = 0x20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="watches files with inotify")
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (external_link, "image"),
        (external_link, "image/labels"),
        (external_link, "text"),
        (external_storage, "image/labels"),
        (virtual_dataset, "image/labels"),
    ],
)
def test_a_sealed_file_never_makes_us_open_another_file(
    make_features: MakeFeatures,
    edited: Callable[[Edit], Path],
    tmp_path: Path,
    change: Callable[[str, Path], Edit],
    name: str,
) -> None:
    other = tmp_path / "other.h5"
    write_cache(make_features("photo", rows=6, width=4), other)
    path = edited(change(name, other))
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(watch, str(other).encode(), IN_OPEN) > 0
        refusal(path)
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
        other.open("rb").close()
        assert os.read(watch, 4096)  # and so the silence before meant something
    finally:
        os.close(watch)


WRONG_TEXTS = {
    "no features": dataset("text/features"),
    "no templates": dataset("text/templates"),
    "features of no width": dataset("text/features", data=np.zeros((3, 1, 0), "<f4")),
    "features of fewer classes": dataset("text/features", data=np.zeros((2, 1, 4), "<f4")),
    "features of more templates": dataset("text/features", data=np.zeros((3, 2, 4), "<f4")),
    "a link to nowhere": put("text", h5py.SoftLink("/nowhere")),
    "a link to no file": put("text", h5py.ExternalLink("nowhere.h5", "/text")),
    "an empty group": group_instead("text"),
    "a group and no classes": dataset("class_names"),
    "class names among the texts": lambda file: file.move("class_names", "text/class_names"),
}


@pytest.mark.parametrize("change", WRONG_TEXTS.values(), ids=WRONG_TEXTS)
def test_a_sealed_file_with_half_its_class_texts_is_refused(written: Path, change: Edit) -> None:
    with h5py.File(written, "r+") as file:
        change(file)
    seal(written)
    refusal(written)


def test_in_version_1_class_texts_must_be_there_and_as_wide_as_the_images(
    make_features: MakeFeatures, tmp_path: Path
) -> None:
    path = tmp_path / "photo.h5"
    write_cache(make_features(width=4, text_features=np.ones((3, 1, 5), np.float32)), path)
    as_version_1(path)
    assert "has text/features 5 wide and image/features 4" in refusal(path)
    for name in ("text/features", "text/templates"):
        write_cache(make_features(width=4), path)
        as_version_1(path)
        with h5py.File(path, "r+") as file:
            del file[name]
        seal(path)
        assert f"has no {name}, or only a link to it" in refusal(path)


EMPTY: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
WRONG_GROUPS: dict[str, Any] = {
    "flat facts": {"library": "test"},
    "no group": {},
    "a group missing": {group: {} for group in GROUPS[1:]},
    "a group too many": {**EMPTY, "other": {}},
    "a group that is a list": {**EMPTY, "text": []},
    "a group that is null": {**EMPTY, "about": None},
    "a fact in two groups": {**EMPTY, "image": {"a": 1}, "text": {"a": 1}},
    "a fact in two groups that it does not shape": {**EMPTY, "shared": {"a": 1}, "about": {"a": 1}},
}


@pytest.mark.parametrize("groups", WRONG_GROUPS.values(), ids=WRONG_GROUPS)
def test_a_sealed_file_whose_facts_are_grouped_otherwise_is_refused(
    written: Path, groups: dict[str, Any]
) -> None:
    facts = {**dict(groups.get("shared") or {}), **dict(groups.get("image") or {})}
    with h5py.File(written, "r+") as file:
        file.attrs["encoder"] = canonical_json(groups)
        file.attrs["key"] = hashlib.sha256(canonical_json(facts).encode()).hexdigest()
    seal(written)
    assert "has an encoder" in refusal(written) or "in two groups" in refusal(written)


def test_a_chunk_that_fails_its_checksum_is_refused(edited: Callable[[Edit], Path]) -> None:
    def damage(file: h5py.File) -> None:
        chunks = file["image/features"].id
        mask, chunk = chunks.read_direct_chunk((0, 0))
        chunks.write_direct_chunk((0, 0), bytes([chunk[0] ^ 1]) + chunk[1:], mask)

    assert "cannot be parsed as a cache" in refusal(edited(damage))
