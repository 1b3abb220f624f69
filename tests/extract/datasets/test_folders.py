"""Datasets on disk: found in the layouts they are distributed in, or refused in one line."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from fedclip.cache import FedclipError
from fedclip.extract.datasets.base import FileSource, ImageDataset
from fedclip.extract.datasets.folders import open_dataset, places_below
from fedclip.extract.datasets.registry import KNOWN

PACS = ("art_painting", "cartoon", "photo", "sketch")
PACS_CLASSES = ("dog", "guitar")
VLCS_CLASSES = ("bird", "car", "chair", "dog", "person")


def fill(root: Path, files: Iterable[str]) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def images(domains: Sequence[str], classes: Sequence[str]) -> list[str]:
    return [f"{domain}/{name}/1.jpg" for domain in domains for name in classes]


def client_names(dataset: ImageDataset) -> list[str]:
    return [client.name for client in dataset.clients]


def ids(dataset: ImageDataset, client: str) -> list[str]:
    return [image.id for each in dataset.clients if each.name == client for image in each.images]


def one_line(error: pytest.ExceptionInfo[FedclipError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("known", "domains"),
    [
        ("office-home", ("Art", "Clipart", "Product", "Real World", "RealWorld")),
        ("vlcs", ("CALTECH", "Caltech101", "LABELME", "PASCAL", "SUN")),
    ],
)
def test_a_domain_that_is_there_twice_is_refused_with_both_folders(
    tmp_path: Path, known: str, domains: tuple[str, ...]
) -> None:
    fill(tmp_path, images(domains, ("bird", "dog")))
    with pytest.raises(FedclipError) as error:
        open_dataset(known, tmp_path)
    one, two = (domains[0], domains[1]) if known == "vlcs" else (domains[3], domains[4])
    assert f"{one} and {two} would both become the client" in one_line(error)


def test_a_relative_data_folder_and_a_linked_data_set_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "elsewhere", images(PACS, PACS_CLASSES))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PACS").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    dataset = open_dataset("pacs", Path("data"))
    assert dataset.root == tmp_path / "data" / "PACS"
    assert ids(dataset, "photo") == ["photo/dog/1.jpg", "photo/guitar/1.jpg"]


@pytest.mark.parametrize("real_world", ["Real World", "Real_World", "RealWorld"])
def test_office_home_is_found_however_real_world_is_spelled(
    tmp_path: Path, real_world: str
) -> None:
    root = fill(
        tmp_path / "OfficeHome",
        images(("Art", "Clipart", "Product", real_world), ("Alarm_Clock", "Bike")),
    )
    dataset = open_dataset("office-home", tmp_path)
    assert dataset.name == "office-home"
    assert dataset.root == root
    assert client_names(dataset) == ["art", "clipart", "product", "real_world"]
    assert dataset.class_names == ("Alarm_Clock", "Bike")
    assert ids(dataset, "real_world") == [
        f"{real_world}/Alarm_Clock/1.jpg",
        f"{real_world}/Bike/1.jpg",
    ]


@pytest.mark.parametrize("place", ["", "PACS", "PACS/kfold", "a/b/c"])
def test_pacs_is_found_at_the_data_folder_and_up_to_three_levels_below(
    tmp_path: Path, place: str
) -> None:
    root = fill(tmp_path / place, images(PACS, PACS_CLASSES))
    dataset = open_dataset("pacs", tmp_path)
    assert dataset.root == root
    assert client_names(dataset) == list(PACS)
    assert dataset.class_names == PACS_CLASSES
    assert ids(dataset, "sketch") == ["sketch/dog/1.jpg", "sketch/guitar/1.jpg"]


def test_a_data_set_four_levels_below_is_not_found(tmp_path: Path) -> None:
    fill(tmp_path / "a/b/c/d", images(PACS, PACS_CLASSES))
    with pytest.raises(FedclipError, match="pacs was not found in this folder") as error:
        open_dataset("pacs", tmp_path)
    assert "--data-dir" in one_line(error)
    assert "art_painting, cartoon, photo, sketch" in str(error.value)


def test_the_nearest_of_two_copies_is_taken_and_among_equals_the_one_of_its_name(
    tmp_path: Path,
) -> None:
    fill(tmp_path / "a/deeper", images(PACS, PACS_CLASSES))
    fill(tmp_path / "copy", images(PACS, PACS_CLASSES))
    assert open_dataset("pacs", tmp_path).root == tmp_path / "copy"
    fill(tmp_path / "my_PACS", images(PACS, PACS_CLASSES))
    assert open_dataset("pacs", tmp_path).root == tmp_path / "my_PACS"


def test_hidden_folders_are_not_searched(tmp_path: Path) -> None:
    fill(tmp_path / ".trash", images(PACS, PACS_CLASSES))
    with pytest.raises(FedclipError, match="was not found in this folder"):
        open_dataset("pacs", tmp_path)


def vlcs_labels(dataset: ImageDataset) -> dict[str, str]:
    return {
        image.id: dataset.class_names[image.label]
        for client in dataset.clients
        for image in client.images
    }


def test_vlcs_joins_its_splits_and_names_its_numbered_classes(tmp_path: Path) -> None:
    domains = ("CALTECH", "LABELME", "PASCAL", "SUN")
    files = [
        f"{domain}/{split}/{number}/{split}.jpg"
        for domain in domains
        for split in ("train", "crossval", "test")
        for number in range(5)
    ]
    fill(tmp_path / "VLCS", files)
    dataset = open_dataset("vlcs", tmp_path)
    assert client_names(dataset) == ["caltech", "labelme", "pascal", "sun"]
    assert dataset.class_names == VLCS_CLASSES
    assert vlcs_labels(dataset) == {file: VLCS_CLASSES[int(file.split("/")[2])] for file in files}


def test_vlcs_with_the_whole_only_takes_the_whole(tmp_path: Path) -> None:
    files = [
        f"{domain}/full/{number}/1.jpg"
        for domain in ("CALTECH", "LABELME", "PASCAL", "SUN")
        for number in range(5)
    ]
    fill(tmp_path, files)
    dataset = open_dataset("vlcs", tmp_path)
    assert vlcs_labels(dataset) == {file: VLCS_CLASSES[int(file.split("/")[2])] for file in files}


def test_vlcs_takes_the_splits_where_the_whole_is_beside_them(tmp_path: Path) -> None:
    for split in ("full", "train", "test"):
        fill(
            tmp_path,
            (
                f"{domain}/{split}/{number}/{split}.jpg"
                for domain in ("CALTECH", "LABELME", "PASCAL", "SUN")
                for number in range(5)
            ),
        )
    dataset = open_dataset("vlcs", tmp_path)
    assert ids(dataset, "sun") == [
        f"SUN/{split}/{number}/{split}.jpg" for split in ("test", "train") for number in range(5)
    ]


def test_vlcs_is_found_as_domainbed_names_it(tmp_path: Path) -> None:
    fill(tmp_path, images(("Caltech101", "LabelMe", "SUN09", "VOC2007"), VLCS_CLASSES))
    dataset = open_dataset("vlcs", tmp_path)
    assert client_names(dataset) == ["caltech", "labelme", "pascal", "sun"]
    assert dataset.class_names == VLCS_CLASSES
    assert ids(dataset, "pascal") == [f"VOC2007/{name}/1.jpg" for name in VLCS_CLASSES]


def test_the_published_sizes_add_up() -> None:
    for known in KNOWN.values():
        sizes = [domain.size for domain in known.domains if domain.size is not None]
        assert sum(sizes) == known.size or not sizes
    images = {name: known.size for name, known in KNOWN.items()}
    assert images == {
        "office-home": 15588,
        "pacs": 9991,
        "vlcs": 10729,
        "domainnet": 586575,
        "ag-news": 127600,
        "20newsgroups": 18846,
        "amazon-reviews": None,
        "demo": 1200,
    }


def test_where_only_the_whole_was_counted_the_whole_is_compared(tmp_path: Path) -> None:
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    fill(tmp_path, images(domains, ("axe", "zebra")))
    dataset = open_dataset("domainnet", tmp_path)
    assert dataset.warnings == ("domainnet: has 12 images here, but 586575 as published",)


def test_each_domain_of_another_size_than_published_is_warned_of_once(tmp_path: Path) -> None:
    sizes = {"art_painting": 2048, "cartoon": 2344, "photo": 1669, "sketch": 3930}
    for domain, size in sizes.items():
        folder = tmp_path / domain / "dog"
        folder.mkdir(parents=True)
        for index in range(size):
            (folder / f"{index}.jpg").touch()
    assert open_dataset("pacs", tmp_path).warnings == (
        "pacs: photo has 1669 images here, but 1670 as published",
        "pacs: sketch has 3930 images here, but 3929 as published",
    )


def test_a_published_domain_without_an_image_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    fill(tmp_path, images(PACS[:3], PACS_CLASSES))
    (tmp_path / "sketch" / "dog").mkdir(parents=True)
    try:
        told = "\n".join(open_dataset("pacs", tmp_path).warnings)
    except FedclipError as error:
        told = str(error)
    assert "sketch" in told


def test_a_folder_is_not_compared_with_what_was_published(tmp_path: Path) -> None:
    root = fill(tmp_path / "pacs", images(PACS, PACS_CLASSES))
    assert open_dataset(str(root), tmp_path).warnings == ()


@pytest.mark.parametrize("relative_to", ["data folder", "working folder", "root"])
def test_any_folder_of_domains_is_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative_to: str
) -> None:
    root = fill(tmp_path / "My Pets", images(("Photo", "Pencil Sketch"), ("cat", "big_dog")))
    if relative_to == "working folder":
        monkeypatch.chdir(tmp_path)
    asked = str(root) if relative_to == "root" else "My Pets"
    data_dir = tmp_path if relative_to == "data folder" else tmp_path / "elsewhere"
    dataset = open_dataset(asked, data_dir)
    assert dataset.name == "my-pets"
    assert dataset.root == root
    assert client_names(dataset) == ["pencil_sketch", "photo"]
    assert dataset.class_names == ("big_dog", "cat")
    assert [(image.id, image.source, image.label) for image in dataset.clients[1].images] == [
        ("Photo/big_dog/1.jpg", FileSource(root / "Photo/big_dog/1.jpg"), 0),
        ("Photo/cat/1.jpg", FileSource(root / "Photo/cat/1.jpg"), 1),
    ]


def test_a_data_set_is_filed_under_the_name_it_is_given(tmp_path: Path) -> None:
    fill(tmp_path / "pets", images(("photo",), ("cat",)))
    assert open_dataset("pets", tmp_path, "my.pets-2").name == "my.pets-2"
    fill(tmp_path / "pacs", images(PACS, PACS_CLASSES))
    assert open_dataset("pacs", tmp_path, "pacs_small").name == "pacs_small"


def test_rows_are_sorted_by_id_across_classes(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "pets",
        ["photo/b/10.png", "photo/b/9.png", "photo/B/1.png", "photo/a b/1.png", "photo/a/2.png"],
    )
    dataset = open_dataset(str(root), tmp_path)
    assert dataset.class_names == ("B", "a", "a b", "b")
    assert [(image.id, image.label) for image in dataset.clients[0].images] == [
        ("photo/B/1.png", 0),
        ("photo/a b/1.png", 2),
        ("photo/a/2.png", 1),
        ("photo/b/10.png", 3),
        ("photo/b/9.png", 3),
    ]


@pytest.mark.parametrize(
    "name",
    ["1.bmp", "1.gif", "1.jpeg", "1.JPG", "1.Png", "1.ppm", "1.tif", "1.tiff", "1.webp", "é ü.png"],
)
def test_an_image_is_known_by_its_suffix_in_either_case(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "pets", [f"photo/cat/{name}"])
    assert ids(open_dataset(str(root), tmp_path), "photo") == [f"photo/cat/{name}"]


@pytest.mark.parametrize(
    "clutter",
    [
        "photo/cat/.hidden.png",
        "photo/cat/._1.png",
        "photo/cat/Thumbs.db",
        "photo/cat/notes.txt",
        "photo/cat/no_suffix",
        "photo/cat/folder.png/1.txt",
        "photo/list.png",
        "photo/.cache/1.png",
        ".git/objects/1.png",
        "logs/today/log.txt",
        "README.md",
        "overview.png",
    ],
)
def test_what_is_no_image_of_a_class_is_ignored(tmp_path: Path, clutter: str) -> None:
    root = fill(tmp_path / "pets", [*images(("photo", "sketch"), ("cat", "dog")), clutter])
    dataset = open_dataset(str(root), tmp_path)
    assert client_names(dataset) == ["photo", "sketch"]
    assert dataset.class_names == ("cat", "dog")
    assert ids(dataset, "photo") == ["photo/cat/1.jpg", "photo/dog/1.jpg"]


@pytest.mark.parametrize("where", [("photo",), ("photo", "sketch")])
def test_a_folder_without_an_image_in_any_domain_is_no_class(
    tmp_path: Path, where: tuple[str, ...]
) -> None:
    root = fill(tmp_path / "pets", images(("photo", "sketch"), ("cat", "dog")))
    for domain in where:
        (root / domain / "notes").mkdir()
    assert open_dataset(str(root), tmp_path).class_names == ("cat", "dog")


def test_a_class_may_be_empty_in_one_domain_if_its_folder_is_there(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", [*images(("photo", "sketch"), ("cat",)), "photo/dog/1.jpg"])
    (root / "sketch" / "dog").mkdir()
    dataset = open_dataset(str(root), tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert ids(dataset, "sketch") == ["sketch/cat/1.jpg"]


def test_domains_that_differ_in_classes_are_refused_with_what_each_lacks(tmp_path: Path) -> None:
    root = fill(
        tmp_path / "pets",
        [
            *images(("art",), ("cat", "dog", "fish")),
            *images(("photo",), ("cat", "dog")),
            *images(("sketch",), ("cat",)),
        ],
    )
    with pytest.raises(FedclipError) as error:
        open_dataset(str(root), tmp_path)
    assert one_line(error) == (
        f"{root}: all domains must have the same classes, but photo lacks fish; "
        "sketch lacks dog, fish; add or rename them, or list all classes with --class-names"
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "; check the folder"),
        (["photo/cat/notes.md"], "; check the folder"),
        (
            ["photo/1.png", "sketch/2.png"],
            ", but 2 images elsewhere, such as photo/1.png; choose another folder, or set --client "
            "if it is one site's folder <class>/<image>",
        ),
        (
            ["1.png"],
            ", but 1 image elsewhere, such as 1.png; choose another folder, or set --client if it "
            "is one site's folder <class>/<image>",
        ),
    ],
)
def test_a_folder_without_images_in_class_folders_is_refused(
    tmp_path: Path, files: list[str], expected: str
) -> None:
    root = fill(tmp_path / "pets", files)
    root.mkdir(exist_ok=True)
    with pytest.raises(FedclipError) as error:
        open_dataset(str(root), tmp_path)
    assert one_line(error) == (
        f"{root}: contains no images laid out <domain>/<class>/<image>{expected}"
    )


@pytest.mark.parametrize("dataset", ["pets", "pets/photo", "", "~nobody-of-this-name/pets"])
def test_a_data_set_that_is_not_there_is_refused_with_the_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    fill(tmp_path, images(("photo",), ("cat",)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedclipError) as error:
        open_dataset(dataset, tmp_path / "data")
    assert one_line(error).startswith(f"unknown dataset or folder {dataset!r}; ")
    assert "choose office-home, pacs, vlcs" in str(error.value)


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_data_folder_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "data").touch()
    with pytest.raises(
        FedclipError, match="folder not found, so pacs cannot be looked for"
    ) as error:
        open_dataset("pacs", tmp_path / "data")
    assert str(tmp_path / "data") in one_line(error)
    assert "--data-dir" in str(error.value)


@pytest.mark.parametrize("name", ["..", "a/b", ".hidden", "a b", "-x", "a\nb", "x" * 201])
def test_a_name_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path / "pets", images(("photo",), ("cat",)))
    with pytest.raises(FedclipError, match="cannot name a file") as error:
        open_dataset(str(root), tmp_path, name)
    assert one_line(error).startswith(f"dataset {name!r}")


@pytest.mark.parametrize(
    "domain",
    ["photo:1", "-photo", "(photo)", "_photo", "फ\u093cोटो", "東京", "Real World (old)", "x" * 250],
)
def test_a_domain_with_any_name_takes_part(tmp_path: Path, domain: str) -> None:
    root = fill(tmp_path / "pets", images((domain, "sketch"), ("cat",)))
    assert set(client_names(open_dataset(str(root), tmp_path))) == {domain, "sketch"}


@pytest.mark.parametrize("domain", ["photo\n2", "-_-"])
def test_a_domain_without_a_name_on_one_line_is_refused(tmp_path: Path, domain: str) -> None:
    root = fill(tmp_path / "pets", images((domain, "sketch"), ("cat",)))
    with pytest.raises(FedclipError, match="; rename it") as error:
        open_dataset(str(root), tmp_path)
    assert one_line(error).startswith(f"domain {domain!r}")


COMPOSED, APART = "caf\u00e9", "cafe\u0301"


def test_accents_written_in_either_way_are_one_name(tmp_path: Path) -> None:
    files = [f"{APART}/{COMPOSED}/1.jpg", f"photo/{APART}/{APART}.jpg"]
    root = fill(tmp_path / APART, files)
    for class_names in ((), (COMPOSED,), (APART,)):
        dataset = open_dataset(str(root), tmp_path, class_names=class_names)
        assert dataset.name == COMPOSED
        assert client_names(dataset) == [COMPOSED, "photo"]
        assert dataset.class_names == (COMPOSED,)
        assert ids(dataset, "photo") == [f"photo/{COMPOSED}/{COMPOSED}.jpg"]
        assert dataset.clients[1].images[0].source == FileSource(root / files[1])
    site = open_dataset(str(root / "photo"), tmp_path, client=APART)
    assert client_names(site) == [COMPOSED]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take the names for one")
@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            [f"photo/{COMPOSED}/1.jpg", f"photo/{APART}/2.jpg"],
            "photo has the classes 'cafe\\u0301' and 'caf\\xe9', which are both 'caf\u00e9'; "
            "merge them into one folder, or remove the copy",
        ),
        (
            [f"{COMPOSED}/cat/1.jpg", f"{APART}/cat/1.jpg"],
            "two domains would both become the client 'caf\u00e9'; rename one",
        ),
        (
            [f"photo/cat/{COMPOSED}.jpg", f"photo/cat/{APART}.jpg"],
            "which have one name; rename one, or remove the copy",
        ),
    ],
)
def test_two_names_in_one_place_that_differ_only_in_how_accents_are_written_are_refused(
    tmp_path: Path, files: list[str], complaint: str
) -> None:
    root = fill(tmp_path / "pets", files)
    with pytest.raises(FedclipError) as error:
        open_dataset(str(root), tmp_path)
    assert complaint in one_line(error)


def test_classes_that_differ_in_spelling_are_matched_warned_of_or_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", ["photo/Dog/1.jpg", "photo/cat/1.jpg", "sketch/dog/1.jpg"])
    with pytest.raises(FedclipError) as error:
        open_dataset(str(root), tmp_path)
    assert "photo lacks dog; sketch lacks Dog, cat ('Dog' and 'dog' differ only in spelling)" in (
        one_line(error)
    )
    dataset = open_dataset(str(root), tmp_path, class_names=("dog", "cat"))
    assert [image.label for image in dataset.clients[0].images] == [0, 1]
    assert dataset.warnings == ("images of 'Dog' are taken as 'dog', as --class-names spells it",)
    fill(root, ["photo/dog/2.jpg", "sketch/Dog/1.jpg", "sketch/cat/1.jpg"])
    dataset = open_dataset(str(root), tmp_path)
    assert dataset.class_names == ("Dog", "cat", "dog")
    assert dataset.warnings == (
        "the classes 'Dog' and 'dog' differ only in case, spaces or underscores; encoders such as "
        "CLIP do not tell them apart, so merge them if they are one class",
    )


@pytest.mark.parametrize(("one", "other"), [("Photo", "photo"), ("my photo", "my_photo")])
def test_two_domains_that_would_be_one_client_are_refused(
    tmp_path: Path, one: str, other: str
) -> None:
    root = fill(tmp_path / "pets", images((one, other), ("cat",)))
    with pytest.raises(FedclipError) as error:
        open_dataset(str(root), tmp_path)
    client = other.replace(" ", "_")
    assert (
        one_line(error)
        == f"{root}: two domains would both become the client {client!r}; rename one"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name themselves")
@pytest.mark.parametrize("part", range(3))
def test_a_name_that_is_not_utf_8_is_refused_and_shown_escaped(tmp_path: Path, part: int) -> None:
    names = [b"photo", b"cat", b"1.png"]
    names[part] = b"caf\xe9" + names[part]
    root = fill(tmp_path / "pets", [os.fsdecode(b"/".join(names))])
    with pytest.raises(FedclipError) as error:
        open_dataset(str(root), tmp_path)
    assert "\\udce9" in one_line(error)
    one_line(error).encode()


def test_a_folder_that_may_not_be_read_is_passed_over_in_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "lost+found"
    closed.mkdir()
    fill(tmp_path / "PACS" / "kfold", images(PACS, PACS_CLASSES))
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:  # as for one who is not root
        if folder in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return iter(listed(folder))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    refused = {closed}
    assert open_dataset("pacs", tmp_path).root == tmp_path / "PACS" / "kfold"
    assert places_below(tmp_path, "office-home") == []
    refused = {tmp_path}  # that one should be read
    with pytest.raises(PermissionError):
        places_below(tmp_path, "office-home")
