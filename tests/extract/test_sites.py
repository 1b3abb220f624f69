"""Clients of one's own: two sites extract apart, bring their files together and federate."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedclip.cache import FedclipError, find_caches, load_cache
from fedclip.cli import run
from fedclip.extract.datasets.folders import open_dataset
from fedclip.extract.encoders.prompts import parse_class_names

MakeImages = Callable[..., Path]
Extract = Callable[..., None]


@pytest.fixture
def site(make_images: MakeImages, tiny_clip: Path, tmp_path: Path) -> Extract:
    """Give a function that extracts one site's folder with its own caches."""

    def extract(
        client: str,
        *options: str,
        classes: tuple[str, ...] = ("cat", "big_dog"),
        caches: str | None = None,
    ) -> None:
        root = tmp_path / f"at-{client}"
        if not root.exists():
            make_images(root.name, (".",), classes)
        place = tmp_path / (caches or f"caches-{client}")
        arguments = ["--dataset", str(root), "--client", client, "--name", "scans", *options]
        model = ["--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--workers", "0"]
        assert run(["extract", *arguments, *model, "--cache-dir", str(place)]) == 0

    return extract


def bring_together(place: Path, *clients: str) -> Path:
    """Copy sites' files into one folder, as the page for users says."""
    folder = place / "caches" / "scans" / "together"
    folder.mkdir(parents=True)
    for client in clients:
        (file,) = (place / f"caches-{client}").rglob("*.h5")
        assert file.name == f"{client}.h5"
        shutil.copy(file, folder)
    return place / "caches"


def federate(caches: Path, runs: Path) -> int:
    arguments = ["--rounds", "1", "--runs-dir", str(runs), "--cache-dir", str(caches)]
    return run(["federate", *arguments, "--target", "none", "--device", "cpu"])


def test_two_sites_extracted_apart_federate_together(
    site: Extract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site("hospital-a")
    site("hospital-b")
    caches = bring_together(tmp_path, "hospital-a", "hospital-b")
    assert federate(caches, tmp_path / "runs") == 0
    assert "hospital-a, hospital-b: 12 rows" in capsys.readouterr().out


def test_a_class_renamed_at_one_site_is_refused_with_the_class_and_the_site(
    site: Extract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site("hospital-a")
    site("hospital-b", classes=("cat", "large_dog"))
    caches = bring_together(tmp_path, "hospital-a", "hospital-b")
    capsys.readouterr()
    assert federate(caches, tmp_path / "runs") == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "only hospital-a has 'big_dog', only hospital-b has 'large_dog'" in errors
    assert "hospital-b.h5" in errors


def test_another_template_at_one_site_is_refused_with_the_template_and_the_site(
    site: Extract, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site("hospital-a")
    site("hospital-b", "--template", "a scan of a {}")
    caches = bring_together(tmp_path, "hospital-a", "hospital-b")
    assert federate(caches, tmp_path / "runs") == 2
    assert "only hospital-b has 'a scan of a {}'" in capsys.readouterr().err


def test_sites_that_name_all_classes_agree_though_each_lacks_some(
    site: Extract, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("big_dog\ncat\n\nfish\n")
    site("hospital-a", "--class-names", "big_dog,cat,fish")
    site("hospital-b", "--class-names", f"@{tmp_path / 'classes.txt'}", classes=("cat", "fish"))
    caches = bring_together(tmp_path, "hospital-a", "hospital-b")
    assert federate(caches, tmp_path / "runs") == 0
    one, other = load_cache(find_caches(caches)[0])
    assert one.class_names == other.class_names == ("big_dog", "cat", "fish")
    assert set(other.labels) == {1, 2}


def test_two_sites_may_share_a_cache_and_a_third_of_one_name_may_not(
    site: Extract,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site("hospital-a", caches="caches")
    site("hospital-b", caches="caches")
    site("hospital-a", caches="caches")
    captured = capsys.readouterr()
    assert "warning" not in captured.err
    assert "the cache is up to date\n" in captured.out
    (folder,) = find_caches(tmp_path / "caches")
    assert [path.stem for path in folder.files] == ["hospital-a", "hospital-b"]
    root = make_images("another", (".",))
    arguments = ["--dataset", str(root), "--client", "hospital-a", "--name", "scans"]
    assert run(["extract", *arguments, "--cache-dir", str(tmp_path / "caches")]) == 2
    assert "choose another name for this folder" in capsys.readouterr().err


def test_a_list_s_clients_are_extracted_and_known_again(
    make_images: MakeImages,
    tiny_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_images("scans", ("a", "b"), ("cat", "dog"), images=2)
    paths = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    lines = [f"{path},{path.parts[1]},site-{path.parts[0]}" for path in paths]
    (root / "mine.csv").write_text("path,label,client\n" + "\n".join(lines))
    model = ["--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--workers", "0"]
    arguments = ["extract", "--manifest", str(root / "mine.csv"), *model]
    for _ in range(2):
        assert run([*arguments, "--cache-dir", str(tmp_path / "caches")]) == 0
    assert "encoded    nothing: the cache is up to date" in capsys.readouterr().out
    one, other = load_cache(find_caches(tmp_path / "caches")[0])
    assert (one.dataset, one.client, other.client) == ("mine", "site-a", "site-b")
    assert one.ids == ("a/cat/00.png", "a/cat/01.png", "a/dog/00.png", "a/dog/01.png")


def test_known_data_sets_are_listed_with_where_they_are(
    make_images: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images("data/VLCS", ("CALTECH", "LABELME", "PASCAL", "SUN"), images=1)
    assert run(["datasets", "--data-dir", str(tmp_path / "data"), "--format", "csv"]) == 0
    rows = {row["dataset"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert rows["vlcs"]["here"] == str(root)
    assert list(rows["demo"].values()) == [
        *("demo", "cartoon, neon, photo, sketch", "10", "1200", "images", "drawn here", "MIT", ""),
    ]


def test_a_site_s_folder_is_laid_out_by_class(make_images: MakeImages, tmp_path: Path) -> None:
    root = make_images("scans", (".",), ("cat", "dog"), images=1)
    dataset = open_dataset("scans", tmp_path, client="Hospital A")
    assert [client.name for client in dataset.clients] == ["hospital_a"]
    assert [image.id for image in dataset.clients[0].images] == ["cat/00.png", "dog/00.png"]
    assert dataset.root == root
    above = open_dataset(str(tmp_path), tmp_path, client="Hospital A")
    assert above.warnings == (
        f"{tmp_path}: scans is taken for a class, and contains cat and dog; if these are the "
        "classes, pass the folder above them as --dataset, or leave out --client",
    )


def test_class_names_fix_the_order_and_leave_none_out(
    make_images: MakeImages, tmp_path: Path
) -> None:
    make_images("pets", ("photo", "sketch"), ("cat", "dog"), images=1)
    dataset = open_dataset("pets", tmp_path, class_names=("fish", "dog", "cat"))
    assert dataset.class_names == ("fish", "dog", "cat")
    assert [image.label for image in dataset.clients[0].images] == [2, 1]
    with pytest.raises(FedclipError, match="photo has images of 'cat', but --class-names has"):
        open_dataset("pets", tmp_path, class_names=("dog", "fish"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "is empty"), (" , ", "is empty"), ("a,b,a", "has 'a' twice")],
)
def test_class_names_that_are_none_are_refused(text: str, expected: str) -> None:
    with pytest.raises(FedclipError, match=expected):
        parse_class_names(text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--dataset pacs --client mine", "pacs has its own clients"),
        ("--dataset pets --revision test", "--revision: only applies to datasets on the hub"),
        ("--manifest a.csv --split test", "--split: only applies to datasets on the hub"),
        ("--dataset pets --column path=a", "--column path=a: only applies to lists"),
        ("--dataset pets --split test", "photo is not divided into splits; leave out --split"),
        ("--dataset pets --client ..", "'..' has no letter, digit or symbol; rename it"),
        ("--dataset pets --class-names @nowhere.txt", "nowhere.txt: cannot be read (No such file"),
        (
            "--manifest nowhere.csv",
            "nowhere.csv: file not found; pass a .csv, .tsv or .parquet list",
        ),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    make_images: MakeImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    expected: str,
) -> None:
    make_images(images=1)
    monkeypatch.chdir(tmp_path)
    assert run(["extract", *arguments.split()]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert expected in errors
