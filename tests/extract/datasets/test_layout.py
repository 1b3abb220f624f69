"""Folders of images as people lay them out: every file takes part, or is accounted for."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip.cache import FedclipError
from fedclip.extract.datasets.base import ImageDataset
from fedclip.extract.datasets.books import Books, Ignored
from fedclip.extract.datasets.folders import open_dataset, places_below

PACS = ("art_painting", "cartoon", "photo", "sketch")
OFFICE_HOME = ("art", "clipart", "product", "real_world")
CLASSES = ("dog", "guitar")


def fill(root: Path, files: Iterable[str]) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def images(domains: Sequence[str], classes: Sequence[str] = CLASSES, count: int = 1) -> list[str]:
    return [
        f"{domain}/{name}/{number}.jpg"
        for domain in domains
        for name in classes
        for number in range(count)
    ]


def counts(dataset: ImageDataset) -> dict[str, dict[str, int]]:
    """Count each client's images by class."""
    return {
        client.name: dict(Counter(dataset.class_names[image.label] for image in client.images))
        for client in dataset.clients
    }


def opened(root: Path, **options: object) -> ImageDataset:
    return open_dataset(str(root), Path("/nowhere"), **options)  # type: ignore[arg-type]


def refusal(dataset: str | Path, data_dir: Path = Path("/nowhere"), **options: object) -> str:
    with pytest.raises(FedclipError) as error:
        open_dataset(str(dataset), data_dir, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_below_a_class_count_at_any_depth(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "pets",
        [
            *(f"{domain}/dog/{n}.jpg" for domain in ("photo", "sketch") for n in range(5)),
            *(f"{domain}/horse/set1/{n}.jpg" for domain in ("photo", "sketch") for n in range(5)),
            *(f"sketch/guitar/{n}.jpg" for n in range(5)),
            *(f"photo/guitar/{n}.jpg" for n in range(2)),
            *(f"photo/guitar/more/and/more/{n}.jpg" for n in range(3)),
        ],
    )
    dataset = opened(root)
    assert counts(dataset) == {
        domain: {"dog": 5, "horse": 5, "guitar": 5} for domain in ("photo", "sketch")
    }
    assert "photo/guitar/more/and/more/0.jpg" in {image.id for image in dataset.clients[0].images}
    assert dataset.layout == "<domain>/<class>/<image>"
    assert dataset.warnings == ()


SPLIT_SIZES = {"train": 6, "val": 4, "test": 4}


def split_above(root: Path, domains: Sequence[str] = PACS) -> Path:
    for split, count in SPLIT_SIZES.items():
        fill(root / split, images(domains, count=count))
    return root


def split_below(root: Path, domains: Sequence[str] = OFFICE_HOME) -> Path:
    for domain in domains:
        for split, count in SPLIT_SIZES.items():
            fill(
                root / domain / split, (f"{name}/{n}.jpg" for name in CLASSES for n in range(count))
            )
    return root


def test_splits_above_the_domains_of_a_known_dataset_are_the_whole(tmp_path: Path) -> None:
    root = split_above(tmp_path / "data" / "PACS")
    dataset = open_dataset("pacs", tmp_path / "data")
    assert dataset.root == root
    assert counts(dataset) == {domain: {"dog": 14, "guitar": 14} for domain in PACS}
    assert dataset.layout == "<split>/<domain>/<class>/<image>, splits test, train and val"
    assert dataset.clients[0].images[0].id == "test/art_painting/dog/0.jpg"
    assert places_below(tmp_path / "data", "pacs") == [root]


@pytest.mark.parametrize(
    ("split", "count"), [(("train",), 6), (("val",), 4), (("train", "test"), 10)]
)
@pytest.mark.parametrize("laid_out", [split_above, split_below])
def test_chosen_splits_alone_are_taken(
    tmp_path: Path, laid_out: object, split: tuple[str, ...], count: int
) -> None:
    assert callable(laid_out)
    root = laid_out(tmp_path / "pets", PACS)
    dataset = opened(root, splits=split)
    assert counts(dataset) == {domain: {"dog": count, "guitar": count} for domain in PACS}
    (left,) = dataset.books.ignored
    assert (left.reason, left.count) == ("in another split", (14 - count) * 8)


@pytest.mark.parametrize("laid_out", [split_above, split_below])
def test_an_unknown_split_is_refused_with_those_there_are(tmp_path: Path, laid_out: object) -> None:
    assert callable(laid_out)
    root = laid_out(tmp_path / "pets", PACS)
    message = refusal(root, splits=("tset",))
    assert message.startswith(f"--split tset: {root}")
    assert message.endswith("has no such split; did you mean test?")
    plain = fill(tmp_path / "plain", images(PACS))
    assert refusal(plain, splits=("train",)) == (
        f"--split train: {plain}/art_painting is not divided into splits; leave out --split"
    )


def test_splits_below_the_domains_are_the_whole_by_name_and_as_an_own_folder(
    tmp_path: Path,
) -> None:
    root = split_below(tmp_path / "data" / "office_home_dg")
    by_name = open_dataset("office-home", tmp_path / "data")
    own = opened(root)
    for dataset in (by_name, own):
        assert dataset.root == root
        assert counts(dataset) == {domain: {"dog": 14, "guitar": 14} for domain in OFFICE_HOME}
        assert dataset.layout == "<domain>/<split>/<class>/<image>, splits test, train and val"


def test_a_site_s_folder_may_be_divided_into_splits(tmp_path: Path) -> None:
    root = fill(tmp_path / "scans", images(("train", "test"), count=3))
    dataset = opened(root, client="hospital")
    assert counts(dataset) == {"hospital": {"dog": 6, "guitar": 6}}
    assert dataset.layout == "<split>/<class>/<image>, splits test and train"
    assert "or set --client if it is one site's folder" in refusal(root)


def test_splits_may_differ_in_how_accents_are_written(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    files = [f"train/photo/{composed}/1.jpg", f"test/photo/{apart}/1.jpg"]
    dataset = opened(fill(tmp_path / "pets", files))
    assert len(dataset.class_names) == 1
    assert [len(client.images) for client in dataset.clients] == [2]


def test_domains_may_differ_in_whether_they_are_divided(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", images(("photo",)))
    dataset = opened(split_below(root, ("sketch",)))
    assert counts(dataset) == {
        "photo": {"dog": 1, "guitar": 1},
        "sketch": {"dog": 14, "guitar": 14},
    }
    assert dataset.layout.startswith("<domain>/[<split>/]<class>/<image>, splits")


@pytest.mark.parametrize("known", [True, False])
def test_a_loose_image_in_a_split_is_refused_and_not_taken_for_the_dataset(
    tmp_path: Path, known: bool
) -> None:
    root = split_below(tmp_path / "office_home_dg")
    (root / "art" / "train" / "loose.jpg").touch()
    assert refusal("office-home" if known else root, tmp_path) == (
        f"{root}/art/train/loose.jpg: is in the split 'train', but in none of its folders, so its "
        "class is unknown; move it into a class folder, or away"
    )


def test_domains_that_would_be_empty_are_refused_by_name(tmp_path: Path) -> None:
    root = fill(tmp_path / "home", ["art/Bike/1.jpg"])
    for domain in OFFICE_HOME[1:]:
        (root / domain / "Bike").mkdir(parents=True)
    expected = (
        f"{root}: clipart, product and real_world would be empty, without an image laid out "
        "<domain>/<class>/<image>; add the images, or move the folder away"
    )
    assert refusal("office-home", tmp_path) == expected
    assert refusal(root) == expected


def test_a_domain_whose_images_are_in_no_class_folder_is_refused(tmp_path: Path) -> None:
    loose = [f"cartoon/{index}.png" for index in range(2)]
    root = fill(tmp_path / "pets", [*images(("photo", "sketch")), *loose])
    with pytest.raises(FedclipError) as error:
        opened(root)
    assert str(error.value) == (
        f"{root}/cartoon: the domain 'cartoon' would be left out, as its 2 images, such as "
        "cartoon/0.png, are in no class folder (<domain>/<class>/<image>); make class folders, or "
        "move this folder away"
    )


def test_splits_without_any_image_are_refused(tmp_path: Path) -> None:
    for domain in PACS:
        (tmp_path / "PACS" / "train" / domain / "dog").mkdir(parents=True)
    assert refusal("pacs", tmp_path) == (
        f"{tmp_path}/PACS: contains no images laid out <domain>/<class>/<image>; check the folder"
    )


def test_classes_called_like_splits_are_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", images(("photo", "sketch"), ("train", "test")))
    assert counts(opened(root))["photo"] == {"train": 1, "test": 1}
    vehicles = fill(tmp_path / "vehicles", images(("photo", "sketch"), ("bus", "train/set1")))
    assert counts(opened(vehicles))["photo"] == {"bus": 1, "train": 1}


def test_splits_beside_other_folders_are_refused_unless_they_are_chosen(tmp_path: Path) -> None:
    root = fill(split_below(tmp_path / "pets", ("photo", "sketch")), ["photo/extra/1.jpg"])
    assert refusal(root) == (
        f"{root}/photo: has the splits test, train and val beside extra; choose with --split "
        "test+train+val, or move the others away"
    )
    dataset = opened(root, splits=("test", "train", "val"))
    assert counts(dataset)["photo"] == {"dog": 14, "guitar": 14}
    assert dataset.books.ignored == (Ignored("in another split", 1, "photo/extra/1.jpg"),)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("backup_2019", "clean"), None),
        (("PACS", "PACS_old"), None),
        (("PACS", "backup_2019"), "PACS"),
        (("a/PACS", "clean"), "clean"),
    ],
)
def test_two_folders_that_look_like_a_dataset_are_refused_with_both_unless_one_has_its_name(
    tmp_path: Path, names: tuple[str, str], chosen: str | None
) -> None:
    roots = [fill(tmp_path / name, images(PACS, count=n)) for n, name in enumerate(names, 1)]
    if chosen is None:
        assert refusal("pacs", tmp_path) == (
            f"{tmp_path}: {roots[0]} and {roots[1]} all look like pacs; choose one with --dataset, "
            f"such as --dataset {roots[0]}, or with --data-dir"
        )
        assert places_below(tmp_path, "pacs") == roots
    else:
        dataset = open_dataset("pacs", tmp_path)
        assert dataset.root == tmp_path / chosen
        others = [root for root in roots if root.parent == tmp_path and root != dataset.root]
        expected = [
            f"pacs: is taken from {dataset.root} for its name; also in {other}" for other in others
        ]
        assert [line for line in dataset.warnings if "published" not in line] == expected


def test_every_file_is_in_the_books(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "pets",
        [
            *images(("photo", "sketch")),
            "README.txt",
            "photo/labels.csv",
            "photo/dog/Thumbs.db",
            "photo/dog/.DS_Store",
            "photo/overview.png",
            "montage.png",
            ".git/objects/1",
        ],
    )
    os.mkfifo(root / "photo" / "dog" / "pipe.jpg")
    dataset = opened(root)
    assert dataset.books == Books(
        ignored=(
            Ignored("not an image", 3, "README.txt"),
            Ignored("in no class folder", 2, "montage.png"),
            Ignored("hidden", 1, "photo/dog/.DS_Store"),
            Ignored("not a file", 1, "photo/dog/pipe.jpg"),
        ),
        aside=(".git/",),
    )
    assert dataset.books.balance(3, ["is empty"]) == (
        "files      11 seen: 3 taken, 1 skipped (1 is empty), 7 ignored (3 not an image, such as "
        "README.txt; 2 in no class folder, such as montage.png; 1 hidden, such as "
        "photo/dog/.DS_Store; 1 more); not looked into: .git/"
    )


def test_folders_beside_the_domains_of_a_known_dataset_are_named_and_not_looked_into(
    tmp_path: Path,
) -> None:
    root = fill(tmp_path, [*images(PACS), "splits/1.txt", "other/photo/dog/1.jpg", "list.txt"])
    dataset = open_dataset("pacs", root)
    assert dataset.books == Books(
        ignored=(Ignored("not an image", 1, "list.txt"),), aside=("other/", "splits/")
    )


def test_a_class_folder_with_files_but_no_image_is_warned_of(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", [*images(("photo", "sketch"), ("dog",)), "photo/cat/1.npy"])
    assert opened(root).warnings == (f"{root}: photo/cat contains no image",)


def test_folders_of_the_same_names_in_every_class_are_warned_of(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", (f"PACS/{file}" for file in images(PACS)))
    assert opened(root).warnings == (
        f"{root}: art_painting, cartoon, photo and sketch are taken for classes, and all contain "
        "dog and guitar; if these are the classes, pass the folder above them as --dataset",
    )
    (warning,) = opened(root / "PACS", client="hospital").warnings
    assert warning.endswith("pass the folder above them as --dataset, or leave out --client")


def test_a_link_to_a_folder_above_is_not_followed_and_others_are(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", images(("photo",)))
    fill(tmp_path / "elsewhere", ["1.jpg", "2.jpg"])
    (root / "photo" / "dog" / "up").symlink_to(root)
    (root / "photo" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    dataset = opened(root)
    assert counts(dataset) == {"photo": {"dog": 3, "guitar": 1}}
    assert dataset.books == Books(aside=("photo/dog/up/",))


NAMES = st.sampled_from(["photo", "dog", "cat", "train", "test", "set1", ".git"])
FILES = st.sampled_from(["1.jpg", "2.JPG", "notes.txt", ".hidden.png", "none"])
PATHS = st.tuples(st.lists(NAMES, max_size=4), FILES).map(
    lambda path: "/".join([*path[0], path[1]])
)


@given(files=st.sets(PATHS, max_size=12))
@settings(max_examples=60)
def test_books_balance_whatever_the_folder(
    tmp_path_factory: pytest.TempPathFactory, files: set[str]
) -> None:
    root = fill(tmp_path_factory.mktemp("tree") / "pets", sorted(files))
    root.mkdir(exist_ok=True)
    seen = sum(".git" not in Path(file).parts for file in files)
    try:
        dataset = opened(root)
    except FedclipError:
        return
    taken = sum(len(client.images) for client in dataset.clients)
    assert taken + sum(item.count for item in dataset.books.ignored) == seen
