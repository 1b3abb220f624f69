"""Names that people have, from images and archives through caches to runs and back."""

import json
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclip.cache import CacheFolder, FeatureCache, find_caches, load_cache, write_cache
from fedclip.cache.common.files import file_name
from fedclip.cli import run
from fedclip.federate.runs.find import choose_targets
from fedclip.federate.runs.folder import RunFolder
from fedclip.federate.server import Round

MakeCache = Callable[..., Path]
MakeFeatures = Callable[..., FeatureCache]
MakeImages = Callable[..., Path]
Records = Callable[[Path], dict[str, Any]]
Refusal = Callable[..., str]

pytestmark = pytest.mark.usefixtures("empty_folder")

HINDI = unicodedata.normalize("NFC", "फ़ोटो")
NAMES = (HINDI, "東京", "Real World (old)", "real/world", "photo [new]", "config.json", "con")
CAFE, CAFE_APART = "caf\u00e9", "cafe\u0301"
SEOUL, SEOUL_APART = "서울", unicodedata.normalize("NFD", "서울")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def encode(root: Path, clip: Path, *options: str) -> None:
    model = ["--model", f"local-dir:{clip}", "--device", "cpu", "--workers", "0"]
    assert run(["extract", "--dataset", str(root), *model, *options]) == 0


def written_apart(cache: FeatureCache, path: Path, class_names: Sequence[str]) -> None:
    """Write a cache as earlier versions did, whose names were not composed."""
    object.__setattr__(cache, "client", path.stem)
    object.__setattr__(cache, "class_names", tuple(class_names))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_cache(cache, path)


def test_domains_of_any_name_are_extracted_federated_and_left_out_by_name(
    make_images: MakeImages, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in NAMES if "/" not in name]
    root = make_images("pets", names)
    encode(root, tiny_clip)
    (folder,) = find_caches(Path("caches"))
    assert sorted(path.name for path in folder.files) == sorted(f"{file_name(n)}.h5" for n in names)
    assert [cache.client for cache in load_cache(folder)] == sorted(names)
    assert list(folder.read_manifest()["clients"]) == sorted(names)
    shown = capsys.readouterr().out
    assert [name for name in names if name not in shown] == []
    encode(root, tiny_clip)
    assert "encoded    nothing: the cache is up to date" in capsys.readouterr().out

    assert run(["federate", "--rounds", "1", "--name", "each"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in names if name not in shown] == []
    summary = read(Path("runs/each/result.json"))
    assert sorted(summary["accuracy"]) == sorted(names)
    for name in names:
        result = read(Path("runs/each", file_name(name), "result.json"))
        assert (result["target"], sorted(result["accuracy"])) == (name, sorted(names))
        assert read(Path("runs/each", file_name(name), "config.json"))["target"] == name
    apart = unicodedata.normalize("NFD", HINDI)
    assert run(["federate", "--rounds", "1", "--name", "one", "--target", apart]) == 0
    assert read(Path("runs/one/result.json"))["target"] == HINDI


@pytest.mark.parametrize("strategy", ["ditto", "scaffold"])
def test_a_run_with_such_clients_is_resumed(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, records: Records, strategy: str
) -> None:
    make_cache(dict.fromkeys((*NAMES, "best/own"), 30))
    options = ["--rounds", "3", "--strategy", strategy]
    assert run(["federate", *options, "--name", "unbroken"]) == 0
    append = RunFolder.append_round

    def interrupt(folder: RunFolder, current: Round, scores: Any) -> None:
        append(folder, current, scores)
        if folder.path.name == file_name("real/world") and current.number == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_round", interrupt)
        assert run(["federate", *options, "--name", "broken"]) == 130
    assert Path("runs/broken", file_name("real/world"), "state.safetensors").is_file()
    assert run(["federate", "--resume", "broken"]) == 0
    assert records(Path("runs/broken")) == records(Path("runs/unbroken"))


def test_domains_called_all_and_none_are_left_out_by_their_full_names(
    make_cache: MakeCache, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"all": 30, "none": 30, "photo": 30})
    assert run(["federate", "--rounds", "1", "--name", "each"]) == 0
    rows = [line.split()[:1] for line in capsys.readouterr().out.splitlines()]
    assert all([name] in rows for name in ("domain:all", "domain:none", "photo"))
    assert sorted(read(Path("runs/each/result.json"))["accuracy"]) == ["all", "none", "photo"]
    assert run(["federate", "--resume", "each"]) == 0
    for name in ("all", "none"):
        target = ["--target", f"domain:{name}", "--name", name]
        assert run(["federate", "--rounds", "1", *target]) == 0
        assert read(Path("runs", name, "config.json"))["target"] == f"domain:{name}"
        assert read(Path("runs", name, "result.json"))["target"] == name
        assert run(["federate", "--resume", name]) == 0
    assert run(["federate", "--rounds", "1", "--target", "none", "--name", "whole"]) == 0
    assert read(Path("runs/whole/result.json"))["target"] is None
    assert "--target art: unknown domain; choose domain:all, domain:none, photo, all or none" in (
        refusal("federate", "--target", "art")
    )


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("real_world", "real_world"),
        ("Real World", "real_world"),
        ("domain:real_world", "real_world"),
        ("Art (old)", "Art (old)"),
        ("art (OLD)", "Art (old)"),
        ("art_(old)", "Art (old)"),
        ("U\u0308bung", "\u00fcbung"),
        ("ÜBUNG", "\u00fcbung"),
        ("domain:x", "domain:x"),
    ],
)
def test_a_target_is_the_domain_that_it_plainly_names(
    make_features: MakeFeatures, given: str, target: str
) -> None:
    domains = ("real_world", "Art (old)", "\u00fcbung", "domain:x", "x")
    clients = [make_features(client) for client in domains]
    assert choose_targets(clients, given) == (target,)


def test_sites_that_write_accents_in_different_ways_federate_together(
    make_images: MakeImages, tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for site, name in (("one", CAFE), ("two", CAFE_APART)):
        root = make_images(f"at-{site}", (".",), (name, "dog"))
        common = ["--client", f"{name} {site}", "--name", name]
        given = ["--class-names", f"{CAFE_APART},dog", "--template", f"{name}: {{}}"]
        encode(root, tiny_clip, *common, *given)
    (folder,) = find_caches(Path("caches"))
    assert [cache.client for cache in load_cache(folder)] == [f"{CAFE}_one", f"{CAFE}_two"]
    assert {cache.class_names for cache in load_cache(folder)} == {(CAFE, "dog")}
    capsys.readouterr()
    options = ["--rounds", "1", "--prompt", f"{CAFE_APART}: {{}}", "--cache", CAFE_APART]
    assert run(["federate", *options, "--target", f"{CAFE_APART} two"]) == 0
    assert f"domains    {CAFE}_one, {CAFE}_two: 12 rows" in capsys.readouterr().out


def test_a_cache_of_an_earlier_version_joins_one_whose_names_are_composed(
    make_features: MakeFeatures, make_cache: MakeCache
) -> None:
    make_cache([make_features("photo", classes=(CAFE, "dog"))])
    (folder,) = find_caches(Path("caches"))
    old = make_features("sketch", classes=(CAFE, "dog"))
    written_apart(old, folder.path / f"{SEOUL_APART}.h5", (CAFE_APART, "dog"))
    clients = load_cache(folder)
    assert [cache.client for cache in clients] == ["photo", SEOUL]
    assert {cache.class_names for cache in clients} == {(CAFE, "dog")}
    assert folder.file(SEOUL).name == f"{SEOUL_APART}.h5"
    assert run(["federate", "--rounds", "1", "--target", SEOUL_APART]) == 0


@pytest.mark.parametrize(("domain", "stem"), [("東京", "東京"), (SEOUL_APART, SEOUL_APART)])
def test_the_file_of_an_earlier_version_is_found_and_brought_up_to_date(
    make_images: MakeImages, tiny_clip: Path, domain: str, stem: str
) -> None:
    root = make_images("pets", (domain, "photo"))
    encode(root, tiny_clip)
    (folder,) = find_caches(Path("caches"))
    (new,) = [path for path in folder.files if path.name.startswith("client~")]
    old = new.rename(folder.path / f"{stem}.h5")
    before = old.read_bytes()
    next(root.glob("photo/*/*.png")).unlink()
    encode(root, tiny_clip)
    assert sorted(path.name for path in folder.files) == ["photo.h5", f"{stem}.h5"]
    assert old.read_bytes() == before


def test_the_run_of_an_earlier_version_is_found(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"東京": 30, "photo": 30})
    assert run(["federate", "--rounds", "1", "--name", "old"]) == 0
    (Path("runs/old") / file_name("東京")).rename("runs/old/東京")
    capsys.readouterr()
    assert run(["federate", "--resume", "old"]) == 0
    assert "runs/old: is finished" in capsys.readouterr().err
    assert not (Path("runs/old") / file_name("東京")).exists()


def test_domains_of_an_archive_are_imported_federated_and_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    random = np.random.default_rng(0)
    rows = 20 * len(NAMES)
    np.savez(
        "features.npz",
        image_features=random.normal(size=(rows, 8)),
        text_features=random.normal(size=(3, 2, 8)),
        labels=np.eye(3)[np.arange(rows) % 3],
        domain=np.array(NAMES * 20),
        logit_scale=np.log(100),
    )
    assert run(["cache", "import", "features.npz", "--name", "pets"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in NAMES if name not in shown] == []
    assert shown.splitlines()[-1] == (
        "understood labels as one-hot rows, 3 of 3 classes have rows; text_features as 2 prompts "
        "per class, for --prompt; logit_scale as 100, as 4.60517 is its logarithm"
    )
    assert run(["cache", "verify"]) == 0
    assert run(["federate", "--rounds", "1", "--target", "real/world", "--prompt", "all"]) == 0
    assert CacheFolder(find_caches(Path("caches"))[0].path).file("real/world").is_file()
