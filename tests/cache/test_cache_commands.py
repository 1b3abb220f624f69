"""The ``fedclip cache`` commands, and what every command says of a damaged file."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fedclip.cache import EncoderFacts, FeatureCache, read_cache
from fedclip.cli import run

MakeFeatures = Callable[..., FeatureCache]
MakeCache = Callable[..., Path]
Fedclip = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and the lines it printed."""

    code: int
    out: list[str]
    err: list[str]

    @property
    def complaint(self) -> str:
        """The one line on standard error of a command that was given bad input."""
        assert self.code == 2
        (line,) = self.err
        assert line.startswith("error: ")
        return line


Run = Callable[..., Outcome]


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Give a function that runs the command line in ``tmp_path`` within this process."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FEDCLIP_")]:
        monkeypatch.delenv(name)

    def run_command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(code, out.splitlines(), err.splitlines())

    return run_command


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Give an archive of 6 rows of unit norm in two domains."""
    path = tmp_path / "features.npz"
    np.savez(
        path,
        image_features=np.eye(6, 8),
        labels=np.arange(6) % 2,
        text_features=np.eye(2, 8),
        class_names=["cat", "dog"],
        domain=["Art", "Photo"] * 3,
        split=np.zeros(6),
    )
    return path


def cells(line: str) -> list[str]:
    return line.split()


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def test_caches_are_listed_with_what_they_hold(
    command: Run, make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    make_cache({"photo": 5, "sketch": 7})
    path = make_cache(
        [make_features(rows=9, width=6, classes="ab", templates=["a {}", "the {}"])], "pets/vit"
    )
    for name in ("tiny/drawn/photo", "tiny/drawn/sketch", "pets/vit/photo"):
        os.utime(path / f"{name}.h5", (1e9, 1e9))
    outcome = command("cache", "ls")
    assert (outcome.code, outcome.err) == (0, [])
    headings, _, *rows = [cells(line) for line in outcome.out if line.strip()]
    assert headings == ["name", "clients", "rows", "width", "classes", "templates", "made", "size"]
    assert [row[:6] for row in rows] == [
        ["pets/vit", "1", "9", "6", "2", "2"],
        ["tiny/drawn", "2", "12", "8", "3", "1"],
    ]
    assert {row[6] for row in rows} <= {"2001-09-08", "2001-09-09"}
    assert rows[1][-1] == "kB"


def test_long_names_are_listed_whole(command: Run, make_cache: MakeCache) -> None:
    name = f"{'d' * 60}/{'v' * 90}"
    make_cache({"photo": 5}, name)
    assert any(line.split()[:1] == [name] for line in command("cache", "ls").out)


def test_where_there_is_no_cache_that_is_said(command: Run) -> None:
    assert command("cache", "ls") == Outcome(0, ["no caches in caches"], [])
    nothing = command("cache", "verify")  # and so a script is not to go on
    assert nothing.complaint == "error: no caches to verify in caches"


def test_the_environment_says_where_caches_are(
    command: Run, make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_cache({"photo": 5}).rename(tmp_path / "elsewhere")
    monkeypatch.setenv("FEDCLIP_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert command("cache", "verify").out == ["tiny/drawn: 1 file is intact"]
    assert command("cache", "ls", "--cache-dir", "caches").out == ["no caches in caches"]


def test_a_cache_is_shown_with_what_made_it(
    command: Run, make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    folder = make_cache({"photo": 5, "sketch": 7}) / "tiny" / "drawn"
    manifest = {"root": "/data/tiny", "clients": {"sketch": {"skipped": [{"id": "x"}]}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    outcome = command("cache", "show", "tiny")
    assert (outcome.code, outcome.err) == (0, [])
    lines = [cells(line) for line in outcome.out]
    for fact in (
        ["cache", "tiny/drawn"],
        ["folder", "caches/tiny/drawn"],
        ["dataset", "tiny"],
        ["from", "/data/tiny"],
        ["image", "key", make_features().key],
        ["text", "key", make_features().text_key],
        ["logit", "scale", "20"],
        ["features", "8", "wide,", "raw"],
        ["templates", "'a", "picture", "of", "a", "{}'"],
        ["classes", "cat,", "dog,", "fish"],
        ["encoder", "library", "test"],
        ["photo", "5", "0"],
        ["sketch", "7", "1"],
    ):
        assert fact in lines


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"imported": 3}',
        '{"imported": null}',
        '{"clients": []}',
        '{"clients": {"photo": []}}',
        '{"clients": {"photo": {"skipped": null}}}',
        '{"clients": {"photo": {"skipped": 3}}}',
    ],
    ids=lambda manifest: manifest[:40],
)
def test_a_cache_is_shown_whatever_its_manifest_says(
    command: Run, make_cache: MakeCache, manifest: str
) -> None:
    folder = make_cache({"photo": 5}) / "tiny" / "drawn"
    (folder / "manifest.json").write_text(manifest)
    outcome = command("cache", "show", "tiny")
    assert (outcome.code, outcome.err) == (0, [])
    assert ["photo", "5", "0"] in [cells(line) for line in outcome.out]


def test_whole_caches_are_verified(command: Run, make_cache: MakeCache) -> None:
    make_cache({"photo": 5, "sketch": 7})
    make_cache({"photo": 5}, "pets/vit")
    assert command("cache", "verify") == Outcome(
        0, ["pets/vit: 1 file is intact", "tiny/drawn: 2 files are intact"], []
    )
    assert command("cache", "verify", "tiny").out == ["tiny/drawn: 2 files are intact"]


def test_every_damaged_file_is_named_when_verified(command: Run, make_cache: MakeCache) -> None:
    make_cache({"photo": 5, "sketch": 7})
    make_cache({"art": 5}, "pets/vit")
    caches = make_cache({"art": 5}, "whole/vit")
    damaged = ["pets/vit/art.h5", "tiny/drawn/photo.h5", "tiny/drawn/sketch.h5"]
    for name in damaged:
        flip(caches / name, 1000)
    outcome = command("cache", "verify")
    assert (outcome.code, outcome.out) == (2, ["whole/vit: 1 file is intact"])
    assert [line.split(": ")[:2] for line in outcome.err] == [
        ["error", f"caches/{name}"] for name in damaged
    ]


def test_a_damaged_cache_is_listed_beside_whole_ones(command: Run, make_cache: MakeCache) -> None:
    make_cache({"photo": 5}, "pets/vit")
    caches = make_cache({"photo": 5, "sketch": 7})
    flip(caches / "tiny" / "drawn" / "photo.h5", 1000)
    outcome = command("cache", "ls")
    assert "caches/tiny/drawn/photo.h5: is truncated or altered" in outcome.complaint
    rows = [cells(line) for line in outcome.out if "/" in line]
    assert [(row[0], row[-1]) for row in rows] == [
        ("pets/vit", "intact"),
        ("tiny/drawn", "damaged"),
    ]


COMMANDS = {
    "ls": ["cache", "ls"],
    "show": ["cache", "show", "tiny"],
    "verify": ["cache", "verify"],
    "federate": ["federate", "--rounds", "1"],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    "place",
    {
        "the first byte": lambda size: 0,
        "the version": lambda size: 12,
        "the hash": lambda size: 20,
        "a zero of the block": lambda size: 300,
        "the last byte of the block": lambda size: 511,
        "the first byte of HDF5": lambda size: 512,
        "the middle": lambda size: size // 2,
        "the last byte": lambda size: size - 1,
    }.items(),
    ids=lambda place: place[0],
)
def test_one_changed_byte_is_one_line_that_names_the_file(
    command: Run,
    make_cache: MakeCache,
    arguments: list[str],
    place: tuple[str, Callable[[int], int]],
) -> None:
    path = make_cache({"art": 5, "photo": 5, "sketch": 5}) / "tiny" / "drawn" / "photo.h5"
    flip(path, place[1](path.stat().st_size))
    outcome = command(*arguments, "--cache-dir", path.parents[2])
    assert f"error: {path}: " in outcome.complaint
    assert not (path.parents[3] / "runs").exists()


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("length", [0, 100, 512, 5000])
def test_a_file_cut_short_is_one_line_that_names_it(
    command: Run, make_cache: MakeCache, arguments: list[str], length: int
) -> None:
    path = make_cache({"photo": 5}) / "tiny" / "drawn" / "photo.h5"
    os.truncate(path, length)
    assert "error: caches/tiny/drawn/photo.h5: " in command(*arguments).complaint


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_clients_of_different_encoders_are_one_line_that_names_both(
    command: Run, make_cache: MakeCache, make_features: MakeFeatures, arguments: list[str]
) -> None:
    make_cache(
        [
            make_features("art"),
            make_features("photo", encoder=EncoderFacts(shared={"library": "other"})),
        ]
    )
    complaint = command(*arguments).complaint
    assert "caches/tiny/drawn/art.h5 and caches/tiny/drawn/photo.h5" in complaint
    assert "(library)" in complaint


def test_a_user_sees_one_line_for_a_damaged_file(fedclip: Fedclip, make_cache: MakeCache) -> None:
    path = make_cache({"photo": 5}) / "tiny" / "drawn" / "photo.h5"
    flip(path, 700)
    result = fedclip("cache", "verify", "tiny")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: caches/tiny/drawn/photo.h5: is truncated or altered: its bytes do not match its "
        "SHA-256; remove the cache (fedclip cache rm) or restore an intact copy\n"
    )


@pytest.mark.parametrize("subcommand", ["show", "verify", "rm"])
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("none", "unknown cache 'none' in caches; choose pets/a or pets/b"),
        ("pets", "cache 'pets' is ambiguous; choose pets/a or pets/b"),
        ("../pets", "unknown cache '../pets' in caches; choose pets/a or pets/b"),
    ],
)
def test_a_name_that_means_no_one_cache_is_one_line(
    command: Run, make_cache: MakeCache, subcommand: str, name: str, complaint: str
) -> None:
    make_cache({"photo": 5}, "pets/a")
    make_cache({"photo": 5}, "pets/b")
    assert complaint in command("cache", subcommand, name).complaint


def test_a_removed_cache_is_named_and_others_stay(command: Run, make_cache: MakeCache) -> None:
    make_cache({"photo": 5}, "pets/a")
    caches = make_cache({"photo": 5, "sketch": 5}, "pets/b")
    outcome = command("cache", "rm", "pets/b")
    assert (outcome.code, outcome.err) == (0, [])
    assert re.fullmatch(r"removed pets/b \(\d+\.\d kB\)", outcome.out[0])
    assert [path.name for path in sorted(caches.rglob("*"))] == ["pets", "a", "photo.h5"]


def test_a_damaged_cache_can_be_removed(command: Run, make_cache: MakeCache) -> None:
    caches = make_cache({"photo": 5})
    flip(caches / "tiny" / "drawn" / "photo.h5", 0)
    assert command("cache", "rm", "tiny").code == 0
    assert list(caches.iterdir()) == []


def test_an_empty_name_removes_nothing(command: Run, make_cache: MakeCache) -> None:
    path = make_cache({"photo": 5}) / "tiny" / "drawn" / "photo.h5"
    assert command("cache", "rm", "").complaint
    assert path.is_file()


def test_an_import_says_what_it_made(command: Run, archive: Path, tmp_path: Path) -> None:
    outcome = command("cache", "import", archive, "--name", "pets")
    assert (outcome.code, outcome.err) == (0, [])
    (path,) = (tmp_path / "caches" / "pets").iterdir()
    assert ["art", "3"] in [cells(line) for line in outcome.out]
    assert ["photo", "3"] in [cells(line) for line in outcome.out]
    assert outcome.out[-3:] == [
        f"cache      pets/{path.name}: 6 rows of 8 features (unit norm), 2 classes, "
        "logit scale 100",
        "understood labels as class numbers from 0, 2 of 2 classes have rows",
        "ignored    split (unknown arrays)",
    ]
    assert read_cache(path / "art.h5").ids == ("0", "2", "4")
    shown = [cells(line) for line in command("cache", "show", "pets").out]
    assert ["from", str(archive)] in shown
    assert ["features", "8", "wide,", "unit", "norm"] in shown


def test_an_import_is_listed_verified_and_removed(command: Run, archive: Path) -> None:
    command("cache", "import", archive, "--name", "pets")
    assert command("cache", "verify", "pets").out[0].endswith(": 2 files are intact")
    assert (
        sum(line.strip().startswith("pets/imported-") for line in command("cache", "ls").out) == 1
    )
    assert command("cache", "rm", "pets").code == 0
    assert command("cache", "ls").out == ["no caches in caches"]


def test_an_import_of_a_name_that_exists_is_one_line(command: Run, archive: Path) -> None:
    command("cache", "import", archive, "--name", "pets")
    complaint = command("cache", "import", archive, "--name", "pets").complaint
    assert complaint == (
        "error: --name pets: a cache of this name exists in caches; remove it (fedclip cache rm "
        "pets) or choose another name"
    )


@pytest.mark.parametrize("name", ["../x", "/x", ".x", "", "a/b"])
def test_an_import_under_an_unsafe_name_is_one_line(
    command: Run, archive: Path, tmp_path: Path, name: str
) -> None:
    assert f"cache {name!r} cannot" in command("cache", "import", archive, "--name", name).complaint
    assert list(tmp_path.iterdir()) == [archive]


def test_an_import_without_a_name_is_one_line(command: Run, archive: Path, tmp_path: Path) -> None:
    assert "--name: is missing" in command("cache", "import", archive).complaint
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("file", ["none.npz", "."])
def test_an_import_of_no_file_is_one_line(command: Run, tmp_path: Path, file: str) -> None:
    assert f"error: {file}: " in command("cache", "import", file, "--name", "x").complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name themselves")
def test_an_import_of_a_file_whose_name_is_not_utf_8_is_one_line(
    command: Run, archive: Path, tmp_path: Path
) -> None:
    odd = archive.rename(tmp_path / os.fsdecode(b"n\xff.npz"))
    assert "this name is not UTF-8" in command("cache", "import", odd, "--name", "x").complaint
    assert list(tmp_path.iterdir()) == [odd]


@pytest.mark.parametrize("value", [1e300, np.nan], ids=str)
def test_a_user_sees_one_line_for_an_archive_that_cannot_be_used(
    fedclip: Fedclip, tmp_path: Path, value: float
) -> None:
    path = tmp_path / "features.npz"
    np.savez(path, image_features=[[value, 1]], labels=[0], text_features=[[1.0, 1]])
    result = fedclip("cache", "import", path, "--name", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {path}: has NaN or Inf in the image features")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_two_caches_differ_in_the_facts_that_are_named(
    command: Run, make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    encoder = EncoderFacts(shared={"library": "test"}, about={"model": "drawn", "parameters": 5})
    make_cache([make_features("photo", encoder=encoder)], "pets/a")
    other = EncoderFacts(
        shared={"library": "test", "precision": "bf16"}, about={"model": "called otherwise"}
    )
    make_cache([make_features("photo", 7, encoder=other, templates=("a {}",))], "pets/b")
    assert command("cache", "diff", "pets/a", "pets/b").out == [
        "what               pets/a             pets/b",
        "────────────────────────────────────────────",
        "encoder precision  -                  bf16",
        "templates          a picture of a {}  a {}",
        "rows of photo      20                 7",
    ]
    assert json.loads(
        "".join(command("cache", "diff", "pets/a", "pets/b", "--format", "json").out)
    ) == [
        {"what": "encoder precision", "pets/a": None, "pets/b": "bf16"},
        {"what": "templates", "pets/a": ["a picture of a {}"], "pets/b": ["a {}"]},
        {"what": "rows of photo", "pets/a": 20, "pets/b": 7},
    ]


def test_a_cache_does_not_differ_from_itself(command: Run, make_cache: MakeCache) -> None:
    make_cache({"photo": 5})
    assert command("cache", "diff", "tiny", "tiny/drawn").out == [
        "same clients, classes and templates, and comparable features"
    ]
