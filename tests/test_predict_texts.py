"""Texts are classified with a trained adapter: exactly as it was tested."""

import csv
import json
import shutil
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

import fedclip
from fedclip.cli import run

Refusal = Callable[..., str]

ADJECTIVES, NOUNS = ("good", "bad"), ("film", "phone")
PREDICT = ("predict", "--run", "one", "--format", "json")


def sentences() -> list[tuple[str, str, str]]:
    """Write texts of two classes in two domains."""
    return [
        (" ".join([*["a"] * (number % 4), adjective, noun][:5]), adjective, f"{noun}s")
        for number in range(4)
        for adjective in ADJECTIVES
        for noun in NOUNS
    ]


@pytest.fixture
def reviews(tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a list of texts with a run on it, whose name is one."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "reviews.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label", "domain"), *sentences()])
    encoder = ["--model", f"hf:{tiny_bert}", "--pretrained", "random"]
    assert run(["extract", "--dataset", str(file), *encoder, "--device", "cpu"]) == 0
    settings = ["--preset", "tuned", "--rounds", "3", "--target", "films"]
    assert run(["federate", *settings, "--name", "one"]) == 0
    return file


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_list_of_texts_gives_the_accuracies_of_the_run(
    reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads(Path("runs/one/result.json").read_text())
    use = fedclip.load_classifier("one")
    assert use.samples == "texts"
    for found in (use(reviews), use.from_cache(fedclip.load_cache("reviews"))):
        tested = found.tested
        assert {client: each.adapted.accuracy for client, each in tested.items()} == (
            expected["accuracy"]
        )
        assert {
            client: each.zero_shot and each.zero_shot.accuracy for client, each in tested.items()
        } == expected["zero_shot"]
    capsys.readouterr()
    assert run([*PREDICT, str(reviews)]) == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    assert [(row["text"], row["label"]) for row in rows] == [each[:2] for each in sentences()]
    assert [*rows[0]] == [
        *("text", "rank", "class", "probability", "zero_shot", "zero_shot_probability", "label")
    ]
    assert captured.err.splitlines()[-4].split()[:2] == ["client", "texts"]


def test_a_list_without_domains_is_known_as_the_domain_that_it_is(
    reviews: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    shop = tmp_path / "shop.csv"
    with shop.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "label"), *(each[:2] for each in sentences())])
    encoder = ["--model", f"hf:{tiny_bert}", "--pretrained", "random", "--client", "shop"]
    assert run(["extract", "--dataset", str(shop), *encoder, "--device", "cpu"]) == 0
    assert run(["federate", "--cache", "shop", "--rounds", "1", "--name", "shop"]) == 0
    expected = json.loads(Path("runs/shop/result.json").read_text())
    tested = fedclip.load_classifier("shop")(shop).tested
    assert {client: each.adapted.accuracy for client, each in tested.items()} == (
        expected["accuracy"]
    )


def test_joined_encoders_are_found_again(
    reviews: Path, tiny_bert: Path, tmp_path: Path, refusal: Refusal
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "other")
    models = [f"hf:{tiny_bert}", f"hf:{tmp_path / 'other'}"]
    options = [each for model in models for each in ("--model", model, "--pretrained", "random")]
    joined = ["extract", "--dataset", str(reviews), *options, "--name", "joined"]
    assert run([*joined, "--device", "cpu"]) == 0
    assert run(["federate", "--cache", "joined", "--rounds", "1", "--name", "two"]) == 0
    expected = json.loads(Path("runs/two/films/result.json").read_text())
    use = fedclip.load_classifier("two", target="films")
    assert {client: each.adapted.accuracy for client, each in use(reviews).tested.items()} == (
        expected["accuracy"]
    )
    line = refusal("predict", "--run", "two", "--target", "films", "--model", models[0], "-")
    assert "the adapter needs several encoders" in line


def test_texts_come_from_files_folders_and_standard_input(
    reviews: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a good film", "bad phone"]
    for number, text in enumerate(texts):
        path = Path("notes") / ADJECTIVES[number] / f"{number}.txt"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    expected = fedclip.load_classifier("one")(texts)
    capsys.readouterr()
    assert run([*PREDICT, "notes"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row["class"] for row in rows] == [each.name for each in expected]
    assert {row["text"]: row["label"] for row in rows} == {
        "notes/bad/1.txt": "bad",
        "notes/good/0.txt": "good",
    }
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO("\r\n".join([*texts, ""]).encode())))
    assert run([*PREDICT, "-"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [(row["text"], row["class"]) for row in rows] == [
        (text, each.name) for text, each in zip(texts, expected, strict=True)
    ]


def test_texts_that_cannot_be_read_are_named_by_their_place_and_long_ones_counted(
    reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Path("odd.csv")
    odd.write_bytes(b'text\n"a good\nfilm"\n ""\n\xff\xfe\n' + b"a " * 20 + b"\n")
    odd.write_bytes(b'text,label\n"a good\nfilm",good\n"",bad\n\xff,bad\n' + b"a " * 20 + b",\n")
    capsys.readouterr()
    assert run(["predict", "--run", "one", str(odd)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split()[-1] == "text"
    assert lines[1].endswith("  a good film")
    assert "error: odd.csv line 4: is empty; skipped" in captured.err
    assert "error: odd.csv line 5: is not UTF-8; skipped" in captured.err
    assert "error: 2 texts could not be read" in captured.err
    assert "warning: 1 of the texts are longer than what the encoder reads" in captured.err


def test_the_api_takes_strings_and_paths_as_what_they_are(reviews: Path) -> None:
    use = fedclip.load_classifier("one")
    (one,) = use("a good film")
    assert one.image == "a good film"
    assert [each.name for each in use(["a good film", b"a good film"])] == [one.name, one.name]
    assert len(use(reviews)) == len(use(str(reviews) for _ in sentences())) == len(sentences())
    table = use(["a good film"], top_k=2).to_pandas()
    assert [*table["text"]] == ["a good film"] * 2
    found = use(["", b"\xff"])
    assert dict(found.skipped) == {"text 0": "is empty", "text 1": "is not UTF-8"}
    with pytest.raises(fedclip.FedclipError, match="text 1: is no text but float"):
        use(["a", float("nan")])


def test_images_and_texts_are_told_apart(reviews: Path, refusal: Refusal) -> None:
    assert "'nowhere.txt': no such file, folder or list" in refusal(*PREDICT, "nowhere.txt")
    images = Path("images.csv")
    images.write_text("path,label\na.png,good\n")
    line = refusal(*PREDICT, str(images))
    assert "images.csv: has no column 'text' (it has path, label)" in line
