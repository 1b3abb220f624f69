"""Lists of images, CSV or Parquet: taken as they are written, or refused with the line."""

import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedclip.cache import FedclipError
from fedclip.cache.common import limits
from fedclip.extract.datasets.base import FileSource, ImageDataset
from fedclip.extract.datasets.books import Books
from fedclip.extract.datasets.image_lists import open_list

Form = Literal["NFC", "NFD"]
Write = Callable[[Path, Sequence[dict[str, str]]], Path]

ROWS = [
    {"path": "a/2.png", "label": "cat", "client": "Hospital A"},
    {"path": "a/1.png", "label": "big dog", "client": "Hospital A"},
    {"path": "b/1.png", "label": "cat", "client": "clinic"},
    {"path": "b/2.png", "label": "big dog", "client": "clinic"},
]


def write_csv(place: Path, rows: Sequence[dict[str, str]]) -> Path:
    lines = [",".join(rows[0])] + [",".join(row.values()) for row in rows]
    path = place / "scans.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def write_parquet(place: Path, rows: Sequence[dict[str, str]]) -> Path:
    path = place / "scans.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


@pytest.fixture(params=[write_csv, write_parquet])
def write(request: pytest.FixtureRequest) -> Write:
    """Give the function that writes a list, in either format."""
    function: Write = request.param
    return function


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a folder of the images that the lists name."""
    for row in ROWS:
        path = tmp_path / "lists" / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "lists"


def summary(dataset: ImageDataset) -> dict[str, list[tuple[str, str]]]:
    return {
        client.name: [(image.id, dataset.class_names[image.label]) for image in client.images]
        for client in dataset.clients
    }


def refusal(file: Path, data_dir: Path = Path("/nowhere"), client: str | None = None) -> str:
    with pytest.raises(FedclipError) as error:
        open_list(file, data_dir, client=client)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(str(file))
    return message


def test_each_row_is_an_image_of_its_client(place: Path, write: Write) -> None:
    file = write(place, ROWS)
    dataset = open_list(file, Path("/nowhere"))
    assert (dataset.name, dataset.root, dataset.alone) == ("scans", file, False)
    assert dataset.class_names == ("big dog", "cat")
    assert summary(dataset) == {
        "clinic": [("b/1.png", "cat"), ("b/2.png", "big dog")],
        "hospital_a": [("a/1.png", "big dog"), ("a/2.png", "cat")],
    }
    assert dataset.clients[0].images[0].source == FileSource(place / "b/1.png")


def test_without_a_column_of_clients_all_rows_are_the_named_one_s(
    place: Path, write: Write
) -> None:
    file = write(place, [{"label": row["label"], "path": row["path"]} for row in ROWS])
    assert "name the client of all rows with --client" in refusal(file)
    dataset = open_list(file, Path("/nowhere"), client="Hospital A")
    assert dataset.alone
    assert {name: len(images) for name, images in summary(dataset).items()} == {"hospital_a": 4}


def test_paths_are_relative_to_the_folder_named_else_the_list_s_else_the_data_folder(
    place: Path, tmp_path: Path, write: Write
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = write(tmp_path / "elsewhere", ROWS)
    assert "set --dataset to the folder that the paths are relative to" in refusal(file)
    for dataset in (
        open_list(file, place),
        open_list(file, Path("/nowhere"), dataset=str(place)),
        open_list(file, tmp_path, dataset="lists"),
    ):
        assert dataset.clients[0].images[0].source == FileSource(place / "b/1.png")
    assert open_list(file, place).name == "scans"
    assert open_list(file, tmp_path, dataset="lists").name == "lists"
    assert open_list(file, place, name="mine").name == "mine"


@pytest.mark.parametrize(
    ("labels", "class_names", "classes", "understood"),
    [
        (("cat", "dog"), ("cat", "dog"), ("cat", "dog"), None),
        (("0", "1"), ("cat", "dog"), ("cat", "dog"), "class numbers from 0"),
        (("0.0", "1.0"), ("cat", "dog"), ("cat", "dog"), "class numbers from 0"),
        (("0.0", "1.0"), (), ("0", "1"), "integers"),
        (
            ("Cat", "dog"),
            ("cat", "dog"),
            ("cat", "dog"),
            "class names in another spelling ('Cat' as 'cat')",
        ),
    ],
)
def test_labels_are_what_they_plainly_are_and_one_line_says_what(
    place: Path,
    write: Write,
    caplog: pytest.LogCaptureFixture,
    labels: tuple[str, str],
    class_names: tuple[str, ...],
    classes: tuple[str, str],
    understood: str | None,
) -> None:
    number = {"cat": labels[0], "big dog": labels[1]}
    file = write(place, [{**row, "label": number[row["label"]]} for row in ROWS])
    with caplog.at_level(logging.INFO, "fedclip"):
        dataset = open_list(file, Path("/nowhere"), class_names=class_names)
    assert dataset.class_names == classes
    assert summary(dataset)["clinic"] == [("b/1.png", classes[0]), ("b/2.png", classes[1])]
    said = [record.getMessage() for record in caplog.records]
    assert said == ([] if understood is None else [f"labels     read as {understood}"])


def test_numbers_in_a_table_with_gaps_are_integers(place: Path) -> None:
    file = place / "scans.parquet"
    paths, owners = ([row[name] for row in ROWS] for name in ("path", "client"))
    pq.write_table(pa.table({"path": paths, "label": [0.0, 1.0] * 2, "client": owners}), file)
    assert open_list(file, Path("/nowhere")).class_names == ("0", "1")


def test_labels_that_count_from_1_are_refused(place: Path, write: Write) -> None:
    file = write(place, [{**row, "label": str(1 + number % 2)} for number, row in enumerate(ROWS)])
    with pytest.raises(FedclipError) as error:
        open_list(file, Path("/nowhere"), class_names=("cat", "dog"))
    assert str(error.value) == (
        f"{file}: has the label '2', which is neither one of the 2 classes nor the number of one, "
        "from 0; the labels seem to count from 1, so subtract 1 from each"
    )


@pytest.mark.parametrize(("on_disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_is_found_whichever_way_its_accents_are_written(
    tmp_path: Path, write: Write, on_disk: Form, listed: Form
) -> None:
    name = "caf\u00e9/1.png"
    image = tmp_path / unicodedata.normalize(on_disk, name)
    image.parent.mkdir()
    image.touch()
    path, label = (unicodedata.normalize(listed, each) for each in (name, "caf\u00e9"))
    file = write(tmp_path, [{"path": path, "label": label, "client": "U\u0308bung"}])
    dataset = open_list(file, Path("/nowhere"), class_names=("caf\u00e9",))
    assert summary(dataset) == {"\u00fcbung": [(name, "caf\u00e9")]}
    assert dataset.clients[0].images[0].source.read() == b""


@pytest.mark.parametrize("path", ["../lists/a/1.png", "a/../../x.png", "/etc/hosts", "a/.."])
def test_a_path_that_leaves_the_folder_is_refused_with_its_line(
    place: Path, path: str, write: Write
) -> None:
    file = write(place, [*ROWS, {"path": path, "label": "cat", "client": "clinic"}])
    message = refusal(file)
    assert message.split(":")[0] in (f"{file} line 6", f"{file} row 4")
    assert f"{path!r} is outside {place}" in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"path": "a/9.png", "label": "cat", "client": "x"}, "no file 'a/9.png' below"),
        ({"path": "a", "label": "cat", "client": "x"}, "no file 'a' below"),
        ({"path": "a/1.png", "label": "", "client": "x"}, "has no label"),
        ({"path": "a/1.png", "label": "cat", "client": ""}, "has no client"),
        ({"path": "", "label": "cat", "client": "x"}, "has no path"),
        ({"path": "a/./1.png", "label": "cat", "client": "x"}, "is in this list already"),
    ],
)
def test_a_row_that_names_no_image_is_refused_with_its_line(
    place: Path, row: dict[str, str], expected: str, write: Write
) -> None:
    message = refusal(write(place, [*ROWS, row]))
    assert expected in message
    assert "line 6" in message or "row 4" in message


def test_columns_that_are_missing_are_named_beside_those_there_are(
    place: Path, write: Write
) -> None:
    file = write(place, [{"file": "a/1.png", "label": "cat"}])
    assert refusal(file) == (
        f"{file}: lacks the column 'path' (it has file, label); name it with --column path=COLUMN"
    )
    file = write(place, ROWS)
    assert "leave out --client" in refusal(file, client="clinic")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.csv", b"path,label,client\n", "lists no images"),
        ("latin.csv", b"path,label,client\n\xe9,b,c\n", "is not a CSV file in UTF-8"),
        ("long.csv", b"path,label,client\na,b,c,d\n", "has more values than columns"),
        ("quote.csv", b'path,label,client\n"a,b,c\n', "quote.csv line 2: is not a row of a CSV"),
        ("nul.csv", b"path,label,client\nnul.csv,d\0g,c\n", "has a class 'd\\x00g' with a NUL"),
        ("words.parquet", b"words", "is not a Parquet file, or is damaged"),
        ("list.txt", b"a", "is not a list; pass a .csv, .tsv or .parquet file"),
    ],
)
def test_a_file_that_is_no_list_is_refused(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name)


def test_a_list_whose_own_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedclipError, match=r"l\\udcff.csv': this name is not UTF-8; rename it"):
        open_list(tmp_path / os.fsdecode(b"l\xff.csv"), tmp_path)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / "x.csv")
        == f"{tmp_path / 'x.csv'}: file not found; pass a .csv, .tsv or .parquet list"
    )


HEADER, SHORT = "path,label,client", ["a/1.png,cat,x", "a/2.png,dog,x"]


def as_text(header: str = HEADER, separator: str = ",") -> str:
    return "\r\n".join([header, *SHORT, ""]).replace(",", separator)


@pytest.mark.parametrize(
    ("name", "content", "understood"),
    [
        ("a.csv", as_text().encode(), ""),
        ("a.csv", as_text().encode("utf-8-sig"), ""),
        ("a.csv", as_text(separator=";").encode(), "CSV in UTF-8, separated by ';'"),
        ("a.csv", as_text(separator="\t").encode(), "CSV in UTF-8, separated by tabs"),
        ("a.tsv", as_text(separator="\t").encode(), "CSV in UTF-8, separated by tabs"),
        ("a.csv", as_text().encode("utf-16"), "CSV in UTF-16, separated by ','"),
        ("a.csv", as_text().encode("utf-16-le"), "CSV in UTF-16, separated by ','"),
        ("a.csv", as_text().encode("utf-16-be"), "CSV in UTF-16, separated by ','"),
        (
            "a.csv",
            as_text(separator=";").encode("utf-16"),
            "CSV in UTF-16, separated by ';'",
        ),
        (
            "a.csv",
            as_text("Path, LABEL ,Client").encode(),
            "Path as path, LABEL as label and Client as client",
        ),
        (
            "a.csv",
            as_text("filepath,class,domain").encode(),
            "filepath as path, class as label and domain as client",
        ),
        (
            "a.csv",
            as_text("FilePath;Class;Domain", ";").encode("utf-8-sig"),
            "CSV in UTF-8, separated by ';', FilePath as path, Class as label and Domain as client",
        ),
    ],
)
def test_a_list_is_read_as_spreadsheets_save_it_and_says_how_it_was_understood(
    place: Path, name: str, content: bytes, understood: str
) -> None:
    (place / name).write_bytes(content)
    dataset = open_list(place / name, Path("/nowhere"))
    assert summary(dataset) == {"x": [("a/1.png", "cat"), ("a/2.png", "dog")]}
    assert dataset.layout == understood
    assert dataset.books == Books("rows")


def test_a_column_is_named_by_an_option_and_the_unused_ones_are_reported(
    place: Path, write: Write
) -> None:
    rows = [{"file": row["path"], "kind": row["label"], "owner": row["client"]} for row in ROWS]
    file = write(place, [{**row, "age": "7"} for row in rows])
    columns = ("path=File", "label=kind", "client=owner")
    dataset = open_list(file, Path("/nowhere"), columns=columns)
    assert summary(dataset)["clinic"] == [("b/1.png", "cat"), ("b/2.png", "big dog")]
    assert dataset.layout == "file as path, kind as label and owner as client"
    assert dataset.books == Books("rows", aside=("column age",))


@pytest.mark.parametrize(
    ("header", "columns", "expected"),
    [
        (
            "path,label,client",
            ["path=fil"],
            "--column path=fil: unknown column of {file} (it has path, label, client)",
        ),
        ("path,label,client", ["path"], "--column path: must map path, text, label or client to"),
        (
            "path,label,client",
            ["age=path"],
            "--column age=path: must map path, text, label or client to",
        ),
        ("path,label,client", ["path=a", "path=b"], "--column path=b: must map"),
        (
            "filename,filepath,client",
            [],
            "{file}: has several columns for 'path', filepath and filename; choose one with "
            "--column path=filepath, or rename the others",
        ),
        ("Path,path,client", [], "{file}: has several columns for 'path', Path and path;"),
        (
            "path,label,owner",
            [],
            "{file}: has no column 'client' (it has path, label, owner); name it with --column "
            "client=COLUMN, or name the client of all rows with --client",
        ),
        (
            "path|label|client",
            [],
            "{file}: lacks the column 'path' (it has path|label|client); name it with --column "
            "path=COLUMN",
        ),
    ],
)
def test_columns_that_are_not_clear_are_refused_with_the_option_that_names_them(
    place: Path, header: str, columns: list[str], expected: str
) -> None:
    file = place / "list.csv"
    file.write_text(as_text(header))
    with pytest.raises(FedclipError) as error:
        open_list(file, Path("/nowhere"), columns=columns)
    assert str(error.value).startswith(expected.format(file=file))


def test_a_client_for_a_list_that_has_domains_too_is_taken_and_the_column_reported(
    place: Path,
) -> None:
    (place / "list.csv").write_text(as_text("path,label,domain"))
    dataset = open_list(place / "list.csv", Path("/nowhere"), client="mine")
    assert [client.name for client in dataset.clients] == ["mine"]
    assert dataset.books.aside == ("column domain",)


def write_columns(path: Path, **columns: pa.Array) -> Path:
    table = pa.table({"path": ["a"], "label": ["a"], "client": ["a"], **columns})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    return path


def test_a_parquet_list_that_is_damaged_or_not_utf_8_is_named(tmp_path: Path) -> None:
    label = pa.array([b"d\xffg"]).view(pa.string())
    message = refusal(write_columns(tmp_path / "latin.parquet", label=label))
    assert "'utf-8' codec can't decode" in message
    damaged = write_columns(tmp_path / "damaged.parquet")
    content = bytearray(damaged.read_bytes())
    content[4:20] = b"\xff" * 16  # of the first page
    damaged.write_bytes(content)
    assert "is not a Parquet file, or is damaged (" in refusal(damaged)


def test_values_of_a_parquet_list_are_plain_texts_or_missing(place: Path) -> None:
    def write(**columns: object) -> Path:
        given = {"path": ["a/1.png", "a/2.png "], "label": ["x", "y"], "client": ["h", " h"]}
        pq.write_table(pa.table({**given, **columns}), path := place / "list.parquet")
        return path

    dataset = open_list(write(label=[b"dog", b"cat "]), Path("/nowhere"))
    assert dataset.class_names == ("cat", "dog")
    assert [client.name for client in dataset.clients] == ["h"]
    for column in ([["dog"], ["cat"]], [float("nan"), 1.0], [None, "cat"]):
        assert "list.parquet row 0: has no label; fill it in" in refusal(write(label=column))


def test_two_spellings_that_would_be_one_client_are_refused(place: Path, write: Write) -> None:
    path = write(place, [{**row, "client": name} for row, name in zip(ROWS, "ABab", strict=True)])
    assert refusal(path).endswith(
        ": has the client 'a', and a row before has 'A', which would both become 'a'; rename one, "
        "or spell them alike"
    )


def test_a_parquet_list_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "_ALWAYS_FINE", 1 << 20)
    path = write_columns(tmp_path / "bomb.parquet", label=pa.array([bytes(1 << 21)]))
    assert "a row group would unpack" in refusal(path)
