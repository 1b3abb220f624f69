"""The grids that come with the package."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedclip.cache import FeatureCache
from fedclip.cli import run
from fedclip.federate.ablations.grids import NAMES

MakeCache = Callable[..., Path]
MakeFeatures = Callable[..., FeatureCache]

pytestmark = pytest.mark.usefixtures("empty_folder")

TEMPLATES = (
    "a picture of a {}",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

RUNS = {
    "adapters": 9,
    "backbones": 4,
    "data-fraction": 5,
    "heterogeneity": 6,
    "learning-rate": 10,
    "local-epochs": 4,
    "participation": 5,
    "prompts": 9,
    "strategies": 10,
}

# What is extracted before a grid is run, where it is not any cache.
CACHES = {
    "backbones": [
        f"office-home/{backbone}-openai-0123abcd"
        for backbone in ("RN50", "ViT-B-16", "ViT-B-32", "ViT-L-14")
    ]
}


def test_all_are_listed_by_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(NAMES) == set(RUNS)
    assert run(["ablate", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_runs_to_the_end(
    make_cache: MakeCache, make_features: MakeFeatures, name: str
) -> None:
    for cache in CACHES.get(name, ["tiny/drawn"]):
        make_cache([make_features("photo", 200, templates=TEMPLATES)], name=cache)
    rounds = [] if name == "local-epochs" else ["--rounds", "1"]
    assert run(["ablate", name, "--seeds", "1", *rounds, "--csv", "table.csv"]) == 0
    with Path("table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == RUNS[name]
    assert {row["status"] for row in rows} == {"finished"}


def test_a_file_of_that_name_comes_first(make_cache: MakeCache) -> None:
    make_cache({"photo": 60})
    Path("strategies").write_text('strategy = ["local"]\n')
    assert run(["ablate", "strategies", "--rounds", "1", "--csv", "table.csv"]) == 0
    assert len(Path("table.csv").read_text().splitlines()) == 2


def test_an_unknown_one_is_refused(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    assert run(["ablate", "strategy"]) == 2
    error = capsys.readouterr().err
    assert (
        "strategy: is neither a file nor a grid of the package; did you mean strategies?" in error
    )


def test_all_prompts_are_the_mean_of_every_cached_one(
    make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    make_cache([make_features("photo", 100, templates=TEMPLATES[:3])])
    options = ["federate", "--rounds", "2", "--lr", "0.01"]
    each = [word for template in TEMPLATES[:3] for word in ("--prompt", template)]
    assert run([*options, "--prompt", "all", "--name", "all"]) == 0
    assert run([*options, *each, "--name", "each"]) == 0
    assert run([*options, "--name", "first"]) == 0
    every, each_one, first = (
        load_file(Path(f"runs/{name}/adapter.safetensors")) for name in ("all", "each", "first")
    )
    assert every.keys() == each_one.keys()
    assert all(torch.equal(every[name], each_one[name]) for name in every)
    assert not torch.equal(every["@class_texts"], first["@class_texts"])


def test_all_among_others_is_refused(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    assert run(["federate", "--prompt", "all", "--prompt", "a picture of a {}"]) == 2
    assert "--prompt 'all': is not cached" in capsys.readouterr().err


def test_backbones_are_compared_by_their_caches(
    make_cache: MakeCache, make_features: MakeFeatures, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 100}, name="pets/small")
    make_cache([make_features("photo", 120, width=12, seed=2)], name="pets/large")
    vary = ["--set", "cache=pets/small,pets/large", "--set", "feature_norm=raw,10"]
    assert run(["ablate", *vary, "--rounds", "2", "--lr", "0.01", "--csv", "table.csv"]) == 0
    printed = capsys.readouterr().out
    assert "cache      pets/small, pets/large\n" in printed
    with Path("table.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        alone = ["--cache", row["cache"], "--feature-norm", row["feature_norm"]]
        options = ["--rounds", "2", "--lr", "0.01", "--overwrite", "--name", "alone"]
        assert run(["federate", *alone, *options]) == 0
        result = json.loads(Path("runs/alone/result.json").read_text())
        assert float(row["pooled"]) == result["pooled"]
        assert float(row["zero_shot_pooled"]) == result["zero_shot_pooled"]
    assert len(rows) == 4
