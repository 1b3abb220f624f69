"""Datasets and weights from the hub: the headline command on a machine that has nothing yet."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from fedclip.cache import CacheFolder, FeatureCache, find_caches, image_key, load_cache
from fedclip.cli import run

Fedclip = Callable[..., subprocess.CompletedProcess[str]]
WaitUntil = Callable[[Callable[[], bool]], None]
Table = Callable[..., bytes]
Hub = Any  # the class of this name beside this file

DOMAINS = ("Art", "Clipart", "Product", "Real World")
CLASSES = ("Alarm_Clock", "Backpack", "Bike")
MODEL = "hf-hub:tiny/clip"


def picture(seed: int, size: int = 48) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def rows(domains: Sequence[str] = DOMAINS, each: int = 2) -> list[dict[str, Any]]:
    return [
        {"image": picture(100 * d + 10 * c + i), "domain": domain, "label": c}
        for d, domain in enumerate(domains)
        for c in range(len(CLASSES))
        for i in range(each)
    ]


def office_home(image_table: Table, made: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Lay rows out as the repository does: a card, and a split in several files."""
    half = len(made) // 2
    names = {"label": CLASSES}
    card = """---
license: other
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
---
# A small dataset
"""
    return {
        "README.md": card.encode(),
        "data/train-00000-of-00002.parquet": image_table(made[:half], names),
        "data/train-00001-of-00002.parquet": image_table(made[half:], names),
    }


def caches(place: Path) -> dict[str, FeatureCache]:
    (folder,) = find_caches(place / "caches")
    return {cache.client: cache for cache in load_cache(folder)}


def manifest(place: Path) -> dict[str, Any]:
    (folder,) = find_caches(place / "caches")
    return CacheFolder(folder.path).read_manifest()


@pytest.mark.slow
def test_the_headline_command_works_on_a_machine_that_has_nothing_yet(
    machine: Fedclip,
    hub: Hub,
    image_table: Table,
    tiny_clip: Path,
    tmp_path: Path,
    without_network: dict[str, str],
) -> None:
    repo = hub.repo("flwrlabs/office-home", office_home(image_table, rows()))
    hub.model("tiny/clip", tiny_clip)
    command = ("extract", "--dataset", "office-home", "--model", MODEL)
    first = machine(*command)
    assert first.returncode == 0, first.stderr
    assert "download   hf:flwrlabs/office-home: 2 files" in first.stderr
    assert "download   hf-hub:tiny/clip: 2 files" in first.stderr
    found = caches(tmp_path)
    assert list(found) == ["art", "clipart", "product", "real_world"]
    assert {len(cache.labels) for cache in found.values()} == {6}
    assert found["art"].class_names == CLASSES
    assert found["real_world"].ids[0] == "train/00000018"
    entry = manifest(tmp_path)["clients"]["art"]
    assert entry["root"] == "hf:flwrlabs/office-home"
    assert (entry["hub"]["revision"], entry["hub"]["commit"]) == ("main", repo.branches["main"])
    shown = machine("cache", "show", "office-home").stdout
    assert f"hf:flwrlabs/office-home at {repo.branches['main']}" in shown
    federated = machine("federate", "--rounds", "2")
    assert federated.returncode == 0, federated.stderr
    listed = machine("datasets").stdout
    (line,) = [line for line in listed.splitlines() if "office-home" in line]
    assert line.split()[-2:] == ["hub's", "cache"]

    hub.requests.clear()
    guarded = machine(*command, env=without_network)
    assert guarded.returncode == 77, "the guard does not see the network being used"
    told = machine(*command, env={**without_network, "HF_HUB_OFFLINE": "1"})
    assert told.returncode == 0, told.stderr
    offline = machine(*command, "--offline", "--force", env=without_network)
    assert offline.returncode == 0, offline.stderr
    assert "encoded    24 images" in offline.stdout
    assert hub.requests == []


@pytest.mark.slow
def test_a_cache_made_of_these_rows_needs_them_no_longer(
    machine: Fedclip, hub: Hub, image_table: Table, tiny_clip: Path, tmp_path: Path
) -> None:
    repo = hub.repo("flwrlabs/office-home", office_home(image_table, rows()))
    command = ("extract", "--dataset", "office-home", "--model", f"local-dir:{tiny_clip}")
    assert machine(*command).returncode == 0
    before = caches(tmp_path)
    shutil.rmtree(tmp_path / "home" / "hf")
    hub.requests.clear()
    again = machine(*command)
    assert again.returncode == 0, again.stderr
    assert "the cache is up to date" in again.stdout
    assert hub.large_gets() == []
    assert not list((tmp_path / "home").rglob("*.parquet"))

    more = [*rows(), {"image": picture(999), "domain": "Art", "label": 0}]
    commit = repo.push(office_home(image_table, more))
    grown = machine(*command)
    assert grown.returncode == 0, grown.stderr
    assert "encoded    1 image and 0 prompts" in grown.stdout
    after = caches(tmp_path)
    assert len(after["art"].labels) == 7
    assert np.array_equal(after["art"].image_features[:6], before["art"].image_features)
    assert {entry["hub"]["commit"] for entry in manifest(tmp_path)["clients"].values()} == {commit}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_home_that_cannot_be_written_is_one_line_that_names_it(
    machine: Fedclip, hub: Hub, image_table: Table, tiny_clip: Path
) -> None:
    hub.repo("flwrlabs/office-home", office_home(image_table, rows()))
    command = ("extract", "--dataset", "office-home", "--model", f"local-dir:{tiny_clip}")
    result = machine(*command, env={"HF_HOME": "/proc/hf"})
    assert (result.returncode, result.stderr) == (
        2,
        "error: HF_HOME /proc/hf: cannot be written (No such file or directory); choose another "
        "place\n",
    )


@pytest.mark.slow
def test_a_download_whose_process_is_killed_keeps_the_files_that_had_arrived(
    machine: Fedclip,
    hub: Hub,
    image_table: Table,
    tiny_clip: Path,
    tmp_path: Path,
    wait_until: WaitUntil,
    machine_environment: dict[str, str],
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 12_000_000, dtype=np.uint8).tobytes()
    files = office_home(image_table, rows())
    last = [{"image": noise, "domain": "Art", "label": 0}, *rows()]
    files["data/train-00001-of-00002.parquet"] = image_table(last, {"label": CLASSES})
    hub.repo("flwrlabs/office-home", files)
    hub.stall_at = 11 * 1024 * 1024
    code = "import sys; from fedclip.cli import run; sys.exit(run(sys.argv[1:]))"
    command = ("extract", "--dataset", "office-home", "--model", f"local-dir:{tiny_clip}")
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=tmp_path,
        env={**os.environ, **machine_environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: stalled(hub, tmp_path))
    finally:
        process.kill()
        process.wait()
        hub.stall_at = None
        hub.go_on.set()
    hub.requests.clear()
    result = machine(*command)
    assert result.returncode == 0, result.stderr
    # The hub's client gives a file that it downloads a name of this process, so that what a
    # killed one has of it is not resumed.
    assert len(hub.large_gets()) == 1
    assert result.stdout.count(": is not an image that Pillow can read\n") == 1


def stalled(hub: Hub, place: Path) -> bool:
    """Tell whether the client has written all that it was given."""
    # Not looked for earlier, while the client makes and removes folders.
    partial = (place / "home").rglob("*.incomplete") if hub.stalled.is_set() else ()
    return max((path.stat().st_size for path in partial), default=0) >= 10 * 1024 * 1024


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_a_table_give_what_the_same_images_in_a_folder_give_bit_for_bit(
    hub: Hub,
    at_hub: Path,
    image_table: Table,
    tiny_clip: Path,
    tmp_path: Path,
    workers: int,
) -> None:
    made = rows(("art", "photo"), each=5)
    names = {"label": CLASSES}
    hub.repo("owner/pets", {"train.parquet": image_table(made, names, group=4)})
    for number, row in enumerate(made):
        place = tmp_path / "pets" / str(row["domain"]) / CLASSES[int(row["label"])]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:08d}.png").write_bytes(row["image"])
    model = ("--model", f"local-dir:{tiny_clip}", "--batch-size", "4", "--workers", str(workers))
    for dataset, name in (("hf:owner/pets", "rows"), (str(tmp_path / "pets"), "files")):
        arguments = ["extract", "--dataset", dataset, *model, "--device", "cpu"]
        assert run([*arguments, "--cache-dir", str(tmp_path / name / "caches")]) == 0
    table, folder = caches(tmp_path / "rows"), caches(tmp_path / "files")
    assert list(table) == list(folder) == ["art", "photo"]
    for client in table:
        one, other = table[client], folder[client]
        assert one.image_features.tobytes() == other.image_features.tobytes()
        assert one.labels.tobytes() == other.labels.tobytes()
        assert one.digests.tobytes() == other.digests.tobytes()
        assert one.text_features.tobytes() == other.text_features.tobytes()
        assert one.class_names == other.class_names


@pytest.mark.usefixtures("at_hub")
def test_a_row_without_a_usable_image_is_skipped_and_named(
    hub: Hub,
    image_table: Table,
    tiny_clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = rows(("art",))
    made[1]["image"], made[4]["image"] = None, b"words"
    table = image_table(made, {"label": CLASSES})
    hub.repo("owner/pets", {"train.parquet": table, "test.parquet": table})
    model = ("--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--workers", "0")
    arguments = ["--dataset", "hf:owner/pets", "--cache-dir", str(tmp_path / "caches")]
    assert run(["extract", *arguments, *model]) == 0
    told = capsys.readouterr().out
    assert "skipped    train/00000001: is empty" in told
    assert "skipped    train/00000004: is not an image that Pillow can read" in told
    assert caches(tmp_path)["art"].ids == tuple(f"train/{n:08d}" for n in (0, 2, 3, 5))
    books = (
        "rows       6 seen: 4 taken, 2 skipped (1 is empty; 1 is not an image that Pillow can "
        "read), 0 ignored; not looked into: split test\n"
    )
    assert told.endswith(books)
    assert run(["extract", *arguments, *model]) == 0
    assert capsys.readouterr().out.endswith(f"encoded    nothing: the cache is up to date\n{books}")
    (path,) = tmp_path.rglob("manifest.json")
    manifest = json.loads(path.read_text())
    del manifest["books"]  # as in a manifest written by an earlier version
    path.write_text(json.dumps(manifest))
    assert run(["extract", *arguments, *model]) == 0
    assert "rows       6 seen: 4 taken, 2 skipped (" in capsys.readouterr().out


@pytest.mark.usefixtures("at_hub")
def test_weights_that_are_not_here_say_how_to_get_them_and_where_to_carry_them(
    make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = make_images(images=1)
    for model, repository in (
        ("ViT-B-32", "timm/vit_base_patch32_clip_224.openai"),
        ("hf-hub:owner/clip", "owner/clip"),
    ):
        arguments = ["--dataset", str(root), "--model", model, "--cache-dir", str(tmp_path / "c")]
        assert run(["extract", *arguments, "--offline"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: hf-hub:{repository}: is not on this machine; ")
        assert f"run 'hf download {repository}' on a machine with a network" in error
        folder = f"models--{repository.replace('/', '--')}"
        assert f"copy the folder {folder} from its HF_HOME/hub to {tmp_path / 'hf'};" in error


def test_a_tag_s_weights_come_from_the_hub_with_a_bar(
    hub: Hub,
    at_hub: Path,
    tiny_clip: Path,
    make_images: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    import open_clip

    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-8", config)
    monkeypatch.setattr("fedclip.extract.options.architectures", lambda: ["Tiny-8"])
    tags = {"here": {"hf_hub": "owner/tiny/"}, "gone": {"hf_hub": "owner/empty/"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-8", tags)
    hub.model("owner/tiny", tiny_clip)
    hub.repo("owner/empty", {"README.md": b"nothing"}, kind="model")
    root = make_images(images=1)
    options = ["--dataset", str(root), "--model", "Tiny-8", "--cache-dir", str(tmp_path / "c")]
    assert run(["extract", *options, "--pretrained", "here"]) == 0
    told = capsys.readouterr().err
    assert "download   hf-hub:owner/tiny: 1 file, " in told
    bars = [line.split()[1] for line in told.splitlines() if line.startswith("hf-hub:owner/tiny:")]
    size = (tiny_clip / "open_clip_model.safetensors").stat().st_size // 1000
    assert (bars[0], bars[-1]) == (f"0/{size}", f"{size}/{size}")
    assert run(["extract", *options, "--pretrained", "gone"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "has no open_clip_model.safetensors or open_clip_pytorch_model.bin" in error
    assert "only README.md" in error


@pytest.mark.slow
def test_a_model_of_timm_that_somebody_trained_comes_with_its_config(
    machine: Fedclip, hub: Hub, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    config = {"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": {"mean": [0.1] * 3}}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text(json.dumps(config))
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), mine / "model.safetensors")
    hub.model("owner/mine", mine)
    for model, cache_dir in ((f"local-dir:{mine}", "one"), ("hf-hub:owner/mine", "other")):
        options = ("--model", f"timm:{model}", "--cache-dir", tmp_path / cache_dir)
        assert machine("extract", "--dataset", make_images(), *options).returncode == 0
    (here,), (there,) = (find_caches(tmp_path / each) for each in ("one", "other"))
    for one, other in zip(load_cache(here), load_cache(there), strict=True):
        assert one.encoder["mean"] == [0.1, 0.1, 0.1]
        assert image_key(one.encoder) == image_key(other.encoder)
        assert np.array_equal(one.image_features, other.image_features)
    (mine / "config.json").write_text("[]")
    hub.model("owner/none", mine)
    options = ("--model", "timm:hf-hub:owner/none", "--cache-dir", tmp_path / "caches")
    refused = machine("extract", "--dataset", make_images(), *options)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].endswith("it needs at least an architecture")


@pytest.mark.usefixtures("at_hub")
@pytest.mark.parametrize(
    "config",
    [
        b'{"model_cfg": {"text_cfg": null}}',
        b'{"model_cfg": {"text_cfg": []}}',
        b"\xff",
        b"[" * 99999,
    ],
    ids=["null", "list", "not UTF-8", "deep"],
)
def test_a_model_of_the_hub_whose_config_is_none_is_one_line(
    hub: Hub,
    make_images: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: bytes,
) -> None:
    files = {"open_clip_config.json": config, "open_clip_model.safetensors": b"weights"}
    hub.repo("owner/clip", files, kind="model")
    options = ["--model", "hf-hub:owner/clip", "--cache-dir", str(tmp_path / "caches")]
    assert run(["extract", "--dataset", str(make_images(images=1)), *options]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert "hf-hub:owner/clip" in error
