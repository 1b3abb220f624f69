"""``fedclip ablate``: what it runs, prints and leaves on disk, and what it refuses."""

import csv
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from fedclip.cache import FeatureCache
from fedclip.cli import run

MakeFeatures = Callable[..., FeatureCache]
MakeCache = Callable[..., Path]
WaitUntil = Callable[[Callable[[], bool]], None]
Refusal = Callable[..., str]
Records = Callable[[Path], dict[str, Any]]

pytestmark = pytest.mark.usefixtures("empty_folder")

SHAPE = ["--clients", "3", "--alpha", "1", "--rounds", "3", "--preset", "tuned"]


@pytest.fixture
def own_module() -> Iterator[Callable[[str], str]]:
    """Give a function that writes a user's module, in place of the one before, and its name."""

    def forget() -> None:
        sys.modules.pop("my_fragile", None)
        sys.path_importer_cache.clear()

    def write(source: str) -> str:
        Path("my_fragile.py").write_text(source)
        forget()
        return "my_fragile"

    yield write
    forget()


def table_of(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """Give the printed table's rows, best first."""
    printed = capsys.readouterr().out.split("───")[-1].split("\nruns ")[0]
    return [line.split() for line in printed.splitlines()[1:] if line.strip()]


def csv_rows() -> list[dict[str, str]]:
    (path,) = Path("runs").glob("*.csv")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_run_is_what_federate_makes_of_it_alone(
    make_cache: MakeCache, records: Records
) -> None:
    make_cache({"art": 60, "photo": 70})
    vary = ["--set", "lr=1e-3,1e-2", "--set", "feature-norm=raw,3", "--set", "rounds=2,3"]
    shape = ["--clients", "3", "--alpha", "1", "--preset", "tuned", "--participation", "0.7"]
    assert run(["ablate", *shape, *vary, "--seeds", "2", "--runs-dir", "together"]) == 0
    for lr in ("1e-3", "1e-2"):
        for norm in ("raw", "3"):
            for rounds in ("2", "3"):
                for seed in ("0", "1"):
                    options = ["--lr", lr, "--feature-norm", norm, "--rounds", rounds]
                    options += ["--seed", seed, "--runs-dir", "alone"]
                    assert run(["federate", *shape, *options]) == 0
    together, alone = records(Path("together")), records(Path("alone"))
    (table,) = [name for name in together if name.endswith(".csv")]
    del together[table]
    assert len([name for name in alone if name.endswith(".safetensors")]) == 32
    assert together == alone


def test_the_table_sums_up_over_seeds_best_first_and_the_csv_has_each_run(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 200})
    assert run(["ablate", *SHAPE, "--set", "lr=1e-4,1e-2,3e-2", "--seeds", "3"]) == 0
    printed = table_of(capsys)
    rows = csv_rows()
    assert len(rows) == 9
    assert {row["status"] for row in rows} == {"finished"}
    expected = []
    for lr in ("0.0001", "0.01", "0.03"):
        members = [row for row in rows if row["lr"] == lr]
        assert [row["seed"] for row in members] == ["0", "1", "2"]
        cells = [lr, "3", "of", "3"]
        means = []
        for figure in ("mean", "pooled"):
            after = [100 * float(row[figure]) for row in members]
            gain = [
                100 * (float(row[figure]) - float(row[f"zero_shot_{figure}"])) for row in members
            ]
            means.append(statistics.mean(after))
            cells += [f"{means[-1]:.2f}", f"({statistics.stdev(after):.2f})"]
            cells += [f"{statistics.mean(gain):+.2f}", f"({statistics.stdev(gain):.2f})"]
        expected.append((means[0], cells))
    expected.sort(key=lambda each: each[0], reverse=True)
    # The last column is the difference to the best; test_runs.py has its figures.
    assert [row[: len(expected[0][1])] for row in printed] == [cells for _, cells in expected]
    assert printed[0][-1] == "-"
    for row in rows:
        result = json.loads(Path("runs", row["run"], "result.json").read_text())
        config = json.loads(Path("runs", row["run"], "config.json").read_text())
        assert float(row["mean"]) == result["mean"]
        assert float(row["lr"]) == config["settings"]["lr"]
        assert row["generalization"] == ""


def test_what_holds_for_all_runs_is_said_in_one_order(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    options = ["--preset", "tuned", "--rounds", "1", "--alpha", "1", "--clients", "2"]
    assert run(["ablate", "--set", "lr=0.01", *options]) == 0
    ablation = "1 run: lr 0.01; preset tuned, clients 2, alpha 1.0, rounds 1"
    assert f"ablation   {ablation}\n" in capsys.readouterr().out


def test_the_clients_own_models_have_a_column_without_a_target_too(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 200})
    assert run(["ablate", *SHAPE, "--set", "strategy=ditto,fedrep"]) == 0
    printed = capsys.readouterr().out
    for row in csv_rows():
        assert f"{100 * float(row['personal_mean']):.2f} " in printed
    assert "personal mean" in " ".join(printed.split())


def test_combinations_that_are_one_run_are_counted(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str], refusal: Refusal
) -> None:
    make_cache({"photo": 60})
    fixed = ["--rounds", "1", "--adapter", "residual", "--set", "ratio=0.1,0.2"]
    same = ["--set", "preset=paper,tuned", "--loss", "class", "--lr", "1e-3", "--weight-decay", "0"]
    assert run(["ablate", *fixed, *same]) == 0
    assert "(4 combinations, some of which are the same run)" in capsys.readouterr().out
    assert len(csv_rows()) == 2
    # Without a ratio it is the source's, 0.2, so this run is there.
    alone = ["federate", "--rounds", "1", "--adapter", "residual", *same[2:]]
    assert "this run exists" in refusal(*alone)


def test_every_domain_is_left_out_in_turn_by_default(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"art": 40, "photo": 40, "sketch": 30})
    assert run(["ablate", "--rounds", "2", "--set", "loss=clip,class"]) == 0
    assert "generalization" in capsys.readouterr().out
    for row in csv_rows():
        folder = Path("runs", row["run"])
        summary = json.loads((folder / "result.json").read_text())
        assert summary["targets"] == ["art", "photo", "sketch"]
        assert float(row["generalization"]) == summary["generalization"]
    assert run(["ablate", "--rounds", "2", "--set", "target=art,none"]) == 0


def test_a_file_says_the_same_as_options(make_cache: MakeCache) -> None:
    make_cache({"photo": 60})
    Path("grid.toml").write_text(
        'rounds = 2\nfeature-norm = 10\nseeds = 2\nloss = ["clip", "class"]\n'
        "[zip]\nlr = [1e-4, 1e-3]\nweight_decay = [0.2, 0.0]\n"
    )
    assert run(["ablate", "grid.toml", "--clients", "2", "--runs-dir", "file"]) == 0
    for lr, decay in (("1e-4", "0.2"), ("1e-3", "0")):
        options = ["--lr", lr, "--weight-decay", decay, "--clients", "2", "--rounds", "2"]
        vary = ["--set", "loss=clip,class", "--set", "seed=0,1", "--feature-norm", "10"]
        assert run(["ablate", *options, *vary, "--runs-dir", "options"]) == 0
    names = [
        sorted(path.name for path in Path(place).iterdir() if path.is_dir())
        for place in ("file", "options")
    ]
    assert len(names[0]) == 8
    assert names[0] == names[1]


def test_several_templates_of_a_file_are_one_value(
    make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    make_cache([make_features("photo", 40, templates=("a {}", "the {}"))])
    Path("grid.toml").write_text('prompt = ["a {}", ["a {}", "the {}"]]\nrounds = 1\n')
    assert run(["ablate", "grid.toml"]) == 0
    assert [row["prompt"] for row in csv_rows()] == ["a {}", "a {} + the {}"]


def test_a_finished_run_is_not_repeated(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str], records: Records
) -> None:
    make_cache({"art": 40, "photo": 50})
    assert run(["federate", *SHAPE, "--lr", "0.01"]) == 0
    command = ["ablate", *SHAPE, "--set", "lr=0.01,0.02"]
    times = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    assert run(command) == 0
    assert "1 of 2 runs is done already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in times if path.is_file()} == {
        path: time for path, time in times.items() if path.is_file()
    }
    before = records(Path("runs"))
    assert run(command) == 0
    assert "2 of 2 runs are done already" in capsys.readouterr().err
    assert records(Path("runs")) == before


def test_another_content_of_the_cache_makes_other_runs(
    make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    for seed in (0, 1):
        make_cache([make_features("photo", 40, seed=seed)])
        assert run(["ablate", *SHAPE, "--set", "lr=0.01,0.02"]) == 0
    assert len([path for path in Path("runs").iterdir() if path.is_dir()]) == 4


@pytest.mark.slow
def test_a_killed_ablation_is_resumed_to_the_same_table(
    make_cache: MakeCache,
    capsys: pytest.CaptureFixture[str],
    records: Records,
    wait_until: WaitUntil,
) -> None:
    make_cache({"art": 200, "photo": 200})
    shape = ["--clients", "3", "--alpha", "1", "--rounds", "30", "--save-every", "4"]
    command = ["ablate", *shape, "--set", "lr=1e-4,1e-3,1e-2", "--seeds", "2"]
    assert run([*command, "--runs-dir", "unbroken"]) == 0
    expected = capsys.readouterr().out.split("accuracy in %")[1].split("\nruns ")[0]

    def rounds_done() -> int:
        return sum(len(p.read_bytes().splitlines()) for p in Path("killed").rglob("rounds.jsonl"))

    for enough in (60, 200):
        process = subprocess.Popen(
            [sys.executable, "-m", "fedclip", *command, "--runs-dir", "killed"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: rounds_done() >= enough or process.poll() is not None)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(Path("killed").rglob("state.safetensors"))
    assert run([*command, "--runs-dir", "killed"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split("accuracy in %")[1].split("\nruns ")[0] == expected
    assert records(Path("killed")) == records(Path("unbroken"))


def test_an_interrupted_ablation_says_so_and_can_be_resumed(
    make_cache: MakeCache, wait_until: WaitUntil, hangs: int
) -> None:
    make_cache({"photo": 300})
    command = ["ablate", "--rounds", "100000", "--set", "lr=1e-4,1e-3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedclip", *command],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(
        lambda: len([*Path("runs").rglob("rounds.jsonl")]) >= 2 or process.poll() is not None
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=hangs)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [row["status"] for row in csv_rows()] == ["interrupted", "interrupted"]
    assert len(list(Path("runs").rglob("state.safetensors"))) == 2


def test_a_run_that_fails_is_reported_and_the_others_continue(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 40})
    command = ["ablate", "--rounds", "3", "--alpha", "1"]
    vary = ["--set", "lr=1e-3,1e38", "--set", "clients=2,40"]
    assert run([*command, *vary]) == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 3
    assert sum("training diverged" in line for line in errors) == 1
    assert sum("no client is left to train" in line for line in errors) == 2
    rows = csv_rows()
    assert [row["status"] for row in rows] == ["finished", "failed", "failed", "failed"]
    assert "0.001" in captured.out
    # A failure is as certain as a result, so it is not repeated either.
    assert run([*command, *vary]) == 1
    assert csv_rows() == rows


# A strategy of a user's that fails in its second round, and an adapter.
OWN = """
from dataclasses import dataclass

from torch import nn, ones

from fedclip.federate.extend import Adapter, FedAvg, option


class Fragile(FedAvg):
    def aggregate(self, state, updates, cohort):
        if "worn" in state:
            raise ValueError("the mould broke")
        return {**super().aggregate(state, updates, cohort), "worn": {"out": ones(1)}}


@dataclass(frozen=True)
class Narrow(Adapter):
    rank: int = option(8, least=1, help="Width of the bottleneck.")

    def layers(self, text):
        width = text.shape[1]
        return {"inner": nn.Sequential(nn.Linear(width, self.rank), nn.Linear(self.rank, width))}

    def forward(self, layers, image, text):
        return image + layers.inner(image), text
"""


def test_an_own_method_that_fails_leaves_the_other_runs_alone(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str], own_module: Callable[[str], str]
) -> None:
    make_cache({"photo": 80})
    name = f"{own_module(OWN)}:Fragile"
    command = ["ablate", "--set", f"strategy={name},fedavg,fedprox", "--rounds", "4"]
    assert run([*command, "--engine", "plain"]) == 1
    captured = capsys.readouterr()
    rows = csv_rows()
    assert [row["status"] for row in rows] == ["failed", "finished", "finished"]
    reason = f"--strategy {name}: failed with ValueError: the mould broke"
    assert rows[0]["error"] == reason
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: runs/{rows[0]['run']} failed: {reason}"]
    # The others are as they would be alone.
    for row, strategy in zip(rows[1:], ("fedavg", "fedprox"), strict=True):
        alone = ["federate", "--strategy", strategy, "--rounds", "4", "--engine", "plain"]
        assert run([*alone, "--runs-dir", "alone"]) == 0
        places = [Path(folder, row["run"], "adapter.safetensors") for folder in ("runs", "alone")]
        assert places[0].read_bytes() == places[1].read_bytes()


def test_an_own_method_that_has_changed_makes_new_runs(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str], own_module: Callable[[str], str]
) -> None:
    make_cache({"photo": 40})
    name = own_module(OWN)
    command = ["ablate", "--adapter", f"{name}:Narrow", "--seeds", "2", "--rounds", "1"]
    assert run(command) == 0
    first = csv_rows()
    assert run(command) == 0
    assert "2 of 2 runs are done already" in capsys.readouterr().err
    own_module(OWN.replace("option(8,", "option(64,"))
    assert run([*command, "--csv", "second.csv"]) == 0
    captured = capsys.readouterr()
    assert "done already" not in captured.err
    line = (
        "existing   2 of these 2 runs exist with another source of the adapter; new ones are made"
    )
    assert line in captured.out
    with Path("second.csv").open(newline="") as file:
        second = list(csv.DictReader(file))
    assert not {row["run"] for row in first} & {row["run"] for row in second}
    sizes = {
        json.loads(Path("runs", row["run"], "result.json").read_text())["trainable_parameters"]
        for row in second
    }
    assert sizes == {8 * 64 + 64 + 64 * 8 + 8}


def test_runs_that_differ_in_one_option_are_named_before_new_ones_are_made(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    command = ["ablate", "--set", "lr=1e-4,1e-3", "--seeds", "2", "--rounds", "2"]
    assert run(command) == 0
    assert run(command) == 0
    assert "existing" not in capsys.readouterr().out
    assert run([*command[:-1], "3"]) == 0
    line = "existing   4 of these 4 runs exist with rounds 2 in place of 3; new ones are made\n"
    assert line in capsys.readouterr().out
    assert run(["ablate", "--set", "lr=1e-4,5e-2", "--seeds", "1", "--rounds", "4"]) == 0
    line = "existing   1 of these 2 runs exists with rounds 2 in place of 4; new ones are made\n"
    assert line in capsys.readouterr().out
    # What is varied on purpose is not named, and neither is what differs in two options.
    assert run(["ablate", "--set", "lr=5e-4", *command[3:]]) == 0
    assert run([*command[:-1], "4", "--clients", "2"]) == 0
    assert "existing" not in capsys.readouterr().out


def test_clients_that_are_left_out_are_counted(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"art": 60, "photo": 60})
    command = ["ablate", "--clients", "10", "--alpha", "0.3", "--rounds", "1", "--seeds", "2"]
    for _ in range(2):  # also of runs that are done already
        assert run(command) == 0
        left_out = []
        for row in csv_rows():
            results = [
                json.loads(path.read_text())
                for path in Path("runs", row["run"]).glob("*/result.json")
            ]
            dropped = {name for result in results for name in result["dropped"]}
            assert int(row["clients_left_out"]) == len(dropped) > 0
            assert int(row["clients"]) == 20 - len(dropped)
            left_out.append(len(dropped))
        assert len(set(left_out)) == 2
        line = f"left out   up to {max(left_out)} of 20 clients, with fewer than 5 rows"
        assert line in capsys.readouterr().out
    assert run(["ablate", "--rounds", "1", "--seeds", "2"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_a_run_of_another_process_is_left_alone(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedclip.federate.runs.folder import RunFolder

    make_cache({"photo": 40})
    command = ["ablate", *SHAPE, "--set", "lr=0.01,0.02"]
    assert run(command) == 0
    first = Path("runs", csv_rows()[0]["run"])
    (first / "result.json").unlink()
    with RunFolder(first).claimed():
        assert run(command) == 1
    assert "another process is working on this run" in capsys.readouterr().err
    assert [row["status"] for row in csv_rows()] == ["failed", "finished"]


def test_a_great_many_runs_are_asked_about(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    make_cache({"photo": 40})
    monkeypatch.setattr("fedclip.federate.commands.ablate.MANY_RUNS", 2)
    command = ["ablate", *SHAPE, "--seeds", "3"]
    assert "this grid has 3 runs; pass --yes to start them" in refusal(*command)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = iter([False, True])

    def confirm(text: str, abort: bool) -> None:
        assert text == "This grid has 3 runs. Start them?"
        if abort and not next(answers):
            raise typer.Abort

    monkeypatch.setattr("typer.confirm", confirm)
    assert run(command) == 130
    assert not Path("runs").exists()
    assert run(command) == 0
    assert len(csv_rows()) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "nothing varies; pass --set NAME=VALUE,VALUE, --seeds N or a GRID, or use federate"),
        (["--rounds", "3"], "nothing varies; pass --set"),
        (["--set", "lrr=1"], "lrr: is not an option that varies; did you mean lr?"),
        (["--set", "lr="], "lr has an empty list"),
        (["--set", "lr"], "--set 'lr': must be NAME=VALUE,VALUE"),
        (["--set", "lr=1,fast"], "--lr fast: must be a number"),
        (["--set", "rounds=0"], "--rounds 0: must be at least 1"),
        (["--set", "rounds=2.5"], "--rounds 2.5: must be a whole number"),
        (["--set", "loss=mse"], "--loss mse: unknown loss; choose clip or class"),
        (["--set", "alpha=1,2"], "needs --clients"),
        (["--set", "preset=best"], "--preset best: unknown preset; choose paper or tuned"),
        (["--set", "engine=plain,threads"], "engine: is not an option that varies"),
        (["--set", "lr=1", "--lr", "2"], "lr is set twice"),
        (["--set", "lr=1", "--set", "lr=2"], "lr is set twice"),
        (["--set", "seeds=3", "--seeds", "2"], "seeds is set twice"),
        (["--target", "nope"], "--target nope: unknown domain; did you mean none?"),
        (["--csv", "caches"], "--csv caches: is a folder; choose a file"),
        (["--csv", ""], "--csv '': is empty; pass a value or leave out --csv"),
        (["--csv", "caches/tiny/drawn/photo.h5"], "photo.h5: is not a table of runs, so it is not"),
        (["--seeds", "2000000000"], "seeds must be a number of seeds from 1 to 1,000,000"),
        (
            ["--feature-norm", "1e39"],
            "--feature-norm 1e39: must be at least 1e-06 and at most 1000000.0",
        ),
        (["--seeds", "0"], "--seeds 0: must be at least 1"),
        (["--lrr", "1"], "unknown option --lrr; did you mean --lr"),
        (["nowhere.toml"], "nowhere.toml: is neither a file nor a grid"),
        (["--cache", "none"], "unknown cache 'none'"),
        (["--device", "gpu"], "--device gpu: unknown device; choose auto"),
        (["--seeds", "100000"], "this grid has 100,000 runs; pass --yes to start them"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    make_cache: MakeCache, arguments: list[str], complaint: str, refusal: Refusal
) -> None:
    make_cache({"photo": 30})
    if "nothing varies" not in complaint and not {"--set", "--seeds"} & {*arguments}:
        arguments = [*arguments, "--seeds", "2"]
    assert complaint in refusal("ablate", *arguments)
    assert not Path("runs").exists()


def test_the_help_has_the_options_of_federate_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from fedclip.cli import run; run(['ablate', '--help']);"
        "print('modules', *{name.split('.')[0] for name in sys.modules})"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "numpy", "h5py"} & set(printed.split("modules")[-1].split())
    for option in ("--set", "--seeds", "--csv", "--yes", "--clients", "--lr", "--eval-every"):
        assert option in printed
    for option in ("--resume", "--overwrite", "--name"):
        assert option not in printed
