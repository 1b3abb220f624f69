"""Datasets of texts: tables and folders, from the command line to the cache."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fedclip.cache import FeatureCache, read_cache
from fedclip.cache.schema import content_digest
from fedclip.cli import run

ROWS = (
    ("a good film", "positive", "films"),
    ("a bad film", "negative", "films"),
    ("a good phone", "positive", "phones"),
    ("bad", "negative", "phones"),
)

Extract = Callable[..., int]


@pytest.fixture
def extract(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Extract:
    """Give a function that runs the command with a tiny BERT of random weights."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> int:
        options = ("--device", "cpu", "--workers", "0", "--pretrained", "random")
        return run(["extract", *map(str, arguments), "--model", f"hf:{tiny_bert}", *options])

    return call


def write(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "domain"), *rows])
    return path


def caches(folder: Path) -> dict[str, FeatureCache]:
    return {path.stem: read_cache(path) for path in sorted(folder.rglob("*.h5"))}


def test_a_table_of_texts_becomes_a_cache_per_domain(
    extract: Extract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "reviews.csv", ROWS)
    assert extract("--dataset", file) == 0
    captured = capsys.readouterr()
    assert "reviews: 2 clients, 2 classes, 4 texts in" in captured.err
    assert "encoded    4 texts and 2 prompts" in captured.out
    assert "rows       4 seen: 4 taken, 0 skipped, 0 ignored" in captured.out
    found = caches(tmp_path / "caches")
    assert [*found] == ["films", "phones"]
    films = found["films"]
    assert films.class_names == ("negative", "positive")
    assert films.templates == ("{}",)
    assert films.ids == ("00000000", "00000001")
    assert films.digests[0].tobytes() == content_digest(b"a good film")
    assert films.labels.tolist() == [1, 0]
    assert extract("--dataset", file) == 0
    assert "encoded    nothing: the cache is up to date" in capsys.readouterr().out


def test_only_new_texts_are_encoded(
    extract: Extract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("--dataset", write(tmp_path / "reviews.csv", ROWS))
    before = caches(tmp_path / "caches")["films"].image_features
    rows = [("a", "positive", "films"), *ROWS]
    assert extract("--dataset", write(tmp_path / "reviews.csv", rows)) == 0
    assert "encoded    1 text and 0 prompts" in capsys.readouterr().out
    after = caches(tmp_path / "caches")["films"].image_features
    assert np.array_equal(after[1:], before)


def test_empty_and_undecodable_texts_are_skipped_and_long_ones_counted(
    extract: Extract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*ROWS, ("", "negative", "films"), ("a " * 20, "negative", "films")]
    file = write(tmp_path / "reviews.csv", rows)
    file.write_bytes(file.read_bytes() + b"\xff\xfe film,negative,films\r\n")
    assert extract("--dataset", file) == 0
    captured = capsys.readouterr()
    assert "skipped    00000004: is empty" in captured.out
    assert "skipped    00000006: is not UTF-8" in captured.out
    assert "rows       7 seen: 5 taken, 2 skipped (1 is empty; 1 is not UTF-8)" in captured.out
    assert "reviews: 1 of the 7 texts encoded now are longer" in " ".join(captured.err.split())


def test_a_folder_of_text_files_is_read_by_domain_and_class(
    extract: Extract, tmp_path: Path
) -> None:
    for number, (text, label, domain) in enumerate(ROWS):
        path = tmp_path / "reviews" / domain / label / f"{number}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    extract("--dataset", write(tmp_path / "table.csv", ROWS))
    assert extract("--dataset", tmp_path / "reviews") == 0
    table, folder = (caches(tmp_path / "caches" / name) for name in ("table", "reviews"))
    assert folder["films"].ids == ("films/negative/1.txt", "films/positive/0.txt")
    assert np.array_equal(folder["films"].image_features, table["films"].image_features[::-1])


def test_texts_and_an_encoder_of_images_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "reviews.csv", ROWS)
    assert run(["extract", "--dataset", str(file)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: --model ViT-B-32: encodes images, but {file} contains texts; choose a model of "
        "texts, such as --model hf:OWNER/NAME"
    )


def test_the_features_of_two_models_are_normalized_and_joined(
    extract: Extract, tmp_path: Path, tiny_bert: Path
) -> None:
    file = write(tmp_path / "reviews.csv", ROWS)
    model = f"hf:{tiny_bert}"
    options = ["--device", "cpu", "--pretrained", "random", "--pretrained", "random"]
    second = tmp_path / "other"
    second.mkdir()
    for path in tiny_bert.iterdir():
        (second / path.name).write_bytes(path.read_bytes())
    two = ["--model", model, "--model", f"hf:{second}"]
    assert run(["extract", "--dataset", str(file), *two, *options, "--name", "joined"]) == 0
    assert extract("--dataset", file) == 0
    (joined, single) = (
        caches(tmp_path / "caches" / each)["films"] for each in ("joined", "reviews")
    )
    unit = single.image_features / np.linalg.norm(single.image_features, axis=1, keepdims=True)
    np.testing.assert_allclose(joined.image_features, np.hstack([unit, unit]), atol=1e-6)
    assert joined.text_features.shape[2] == joined.embed_dim == 2 * single.embed_dim
    assert joined.key != single.key
