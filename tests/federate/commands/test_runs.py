"""``fedclip ls``, ``show``, ``rm`` and ``compare``: what they print and what they refuse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedclip.cli import run
from fedclip.federate.runs.catalog import find_recorded, find_runs

MakeCache = Callable[..., Path]
Refusal = Callable[..., str]

GOLDEN = Path(__file__).parents[2] / "golden"

pytestmark = pytest.mark.usefixtures("empty_folder")

RUN = ["federate", "--rounds", "3", "--preset", "tuned"]


@pytest.fixture
def runs(make_cache: MakeCache) -> Path:
    """Make runs of two adapters and two seeds over two domains, the second left out."""
    make_cache({"art": 80, "photo": 90})
    for adapter in ("attention", "linear"):
        for seed in ("0", "1"):
            chosen = ["--adapter", adapter, "--seed", seed, "--target", "photo", "--lr", "1e-2"]
            assert run([*RUN, *chosen]) == 0
    return Path("runs")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(arguments) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(printed(capsys, *arguments, "--format", "json"))
    return listed


def setting(runs: Path, adapter: str) -> str:
    """Return the name of a setting's runs without the seed."""
    for path in sorted(runs.iterdir()):
        if json.loads((path / "config.json").read_text())["adapter"] == adapter:
            return path.name.rpartition("-seed")[0]
    raise AssertionError


def test_ls_shows_what_makes_a_run_differ_and_what_came_out(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = rows(capsys, "ls", "--sort", "name")
    assert [each["run"] for each in listed] == sorted(path.name for path in runs.iterdir())
    first = listed[0]
    result = json.loads((runs / first["run"] / "result.json").read_text())
    assert first["accuracy"] == {"zero_shot": result["zero_shot_mean"], "adapted": result["mean"]}
    assert first["options"] == ["lr=0.01", "rounds=3"]
    assert (first["dataset"], first["preset"], first["target"]) == ("tiny", "tuned", "photo")
    assert first["status"] == "finished"
    assert first["size"] == sum(path.stat().st_size for path in (runs / first["run"]).iterdir())


def test_ls_filters_and_sorts(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear = rows(capsys, "ls", "--filter", "adapter=linear", "--filter", "lr=1e-2")
    assert [each["adapter"] for each in linear] == ["linear", "linear"]
    assert rows(capsys, "ls", "--filter", "seed=1", "--filter", "status=failed") == []
    best = [each["accuracy"]["adapted"] for each in rows(capsys, "ls", "--sort", "accuracy")]
    assert best == sorted(best, reverse=True)
    for place, path in enumerate(sorted(runs.iterdir())):
        os.utime(path / "config.json", (place, place))
    names = [each["run"] for each in rows(capsys, "ls")]
    assert names == sorted((path.name for path in runs.iterdir()), reverse=True)


def test_ls_without_runs_says_so(
    capsys: pytest.CaptureFixture[str], refusal: Refusal, make_cache: MakeCache
) -> None:
    assert printed(capsys, "ls") == "no runs in runs\n"
    make_cache({"art": 60})
    assert run([*RUN, "--name", "one"]) == 0
    assert "no runs with lr=7 in runs" in printed(capsys, "ls", "--filter", "lr=7")
    assert "--filter adaptr=linear: unknown setting; did you mean adapter?" in refusal(
        "ls", "--filter", "adaptr=linear"
    )
    assert "must be NAME=VALUE" in refusal("ls", "--filter", "linear")


def test_ls_imports_neither_torch_nor_numpy() -> None:
    shutil.copytree(GOLDEN / "runs", "runs")
    code = """
import sys
from fedclip.cli import run
assert run(["ls"]) == 0
assert not {"torch", "numpy"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=1800)


def test_runs_of_an_earlier_version_are_listed_shown_and_said_to_lack_predictions(
    capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    shutil.copytree(GOLDEN / "runs", "runs")
    listed = {each["run"]: each for each in rows(capsys, "ls")}
    assert listed["fedavg-killed"]["status"] == "started"
    assert listed["fedavg-killed"]["accuracy"] == {"zero_shot": None, "adapted": None}
    kept = listed["golden-f86c2b6e-seed3"]
    assert (kept["status"], kept["target"]) == ("finished", "all")
    assert kept["options"] == ["batch_size=8", "lr=0.02", "rounds=6", "weight_decay=0"]
    shown = printed(capsys, "show", "golden-f86c2b6e-seed3")
    assert "has no predictions.npz; it was made by an earlier fedclip" in shown
    assert "has no predictions.npz" in refusal("compare", "golden-f86c2b6e-seed3")


ONE = "golden-2107be8e-seed3"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def looped(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def huge(path: Path) -> None:
    os.truncate(path, 1 << 40)


DAMAGE = (cut, piped, linked, looped, nested, huge)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_damaged_run_is_listed_as_such_refused_and_removed(
    name: str,
    damage: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
    refusal: Refusal,
) -> None:
    shutil.copytree(GOLDEN / "runs" / ONE, "runs/one")
    damage(Path("runs/one") / name)
    assert [each["status"] for each in rows(capsys, "ls")] == ["damaged"]
    assert "damaged" in printed(capsys, "show", "one")
    for command in ("compare", "report"):
        assert f"runs/one/{name}: is damaged or not readable; run it" in refusal(command, "one")
    assert printed(capsys, "rm", "one", "--yes").startswith("deleted    runs/one")


def test_what_is_no_run_is_not_listed(capsys: pytest.CaptureFixture[str], refusal: Refusal) -> None:
    shutil.copytree(GOLDEN / "runs" / ONE, "runs/one")
    Path("runs/file").touch()
    Path("runs/empty").mkdir()
    Path("runs/dangling").symlink_to("nowhere")
    Path("runs/loop").symlink_to("loop")
    assert [each["run"] for each in rows(capsys, "ls")] == ["one"]
    assert "--runs-dir runs/file: cannot be read (Not a directory)" in refusal(
        "ls", "--runs-dir", "runs/file"
    )
    for name in ("x" * 300, "a\0b", "dangling", "loop"):
        assert "unknown run" in refusal("show", name)


def test_a_run_that_is_removed_while_it_is_listed_has_no_size(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "runs" / ONE, tmp_path / "one")
    (recorded,) = find_runs(tmp_path)
    assert recorded.entries
    shutil.rmtree(tmp_path / "one")
    assert (recorded.status, recorded.bytes, recorded.started) == ("damaged", 0, 0.0)


def test_a_name_without_seed_means_its_own_runs_before_longer_names() -> None:
    for name in ("one-seed0", "one-seed1", "one-more-seed0"):
        shutil.copytree(GOLDEN / "runs" / ONE, Path("runs") / name)
    found = find_recorded(Path("runs"), "one")
    assert [each.name for each in found] == ["one-seed0", "one-seed1"]


def test_show_has_settings_figures_and_classes(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{setting(runs, 'linear')}-seed0"
    shown = printed(capsys, "show", name)
    result = json.loads((runs / name / "result.json").read_text())
    pair = f"{100 * result['zero_shot']['art']:.2f} > {100 * result['accuracy']['art']:.2f}"
    assert pair in shown
    f1 = result["zero_shot_metrics"]["photo"]["macro_f1"], result["metrics"]["photo"]["macro_f1"]
    assert f"{100 * f1[0]:.2f} > {100 * f1[1]:.2f}" in shown
    for word in ("adapter", "linear", "macro F1", "ECE", "mistaken most often for", "fish"):
        assert word in shown


def test_rm_deletes_one_run_and_asks(
    runs: Path, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    name = setting(runs, "linear")
    assert "pass --yes to delete it" in refusal("rm", f"{name}-seed0")
    assert f"name one of {name}-seed0, {name}-seed1" in refusal("rm", name, "--yes")
    assert "is not a run's whole name" in refusal("rm", f"{name}-seed", "--yes")
    assert printed(capsys, "rm", f"{name}-seed0", "--yes").startswith("deleted    runs/")
    assert not (runs / f"{name}-seed0").exists()
    assert (runs / f"{name}-seed1").is_dir()
    assert "unknown run" in refusal("rm", f"{name}-seed0", "--yes")


def test_rm_leaves_links_and_runs_in_progress(runs: Path, refusal: Refusal) -> None:
    name = f"{setting(runs, 'linear')}-seed0"
    (runs / "link").symlink_to(name)
    assert "is a link" in refusal("rm", "link", "--yes")
    code = f"""
import sys
from pathlib import Path
from fedclip.federate.runs.catalog import claimed
with claimed(Path("runs/{name}")):
    print("claimed", flush=True)
    sys.stdin.read()
"""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"claimed\n"
        assert "another process is working on this run" in refusal("rm", name, "--yes")
        other.communicate()
    assert (runs / name / "result.json").is_file()


def test_rm_deletes_nothing_outside_the_folder_of_runs_by_a_link(
    tmp_path: Path, refusal: Refusal
) -> None:
    for place in ("elsewhere/one", "runs/one"):
        shutil.copytree(GOLDEN / "runs" / ONE, place)
    Path("runs/link").symlink_to(Path("elsewhere").absolute())
    for name in ("link/one", "../elsewhere/one"):
        assert f"runs/{name}: is outside runs; name" in refusal("rm", name, "--yes")
    assert sorted(path.name for path in Path("elsewhere/one").iterdir()) == sorted(
        path.name for path in Path("runs/one").iterdir()
    )


def test_rm_and_overwrite_leave_folders_of_other_programs(
    make_cache: MakeCache, refusal: Refusal
) -> None:
    model = Path("models/bert")
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"architectures": ["BertModel"]}')
    (model / "weights.bin").touch()
    kept = "models/bert: is not a run of fedclip (its config.json has no settings); it is left"
    assert kept in refusal("rm", "models/bert", "--yes")
    assert kept in refusal("rm", "bert", "--runs-dir", "models", "--yes")
    make_cache({"art": 60})
    assert kept in refusal(*RUN, "--runs-dir", "models", "--name", "bert", "--overwrite")
    assert len([*model.iterdir()]) == 2


def test_rm_deletes_whole_runs_only_also_the_folder_that_one_is_in(
    refusal: Refusal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("runs/one", "runs/one/photo"):
        shutil.copytree(GOLDEN / "runs" / ONE, place, dirs_exist_ok=True)
    assert "runs/one/photo: is one target's part of a run; delete" in refusal(
        "rm", "one/photo", "--yes"
    )
    runs = Path("runs").absolute()
    monkeypatch.chdir("runs/one")
    assert printed(capsys, "rm", ".", "--yes").startswith("deleted    .")
    assert [*runs.iterdir()] == []


def test_rm_shows_a_name_as_what_a_terminal_does_not_obey(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "a\x1b[31m\n\u202eb"
    shutil.copytree(GOLDEN / "runs" / ONE, f"runs/{name}")
    assert r"deleted    runs/a\x1b[31m\n\u202eb (" in printed(capsys, "rm", name, "--yes")


def test_compare_counts_images_of_single_runs_and_of_all_seeds(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [setting(runs, adapter) for adapter in ("attention", "linear")]
    results = {
        (name, seed): json.loads((runs / f"{name}-seed{seed}" / "result.json").read_text())
        for name in names
        for seed in (0, 1)
    }
    one = {each["of"]: each for each in rows(capsys, "compare", *(f"{n}-seed0" for n in names))}
    assert list(one) == ["art", "photo", "generalization", "personalization", "mean", "pooled"]
    for figure in ("mean", "pooled", "generalization", "personalization"):
        accuracies = [results[name, 0][figure] for name in names]
        assert [one[figure]["before"], one[figure]["after"]] == pytest.approx(accuracies)
        difference = one[figure]["difference"]["difference"]
        assert difference == pytest.approx(accuracies[1] - accuracies[0])
    photo = one["photo"]
    assert photo["samples"] == 90
    gained = photo["better"] - photo["worse"]
    assert gained == round(90 * (photo["after"] - photo["before"]))
    both = {each["of"]: each for each in rows(capsys, "compare", *names)}
    assert both["photo"]["samples"] == 180
    means = [sum(results[name, seed]["mean"] for seed in (0, 1)) / 2 for name in names]
    assert [both["mean"]["before"], both["mean"]["after"]] == pytest.approx(means)


def test_compare_takes_one_run_against_zero_shot(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{setting(runs, 'linear')}-seed1"
    result = json.loads((runs / name / "result.json").read_text())
    compared = {each["of"]: each for each in rows(capsys, "compare", name)}
    mean = compared["mean"]
    assert [mean["before"], mean["after"]] == pytest.approx(
        [result["zero_shot_mean"], result["mean"]]
    )
    text = printed(capsys, "compare", name)
    assert "zero-shot > " in text
    assert "95 % interval" in text


def test_compare_refuses_what_cannot_be_paired(runs: Path, refusal: Refusal) -> None:
    name = f"{setting(runs, 'linear')}-seed0"
    assert f"{name}: is named twice" in refusal("compare", name, name)
    assert "unknown run 'nothing'" in refusal("compare", name, "nothing")
    assert run([*RUN, "--target", "art", "--name", "other"]) == 0
    assert "leave out different domains" in refusal("compare", name, "other")


def test_an_ablation_ends_with_the_difference_to_its_baseline(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    make_cache({"art": 80, "photo": 90})
    grid = ["ablate", "--rounds", "2", "--target", "photo", "--preset", "tuned", "--seeds", "2"]
    grid += ["--set", "adapter=attention,none", "--set", "lr=1e-3,3e-2"]
    best = rows(capsys, *grid)
    assert best[0]["difference"] is None
    assert all(each["difference"]["low"] <= each["difference"]["high"] for each in best[1:])
    own = {
        (each["adapter"], each["lr"]): each
        for each in rows(capsys, *grid, "--baseline", "adapter=none")
    }
    for lr in (1e-3, 3e-2):
        assert own["none", lr]["difference"] is None
        gain = own["attention", lr]["mean"]["mean"] - own["none", lr]["mean"]["mean"]
        assert own["attention", lr]["difference"]["difference"] == pytest.approx(gain)
    assert "mean less adapter=none" in printed(capsys, *grid, "--baseline", "adapter=none")
    for each in rows(capsys, *grid, "--baseline", "zero-shot"):
        assert each["difference"]["difference"] == pytest.approx(each["mean_gain"]["mean"])
    by_target = [*grid, "--figure", "generalization"]
    left_out = rows(capsys, *by_target, "--baseline", "adapter=none")
    figures = [each["generalization"]["mean"] for each in left_out]
    assert figures == sorted(figures, reverse=True)
    for each, figure in zip(left_out, figures, strict=True):
        if each["adapter"] == "attention":
            gain = figure - own["none", each["lr"]]["generalization"]["mean"]
            assert each["difference"]["difference"] == pytest.approx(gain)
    assert "no domain is left out" in refusal(*by_target, "--target", "none")
    assert "is not in this ablation; did you mean none?" in refusal(
        *grid, "--baseline", "adapter=non"
    )
    assert "must be best, zero-shot, or NAME=VALUE" in refusal(*grid, "--baseline", "rounds=2")
