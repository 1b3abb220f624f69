"""``fedclip federate``: what it prints, what it leaves on disk, what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from fedclip.cache import EncoderFacts, FeatureCache
from fedclip.cli import run
from fedclip.federate.runs.folder import RunFolder
from fedclip.federate.server import Round
from fedclip.federate.strategies import STRATEGIES

MakeFeatures = Callable[..., FeatureCache]
MakeCache = Callable[..., Path]
WaitUntil = Callable[[Callable[[], bool]], None]
Refusal = Callable[..., str]

pytestmark = pytest.mark.usefixtures("empty_folder")

RUN_FILES = [
    "adapter.safetensors",
    "config.json",
    "predictions.npz",
    "result.json",
    "rounds.jsonl",
]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_with_one_target_leaves_its_five_files(make_cache: MakeCache) -> None:
    make_cache({"art": 30, "photo": 40, "sketch": 25})
    assert run(["federate", "--target", "sketch", "--rounds", "4", "--name", "one"]) == 0
    folder = Path("runs/one")
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES

    rounds = lines(folder / "rounds.jsonl")
    assert [line["round"] for line in rounds] == [1, 2, 3, 4]
    assert set(rounds[0]) == {
        *("round", "seconds", "train_loss", "validation", "test", "personal"),
        *("balanced_accuracy", "macro_f1", "bytes_up", "bytes_down"),
    }
    assert set(rounds[0]["validation"]) == {"art", "photo"}
    assert set(rounds[0]["test"]) == {"art", "photo", "sketch"}

    result = read(folder / "result.json")
    best = rounds[result["best_round"] - 1]
    scores = [sum(line["validation"].values()) / 2 for line in rounds]
    assert result["best_round"] == 1 + scores.index(max(scores))
    accuracy = result["accuracy"]
    assert accuracy == best["test"]
    assert result["target"] == "sketch"
    assert result["generalization"] == accuracy["sketch"]
    assert result["personalization"] == pytest.approx((accuracy["art"] + accuracy["photo"]) / 2)
    assert result["mean"] == pytest.approx(sum(accuracy.values()) / 3)
    sizes = {"art": 6, "photo": 8, "sketch": 25}
    assert result["test_samples"] == sizes
    pooled = sum(accuracy[name] * size for name, size in sizes.items()) / 39
    assert result["pooled"] == pytest.approx(pooled)
    assert result["zero_shot_mean"] == pytest.approx(sum(result["zero_shot"].values()) / 3)
    parameters = 2 * (8 * 8 + 8)
    assert result["trainable_parameters"] == parameters
    assert result["bytes_per_round"] == 4 * parameters
    assert best["bytes_up"] == best["bytes_down"] == 2 * 4 * parameters
    assert result["status"] == "finished"


def test_the_adapter_says_what_it_belongs_to(
    make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    cache = make_features("photo", 30)
    make_cache([cache])
    assert run(["federate", "--rounds", "2", "--name", "one"]) == 0
    path = Path("runs/one/adapter.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in load_file(path).items()} == {
        "attention.0.weight": (8, 8),
        "attention.0.bias": (8,),
        "attention.2.weight": (8, 8),
        "attention.2.bias": (8,),
        "@class_texts": (3, 8),
    }
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["fedclip"]
    assert json.loads(metadata["fedclip"]) == {
        "version": 3,
        "kind": "adapter",
        "class_vectors": "text",
        "adapter": "attention",
        "adapter_source": None,
        "options": {},
        "model": None,
        "embed_dim": 8,
        "encoder": cache.encoder.groups,
        "key": cache.key,
        "batch_size": None,
        "dataset": "tiny",
        "class_names": ["cat", "dog", "fish"],
        "prompts": ["a picture of a {}"],
        "feature_norm": None,
        "normalized": False,
        "logit_scale": 20.0,
        "settings": read(Path("runs/one/config.json"))["settings"],
        "split": {
            "seed": 0,
            "target": None,
            "partition": None,
            "options": {},
            "domains": {"photo": cache.content},
            "rows": {"photo": 30},
        },
    }


def test_several_domains_are_left_out_in_turn_with_a_summary_above(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"art": 30, "photo": 40, "sketch": 25})
    assert run(["federate", "--rounds", "2", "--name", "all"]) == 0
    folder = Path("runs/all")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("art", "config.json", "photo", "result.json", "sketch")
    ]
    results = {}
    for target in ("art", "photo", "sketch"):
        assert sorted(path.name for path in (folder / target).iterdir()) == RUN_FILES
        results[target] = read(folder / target / "result.json")
        assert results[target]["target"] == target
        assert read(folder / target / "config.json")["target"] == target
    summary = read(folder / "result.json")
    assert summary["targets"] == ["art", "photo", "sketch"]
    assert summary["accuracy"] == {t: r["generalization"] for t, r in results.items()}
    for name in ("generalization", "personalization", "mean", "pooled", "zero_shot_pooled"):
        assert summary[name] == pytest.approx(sum(r[name] for r in results.values()) / 3)
    printed = capsys.readouterr().out
    rows = [line.split()[0] for line in printed.splitlines() if " > " in line]
    assert rows[1:] == ["art", "photo", "sketch", "mean"]


def test_a_cache_of_one_domain_federates_without_a_target(make_cache: MakeCache) -> None:
    make_cache({"photo": 100})
    arguments = ["federate", "--clients", "4", "--alpha", "1", "--rounds", "2", "--name", "split"]
    assert run(arguments) == 0
    result = read(Path("runs/split/result.json"))
    assert result["target"] is None
    assert result["generalization"] is None
    assert set(result["accuracy"]) == {f"photo-{index:03d}" for index in range(4)}
    assert result["mean"] == result["personalization"]


def test_what_is_not_evaluated_is_null(make_cache: MakeCache) -> None:
    make_cache({"art": 120, "photo": 120})
    options = ["--preset", "tuned", "--lr", "0.01", "--rounds", "8", "--target", "photo"]
    assert run(["federate", *options, "--name", "each"]) == 0
    assert run(["federate", *options, "--eval-every", "3", "--name", "third"]) == 0
    each, third = (lines(Path(f"runs/{name}/rounds.jsonl")) for name in ("each", "third"))
    best: float = -1
    for full, line in zip(each, third, strict=True):
        assert line["train_loss"] == full["train_loss"]
        due = line["round"] in (3, 6, 8)
        assert line["validation"] == (full["validation"] if due else None)
        better = due and full["validation"]["art"] > best
        assert line["test"] == (full["test"] if better else None)
        best = max(best, full["validation"]["art"]) if due else best
    result = read(Path("runs/third/result.json"))
    assert result["accuracy"] == third[result["best_round"] - 1]["test"]
    assert result["best_round"] in (3, 6, 8)


def test_participation_bounds_what_crosses_the_network(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 200})
    split = ["federate", "--clients", "10", "--alpha", "100", "--rounds", "2"]
    assert run([*split, "--participation", "30%", "--name", "share"]) == 0
    assert "2 rounds of 30 % of the clients" in capsys.readouterr().out
    assert run([*split, "--participation", "3clients", "--name", "number"]) == 0
    assert "2 rounds of 3 clients" in capsys.readouterr().out
    share, number = (lines(Path(f"runs/{name}/rounds.jsonl")) for name in ("share", "number"))
    for one, two in zip(share, number, strict=True):
        assert one["bytes_up"] == one["bytes_down"] == 3 * 4 * 2 * (8 * 8 + 8)
        assert len(one["validation"]) == 10
        assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_many_clients_are_shown_by_domain(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"art": 200, "photo": 200})
    arguments = ["federate", "--clients", "6", "--alpha", "100", "--rounds", "1"]
    assert run([*arguments, "--target", "none"]) == 0
    printed = capsys.readouterr().out
    assert "art (mean)" in printed
    assert "photo (mean)" in printed
    assert "photo-000" not in printed


def test_the_same_command_again_gives_the_same_numbers_and_the_same_adapter_bytes(
    make_cache: MakeCache,
) -> None:
    make_cache({"art": 60, "photo": 70})
    command = ["federate", "--rounds", "3", "--name", "same", "--clients", "3", "--seed", "4"]
    seen = []
    for extra in ([], ["--overwrite"]):
        assert run([*command, *extra]) == 0
        results = [read(path) for path in sorted(Path("runs/same").rglob("result.json"))]
        for result in results:
            del result["seconds_per_round"]
        adapters = [p.read_bytes() for p in sorted(Path("runs/same").rglob("*.safetensors"))]
        seen.append((results, adapters))
    assert len(seen[0][1]) == 2
    assert seen[0] == seen[1]


def test_the_first_lines_say_which_cache_and_which_settings_are_in_force(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    caches = make_cache({"photo": 30}, name="old/drawn")
    make_cache({"photo": 30}, name="new/drawn")
    os.utime(caches / "old/drawn/photo.h5", (1, 1))
    assert run(["federate", "--preset", "tuned", "--lr", "0.002", "--rounds", "1"]) == 0
    first, _, third, fourth, *_ = capsys.readouterr().out.splitlines()
    assert first == (
        "cache      new/drawn (the one extracted last of 2 in caches; choose with --cache)"
    )
    assert "preset tuned: lr 0.002, weight decay 0, loss class, batch size 32" in third
    assert "1 round, features raw, prompt 'a picture of a {}', seed 0" in fourth


def test_the_cost_line_counts_parameters_bytes_and_the_whole_model(
    make_cache: MakeCache, make_features: MakeFeatures, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = EncoderFacts(shared={"library": "test"}, about={"parameters": 151_277_313})
    make_cache([make_features("photo", 30, width=512, encoder=encoder)])
    assert run(["federate", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "525,312 trainable parameters, 2,101,248 bytes per round and client each way" in printed
    assert "288 times fewer parameters than the encoder's 151,277,313" in printed


def test_progress_is_plain_lines_where_there_is_no_terminal(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 30})
    assert run(["federate", "--rounds", "3"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("target none: 3/3 rounds, ")
    assert "rounds/s" in last
    assert "validation" in last


def test_a_run_is_named_by_cache_settings_and_seed(make_cache: MakeCache) -> None:
    make_cache({"photo": 30})
    for extra in (["--seed", "1"], ["--seed", "2"], ["--seed", "1", "--lr", "0.1"]):
        assert run(["federate", "--rounds", "1", *extra]) == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert len(names) == 3
    assert sum(name.endswith("-seed1") for name in names) == 2
    assert all(name.startswith("tiny-") for name in names)


def test_a_run_that_exists_is_kept_unless_overwritten(
    make_cache: MakeCache, refusal: Refusal
) -> None:
    make_cache({"photo": 30})
    command = ["federate", "--rounds", "1", "--name", "mine"]
    assert run(command) == 0
    before = {path.name: path.read_bytes() for path in Path("runs/mine").iterdir()}
    assert "runs/mine: this run exists; pass --overwrite" in refusal(*command)
    # Bad input is found out before anything is removed.
    bad = [*command, "--overwrite", "--prompt", "no such {}"]
    assert "'no such {}': is not cached" in refusal(*bad)
    assert {path.name: path.read_bytes() for path in Path("runs/mine").iterdir()} == before
    assert run([*command, "--overwrite", "--seed", "1"]) == 0
    assert read(Path("runs/mine/config.json"))["seed"] == 1


def test_a_folder_that_is_not_a_run_is_never_overwritten(
    make_cache: MakeCache, refusal: Refusal
) -> None:
    make_cache({"photo": 30})
    treasure = Path("runs/mine/thesis.txt")
    treasure.parent.mkdir(parents=True)
    treasure.write_text("years of work")
    command = ["federate", "--rounds", "1", "--name", "mine", "--overwrite"]
    assert "is not a run" in refusal(*command)
    assert treasure.read_text() == "years of work"


def test_a_run_that_diverges_is_marked_failed(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    assert run(["federate", "--rounds", "5", "--lr", "1e38", "--name", "hot"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: training diverged")
    result = read(Path("runs/hot/result.json"))
    assert result["status"] == "failed"
    last = lines(Path("runs/hot/rounds.jsonl"))[-1]
    assert last["train_loss"] is None
    assert last["test"] == {"photo": None}
    assert "NaN" not in Path("runs/hot/result.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--cache", "none"], "unknown cache 'none' in caches; choose tiny/drawn"),
        (["--cache-dir", "nowhere"], "no caches in nowhere"),
        (["--target", "art"], "--target art: unknown domain; choose photo, all or none"),
        (["--target", "photo"], "no client is left to train"),
        (["--clients", "999999999"], "too few for 999999999 clients; choose fewer --clients"),
        (["--alpha", "1"], "--alpha 1.0: needs --clients"),
        (["--clients", "2", "--alpha", "0"], "--alpha 0: must be above 0"),
        (["--feature-norm", "big"], "--feature-norm big: must be raw or a number"),
        (["--feature-norm", "0"], "--feature-norm 0: must be at least 1e-06"),
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--batch-size", "1"], "--batch-size 1: must be at least 2"),
        (["--lr", "fast"], "--lr fast: must be a number"),
        (["--preset", "best"], "--preset best: unknown preset; choose paper or tuned"),
        (["--loss", "mse"], "--loss mse: unknown loss; choose clip or class"),
        (["--participation", "some"], "--participation some: must be a share such as 30%, or a"),
        (["--participation", "1"], "--participation 1: may mean one client or all of them; write"),
        (["--participation", "1.0"], "--participation 1.0: may mean one client or all of them"),
        (["--participation", "150%"], "--participation 1.5: a share must be at most 1.0, or 100%"),
        (["--participation", "0.5clients"], "--participation 0.5clients: must be a share such as"),
        (["--participation", "0"], "--participation 0: must be above 0"),
        (["--participation", "1.5"], "--participation 1.5: a share must be at most 1.0"),
        (["--participation", "nan"], "--participation nan: must be a finite number"),
        (["--eval-every", "0"], "--eval-every 0: must be at least 1"),
        (["--weighting", "age"], "--weighting age: unknown weighting; choose samples or uniform"),
        (["--prompt", "a {}"], "--prompt 'a {}': is not cached"),
        (["--device", "gpu"], "--device gpu: unknown device; choose auto"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--name", "../up"], "run '../up' cannot name a file"),
        (["--no-such-option"], "unknown option --no-such-option"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    make_cache: MakeCache, arguments: list[str], complaint: str, refusal: Refusal
) -> None:
    make_cache({"photo": 30})
    assert complaint in refusal("federate", *arguments)
    assert not Path("runs").exists()


def test_a_domain_too_small_to_split_is_named(make_cache: MakeCache, refusal: Refusal) -> None:
    make_cache({"photo": 30, "sketch": 4})
    assert "sketch: has 4 rows, too few to split" in refusal("federate")


def test_dropped_clients_are_named(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 40})
    command = ["federate", "--clients", "12", "--alpha", "0.2", "--rounds", "1", "--name", "few"]
    assert run(command) == 0
    dropped = read(Path("runs/few/result.json"))["dropped"]
    assert dropped
    errors = capsys.readouterr().err
    for client, rows in dropped.items():
        assert f"warning: client {client} got only {rows} rows and is left out" in errors


def test_of_many_dropped_clients_the_first_are_named(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 200})
    command = ["federate", "--clients", "60", "--alpha", "0.5", "--rounds", "1", "--name", "few"]
    assert run(command) == 0
    dropped = read(Path("runs/few/result.json"))["dropped"]
    assert len(dropped) > 10
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 12
    assert warnings[-2:] == [
        f"warning: and {len(dropped) - 10} more",
        f"warning: {len(dropped)} of 60 clients are left out, with fewer than 5 rows; result.json "
        "lists them",
    ]


def test_what_a_run_leaves_is_chosen(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    command = ["federate", "--strategy", "ditto", "--clients", "3", "--alpha", "100", "--rounds"]
    kept = {
        "personal": ["adapter.safetensors", "personal.safetensors"],
        "shared": ["adapter.safetensors"],
        "none": [],
    }
    figures = []
    for keep, names in kept.items():
        assert run([*command, "2", "--keep", keep, "--name", keep]) == 0
        folder = Path("runs", keep)
        assert sorted(path.name for path in folder.glob("*.safetensors")) == names
        assert read(folder / "config.json")["keep"] == keep
        result = read(folder / "result.json")
        # More than their accuracy takes the participants' own models.
        assert (result.pop("personal_metrics") is None) == (keep != "personal")
        figures.append({**result, "seconds_per_round": None})
    assert figures[0] == figures[1] == figures[2]
    adapters = [Path("runs", keep, "adapter.safetensors") for keep in ("personal", "shared")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_what_personal_adapters_take_up_is_said_before(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cache([make_features("photo", 60, width=512)])
    monkeypatch.setattr("fedclip.federate.runs.disk.WORTH_A_LINE", 1_000_000)
    command = ["federate", "--strategy", "ditto", "--clients", "3", "--alpha", "100", "--rounds"]
    assert run([*command, "1", "--name", "all"]) == 0
    size = Path("runs/all/personal.safetensors").stat().st_size
    assert f"{size / 1e6:.1f}" == "6.3"
    assert (
        "disk       up to 6.3 MB of participants' own adapters, which --keep shared leaves out, "
        "and 12.6 MB of state until the run is over\n"
    ) in capsys.readouterr().out
    assert run([*command, "1", "--name", "less", "--keep", "shared"]) == 0
    line = "disk       up to 6.3 MB of state until the run is over\n"
    assert line in capsys.readouterr().out
    ablate = ["ablate", *command[1:], "1", "--seeds", "2"]
    assert run(ablate) == 0
    assert "disk       up to 12.6 MB of participants' own adapters" in capsys.readouterr().out
    assert run(["federate", "--rounds", "1"]) == 0
    assert "disk  " not in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_recorded(
    make_cache: MakeCache, wait_until: WaitUntil, hangs: int
) -> None:
    make_cache({"art": 400, "photo": 400})
    process = subprocess.Popen(
        [sys.executable, "-m", "fedclip", "federate", "--rounds", "100000", "--name", "long"],
        stderr=subprocess.PIPE,
        text=True,
        # A shell in the background, and so its tests, would ignore the interrupt.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = Path("runs/long/art/rounds.jsonl")
    wait_until(
        lambda: (
            (first.exists() and len(first.read_text().splitlines()) >= 3)
            or process.poll() is not None
        )
    )
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=hangs)
    assert process.returncode == 130
    assert "Traceback" not in errors
    recorded = lines(first)
    result = read(first.with_name("result.json"))
    assert result["status"] == "interrupted"
    assert result["rounds"] == len(recorded) >= 3
    assert result["accuracy"] == recorded[result["best_round"] - 1]["test"]
    assert (first.parent / "adapter.safetensors").is_file()
    assert not Path("runs/long/photo").exists()
    assert read(Path("runs/long/result.json"))["status"] == "interrupted"


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Give a help as one line without frames."""
    assert run([*arguments, "--help"]) == 0
    return re.sub(r"[\s│╭╮╰╯─]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize(
    "fragment",
    [
        "--target DOMAIN Domain to leave out, all (each in turn) or none. For a domain called all "
        "or none, domain:NAME. [default: all with two or more domains, else none]",
        "--feature-norm raw|NORM L2 norm that image features are rescaled to. [default: raw]",
        "--alpha NUMBER Concentration of the draw: small is uneven (Hsu et al. 2019). [default: "
        "dirichlet: 0.5]",
        "--loss clip|class Loss of the clients:",
        "[default: paper: clip; tuned: class]",
        "--mu NUMBER Strength of the pull towards the server's parameters (Li et al. 2020, the "
        "smallest value tried). [default: fedprox: 0.001]",
        "[default: fedavgm: 1.0; fedadam, fedyogi: 0.01]",
        "--lambda,--ditto-lambda NUMBER",
        "--rounds INTEGER Rounds of federation. [default: 50]",
        "--lr NUMBER Learning rate of the clients. [default: paper: 5e-5; tuned: 0.0003; sgd: 0.1]",
        "Examples: fedclip federate --rounds 50",
    ],
)
def test_the_help_says_what_an_option_does_and_whose_its_defaults_are(
    capsys: pytest.CaptureFixture[str], fragment: str
) -> None:
    assert fragment in help_of(capsys, "federate")


def test_the_panels_of_the_help_follow_the_way_of_the_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = help_of(capsys, "federate")
    panels = [
        *("Data", "Method", "Options of methods", "Federation", "Local training"),
        *("Output", "Computation"),
    ]
    places = [printed.index(f" {panel} --") for panel in panels]
    assert places[:5] == sorted(places[:5])
    assert min(places[5:]) > places[4]


@pytest.mark.parametrize("command", ["federate", "ablate", "adapters", "strategies", "baseline"])
def test_help_has_a_short_name(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run([command, "-h"]) == 0
    assert f"Usage: fedclip {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["--strategy", "fedporx"], "unknown strategy 'fedporx'; did you mean fedprox?"),
        (["--adapter", "atention"], "unknown adapter 'atention'; did you mean attention"),
        (["--preset", "tunde"], "--preset tunde: unknown preset; did you mean tuned?"),
        (["--resume", "tiny-12345678-sed0"], "did you mean tiny-12345678-seed0?"),
        (["--cache", "tinny/drawn"], "unknown cache 'tinny/drawn' in caches; did you mean tiny/"),
        (["--target", "photos"], "--target photos: unknown domain; did you mean photo?"),
        (["--round", "3"], "unknown option --round; did you mean --rounds?"),
        (["--optimizer", "adamw"], "--optimizer adamw: unknown optimizer; did you mean adam?"),
    ],
)
def test_a_misspelled_name_gets_a_suggestion(
    make_cache: MakeCache, refusal: Refusal, arguments: list[str], suggestion: str
) -> None:
    make_cache({"photo": 30})
    Path("runs/tiny-12345678-seed0").mkdir(parents=True)
    Path("runs/tiny-12345678-seed0/config.json").write_text("{}")
    assert suggestion in refusal("federate", *arguments)


def test_the_strategies_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["strategies", "--format", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(STRATEGIES) == set(rows)
    assert rows["fedavg"] == {
        "name": "fedavg",
        "what": "Weighted mean of the clients' parameters (McMahan et al. 2017).",
        "options": [],
    }
    assert rows["ditto"]["options"] == ["--lambda 1.0 (Li et al. 2021)"]
    assert rows["fedyogi"]["options"] == [
        "--server-lr 0.01 (chosen for adapters, docs/ablations.md)",
        "--server-momentum 0.9 (Reddi et al. 2021)",
        "--server-beta2 0.99 (Reddi et al. 2021)",
        "--tau 0.001 (Reddi et al. 2021)",
    ]


def test_a_table_for_programs_is_alone_on_standard_output(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"art": 40, "photo": 50})
    assert run(["federate", "--rounds", "1", "--name", "mine", "--format", "json"]) == 0
    captured = capsys.readouterr()
    art, photo, mean = json.loads(captured.out)
    results = {name: read(Path("runs/mine", name, "result.json")) for name in ("art", "photo")}
    for row, name in ((art, "art"), (photo, "photo")):
        result = results[name]
        assert row["target"] == name
        assert row["art"] == {
            "zero_shot": result["zero_shot"]["art"],
            "adapted": result["accuracy"]["art"],
            "test_samples": result["test_samples"]["art"],
        }
        assert row["mean"] == {"zero_shot": result["zero_shot_mean"], "adapted": result["mean"]}
        assert (row["best_round"], row["rounds"], row["status"]) == (
            *(result["best_round"] or None, 1, "finished"),
        )
    summary = read(Path("runs/mine/result.json"))
    assert mean["target"] == "mean"
    assert mean["generalization"]["adapted"] == summary["generalization"]
    for label in ("cache ", "domains ", "settings ", "cost ", "run "):
        assert f"\n{label}" in f"\n{captured.err}"
    assert run(["federate", "--resume", "mine", "--format", "latex"]) == 0
    assert capsys.readouterr().out.startswith("\\begin{table}\n")


def test_the_table_says_how_many_samples_were_tested(
    make_cache: MakeCache, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"art": 40, "photo": 50})
    assert run(["federate", "--rounds", "1"]) == 0
    caption = capsys.readouterr().out.split("accuracy in %")[1].split("\ntarget")[0]
    assert "Test samples: art 8 (40 as the target), photo 10 (50 as the target)." in caption


def test_the_table_of_an_interrupted_run_is_not_final(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"art": 40, "photo": 50, "sketch": 60})
    rounds = []
    append = RunFolder.append_round

    def interrupt(folder: RunFolder, current: Round, scores: Any) -> None:
        append(folder, current, scores)
        rounds.append(current.number)
        if len(rounds) == 3 + 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_round", interrupt)
        assert run(["federate", "--rounds", "3", "--name", "mine"]) == 130
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("NOT FINAL: accuracy in %") for line in lines)
    ends = {line.split("  ")[0]: line for line in lines}
    assert ends["art"].endswith("  finished")
    assert re.search(r"  round [12] of 3, interrupted$", ends["photo"])
    assert ends["sketch"].endswith("  not started")
    assert "mean of 2" in ends
    assert run(["federate", "--resume", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "NOT FINAL" not in printed
    assert "interrupted" not in printed
    assert "\nmean " in printed
