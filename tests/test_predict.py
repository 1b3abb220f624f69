"""Images are classified with a trained adapter: exactly as it was tested."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fedclip
from fedclip import load_classifier
from fedclip.cache import load_cache, resolve_cache
from fedclip.cli import run
from fedclip.federate.report.predictions import DomainTallies, score_cache
from fedclip.federate.runs.saved import find_saved, load_saved

Demo = Any  # the class of this name in conftest.py
Refusal = Callable[..., str]
MakeImages = Callable[..., Path]
GOLDEN = Path(__file__).parent / "golden"
TARGETS = ("cartoon", "neon", "photo", "sketch")


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_predicting_the_demo_s_images_gives_the_accuracies_of_the_run(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    options = ["--run", "demo", "--target", "sketch", "--format", "json"]
    assert run(demo.command("predict", *options, demo.images)) == 0
    captured = capsys.readouterr()
    rows = rows_of(captured.out)
    assert len(rows) == 1200
    assert rows[0].keys() == {
        *("image", "rank", "class", "probability", "zero_shot", "zero_shot_probability", "label"),
    }
    assert rows[0]["image"] == str(demo.images / "cartoon" / "arrow" / "000.png")
    expected = result_of(demo.run / "sketch")
    for client in TARGETS:
        before, after = expected["zero_shot"][client], expected["accuracy"][client]
        line = next(each for each in captured.err.splitlines() if each.split()[:1] == [client])
        assert line.split()[-3:] == [f"{100 * before:.2f}", ">", f"{100 * after:.2f}"]

    right = [row["class"] == row["label"] for row in rows if "/sketch/" in row["image"]]
    assert sum(right) / len(right) == expected["accuracy"]["sketch"]
    right = [row["zero_shot"] == row["label"] for row in rows if "/sketch/" in row["image"]]
    assert sum(right) / len(right) == expected["zero_shot"]["sketch"]


@pytest.mark.parametrize("target", TARGETS)
def test_images_and_cache_give_the_accuracies_of_the_run_client_by_client(
    demo: Demo, target: str
) -> None:
    expected = result_of(demo.run / target)
    use = load_classifier("demo", target=target, runs_dir=demo.place / "runs")
    tally = DomainTallies(use.classifier)
    folder = resolve_cache(demo.place / "caches", "demo")
    for scored in score_cache(use.classifier, load_cache(folder)):
        tally.add(scored)
    for tested in (tally.tested(), use(demo.images).tested):
        assert {client: each.adapted.accuracy for client, each in tested.items()} == expected[
            "accuracy"
        ]
        zero_shot = {name: each.zero_shot for name, each in tested.items()}
        assert {name: each and each.accuracy for name, each in zero_shot.items()} == expected[
            "zero_shot"
        ]
        assert {client: each.samples for client, each in tested.items()} == expected["test_samples"]


def test_a_cache_is_classified_without_an_encoder_and_as_the_images_are(
    demo: Demo, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    command = ["predict", "--run", "demo", "--target", "photo", "--format", "csv", "--top-k", "3"]
    caches = ["--cache", "demo", "--cache-dir", demo.place / "caches"]
    assert run(demo.command(*command, demo.images / "sketch")) == 0
    by_image = list(csv.DictReader(StringIO(capsys.readouterr().out)))
    assert run(demo.command(*command, *caches)) == 0
    by_cache = [
        row
        for row in csv.DictReader(StringIO(capsys.readouterr().out))
        if row["image"].startswith("sketch/")
    ]
    assert len(by_image) == len(by_cache) == 900
    for one, other in zip(by_image, by_cache, strict=True):
        assert one["image"] == str(demo.images / other["image"])
        assert (one["rank"], one["class"], one["zero_shot"]) == (
            *(other["rank"], other["class"], other["zero_shot"]),
        )
        for name in ("probability", "zero_shot_probability"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "strategy"), [("means", "fedavg"), ("head", "fedavg"), ("head", "fedrep")]
)
def test_classes_without_texts_are_predicted_as_they_were_tested_and_have_no_zero_shot(
    demo: Demo, kind: str, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{kind}-{strategy}"
    options = ["--class-vectors", kind, "--strategy", strategy, "--preset", "tuned"]
    where = ["--name", name, "--cache-dir", demo.place / "caches"]
    federate = demo.command("federate", *options, "--rounds", "3", "--target", "sketch", *where)
    assert run(federate) == 0
    expected = result_of(demo.place / "runs" / name)
    assert {*expected["zero_shot"].values()} == {None}
    use = load_classifier(name, runs_dir=demo.place / "runs")
    cache = fedclip.load_cache("demo", demo.place / "caches")
    found = use(demo.images) if (kind, strategy) == ("head", "fedavg") else use.from_cache(cache)
    tested = found.tested
    assert {client: each.adapted.accuracy for client, each in tested.items()} == (
        expected["accuracy"]
    )
    for client, each in tested.items():
        assert each.zero_shot is None
        assert each.adapted.figures() == pytest.approx(expected["metrics"][client], abs=1e-6)
    assert {(each.zero_shot, each.zero_shot_probability) for each in found} == {(None, None)}
    if strategy == "fedrep":
        own = load_classifier(name, client="neon", runs_dir=demo.place / "runs")
        assert own.from_cache(cache).tested["neon"].adapted.accuracy == expected["personal"]["neon"]

    caches = ["--cache", "demo", "--cache-dir", demo.place / "caches"]
    predict = demo.command("predict", "--run", name, *caches)
    capsys.readouterr()
    assert run([*predict, "--format", "json"]) == 0
    row, *_ = rows_of(capsys.readouterr().out)
    assert (row["zero_shot"], row["zero_shot_probability"]) == (None, None)
    assert run([*predict, "--format", "csv"]) == 0
    row, *_ = csv.DictReader(StringIO(capsys.readouterr().out))
    assert (row["zero_shot"], row["zero_shot_probability"]) == ("", "")
    assert run(predict) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[2:4] == ["-", "-"]
    line = next(each for each in lines if each.split()[:1] == ["photo"])
    assert line.split()[-3:] == ["-", ">", f"{100 * expected['accuracy']['photo']:.2f}"]


def test_clients_of_a_split_domain_are_found_again(demo: Demo) -> None:
    name = ["--name", "split", "--cache-dir", demo.place / "caches"]
    options = ["--clients", "3", "--alpha", "0.5", "--target", "photo", "--rounds", "2"]
    assert run(demo.command("federate", *options, *name)) == 0
    expected = result_of(demo.place / "runs" / "split")
    use = load_classifier("split", runs_dir=demo.place / "runs")
    tested = use(demo.images).tested
    assert {client: each.adapted.accuracy for client, each in tested.items()} == expected[
        "accuracy"
    ]
    assert len(tested) == 10


def test_a_client_s_own_adapter_is_chosen(demo: Demo, refusal: Refusal) -> None:
    name = ["--name", "own", "--cache-dir", demo.place / "caches"]
    options = ["--strategy", "ditto", "--target", "photo", "--rounds", "3"]
    assert run(demo.command("federate", *options, *name, "--preset", "tuned")) == 0
    expected = result_of(demo.place / "runs" / "own")
    folder = resolve_cache(demo.place / "caches", "demo")
    caches = load_cache(folder)
    for client in ("cartoon", "neon", "sketch"):
        use = load_classifier("own", client=client, runs_dir=demo.place / "runs")
        tally = DomainTallies(use.classifier)
        for scored in score_cache(use.classifier, caches):
            tally.add(scored)
        assert tally.tested()[client].adapted.accuracy == expected["personal"][client]
    arguments = demo.command("predict", "--run", "own", "--client", "phto", demo.images)
    assert "--client phto: has no adapter in" in refusal(*arguments)
    arguments = demo.command(
        "predict", "--run", "demo", "--target", "photo", "--client", "neon", demo.images
    )
    assert "have no adapters of their own" in refusal(*arguments)


def test_a_run_with_only_personal_adapters_asks_for_a_client(demo: Demo, refusal: Refusal) -> None:
    name = ["--name", "alone", "--cache-dir", demo.place / "caches"]
    options = ["--strategy", "local", "--target", "photo", "--rounds", "1"]
    assert run(demo.command("federate", *options, *name)) == 0
    line = refusal(*demo.command("predict", "--run", "alone", demo.images))
    assert "choose one with --client cartoon, neon or sketch" in line


def test_images_come_from_files_lists_and_standard_input(
    demo: Demo,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = demo.images / "photo" / "cat" / "000.png"
    image = image if image.exists() else next((demo.images / "photo").glob("*/000.png"))
    base = demo.command("predict", "--run", "demo", "--target", "sketch", "--format", "json")

    def predict(*places: object) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert run([*base, *map(str, places)]) == 0
        return rows_of(capsys.readouterr().out)

    (expected,) = predict(image)
    assert (expected["image"], expected["label"], expected["rank"]) == (str(image), None, 1)
    table = tmp_path / "list.csv"
    table.write_text(f"path,label\n{image},{image.parent.name}\n")
    (listed,) = predict(table)
    assert listed == {**expected, "label": image.parent.name}
    lines = BytesIO(f"\ufeff{image}\r\n\r\n{image}".encode())
    monkeypatch.setattr("sys.stdin", TextIOWrapper(lines))
    for found in predict("-"):
        assert found.pop("probability") == pytest.approx(expected["probability"], abs=1e-6)
        zero_shot = found.pop("zero_shot_probability")
        assert zero_shot == pytest.approx(expected["zero_shot_probability"], abs=1e-6)
        assert found.items() <= expected.items()
    assert len(predict(image.parent)) == 30


def test_bad_images_are_reported_and_skipped(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = next((demo.images / "photo").glob("*/000.png"))
    shutil.copy(good, tmp_path / "a.png")
    (tmp_path / "b.png").write_text("not an image")
    (tmp_path / "c.png").touch()
    shutil.copy(good, tmp_path / "d.png")
    capsys.readouterr()
    command = demo.command("predict", "--run", "demo", "--target", "sketch", "--format", "json")
    assert run([*command, str(tmp_path), str(good)]) == 1
    captured = capsys.readouterr()
    names = [Path(row["image"]).name for row in rows_of(captured.out)]
    assert names == ["a.png", "d.png", "000.png"]
    assert f"error: {tmp_path / 'b.png'}: is not an image that Pillow can read; skipped" in (
        captured.err
    )
    assert f"error: {tmp_path / 'c.png'}: is empty; skipped" in captured.err
    assert "error: 2 images could not be read" in captured.err


@pytest.mark.slow
def test_lines_without_an_end_are_answered_until_nobody_reads(demo: Demo, hangs: int) -> None:
    image = next((demo.images / "photo").glob("*/000.png"))
    command = demo.command("predict", "--run", "demo", "--target", "sketch", "--format", "json")
    with subprocess.Popen(
        [sys.executable, "-m", "fedclip", *command, "--batch-size", "1", "--workers", "0", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(2):  # each is answered before the next one is asked
            process.stdin.write(f"{image}\n".encode())
            assert json.loads(process.stdout.readline())["image"] == str(image)
        process.stdout.close()
        with suppress(BrokenPipeError):
            while process.poll() is None:
                process.stdin.write(f"{image}\n".encode())
        assert process.wait(hangs) == 0
        assert b"accuracy" not in process.stderr.read()


def test_rows_are_laid_out_for_people(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    good = next((demo.images / "photo").glob("*/000.png"))
    capsys.readouterr()
    command = demo.command("predict", "--run", "demo", "--target", "sketch", "--top-k", "2")
    assert run([*command, str(good)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["class", "%", "zero-shot", "%", "image"]
    assert lines[1].endswith(f"  {good}")
    assert len(lines) == 3
    assert len(lines[2].split()) == 4


def test_what_cannot_be_predicted_is_one_line(demo: Demo, refusal: Refusal, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        return refusal(*demo.command("predict", *arguments))

    line = refused("--run", "demo", demo.images)
    assert "choose one with --target cartoon, neon, photo or sketch" in line
    line = refused("--run", "demo", "--target", "skech", demo.images)
    assert "did you mean sketch?" in line
    assert "unknown run" in refused("--run", "dmeo", demo.images)
    assert "did you mean demo" in refused("--run", "dmeo", demo.images)
    one = ["--run", "demo", "--target", "photo"]
    assert "no such image, folder or list" in refused(*one, "nowhere.png")
    assert "contains no images" in refused(*one, tmp_path)
    assert "Pass images, or --cache, but not both" in refused(*one)
    assert "--format fly: unknown format" in refused(*one, "--format", "fly", demo.images)


def test_a_full_model_is_not_predicted_with(demo: Demo, refusal: Refusal, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "whole"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    result = {**result_of(demo.run / "sketch"), "model": {"backbone": "clip"}}
    (folder / "result.json").write_text(json.dumps(result))
    line = refusal("predict", "--run", str(folder), str(demo.images))
    assert "trained a full model; predict and export are for adapters" in line


def test_an_export_works_on_another_machine_and_refuses_other_weights(
    demo: Demo, tmp_path: Path, tiny_clip: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither cache nor run is there: only the one file, and the encoder's weights."""
    file = tmp_path / "elsewhere" / "adapter.safetensors"
    file.parent.mkdir()
    shutil.copy(demo.run / "sketch" / "adapter.safetensors", file)
    monkeypatch.chdir(file.parent)
    use = load_classifier(file, runs_dir=tmp_path / "none")
    tested = use(demo.images).tested
    expected = result_of(demo.run / "sketch")
    assert {client: each.adapted.accuracy for client, each in tested.items()} == expected[
        "accuracy"
    ]
    image = next((demo.images / "photo").glob("*/000.png"))
    other = ["--model", f"local-dir:{tiny_clip}"]
    line = refusal("predict", "--run", "adapter.safetensors", *other, str(image))
    assert "local-dir:tinyclip own: is not the encoder that the adapter was trained with" in line
    assert "weights_sha256" in line


def test_an_encoder_that_is_not_here_is_named(
    tmp_path: Path,
    make_images: MakeImages,
    tiny_clip: Path,
    refusal: Refusal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_images(images=6)
    model = tmp_path / "my-clip"
    shutil.copytree(tiny_clip, model)
    assert run(["extract", "--dataset", str(folder), "--model", f"local-dir:{model}"]) == 0
    assert run(["federate", "--rounds", "1", "--name", "mine", "--target", "none"]) == 0
    one = ["predict", "--run", "mine", "--format", "csv", str(folder)]
    assert run(one) == 0  # the folder is where the cache says
    model.rename(tmp_path / "moved")
    line = refusal(*one)
    assert "needs the encoder local-dir:my-clip (SHA-256 " in line
    assert "pass it with --model local-dir:FOLDER" in line
    assert run([*one, "--model", f"local-dir:{tmp_path / 'moved'}"]) == 0


def test_imported_features_have_no_encoder(
    make_cache: Callable[..., Path], empty_folder: Path, refusal: Refusal
) -> None:
    make_cache({"photo": 20})
    assert run(["federate", "--rounds", "1", "--name", "one"]) == 0
    (empty_folder / "a.png").touch()
    assert "trained on imported features" in refusal("predict", "--run", "one", "a.png")
    assert run(["predict", "--run", "one", "--cache", "tiny"]) == 0


def test_an_older_adapter_is_completed_from_its_cache(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "golden-f86c2b6e-seed3"
    shutil.copytree(GOLDEN / "runs" / name, tmp_path / "runs" / name)
    options = ["--run", name, "--target", "sketch"]
    line = refusal("predict", *options, "--cache", "golden")
    assert "an earlier fedclip saved it, without class texts" in line
    caches = GOLDEN / "caches"
    path = find_saved(tmp_path / "runs", name, "sketch")
    classifier = load_saved(path, cache_dir=caches)
    tally = DomainTallies(classifier)
    for scored in score_cache(classifier, load_cache(resolve_cache(caches, "golden"))):
        tally.add(scored)
    expected = result_of(path)["accuracy"]
    assert {client: each.adapted.accuracy for client, each in tally.tested().items()} == expected


def damaged(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Copy an adapter with other facts."""
    with safe_open(source, "pt") as file:
        facts = json.loads(file.metadata()["fedclip"])
    change(facts)
    save_file(load_file(source), target, metadata={"fedclip": json.dumps(facts)})


def test_an_encoder_of_the_hub_that_is_not_here_says_what_to_get(
    demo: Demo, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    file, source = tmp_path / "a.safetensors", demo.run / "photo" / "adapter.safetensors"
    about = {"model": "ViT-B-32", "pretrained": "openai"}
    damaged(source, file, lambda facts: facts["encoder"]["about"].update(about))
    line = refusal("predict", "--run", str(file), str(demo.images))
    assert "is not on this machine; run 'hf download timm/vit_base_patch32_clip_224.openai" in line
    about["pretrained"] = "mine.pt"
    damaged(source, file, lambda facts: facts["encoder"]["about"].update(about))
    line = refusal("predict", "--run", str(file), str(demo.images))
    assert "needs the checkpoint mine.pt of ViT-B-32 (SHA-256 " in line
    assert "which is not here; pass it with --pretrained FILE" in line


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda facts: facts.pop("class_names"), "its 'class_names' is missing or invalid"),
        (lambda facts: facts["class_names"].__setitem__(0, 1), "its 'class_names' is missing or"),
        (lambda facts: facts.update(batch_size="x"), "its 'batch_size' is missing or invalid"),
        (lambda facts: facts.update(feature_norm="1"), "its 'feature_norm' is missing or invalid"),
        (lambda facts: facts.update(logit_scale=10**400), "its 'logit_scale' is missing or"),
        (lambda facts: facts.update(logit_scale=math.nan), "is not an adapter that fedclip saved"),
        (lambda facts: facts.update(prompts=["\ud800"]), "is not an adapter that fedclip saved"),
        (lambda facts: facts["split"].update(domains=["a"]), "its 'split' is missing or invalid"),
        (lambda facts: facts["split"].pop("seed"), "its 'split' is missing or invalid"),
        (lambda facts: facts.update(class_names=["a"]), "class vectors are missing or invalid"),
        (lambda facts: facts.update(version=99), "this fedclip reads up to 3"),
        (lambda facts: facts.update(key="0" * 64), "an encoder that does not match its key"),
        (lambda facts: facts.update(adapter="linear"), "are not those of adapter linear"),
        (
            lambda facts: facts.update(adapter="os:system"),
            "needs the adapter os:system from outside",
        ),
        (
            lambda facts: facts.update(class_vectors="fly"),
            "class vectors of a kind that this fedclip",
        ),
        (lambda facts: facts.update(class_vectors="head"), "not those of adapter attention and a"),
        (lambda facts: facts.update(adapter="fly"), "unknown adapter 'fly'"),
        (lambda facts: facts.update(model={"backbone": "clip"}), "holds a full model"),
    ],
)
def test_a_damaged_adapter_is_refused(
    demo: Demo,
    tmp_path: Path,
    refusal: Refusal,
    change: Callable[[dict[str, Any]], None],
    complaint: str,
) -> None:
    file = tmp_path / "bad.safetensors"
    damaged(demo.run / "photo" / "adapter.safetensors", file, change)
    assert complaint in refusal("predict", "--run", str(file), str(demo.images))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensor: tensor * math.nan, "is damaged (its {} not of finite numbers)"),
        (lambda tensor: tensor.long(), "is damaged (its {} not of finite numbers)"),
        (lambda tensor: tensor[:1], "its parameters are not those of adapter attention"),
    ],
)
@pytest.mark.parametrize("name", ["@class_texts", "attention.0.weight"])
def test_tensors_that_are_no_finite_numbers_are_refused(
    demo: Demo,
    tmp_path: Path,
    refusal: Refusal,
    name: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    complaint: str,
) -> None:
    file, source = tmp_path / "bad.safetensors", demo.run / "photo" / "adapter.safetensors"
    with safe_open(source, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(source)
    save_file({**tensors, name: change(tensors[name]).contiguous()}, file, metadata=metadata)
    texts = "is damaged (its class vectors are missing or invalid)"
    expected = texts if name == "@class_texts" else complaint.format(f"parameter {name!r} is")
    assert expected in refusal("predict", "--run", str(file), str(demo.images))


@pytest.mark.parametrize("revision", ["../../../runs", "/etc", "a/../../b", "a b", "a\0"])
def test_a_revision_that_is_no_name_of_one_is_refused(revision: str, refusal: Refusal) -> None:
    line = refusal("predict", "--run", f"hf:owner/name@{revision}", "photo.jpg")
    assert line.endswith("not the name of a branch, tag or commit")


def test_a_file_that_is_no_adapter_is_refused(tmp_path: Path, refusal: Refusal) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(b"no adapter")
    line = refusal("predict", "--run", str(file), str(tmp_path))
    assert "is not an adapter that fedclip saved, or damaged" in line


# The peak of the process itself, in bytes: getrusage counts what its parent had when it began.
MEASURED = """
import sys
from fedclip.cli import run
code = run(sys.argv[1:])
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(1024 * peak, file=sys.stderr)
sys.exit(code)
"""


def peak(demo: Demo, place: Path, count: int) -> int:
    """Predict `count` images of 8x8, each unlike the others; return the peak of memory in bytes."""
    folder = place / str(count) / "photo" / "cup"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8 * 8 * 3), dtype=np.uint8)
    for index, row in enumerate(pixels):
        (folder / f"{index:05d}.ppm").write_bytes(b"P6 8 8 255\n" + row.tobytes())
    options = ["--run", "demo", "--target", "sketch", "--device", "cpu", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *demo.command("predict", *options, place / str(count))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == count
    return int(done.stderr.split()[-1])


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_images_take_the_memory_of_a_thousand(demo: Demo, tmp_path: Path) -> None:
    few, many = (peak(demo, tmp_path, count) for count in (1_000, 10_000))
    assert many < 1.1 * few
