"""`federate --engine flower`: every target in turn, recorded as the other engines do."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedclip.cache import CacheFolder, FeatureCache, FedclipError, load_cache
from fedclip.federate.runs.catalog import find_runs
from fedclip.federate.runs.experiment import Experiment, load_experiment
from fedclip.federate.runs.folder import RunFolder
from fedclip.federate.runs.results import RunResult, TargetsResult
from fedclip.federate.runs.runner import run_experiment
from fedclip.federate.runs.saved import load_saved
from fedclip.federate.settings import Settings

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
pytest.importorskip("ray", reason="ray is not installed: CONTRIBUTING.md")

from fedclip.federate.flower import simulated
from fedclip.federate.flower.server_app import Driver

pytestmark = pytest.mark.flower

SITES = {"cartoon": 60, "photo": 40, "sketch": 50}
CHANGES = {"rounds": 3, "lr": 0.01, "weight_decay": 0.0}


@pytest.fixture
def experiment(tmp_path: Path, make_cache: Callable[..., Path]) -> Callable[..., Experiment]:
    """Give a function that makes an experiment over all targets."""
    folder = CacheFolder(make_cache(SITES) / "tiny" / "drawn")

    def make(engine: str = "flower", **changes: Any) -> Experiment:
        targets = changes.pop("targets", tuple(SITES))
        keep = changes.pop("keep", "personal")
        settings = Settings.preset("paper", {**CHANGES, **changes})
        return Experiment(
            cache=folder,
            clients=load_cache(folder),
            settings=settings,
            model=settings.model,
            preset="paper",
            targets=targets,
            device=torch.device("cpu"),
            runs_dir=tmp_path / "runs" / engine,
            name="run",
            engine=engine,
            keep=keep,
        )

    return make


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, nodes: Any) -> None:
    """Let sites in this process take the place of Flower's simulation."""

    def simulate(files: Any, record: Any, progress: Any) -> Any:
        grid = nodes(files)
        for context in grid.contexts.values():
            context.node_config["allow-class-means"] = True
        return Driver(grid, record, authenticated=False, progress=progress).drive()

    monkeypatch.setattr(simulated, "_simulate", simulate)
    monkeypatch.setattr("sys.executable", "/usr/bin/python3")


def figures(result: Any) -> dict[str, Any]:
    """Return all of a result but seconds, and the metrics of predictions, which sites keep."""
    values = result.to_json()
    for name in ("seconds_per_round", "metrics", "zero_shot_metrics"):
        values.pop(name, None)
    return {name: value for name, value in values.items() if not name.startswith("personal_met")}


@pytest.mark.parametrize("kind", ["text", "means"])
def test_all_targets_end_with_the_results_and_files_of_the_other_engines(
    kind: str, experiment: Callable[..., Experiment], in_process: None
) -> None:
    ours, theirs = (experiment(engine, class_vectors=kind) for engine in ("auto", "flower"))
    expected, found = run_experiment(ours), simulated.run_with_flower(theirs)
    assert not found.interrupted
    assert [*map(figures, found.results)] == [*map(figures, expected.results)]
    summaries = [RunFolder(each.folder).read_result() for each in (ours, theirs)]
    assert all(isinstance(each, TargetsResult) for each in summaries)
    assert figures(summaries[0]) == figures(summaries[1])
    for name in (".", *SITES):
        configs = [RunFolder(each.folder / name).read_config() for each in (ours, theirs)]
        assert [each.pop("engine") for each in configs] == ["threads", "flower"]
        assert configs[0] == configs[1]
    (run,) = find_runs(theirs.runs_dir)
    assert [part.target for part in run.parts] == [*SITES]
    features = ours.clients[0].image_features
    for name in SITES:
        scores = [load_saved(each.folder / name)(features).adapted for each in (ours, theirs)]
        torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-4)
    with pytest.raises(FedclipError, match="this run exists"):
        simulated.run_with_flower(theirs)


def test_an_interrupted_experiment_is_resumed_and_its_targets_that_are_done_are_not_repeated(
    experiment: Callable[..., Experiment], in_process: None
) -> None:
    made = experiment(strategy="scaffold")
    seen: list[str] = []

    def stop(task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        seen.append(task)
        if len(seen) == 7:
            raise KeyboardInterrupt

    outcome = simulated.run_with_flower(made, stop)
    assert outcome.interrupted
    assert [each.status for each in outcome.results] == ["finished", "interrupted"]
    summary = RunFolder(made.folder).read_result()
    assert summary is not None
    assert summary.status == "interrupted"
    again = load_experiment(made.folder, None)
    assert again.engine == "flower"
    before = (made.folder / "cartoon" / "result.json").stat().st_mtime_ns
    done = simulated.run_with_flower(again, resume=True)
    assert before == (made.folder / "cartoon" / "result.json").stat().st_mtime_ns
    expected = run_experiment(experiment("auto", strategy="scaffold"))
    assert [*map(figures, done.results)] == [*map(figures, expected.results)]


def test_what_is_kept_is_what_was_asked_for(
    experiment: Callable[..., Experiment], in_process: None
) -> None:
    made = experiment(keep="none", targets=(None,), rounds=1)
    simulated.run_with_flower(made)
    names = sorted(path.name for path in made.folder.iterdir())
    assert names == ["config.json", "result.json", "rounds.jsonl", "sites.jsonl"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"strategy": "local"},
            "--strategy local: has no model at the server that --engine flower could test a target "
            "with; pass --target none",
        ),
        (
            {"strategy": "centralized"},
            "--strategy centralized: trains on all samples in one place, which sites never share; "
            "choose another strategy",
        ),
        (
            {"clients": 2},
            "--clients: splits a domain into simulated clients, and here every site is a client; "
            "leave out --clients",
        ),
    ],
)
def test_what_flower_cannot_do_is_refused_before_anything_is_written(
    changes: Any, reason: str, experiment: Callable[..., Experiment]
) -> None:
    made = experiment(**changes)
    with pytest.raises(FedclipError) as error:
        simulated.run_with_flower(made)
    assert str(error.value) == reason
    assert not made.runs_dir.exists()


def test_flower_computes_on_the_cpu(experiment: Callable[..., Experiment]) -> None:
    made = replace(experiment(), device=torch.device("cuda"))
    with pytest.raises(FedclipError, match=r"^--device cuda: --engine flower computes on the CPU"):
        simulated.run_with_flower(made)


def test_a_path_that_ray_cannot_start_is_refused_where_ray_would_wait_for_ever(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/my programs/python3")
    made = experiment()
    with pytest.raises(FedclipError) as error:
        simulated.run_with_flower(made)
    assert str(error.value) == (
        "--engine flower: Ray cannot start /my programs/python3, whose path has a space or another "
        "sign that a shell reads; install fedclip elsewhere, or choose another --engine"
    )
    assert not made.runs_dir.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_flowers_simulation_of_all_targets_ends_as_ours(
    make_features: Callable[..., FeatureCache], loopback: Any
) -> None:
    caches = [make_features(client, rows) for client, rows in SITES.items()]
    place = loopback(caches, fresh=True)
    folder = place.folder / "caches" / "tiny" / "drawn"
    folder.mkdir(parents=True)
    for client in SITES:
        (place.folder / f"{client}.h5").rename(folder / f"{client}.h5")
    options = ["--rounds", 3, "--lr", 0.01, "--class-vectors", "head"]
    done = {
        engine: place.start(
            engine, "federate", "--engine", engine, *options, "--runs-dir", engine, "--name", "run"
        )
        for engine in ("auto", "flower")
    }
    for each in done.values():
        assert each.wait() == 0, each.output
    tables = [
        each.output.partition("accuracy in %")[2].partition("\ncost ")[0] for each in done.values()
    ]
    assert tables[0] == tables[1]
    results = [json.loads((place.folder / e / "run" / "result.json").read_text()) for e in done]
    for each in results:
        assert math.isfinite(each.pop("seconds_per_round"))
    assert results[0] == results[1]
    assert results[0]["targets"] == [*SITES]


def test_a_result_is_of_a_run(experiment: Callable[..., Experiment], in_process: None) -> None:
    made = experiment(targets=("photo",), rounds=1)
    (result,) = simulated.run_with_flower(made).results
    assert isinstance(result, RunResult)
    assert RunFolder(made.folder).read_result() == result
