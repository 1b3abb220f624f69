"""`fedclip extract` as a user meets it: its output, its exit codes, its one-line errors."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedclip.cache import read_cache
from fedclip.cache.common.files import replacing
from fedclip.cli import run
from fedclip.extract.encoders.openclip import OpenClipEncoder
from fedclip.extract.encoders.prompts import templates_of

MakeImages = Callable[..., Path]
Fedclip = Callable[..., subprocess.CompletedProcess[str]]
Command = Callable[..., int]


@pytest.fixture
def extract(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Give a function that runs the command in this process and in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    for variable in ("FEDCLIP_CACHE_DIR", "FEDCLIP_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)

    def call(*arguments: object) -> int:
        model = () if "--model" in arguments else ("--model", f"local-dir:{tiny_clip}")
        defaults = (*model, "--device", "cpu", "--workers", "0")
        return run(["extract", *defaults, *map(str, arguments)])

    return call


def only_error(text: str) -> str:
    """Give the one line of `text` that is an error; it is the last."""
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert "Traceback" not in text
    return lines[-1]


def cache_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.h5")}


def table_rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if re.match(r"\w+ +\d+ +\d+ +\d+$", line)]


def test_the_summary_says_what_was_encoded_and_where_it_lies(
    extract: Command,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_images()
    (root / "photo" / "cat" / "01.png").write_bytes(b"")
    assert extract("--dataset", root) == 0
    output = capsys.readouterr().out
    (folder,) = (tmp_path / "caches" / "pets").iterdir()
    assert table_rows(output) == [["photo", "5", "5", "1"], ["sketch", "6", "6", "0"]]
    assert "skipped    photo/cat/01.png: is empty\n" in output
    assert (
        f"cache      pets/{folder.name}: 2 files, 11 rows of 16 features, 2 classes, 1 skipped\n"
    ) in output
    assert re.search(
        r"^encoded    11 images and 2 prompts in \d+\.\d s \(\d+\.\d images/s\)$", output, re.M
    )
    assert extract("--dataset", root) == 0
    output = capsys.readouterr().out
    assert table_rows(output) == [["photo", "5", "0", "1"], ["sketch", "6", "0", "0"]]
    assert "skipped    photo/cat/01.png: is empty\n" in output
    assert output.endswith(
        "encoded    nothing: the cache is up to date\n"
        "files      12 seen: 11 taken, 1 skipped (1 is empty), 0 ignored\n"
    )
    (root / "photo" / "cat" / "01.png").unlink()
    assert extract("--dataset", root) == 0
    output = capsys.readouterr().out
    assert table_rows(output) == [["photo", "5", "0", "0"], ["sketch", "6", "0", "0"]]
    assert output.endswith(
        "encoded    nothing: the files were rewritten from vectors in the cache\n"
        "files      11 seen: 11 taken, 0 skipped, 0 ignored\n"
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [10**8, 10**16])
def test_a_batch_that_there_is_no_memory_for_is_one_line_and_its_size_is_not_kept(
    extract: Command,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    workers: int,
    size: int,
) -> None:
    root = make_images()
    arguments = ("--dataset", root, "--workers", workers)
    assert extract(*arguments, "--batch-size", size) == 2
    assert only_error(capsys.readouterr().err) == (
        f"error: --batch-size {size}: needs more memory than is available; use a smaller one, with "
        "--force if the cache was started with this one"
    )
    assert extract(*arguments, "--batch-size", 8) == 0
    (file,) = tmp_path.glob("caches/*/*/manifest.json")
    assert json.loads(file.read_text())["batch_size"] == 8


def test_a_gpu_without_memory_for_a_batch_is_one_line(
    extract: Command,
    make_images: MakeImages,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(self: OpenClipEncoder, pixels: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(OpenClipEncoder, "launch", full)
    assert extract("--dataset", make_images()) == 2
    assert "--batch-size 64: needs more memory" in only_error(capsys.readouterr().err)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /dev/full")
def test_a_disk_without_room_is_one_line_that_names_the_file(
    extract: Command,
    make_images: MakeImages,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextmanager
    def replacing_on_full_disk(path: Path) -> Iterator[Path]:
        with replacing(path) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            yield temporary

    monkeypatch.setattr("fedclip.cache.parts.replacing", replacing_on_full_disk)
    assert extract("--dataset", make_images()) == 2
    assert re.fullmatch(
        r"error: caches/pets/[^/]+/parts/\w+\.part: No space left on device; free some space "
        "and run this again",
        only_error(capsys.readouterr().err),
    )


def test_what_an_extraction_left_that_did_not_end_can_be_removed(
    extract: Command,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = make_images()
    (root / "photo" / "cat" / "00.png").write_bytes(b"")
    assert extract("--dataset", root, "--strict") == 2
    assert len(list(tmp_path.glob("caches/pets/*/parts/*.part"))) == 1
    capsys.readouterr()
    assert run(["cache", "ls"]) == 0
    assert capsys.readouterr().out == "no caches in caches\n"
    assert run(["cache", "rm", "pets"]) == 0
    assert capsys.readouterr().out.startswith("removed pets/tinyclip-own-")
    assert list((tmp_path / "caches").iterdir()) == []


def test_the_first_ten_skipped_images_are_shown_and_the_rest_counted(
    extract: Command, make_images: MakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(images=8)
    for domain in ("photo", "sketch"):
        for path in [*(root / domain / "cat").iterdir()][:6]:
            path.write_bytes(b"")
    assert extract("--dataset", root) == 0
    output = capsys.readouterr().out
    assert len(re.findall(r"^skipped    .*: is empty$", output, re.M)) == 10
    assert "           and 2 more, listed in manifest.json\n" in output
    assert "20 rows of 16 features, 2 classes, 12 skipped" in output


def test_notes_and_progress_go_to_standard_error_of_the_moment(
    extract: Command, make_images: MakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images()
    assert extract("--dataset", root, "--pretrained", "random") == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == (
        f"dataset    pets: 2 clients, 2 classes, 12 images below {root}"
    )
    assert "warning: RANDOM WEIGHTS" in captured.err
    assert "encoder    local-dir:tinyclip random, fp32 on cpu, batches of 64" in captured.err
    assert "sketch: 6/6 images" in captured.err
    assert "images below" not in captured.out


def test_data_and_caches_are_where_the_working_folder_the_options_or_the_environment_say(
    extract: Command, make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images("data/pets", images=1)
    assert extract("--dataset", "pets") == 0
    expected = cache_files(tmp_path / "caches")
    assert sorted(expected) == ["photo.h5", "sketch.h5"]
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setenv("FEDCLIP_DATA_DIR", "moved")
    monkeypatch.setenv("FEDCLIP_CACHE_DIR", "from_environment")
    assert extract("--dataset", "pets") == 0
    assert cache_files(tmp_path / "from_environment") == expected
    assert extract("--dataset", "pets", "--cache-dir", "from_option", "--data-dir", "moved") == 0
    assert cache_files(tmp_path / "from_option") == expected


def test_templates_name_and_batch_size_are_taken_from_the_options(
    extract: Command, make_images: MakeImages, tmp_path: Path
) -> None:
    templates = ["--template", "a {}", "--template", "b {}", "--template", "a {}"]
    arguments = ["--dataset", make_images(images=1), "--name", "mine", "--batch-size", "3"]
    assert extract(*arguments, *templates) == 0
    (folder,) = (tmp_path / "caches" / "mine").iterdir()
    cache = read_cache(folder / "photo.h5")
    assert (cache.dataset, cache.templates) == ("mine", ("a {}", "b {}"))
    assert json.loads((folder / "manifest.json").read_text())["batch_size"] == 3


def test_a_published_set_of_templates_comes_behind_the_others(
    extract: Command, make_images: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(images=1)
    assert extract("--dataset", root, "--template-set", "openai7") == 0
    (file,) = (tmp_path / "caches").rglob("photo.h5")
    assert read_cache(file).templates == ("a picture of a {}", *templates_of("openai7"))
    capsys.readouterr()
    assert extract("--dataset", root, "--template-set", "openai") == 2
    assert only_error(capsys.readouterr().err) == (
        "error: --template-set openai: unknown template set; did you mean openai7 or openai80? "
        "(see fedclip extract --help)"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "--dataset: is missing; set it or --manifest"),
        ("--dataset", "--dataset"),
        ("--dataset nowhere", "unknown dataset or folder 'nowhere'"),
        ("--dataset '~nobody-of-this-name/x'", "unknown dataset or folder"),
        ("--dataset ''", "--dataset '': is empty; pass a value or leave out --dataset"),
        ("--dataset vlcs", "data: folder not found, so vlcs cannot be looked for"),
        ("--dataset vlcs --data-dir pets", "vlcs was not found in this folder"),
        ("--dataset pacs --offline", "set --data-dir to"),
        ("--dataset pets/photo", "contains no images laid out"),
        ("--dataset pets --name ../mine", "dataset '../mine' cannot name a file"),
        ("--dataset pets --template 'a dog'", "use exactly one"),
        ("--dataset pets --batch-size 0", "--batch-size 0: must be at least 1 and at most "),
        ("--dataset pets --batch-size many", "--batch-size many: must be a whole number"),
        ("--dataset pets --workers -1", "--workers -1: must be at least 0"),
        ("--dataset pets --no-such-option", "unknown option --no-such-option (see "),
        ("--dataset pets stray", "stray"),
        ("--dataset pets --model ViT-B-23", "unknown model 'ViT-B-23'; did you mean ViT-B-"),
        ("--dataset pets --model ''", "--model '': is empty"),
        ("--dataset pets --model local-dir:pets", "open_clip_config.json"),
        ("--dataset pets --model local-dir:", "local-dir:"),
        ("--dataset pets --pretrained openai", "has its own weights"),
        (
            "--dataset pets --model RN50 --pretrained no",
            "unknown weights 'no' of RN50, and no such file",
        ),
        (
            "--dataset pets --precision fp8",
            "--precision fp8: unknown precision; choose fp32, fp16 or bf16",
        ),
        ("--dataset pets --device nonsense", "--device nonsense: unknown device"),
        ("--dataset pets --device cuda:99", "--device cuda:99: cannot be used here; choose auto"),
        (
            "--dataset pets --class-names @no.txt",
            "--class-names @no.txt: cannot be read (No such file or directory); pass A,B,C",
        ),
        ("--dataset pets --device meta", "--device meta: cannot be used here"),
        ("--dataset pets --cache-dir a_file", "a_file"),
        ("--dataset pets --name ''", "--name '': is empty; pass a value or leave out --name"),
        ("--dataset pets --client ''", "--client '': is empty"),
        ("--dataset hf:owner/pets --revision ''", "--revision '': is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    extract: Command,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    expected: str,
) -> None:
    make_images(images=1)
    (tmp_path / "a_file").touch()
    assert extract(*shlex.split(arguments)) == 2
    captured = capsys.readouterr()
    assert expected in only_error(captured.err)
    assert captured.out == ""
    assert cache_files(tmp_path) == {}


def test_a_damaged_cache_is_one_line_and_exit_code_2(
    extract: Command, make_images: MakeImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(images=1)
    assert extract("--dataset", root) == 0
    (path,) = (tmp_path / "caches").rglob("sketch.h5")
    path.write_bytes(path.read_bytes()[:-1])
    capsys.readouterr()
    assert extract("--dataset", root) == 2
    assert only_error(capsys.readouterr().err).startswith(
        f"error: {path.relative_to(tmp_path)}: is truncated or altered"
    )


def test_bad_input_in_a_process_of_its_own_is_one_line_and_exit_code_2(fedclip: Fedclip) -> None:
    result = fedclip("extract", "--dataset", "no\nwhere")
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert only_error(result.stderr).startswith("error: unknown dataset or folder")


@pytest.mark.slow
def test_another_process_makes_the_same_files_byte_for_byte_even_of_random_weights(
    fedclip: Fedclip, extract: Command, make_images: MakeImages, tiny_clip: Path, tmp_path: Path
) -> None:
    root = make_images()
    weights = ("--model", f"local-dir:{tiny_clip}", "--pretrained", "random", "--device", "cpu")
    result = fedclip("extract", "--dataset", root, *weights, "--cache-dir", "theirs")
    assert result.returncode == 0, result.stderr
    assert "encoded    12 images and 2 prompts" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "dataset    pets",
        "           read as <domain>/<class>/<image>",
        "warning",
        "encoder    local-dir",
        *("photo", "photo"),
        "sketch",
    ]
    assert extract("--dataset", root, "--pretrained", "random", "--cache-dir", "ours") == 0
    ours = cache_files(tmp_path / "ours")
    assert len(ours) == 2
    assert cache_files(tmp_path / "theirs") == ours


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to a process group")
def test_ctrl_c_ends_at_once_without_a_traceback_and_keeps_what_was_encoded(
    extract: Command,
    make_images: MakeImages,
    tiny_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    hangs: int,
) -> None:
    many = make_images(domains=("photo",), classes=("cat",), images=1) / "photo" / "cat"
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    large = BytesIO()
    Image.fromarray(pixels).save(large, "jpeg")
    for index in range(400):
        (many / f"{index}.jpg").write_bytes(large.getvalue() + b"%d" % index)
    command = [sys.executable, "-m", "fedclip", "extract", "--dataset", str(many.parents[1])]
    process = subprocess.Popen(
        [*command, "--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--batch-size", "4"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell in the background, and so its tests, would ignore the interrupt.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("photo: ") and "photo: 0/" not in line:
                break  # it tells every few seconds
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=hangs)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert output == ""
    assert errors.splitlines()[-1] == "interrupted; what was finished is kept"
    assert not list(tmp_path.glob("caches/*/*/*.h5"))
    for path in list(many.glob("*.jpg"))[20:]:  # 380 fewer to encode now
        path.unlink()
    assert extract("--dataset", many.parents[1]) == 0
    (row,) = table_rows(capsys.readouterr().out)
    assert row[:2] == ["photo", "21"]
    assert int(row[2]) < 21
