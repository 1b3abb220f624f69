"""Data sets and weights from the hub: the headline command on a machine that has nothing yet."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedclip.cache import CacheFolder, FeatureCache, find_caches, load_cache

Fedclip = Callable[..., subprocess.CompletedProcess[str]]
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
# A small data set
"""
    return {
        "README.md": card.encode(),
        "data/train-00000-of-00002.parquet": image_table(made[:half], names),
        "data/train-00001-of-00002.parquet": image_table(made[half:], names),
    }


@pytest.fixture
def machine(fedclip: Fedclip, hub: Hub, tmp_path: Path) -> Fedclip:
    """Run fedclip on a machine that has nothing but a connection to the hub."""
    (tmp_path / "home").mkdir()
    environment = {
        "HOME": str(tmp_path / "home"),
        "HF_HOME": str(tmp_path / "home" / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "",
    }

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        env = {**environment, **options.pop("env", {})}
        return fedclip(*arguments, env=env, **options)

    return run


def caches(place: Path) -> dict[str, FeatureCache]:
    (folder,) = find_caches(place / "caches")
    return {cache.client: cache for cache in load_cache(folder)}


def manifest(place: Path) -> dict[str, Any]:
    (folder,) = find_caches(place / "caches")
    return CacheFolder(folder.path).read_manifest()


def test_the_headline_command_works_on_a_machine_that_has_nothing_yet(
    machine: Fedclip, hub: Hub, image_table: Table, tiny_clip: Path, tmp_path: Path
) -> None:
    repo = hub.repo("flwrlabs/office-home", office_home(image_table, rows()))
    hub.model("tiny/clip", tiny_clip)
    first = machine("extract", "--dataset", "office-home", "--model", MODEL)
    assert first.returncode == 0, first.stderr
    assert "download   hf:flwrlabs/office-home: 2 files" in first.stderr
    found = caches(tmp_path)
    assert list(found) == ["art", "clipart", "product", "real_world"]
    assert {len(cache.labels) for cache in found.values()} == {6}
    assert found["art"].class_names == CLASSES
    assert found["real_world"].ids[0] == "train/00000018"
    entry = manifest(tmp_path)["clients"]["art"]
    assert entry["hub"]["commit"] == repo.branches["main"]
    assert entry["hub"]["revision"] == "main"

    federated = machine("federate", "--rounds", "2")
    assert federated.returncode == 0, federated.stderr
