"""Commands over caches without class texts: zero-shot is not defined, and shown as a dash."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedclip.cache import FeatureCache
from fedclip.cli import run
from fedclip.federate.strategies import STRATEGIES

MakeCache = Callable[..., Path]
MakeFeatures = Callable[..., FeatureCache]
Refusal = Callable[..., str]

GRID = ["ablate", "--target", "photo", "--preset", "tuned", "--rounds", "2", "--seeds", "2"]
GRID += ["--set", "adapter=none,attention", "--set", "class_vectors=means,head"]


@pytest.mark.parametrize("vectors", ["means", "head"])
@pytest.mark.parametrize("strategy", [*STRATEGIES])
def test_every_strategy_runs(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    empty_folder: Path,
    strategy: str,
    vectors: str,
) -> None:
    clients = ("art", "photo")
    make_cache([make_features(name, 60, templates=(), logit_scale=1.0) for name in clients])
    chosen = ["--strategy", strategy, "--class-vectors", vectors, "--target", "photo"]
    assert run(["federate", "--rounds", "2", "--preset", "tuned", "--name", "run", *chosen]) == 0
    result = json.loads(Path("runs/run/result.json").read_text())
    assert result["zero_shot_mean"] is None
    assert 0 < result["mean"] <= 1


@pytest.mark.parametrize("adapter", ["scale", "taskres", "none"])
def test_a_head_is_what_fedrep_leaves_with_a_client(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    empty_folder: Path,
    refusal: Refusal,
    adapter: str,
) -> None:
    clients = ("art", "photo")
    make_cache([make_features(name, 60, templates=(), logit_scale=1.0) for name in clients])
    chosen = ["federate", "--rounds", "2", "--strategy", "fedrep", "--adapter", adapter]
    assert "leave with the client" in refusal(*chosen, "--class-vectors", "means")
    if adapter == "none":
        assert "has nothing to share" in refusal(*chosen, "--class-vectors", "head")
        return
    assert run([*chosen, "--class-vectors", "head", "--name", "run"]) == 0
    sent = json.loads(Path("runs/run/result.json").read_text())["bytes_per_round"]
    assert sent == 4 * {"scale": 8, "taskres": 24}[adapter]


@pytest.fixture
def made(make_cache: MakeCache, make_features: MakeFeatures, empty_folder: Path) -> None:
    """Make the runs of two adapters and two kinds of class vectors, with two seeds each."""
    clients = ("art", "photo")
    make_cache([make_features(name, 60, templates=(), logit_scale=1.0) for name in clients])
    assert run(GRID) == 0


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(arguments) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(printed(capsys, *arguments, "--format", "json"))
    return listed


@pytest.mark.usefixtures("made")
def test_an_ablation_has_accuracies_and_differences_and_no_gain(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = rows(capsys, *GRID, "--baseline", "adapter=none", "--figure", "generalization")
    assert len(listed) == 4
    for each in listed:
        assert 0 < each["generalization"]["mean"] <= 1
        assert each["generalization_gain"] is None
        assert (each["difference"] is None) == (each["adapter"] == "none")
    table = printed(capsys, *GRID, "--format", "markdown").splitlines()
    assert all("| - |" in line for line in table if line.startswith("| none"))
    (file,) = Path("runs").glob("*.csv")
    with file.open(newline="") as content:
        assert {each["zero_shot_mean"] for each in csv.DictReader(content)} == {""}


@pytest.mark.usefixtures("made")
def test_runs_are_listed_shown_and_compared_without_zero_shot(
    capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    listed = rows(capsys, "ls")
    assert {each["accuracy"]["zero_shot"] for each in listed} == {None}
    assert all(0 < each["accuracy"]["adapted"] <= 1 for each in listed)
    names = sorted({each["run"].rpartition("-seed")[0] for each in listed})
    shown = printed(capsys, "show", f"{names[0]}-seed0")
    assert "- > " in shown
    assert " 0.00 > " not in shown
    lines = {each["of"]: each for each in rows(capsys, "compare", *names[:2])}
    assert set(lines) == {"art", "photo", "generalization", "personalization", "mean", "pooled"}
    assert "has no zero-shot predictions to compare" in refusal("compare", f"{names[0]}-seed0")


@pytest.mark.usefixtures("made")
def test_a_report_says_that_zero_shot_is_not_defined() -> None:
    pytest.importorskip("vl_convert")
    assert run(["report"]) == 0
    (page,) = Path().glob("**/*.html")
    text = page.read_text(encoding="utf-8")
    assert "Without zero-shot there is nothing to compare with" in text
    assert "points over zero-shot" not in text
    assert "nan" not in text.lower().split("<script")[0]


LEAVE_OUT = "leave out --prompt, or extract the dataset with a model that encodes texts too, such"


@pytest.mark.parametrize(
    ("arguments", "templates", "line"),
    [
        (
            ["--prompt", "a {}"],
            (),
            f"--prompt 'a {{}}': has no effect without class texts; {LEAVE_OUT} as CLIP",
        ),
        (
            ["--prompt", "all", "--class-vectors", "head"],
            (),
            f"--prompt 'all': has no effect without class texts; {LEAVE_OUT} as CLIP",
        ),
        (
            ["--prompt", "all", "--class-vectors", "means"],
            ("a {}",),
            "--prompt 'all': has no effect with --class-vectors means; leave out --prompt",
        ),
        (
            ["--class-vectors", "text"],
            (),
            "art: has no class texts to compare its images with; extract it with a model that "
            "encodes texts too, such as CLIP, or use --class-vectors means",
        ),
        (
            ["--prompt", "the {}"],
            ("a {}",),
            "--prompt 'the {}': is not cached; choose 'a {}' or all, or add it with fedclip "
            "extract --template",
        ),
    ],
)
@pytest.mark.parametrize("command", [["federate", "--name", "run"], ["ablate", "--seeds", "2"]])
def test_class_texts_that_a_cache_lacks_are_refused_before_anything_is_printed(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    empty_folder: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    arguments: list[str],
    templates: tuple[str, ...],
    line: str,
) -> None:
    make_cache([make_features(name, templates=templates) for name in ("art", "photo")])
    assert run([*command, "--rounds", "1", *arguments]) == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert not Path("runs").exists()
