"""``fedclip cost`` and ``fedclip paper``."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import nn

from fedclip.cli import run
from fedclip.federate.models.adapters import NoAdapter
from fedclip.federate.report.paper import METHODS, PUBLISHED, paper_table
from fedclip.federate.runs import runner
from fedclip.federate.runs.cost import ClientCost, drawn_cache, multiply_adds
from fedclip.federate.runs.results import RunResult
from fedclip.federate.settings import Settings

MakeImages = Callable[..., Path]
Refusal = Callable[..., str]

pytestmark = pytest.mark.usefixtures("empty_folder")

PACS = ("art_painting", "cartoon", "photo", "sketch")


def figures(text: str, row: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.strip().startswith(row)]
    return re.findall(r"\d[\d,.]*", line)


def test_cost_counts_the_adapter_and_the_real_architecture(
    tiny_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedclip.extract.encoders.openclip import load_encoder
    from fedclip.extract.encoders.spec import EncoderName

    model = f"local-dir:{tiny_clip}"
    arguments = ["--classes", "3", "--samples", "40", "--rounds", "10", "--clients", "2"]
    assert run(["cost", "--model", model, *arguments]) == 0
    printed = capsys.readouterr().out
    clip = load_encoder(EncoderName.of(model, None), torch.device("cpu")).model
    small, large = 2 * (16 * 16 + 16), sum(p.numel() for p in clip.parameters())
    times = f"{large / small:,.0f}"
    assert figures(printed, "trainable") == [f"{small:,}", f"{large:,}", times]
    assert figures(printed, "bytes per round") == [f"{4 * small:,}", f"{4 * large:,}", times]
    assert figures(printed, "bytes of a training")[0] == f"{4 * small * 10 * 2 * 2:,}"
    assert figures(printed, "multiply-adds to classify")[0] == f"{2 * 16 * 16 + 16 * 3:,}"
    epoch = figures(printed, "seconds a local epoch")
    assert float(epoch[1]) < float(epoch[2].replace(",", ""))
    assert f"{large:,} / {small:,} = {large / small:.0f}" in printed


@pytest.mark.long
def test_cost_of_vit_b_32_is_288_from_counts_and_283_in_the_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["cost", "--model", "ViT-B-32", "--samples", "32", "--classes", "7"]) == 0
    printed = capsys.readouterr().out
    assert "151,277,313 / 525,312 = 288" in printed
    assert "1.5e8 / 5.3e5 = 283" in printed
    # 4.4e9 is the known figure for the image encoder alone.
    assert figures(printed, "multiply-adds to encode")[0] == "4,408,811,520"


def test_cost_says_what_it_does_before_each_step(
    tiny_clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", f"local-dir:{tiny_clip}", "--samples", "40", "--classes", "3"]
    assert run(["cost", *arguments]) == 0
    captured = capfd.readouterr()
    steps = [line.split(",")[0] for line in captured.err.splitlines() if " models" in line]
    assert (steps[0], steps[-1]) == ("counting: 0/2 models", "timing: 2/2 models")
    assert steps.index("counting: 2/2 models") < steps.index("timing: 0/2 models")
    first, second, *_ = captured.out.splitlines()
    assert first.startswith(f"model      local-dir:{tiny_clip} with random weights; counting, then")
    assert second.startswith("counted    ")
    assert captured.out.index("counted") < captured.out.index("seconds a local epoch")


def test_multiply_adds_of_a_layer_forward_and_back() -> None:
    layer, image = nn.Linear(5, 7), torch.zeros(3, 5)
    assert multiply_adds(lambda: layer(image)) == 3 * 5 * 7
    assert multiply_adds(lambda: layer(image).sum().backward()) == 2 * 3 * 5 * 7


def test_an_adapter_without_parameters_costs_nothing_to_send() -> None:
    cache = drawn_cache(8, classes=3, rows=32)
    settings = Settings(adapter=NoAdapter())
    cost = ClientCost(cache, settings, 40, torch.device("cpu")).count()
    assert (cost.parameters, cost.message) == (0, 0)
    assert cost.inference == 8 * 3


def result(target: str, mean: float | None) -> RunResult:
    return RunResult(
        status="finished",
        trainable_parameters=1,
        bytes_per_round=4,
        rounds=1,
        target=target,
        best_round=1,
        validation={},
        zero_shot={},
        accuracy={},
        domains={},
        test_samples={},
        dropped={},
        mean=mean,
    )


def cells(results: dict[str, Any], dataset: str = "pacs") -> list[list[str]]:
    table = paper_table(dataset, results, "random weights")
    return [
        [table.text(row, at).rstrip() for row in table.rows] for at in range(len(table.columns))
    ]


def test_the_table_has_ours_the_papers_and_the_difference_by_target_and_their_mean() -> None:
    one = [result(domain, 0.95) for domain in PACS]
    two = [result(domain, 0.97) for domain in PACS]
    method, *targets, mean = cells({"fedclip": [one, two], "alexnet-fedavg": [one, one]})
    assert method == ["FedCLIP", "AlexNet FedAVG (random weights)"]
    assert targets[0] == ["96.00 (1.41)  95.15  +0.85", "95.00 (0.00)      -      -"]
    assert mean == ["96.00 (1.41)  95.24  +0.76", "95.00 (0.00)  58.69 +36.31"]
    (_, first, *_) = cells({"fedclip": [[result("sun", 0.5)]]}, "vlcs")
    assert first == ["50.00      -      -"]


def test_a_failed_run_leaves_a_hole_and_no_figure() -> None:
    (_, first, mean) = cells({"zero-shot": [[result("photo", None)]]})
    assert (first, mean) == (["failed"], ["failed"])


def test_published_figures_agree_with_their_means() -> None:
    for rows in PUBLISHED.values():
        for key, row in rows.items():
            assert key in METHODS
            single = [row[domain] for domain in PACS if domain in row]
            if single:
                assert sum(single) / len(single) == pytest.approx(row["mean"], abs=0.0051)


@pytest.fixture
def paper(make_images: MakeImages, tiny_clip: Path) -> list[str]:
    """Give a command line over the four domains of PACS with 6 images each."""
    make_images("pacs", domains=PACS)
    return ["paper", "pacs", "--data-dir", ".", "--model", f"local-dir:{tiny_clip}"]


def test_paper_fills_rows_from_images_and_repeats_no_finished_run(
    paper: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", "1", "--seeds", "1", "--methods", "fedclip,clip-fedprox,zero-shot"]
    assert run([*paper, *options]) == 0
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    (row,) = [line for line in lines if line[:2] == ["CLIP", "FedProx"]]
    assert row[3::3] == ["77.81", "87.95", "89.42", "90.08", "86.32"]
    assert [line[0] for line in lines if line and line[0] in ("CLIP", "FedCLIP")] == [
        *("CLIP", "CLIP", "FedCLIP")
    ]
    rounds = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("rounds.jsonl")}
    assert len(rounds) == 3 * 4
    assert run([*paper, *options]) == 0
    assert {path: path.stat().st_mtime_ns for path in rounds} == rounds
    again = capsys.readouterr().out
    assert again[again.index("pacs:") :] == printed[printed.index("pacs:") :]


def test_an_interrupt_before_the_first_round_ends_the_table(
    paper: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "forecast", interrupt)
    assert run([*paper, "--rounds", "1", "--seeds", "2", "--methods", "clip-fedavg"]) == 130
    assert len(list(Path("runs").iterdir())) == 1
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == "interrupted; what was finished is kept"
    assert "is finished" not in errors


def test_what_is_missing_is_said_in_a_line_before_anything_is_done(
    paper: list[str], monkeypatch: pytest.MonkeyPatch, refusal: Refusal
) -> None:
    def no_network(*_arguments: object, **_options: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    line = refusal(*paper, "--rounds", "1")
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in line
    assert "--alexnet-weights FILE" in line
    # Images are looked for before the weights.
    for methods in ([], ["--methods", "fedclip"]):
        assert "download it to there" in refusal("paper", "vlcs", *paper[2:], *methods)
    assert "alexnet-fedavg" in refusal(*paper, "--methods", "best")
    assert "office-home" in refusal("paper", "domainnet")
    for option in (["--mu", "0.1"], ["--alexnet-weights", "random"]):
        line = refusal(*paper, *option, "--methods", "clip-fedavg")
        assert f"{option[0]}: has no effect on the methods that are chosen" in line
    assert "--adapter cache-model: has nothing to train or send" in refusal(
        "cost", "--adapter", "cache-model"
    )
    assert not Path("runs").exists()
