"""Datasets of texts: tables and folders, from the command line to the cache."""

import csv
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedclip.cache import FeatureCache, FedclipError, read_cache
from fedclip.cache.schema import content_digest
from fedclip.cli import run
from fedclip.extract.datasets.image_lists import open_list

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
    texts = ("", " \n\t ", "\0\0", "\ufeff\u200b", "a " * 500_000, "a\0 film")
    rows = [*ROWS, *((text, "negative", "films") for text in texts)]
    file = write(tmp_path / "reviews.csv", rows)
    file.write_bytes(file.read_bytes() + b"\xff\xfe film,negative,films\r\n")
    assert extract("--dataset", file) == 0
    captured = capsys.readouterr()
    for row in (4, 5, 6, 7):
        assert f"skipped    {row:08d}: is empty" in captured.out
    assert "skipped    00000010: is not UTF-8" in captured.out
    assert "rows       11 seen: 6 taken, 5 skipped (4 is empty; 1 is not UTF-8)" in captured.out
    assert "reviews: 1 of the 11 texts encoded now are longer" in " ".join(captured.err.split())


def test_ten_new_texts_among_many_are_all_that_is_encoded(
    extract: Extract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [(f"film {'a ' * n}", "negative", "films") for n in range(40)]
    extract("--dataset", write(tmp_path / "reviews.csv", [*ROWS, *many[:30]]))
    capsys.readouterr()
    assert extract("--dataset", write(tmp_path / "reviews.csv", [*ROWS, *many])) == 0
    assert "encoded    10 texts and 0 prompts" in capsys.readouterr().out


def test_a_text_in_two_domains_has_one_vector_and_a_row_in_each(
    extract: Extract, tmp_path: Path
) -> None:
    twice = [("bad", "negative", "films"), ("bad", "positive", "phones")]
    assert extract("--dataset", write(tmp_path / "reviews.csv", [*ROWS, *twice])) == 0
    found = caches(tmp_path / "caches")
    (bad,) = (
        row
        for row, each in zip(found["films"].image_features, found["films"].ids, strict=True)
        if each == "00000004"
    )
    phones = found["phones"]
    assert phones.ids == ("00000002", "00000003", "00000005")
    assert phones.labels.tolist() == [1, 0, 1]
    assert np.array_equal(phones.image_features[1], bad)
    assert np.array_equal(phones.image_features[2], bad)


TABLE = (
    "text,label,domain\n"
    '"a ""good"", long\nfilm",1,films\nbad,0,films\na phone,1,phones\nbad,0,phones\n'
)


@pytest.mark.parametrize(
    "content",
    [
        TABLE.encode(),
        b"\xef\xbb\xbf" + TABLE.encode(),
        TABLE.encode("utf-16"),
        TABLE.encode("utf-16-be"),
        TABLE.replace("0,", "0.0,").replace("1,", "1.0,").encode(),
        TABLE.replace(",", ";").replace('""; long', '"", long').encode(),
        TABLE.replace("\n", "\r").replace("long\r", "long\n").encode(),
        TABLE.replace("domain", " Site ").replace("text", "Sentence").encode(),
    ],
    ids=["plain", "BOM", "UTF-16", "UTF-16 BE", "float labels", "semicolons", "CR", "other names"],
)
def test_a_table_is_read_alike_however_it_is_written(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "reviews.csv").write_bytes(content)
    dataset = open_list(tmp_path / "reviews.csv", tmp_path)
    assert (dataset.samples, dataset.class_names) == ("texts", ("0", "1"))
    read = {
        client.name: [(image.source.read(), image.label) for image in client.images]
        for client in dataset.clients
    }
    assert read == {
        "films": [(b'a "good", long\nfilm', 1), (b"bad", 0)],
        "phones": [(b"a phone", 1), (b"bad", 0)],
    }


@pytest.mark.parametrize(
    ("values", "labels"),
    [([1, 0], ("0", "1")), ([1.0, 0.0], ("0", "1")), (["p", "n"], ("n", "p"))],
)
def test_labels_of_a_parquet_file_may_be_numbers_or_names(
    tmp_path: Path, values: Sequence[object], labels: tuple[str, ...]
) -> None:
    rows = {"text": ["good", None], "label": values, "domain": [3, 3], "image": [b"1", b"2"]}
    pq.write_table(pa.table(rows), tmp_path / "reviews.parquet")
    dataset = open_list(tmp_path / "reviews.parquet", tmp_path)
    assert dataset.class_names == labels
    assert dataset.books.aside == ("column image",)
    (client,) = dataset.clients
    assert [image.source.read() for image in client.images] == [b"good", b""]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("good,,films\n", "line 2: has no label; fill it in"),
        ("good,1,\n", "line 2: has no client; fill it in"),
        ("good,caf\xe9,films\n", r"line 2: its label 'caf\udce9' is not UTF-8"),
        ('good,1,films\n"bad" film,0,films\n', "line 3: is not a row of a CSV file"),
        ('good,1,films\n"bad,0,films\nbad,0,films\n', "line 3: is not a row of a CSV file"),
        ("good, film,1,films\n", "line 2: has more values than columns"),
        ("good,1,films\nbad,0,films\ngood,1,phones\n", "phones lacks 0"),
        ("", "lists no texts"),
    ],
)
def test_a_table_of_texts_that_is_damaged_is_refused_in_a_line(
    tmp_path: Path, rows: str, reason: str
) -> None:
    (tmp_path / "reviews.csv").write_bytes(f"text,label,domain\n{rows}".encode("latin-1"))
    with pytest.raises(FedclipError) as error:
        open_list(tmp_path / "reviews.csv", tmp_path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_with_paths_and_texts_is_one_of_images_unless_its_texts_are_asked_for(
    tmp_path: Path,
) -> None:
    file = tmp_path / "both.csv"
    file.write_text("path,text,label,domain\na.png,good,1,films\n")
    (tmp_path / "a.png").touch()
    assert open_list(file, tmp_path).samples == "images"
    assert open_list(file, tmp_path).books.aside == ("column text",)
    assert open_list(file, tmp_path, columns=["text=text"]).samples == "texts"


KILLED = """
import os, signal, sys
from fedclip.cli import run
from fedclip.extract.encoding import worker

write, written = worker.write_part, []

def write_part(*arguments, **options):
    made = write(*arguments, **options)
    written.append(made)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return made

worker.PART_ROWS, worker.write_part = 4, write_part
run(sys.argv[1:])
"""


@pytest.mark.slow
def test_texts_of_a_killed_extraction_are_not_encoded_again(
    extract: Extract,
    tiny_bert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hangs: int,
) -> None:
    many = [(f"film {'a ' * n}", "negative", "films") for n in range(20)]
    file = write(tmp_path / "reviews.csv", [*ROWS, *many])
    options = ["--pretrained", "random", "--device", "cpu", "--workers", "0", "--batch-size", "2"]
    command = ["extract", "--dataset", str(file), "--model", f"hf:{tiny_bert}", *options]
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], timeout=hangs, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert extract("--dataset", file, "--batch-size", "2") == 0
    assert "encoded    16 texts and 2 prompts" in capsys.readouterr().out
    resumed = caches(tmp_path / "caches")
    assert extract("--dataset", file, "--batch-size", "2", "--force") == 0
    for name, cache in caches(tmp_path / "caches").items():
        assert np.array_equal(cache.image_features, resumed[name].image_features)


def test_a_folder_of_text_files_is_read_by_domain_and_class(
    extract: Extract, tmp_path: Path
) -> None:
    for number, (text, label, domain) in enumerate(ROWS):
        path = tmp_path / "reviews" / domain / label / f"{number}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (tmp_path / "reviews" / "logo.png").touch()  # no text, and in none of the folders
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
