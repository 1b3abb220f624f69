"""What sites have: file systems that lack something, places without rights, broken output."""

import errno
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclip.cache.common.files import TEMPORARY_PREFIX
from fedclip.cli import run

Fedclip = Callable[..., subprocess.CompletedProcess[str]]
MakeCache = Callable[..., Path]
MakeFeatures = Callable[..., Any]
MakeImages = Callable[..., Path]
Records = Callable[[Path], dict[str, Any]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and LD_PRELOAD")

# Stands in front of the C library: flock, and fsync of a folder, fail with the given numbers.
PRELOADED = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

static int number(const char *name) {
    const char *value = getenv(name);
    return value ? atoi(value) : 0;
}

int flock(int handle, int operation) {
    if ((errno = number("FAIL_FLOCK"))) return -1;
    return ((int (*)(int, int)) dlsym(RTLD_NEXT, "flock"))(handle, operation);
}

int fsync(int handle) {
    struct stat facts;
    if (number("FAIL_FSYNC") && fstat(handle, &facts) == 0 && S_ISDIR(facts.st_mode)) {
        errno = number("FAIL_FSYNC");
        return -1;
    }
    return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(handle);
}
"""

# Runs several commands, one a line, in one process.
COMMANDS = """
import sys
from fedclip.cli import run
for line in sys.stdin.read().splitlines():
    code = run(line.split("\\t"))
    assert code == 0, (line, code)
"""


@pytest.fixture(scope="session")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library that makes calls fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a library that fails")
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.c").write_text(PRELOADED)
    library = folder / "failing.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, folder / "failing.c", "-ldl"], check=True
    )
    return library


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*.h5")
        if path.is_file()
    }


def is_clean(folder: Path) -> bool:
    """Tell whether no writer left a lock or a temporary file."""
    return not [
        path for path in folder.rglob(".*") if path.name.startswith((TEMPORARY_PREFIX, ".lock"))
    ]


UNSUPPORTED = (
    (errno.ENOSYS, errno.EINVAL),
    (errno.ENOLCK, errno.EINVAL),
    (errno.EOPNOTSUPP, errno.EOPNOTSUPP),
)


@pytest.mark.slow
def test_without_locks_syncs_of_folders_and_a_home_the_work_is_done(
    failing: Path,
    make_images: MakeImages,
    tiny_clip: Path,
    tmp_path: Path,
    records: Records,
    hangs: int,
) -> None:
    root = make_images(images=8)
    archive = tmp_path / "features.npz"
    texts = np.eye(2, 3)
    np.savez(archive, image_features=np.ones((4, 3)), labels=[0, 0, 1, 1], text_features=texts)
    encoder = ["--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
    commands = [
        ["extract", "--dataset", str(root), *encoder],
        ["federate", "--rounds", "1", "--target", "none"],
        ["ablate", "--rounds", "1", "--set", "lr=1e-4,1e-3", "--target", "none"],
        ["cache", "import", str(archive), "--name", "imported"],
        ["cache", "verify"],
        ["cache", "rm", "imported"],
    ]

    def work(name: str, environment: Mapping[str, str]) -> tuple[Path, list[str]]:
        """Run the commands in a folder of their own; return it, and the warnings about locks."""
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS],
            input="\n".join("\t".join(command) for command in commands),
            cwd=tmp_path / name,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=hangs,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stderr.splitlines() if "its file system has no locks" in line]
        return tmp_path / name, said

    usual, said = work("usual", {})
    assert said == []
    theirs = records(usual / "runs")
    for flock, fsync in UNSUPPORTED:
        environment = {
            "LD_PRELOAD": str(failing),
            "FAIL_FLOCK": str(flock),
            "FAIL_FSYNC": str(fsync),
            "HOME": "/proc",  # where nobody can write, root neither
        }
        site, (line,) = work(f"site-{flock}", environment)
        assert line.endswith(f"({os.strerror(flock)}); make sure that no other process writes here")
        assert files_in(site) == files_in(usual)
        assert is_clean(site)
        ours = records(site / "runs")
        assert ours.keys() == theirs.keys()
        for name in ours:
            if not name.endswith("config.json"):  # which names the cache's folder
                assert ours[name] == theirs[name]


def shell(
    command: str, place: Path, hangs: int, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command line of bash in which $FEDCLIP is the command."""
    return subprocess.run(
        ["bash", "-c", command.replace("$FEDCLIP", f'"{sys.executable}" -m fedclip')],
        cwd=place,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=hangs,
        check=False,
    )


FEDERATE = "$FEDCLIP federate --rounds 2 --target none --name r"


@pytest.mark.parametrize(
    "redirected",
    [
        "| true; exit ${PIPESTATUS[0]}",
        ">&- 2>&- <&-",
        "2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}",
    ],
    ids=["broken pipe", "closed", "broken pipe of errors"],
)
def test_a_run_ends_well_whatever_becomes_of_its_output(
    make_cache: MakeCache, records: Records, tmp_path: Path, hangs: int, redirected: str
) -> None:
    caches = make_cache({"photo": 20, "sketch": 20})
    (tmp_path / "elsewhere").mkdir()
    options = ["--cache-dir", str(caches), "--runs-dir", str(tmp_path / "usual")]
    assert run([*FEDERATE.split()[1:], *options]) == 0
    place = f"--cache-dir {caches} --runs-dir {tmp_path / 'site'}"
    done = shell(f"{FEDERATE} {place} {redirected}", tmp_path / "elsewhere", hangs)
    assert (done.returncode, done.stdout) == (0, "")
    assert not [line for line in done.stderr.splitlines() if not line.startswith("target none: ")]
    assert records(tmp_path / "site") == records(tmp_path / "usual")


@pytest.mark.parametrize("command", ["cache ls", "cache show tiny", "datasets", "--help"])
@pytest.mark.parametrize("redirected", ["| true; exit ${PIPESTATUS[0]}", ">&-"])
def test_a_command_that_only_prints_is_content_without_a_reader(
    make_cache: MakeCache, tmp_path: Path, hangs: int, command: str, redirected: str
) -> None:
    make_cache({"photo": 20})
    done = shell(f"$FEDCLIP {command} {redirected}", tmp_path, hangs)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_output_for_which_there_is_no_room_is_one_line(
    make_cache: MakeCache, tmp_path: Path, hangs: int
) -> None:
    make_cache({"photo": 20})
    for command in ("cache ls", "--version"):
        done = shell(f"$FEDCLIP {command} > /dev/full", tmp_path, hangs)
        assert (done.returncode, done.stderr) == (
            2,
            "error: standard output: No space left on device; free some space and run this again\n",
        )


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("federate", "caches/tiny/drawn/photo.h5"),
        ("ablate own.toml", "own.toml"),
        ("cache import own.npz --name own", "own.npz"),
        ("cache show tiny", "caches/tiny/drawn/photo.h5"),
        ("extract --dataset own.csv", "own.csv"),
        ("extract --dataset pets --class-names @names.txt", "names.txt"),
        ("extract --dataset pets --model local-dir:clip", "clip/open_clip_config.json"),
        ("extract --dataset pets --model timm:local-dir:clip", "clip/config.json"),
        ("extract --dataset pets --pretrained own.pt", "own.pt"),
    ],
)
def test_a_file_that_may_have_no_end_is_refused_in_a_line(
    make_cache: MakeCache,
    make_images: MakeImages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    file: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDCLIP_DATA_DIR", ".")
    make_cache({"photo": 8, "sketch": 8})
    make_images("pets")
    place = Path(file)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:  # opening it fails; a pipe would be waited for
        listening.bind(file)
    line = f"{file}: is not a regular file; save its content as one, and pass that"
    capsys.readouterr()
    assert run(command.split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last in (f"error: {line}", f"error: {tmp_path}/{line}")


ASCII = (
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


@pytest.mark.parametrize("environment", ASCII, ids=["ascii", "C locale"])
def test_what_ascii_lacks_is_escaped(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    fedclip: Fedclip,
    environment: dict[str, str],
) -> None:
    make_cache([make_features("photo", classes=("café", "東京"))])
    for command in (["cache", "show", "tiny"], ["cache", "ls"], ["federate", "--rounds", "1"]):
        done = fedclip(*command, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()
        assert done.stderr.isascii()
        if command[1] == "show":
            assert "caf\\xe9, \\u6771\\u4eac" in done.stdout


@pytest.mark.slow
def test_names_that_the_locale_cannot_read_are_refused_with_what_to_set(
    make_images: MakeImages, tiny_clip: Path, fedclip: Fedclip, tmp_path: Path
) -> None:
    root = make_images(classes=("cat", "café"))
    command = ["extract", "--dataset", root, "--model", f"local-dir:{tiny_clip}"]
    done = fedclip(*command, env=ASCII[1])
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith(
        "this name cannot be read with the locale's encoding, ascii; set PYTHONUTF8=1"
    )
    assert not (tmp_path / "caches").exists()
    assert fedclip(*command, env={**ASCII[1], "PYTHONUTF8": "1"}).returncode == 0


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_every_file_follows_the_umask(
    make_images: MakeImages, tiny_clip: Path, empty_folder: Path, mask: int
) -> None:
    root = make_images(images=8)
    archive = empty_folder / "features.npz"
    np.savez(
        archive, image_features=np.ones((4, 3)), labels=[0, 0, 1, 1], text_features=np.eye(2, 3)
    )
    encoder = ["--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
    before = os.umask(mask)
    try:
        assert run(["extract", "--dataset", str(root), *encoder]) == 0
        method = ["--strategy", "ditto", "--rounds", "1"]
        assert run(["federate", *method]) == 0
        assert run(["ablate", *method, "--set", "lr=1e-4,1e-3", "--target", "none"]) == 0
        assert run(["cache", "import", str(archive), "--name", "imported"]) == 0
    finally:
        os.umask(before)
    written = [path for place in ("runs", "caches") for path in Path(place).rglob("*")]
    assert {path.suffix for path in written} >= {".h5", ".json", ".jsonl", ".safetensors", ".csv"}
    for path in written:
        allowed = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == allowed & ~mask, path


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        (["federate", "--runs-dir", "/proc/x"], "--runs-dir /proc/x"),
        (["ablate", "--set", "lr=1e-4,1e-3", "--runs-dir", "/proc/x"], "--runs-dir /proc/x"),
        (["ablate", "--set", "lr=1e-4,1e-3", "--csv", "/proc/x/y.csv"], "--csv /proc/x/y.csv"),
        (["ablate", "--set", "lr=1e-4,1e-3", "--csv", "/proc/y.csv"], "--csv /proc/y.csv"),
        (["cache", "import", "features.npz", "--name", "x"], "--cache-dir /proc/x"),
        (["extract", "--dataset", "pets"], "--cache-dir /proc/x"),
        (["extract", "--dataset", "demo", "--data-dir", "/proc/x"], "--data-dir /proc/x"),
    ],
    ids=["federate", "ablate", "csv below", "csv", "import", "extract", "demo"],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work_starts(
    make_cache: MakeCache,
    make_images: MakeImages,
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    setting: str,
) -> None:
    make_cache({"photo": 20, "sketch": 20})
    make_images()
    np.savez("features.npz", image_features=np.eye(2), labels=[0, 1], text_features=np.eye(2))
    if setting.startswith("--cache-dir"):
        command = [*command, "--cache-dir", "/proc/x"]
    started: list[str] = []
    for work in (
        "fedclip.extract.encoding.job.load_encoder",
        "fedclip.federate.runs.runner.simulate",
        "fedclip.federate.ablations.runner.simulate",
    ):
        monkeypatch.setattr(work, lambda *_, **__: started.append(work))  # noqa: B023
    before = sorted(empty_folder.rglob("*"))
    assert run(command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert errors == [
        f"error: {setting}: cannot be written (No such file or directory); choose another place"
    ]
    assert started == []
    assert sorted(empty_folder.rglob("*")) == before


@pytest.mark.slow
def test_a_run_whose_files_grow_too_large_is_one_line_and_can_be_resumed(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    records: Records,
    tmp_path: Path,
    hangs: int,
) -> None:
    make_cache([make_features(client, 30, width=64) for client in ("photo", "sketch")])
    command = "$FEDCLIP federate --rounds 3 --target none --name"
    assert shell(f"{command} usual", tmp_path, hangs).returncode == 0
    done = shell(f"ulimit -f 8; {command} limited", tmp_path, hangs)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: runs/limited/")
    assert last.endswith(
        ": File too large; raise the limit on the size of files (ulimit -f) and run this again"
    )
    assert is_clean(tmp_path / "runs")
    assert shell("$FEDCLIP federate --resume limited", tmp_path, hangs).returncode == 0
    assert records(tmp_path / "runs" / "limited") == records(tmp_path / "runs" / "usual")
