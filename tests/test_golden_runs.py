"""Runs come out as version 0.1.0 had them, whose unfinished runs are resumed.

`golden/README.md` says how the expected figures were made.
"""

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedclip.cache import load_cache, resolve_cache
from fedclip.cli import run
from fedclip.federate.commands.options import settings_of
from fedclip.federate.report.terminal import results_table
from fedclip.federate.runs.experiment import Experiment, load_experiment
from fedclip.federate.runs.folder import RunFolder
from fedclip.federate.runs.results import RunResult, TargetsResult
from fedclip.federate.runs.runner import result_on_disk

GOLDEN = Path(__file__).parent / "golden"
EXPECTED: Mapping[str, Any] = json.loads((GOLDEN / "expected.json").read_text())
CASES: Mapping[str, Any] = EXPECTED["cases"]
CACHES = ["--cache-dir", str(GOLDEN / "caches")]

# On another CPU, or with another torch, floats are rounded otherwise: by this much of losses, and
# of the sums over a tensor.
LOSSES, SUMS = 2e-5, 5e-4

# Cases of the ordinary suite: every strategy, and whatever changes another part of a round.
ORDINARY = (
    *("adapter-attention", "adapter-attention-both", "adapter-cache-model", "adapter-taskres"),
    *("dealt-ditto", "dealt-fedrep", "dealt-scaffold", "eval-every", "failed", "feature-norm"),
    *("mu", "one-fedadam", "paper", "prompt-several", "ratio", "server", "tuned"),
)

pytestmark = pytest.mark.usefixtures("empty_folder")


def same_arithmetic() -> bool:
    """Tell whether this CPU and torch give the bits that the figures were made with."""
    made = EXPECTED["made_with"]
    ours = {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}
    return all(made[name] == value for name, value in ours.items())


def parameters(path: Path) -> dict[str, torch.Tensor]:
    """Read a file's parameters; since format 3 the class texts are beside them."""
    return {name: tensor for name, tensor in load_file(path).items() if name != "@class_texts"}


def digest(path: Path) -> str | None:
    """Hash the parameters in a file by name, or give None if the file is missing."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(parameters(path).items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def sums(path: Path) -> dict[str, list[float]] | None:
    """Sum each tensor, and its squares."""
    if not path.exists():
        return None
    tensors = {name: tensor.double() for name, tensor in parameters(path).items()}
    return {
        name: [tensor.sum().item(), tensor.square().sum().item()]
        for name, tensor in tensors.items()
    }


def assert_as_expected(folder: Path, expected: Mapping[str, Any]) -> None:
    """Compare a target's folder with the figures."""
    result = json.loads((folder / "result.json").read_text())
    for name in (
        *("status", "best_round", "accuracy", "zero_shot", "validation", "personal", "dropped"),
        *("bytes_per_round", "trainable_parameters"),
    ):
        assert result[name] == expected[name], name
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [line["validation"] for line in lines] == expected["validation_by_round"]
    losses = [line["train_loss"] for line in lines]
    files = {name: folder / f"{name}.safetensors" for name in ("adapter", "personal")}
    if same_arithmetic():
        assert losses == expected["train_loss"]
        for name, path in files.items():
            assert digest(path) == expected[f"{name}_sha256"], name
    else:
        assert losses == pytest.approx(expected["train_loss"], rel=LOSSES)
        assert files["personal"].exists() == (expected["personal_sha256"] is not None)
        ours, theirs = sums(files["adapter"]), expected["adapter_sums"]
        assert (ours or {}).keys() == (theirs or {}).keys()
        for name, values in (ours or {}).items():
            assert values == pytest.approx(theirs[name], rel=SUMS, abs=SUMS), name


def assert_case(folder: Path, case: Mapping[str, Any]) -> None:
    """Compare a run, of one target or several, with its case."""
    targets = case["targets"]
    for target, expected in targets.items():
        assert_as_expected(folder / target if len(targets) > 1 else folder, expected)


def check_case(name: str) -> None:
    case = CASES[name]
    code = run(["federate", *case["options"], "--engine", "plain", *CACHES])
    assert code == case["exit_code"]
    assert [path.name for path in Path("runs").iterdir()] == [case["run"]]
    assert_case(Path("runs") / case["run"], case)


@pytest.mark.parametrize("name", ORDINARY)
def test_a_run_comes_out_as_before(name: str) -> None:
    check_case(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*CASES} - {*ORDINARY}))
def test_every_other_run_comes_out_as_before(name: str) -> None:
    check_case(name)


def test_threads_differ_from_the_plain_loop_by_rounding_alone() -> None:
    case = CASES["dealt-ditto"]
    assert run(["federate", *case["options"], "--engine", "threads", *CACHES, "--name", "one"]) == 0
    expected = case["targets"]["photo"]
    assert_as_expected(Path("runs/one"), {**expected, **expected["threads"]})


def keep(name: str) -> Path:
    """Copy a run of the version before, as runs are written to."""
    folder = Path("runs") / name
    shutil.copytree(GOLDEN / "runs" / name, folder)
    return folder


@pytest.mark.parametrize(("name", "case"), sorted(EXPECTED["interrupted_runs"].items()))
def test_an_unfinished_run_is_resumed_to_the_same_figures(
    name: str, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = keep(name)
    assert run(["federate", "--resume", name, *CACHES]) == 0
    assert "target photo: 3/6 rounds" in capsys.readouterr().err
    assert_case(folder, CASES[case])
    assert not (folder / "state.safetensors").exists()


def test_an_unfinished_run_says_that_its_cache_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keep("fedavg-killed")
    assert run(["federate", "--resume", "fedavg-killed"]) == 2
    assert "the cache of this run is missing; pass its place with --cache-dir" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(("case", "name"), sorted(EXPECTED["kept_runs"].items()))
def test_a_finished_run_is_read_and_not_repeated(
    case: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = keep(name)
    before = contents(folder)
    targets = CASES[case]["targets"]
    several = len(targets) > 1
    places = {target: folder / target if several else folder for target in targets}
    results = [RunFolder(place).result_if_over() for place in places.values()]
    for result, expected in zip(results, targets.values(), strict=True):
        assert isinstance(result, RunResult)
        assert result.version == 2
        assert (result.accuracy, result.best_round) == (
            *(expected["accuracy"], expected["best_round"]),
        )
    summary = RunFolder(folder).result_if_over()
    assert isinstance(summary, TargetsResult if several else RunResult)
    table = results_table([each for each in results if isinstance(each, RunResult)])
    assert [row[0] for row in table.all_rows] == [*targets, *(["mean"] if several else [])]

    assert run(["federate", "--resume", name, *CACHES]) == 0
    captured = capsys.readouterr()
    assert f"runs/{name}: is finished" in captured.err
    assert "accuracy in %" in captured.out
    # The summary of several targets is written again, in the format of now.
    after = contents(folder)
    assert {**after, "result.json": b""} == {**before, "result.json": b""}
    old, new = (json.loads(each["result.json"]) for each in (before, after))
    assert new == ({**old, "version": 2} if several else old)


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a run."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("case", "name"), sorted(EXPECTED["kept_runs"].items()))
def test_a_finished_run_belongs_to_the_experiment_of_its_options(case: str, name: str) -> None:
    kept = load_experiment(keep(name), GOLDEN / "caches")
    folder = resolve_cache(GOLDEN / "caches", "golden")
    values = flags_of(CASES[case]["options"])
    made = Experiment(
        cache=folder,
        clients=load_cache(folder),
        settings=settings_of(values),
        model=kept.model,
        preset="paper",
        targets=kept.targets,
        device=torch.device("cpu"),
        runs_dir=Path("runs"),
        name=name,
    )
    assert made.settings == kept.settings
    assert made.content == kept.content
    assert result_on_disk(made) == RunFolder(kept.folder).result_if_over() is not None


def flags_of(options: Sequence[str]) -> dict[str, Any]:
    """Read the settings among a case's options; numbers as numbers."""
    values: dict[str, Any] = {}
    for flag, text in zip(options[::2], options[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        if name in ("rounds", "seed", "batch_size"):
            values[name] = int(text)
        elif name in ("lr", "weight_decay"):
            values[name] = float(text)
        elif name not in ("cache", "device", "target"):
            values[name] = text
    return values


def test_the_ablation_has_the_same_table() -> None:
    options = [*EXPECTED["ablation"]["options"], "--engine", "plain", *CACHES]
    assert run(["ablate", *options, "--csv", "table.csv"]) == 0
    ours, theirs = (
        [*csv.DictReader(path.open(newline=""))]
        for path in (Path("table.csv"), GOLDEN / EXPECTED["ablation"]["table"])
    )
    assert len(ours) == 12
    # Columns that were added since are behind the others.
    added = {"clients": "2", "clients_left_out": "0"}
    assert [[*each] for each in ours] == [[*each, *added] for each in theirs]
    assert [numbers(row) for row in ours] == [numbers({**row, **added}) for row in theirs]


def numbers(row: Mapping[str, str]) -> dict[str, str | float]:
    """Read the cells that are numbers."""
    read: dict[str, str | float] = {}
    for name, cell in row.items():
        try:
            read[name] = float(cell)
        except ValueError:
            read[name] = cell
        else:
            assert math.isfinite(float(cell))
    return read
