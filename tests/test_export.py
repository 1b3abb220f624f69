"""Exported adapters give what PyTorch gives, in onnxruntime and as a torch program."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from fedclip import ImageClassifier, load_classifier
from fedclip.cache import load_cache, resolve_cache
from fedclip.cli import run
from fedclip.extract.encoders.pixels import pixel_encoder
from fedclip.federate.models.export import onnx_session

Demo = Any  # the class of this name in conftest.py
Refusal = Callable[..., str]
MakeImages = Callable[..., Path]
RunProgram = Callable[..., Any]


def onnx_program(file: Path) -> RunProgram:
    session = onnx_session(file)
    names = [each.name for each in session.get_inputs()]
    return lambda *inputs: session.run(
        None, {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    )


def torch_program(file: Path) -> RunProgram:
    return torch.export.load(file).module()


def same(program: RunProgram, inputs: Sequence[Tensor], scores: Any) -> None:
    """Hold a program's outputs to the logits of PyTorch."""
    logits = [each for each in (scores.adapted, scores.zero_shot) if each is not None]
    for found, each in zip(program(*inputs), logits, strict=True):
        probabilities = torch.as_tensor(np.asarray(found))
        expected = each.softmax(dim=1)
        assert (probabilities - expected).abs().max() <= 1e-4
        assert probabilities.argmax(dim=1).tolist() == expected.argmax(dim=1).tolist()


def hold_to_images(use: ImageClassifier, program: RunProgram, images: list[Path]) -> None:
    """Compare a program from pixels with predictions of image files."""
    decode = pixel_encoder(use.encoder).decode
    found = [image for scored, _ in use.stream(as_images(images)) for image in scored.images]
    assert found == [str(image) for image in images]
    start = 0
    for scored, _ in use.stream(as_images(images)):
        some = images[start : start + len(scored.images)]
        start += len(some)
        pixels = zip(*(decode(image.read_bytes()) for image in some), strict=True)
        same(program, [torch.stack(each) for each in pixels], scored.scores)


def as_images(images: list[Path]) -> Any:
    from fedclip.extract.datasets.inputs import as_images

    return as_images(images, ())


@pytest.fixture
def use(demo: Demo) -> ImageClassifier:
    return load_classifier("demo", target="sketch", runs_dir=demo.place / "runs", device="cpu")


@pytest.mark.slow
def test_the_whole_classifier_gives_the_same_classes_on_all_images_in_onnxruntime(
    demo: Demo, use: ImageClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out" / "model.onnx"
    capsys.readouterr()
    options = ["--run", "demo", "--target", "sketch", "--with-encoder", "--license", "mit"]
    assert run(demo.command("export", *options, "--out", file)) == 0
    printed = capsys.readouterr().out
    assert "opset 20" in printed
    assert "checked    8 inputs: probabilities differ by up to" in printed
    images = sorted(demo.images.rglob("*.png"))
    assert len(images) == 1200
    hold_to_images(use, onnx_program(file), images)

    model = onnx.load(file)
    assert {each.domain: each.version for each in model.opset_import}[""] == 20
    metadata = {each.key: each.value for each in model.metadata_props}
    assert json.loads(metadata["classes"]) == list(use.class_names)
    assert json.loads(metadata["preprocessing"])["pixels"]["size"] == [64, 64]
    assert metadata["license"] == "mit"
    assert metadata["key"] == use.classifier.key

    code = printed[printed.index("import json") :]
    assert len([line for line in code.splitlines() if line and "import" not in line]) == 10
    shutil.copy(images[7], tmp_path / "photo.jpg")
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=1800,
    )
    (expected,) = use(images[7])
    name, probability = shown.stdout.split()
    assert name == expected.name
    assert float(probability) == pytest.approx(expected.probability, abs=1e-4)


@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_the_adapter_alone_takes_features(
    demo: Demo, use: ImageClassifier, tmp_path: Path, to: str, suffix: str
) -> None:
    file = tmp_path / f"adapter{suffix}"
    options = ["--run", "demo", "--target", "sketch", "--to", to, "--out", file]
    assert run(demo.command("export", *options)) == 0
    program = onnx_program(file) if to == "onnx" else torch_program(file)
    for cache in load_cache(resolve_cache(demo.place / "caches", "demo")):
        features = torch.from_numpy(cache.image_features)
        same(program, [features], use.classifier(cache.image_features))
        same(program, [features[:1]], use.classifier(cache.image_features[:1]))


def test_a_torch_program_takes_pixels(demo: Demo, use: ImageClassifier, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    options = ["--run", "demo", "--target", "sketch", "--to", "torch", "--with-encoder"]
    assert run(demo.command("export", *options, "--out", file)) == 0
    images = sorted((demo.images / "sketch").rglob("*.png"))[::5]
    hold_to_images(use, torch_program(file), images)
    extra = {"fedclip.json": ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra["fedclip.json"])["classes"] == list(use.class_names)


def test_half_precision_says_what_it_costs(
    demo: Demo, use: ImageClassifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.onnx"
    images = sorted((demo.images / "photo").rglob("*.png"))[::10]
    samples = [word for image in images for word in ("--sample", str(image))]
    capsys.readouterr()
    options = ["--run", "demo", "--target", "sketch", "--with-encoder", "--fp16"]
    assert run(demo.command("export", *options, *samples, "--out", file)) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("checked"))
    assert line.startswith(f"checked    {len(images)} inputs: probabilities differ by up to ")
    assert line.endswith(" from PyTorch in float32")
    difference = float(line.split()[-5])
    assert 0 < difference < 0.1
    decode = pixel_encoder(use.encoder).decode
    pixels = torch.stack([decode(image.read_bytes())[0] for image in images])
    (scored, _), *_ = use.stream(as_images(images))
    adapted, _ = onnx_program(file)(pixels)
    expected = scored.scores.adapted.softmax(dim=1).numpy()
    assert np.abs(adapted - expected).max() <= difference + 1e-4


def test_safetensors_are_read_by_fedclip_elsewhere(
    demo: Demo, use: ImageClassifier, tmp_path: Path
) -> None:
    file = tmp_path / "mine.safetensors"
    options = ["--run", "demo", "--target", "sketch", "--to", "safetensors", "--out", file]
    assert run(demo.command("export", *options)) == 0
    image = next((demo.images / "photo").glob("*/000.png"))
    assert load_classifier(file)(image)[0] == use(image)[0]


@pytest.mark.parametrize(
    "settings",
    [
        *(
            ["--adapter", name, "--feature-norm", "3"]
            for name in ("attention-both", "residual", "taskres", "linear-probe")
        ),
        *(["--class-vectors", vectors] for vectors in ("means", "head")),
    ],
    ids=lambda settings: settings[1],
)
def test_other_adapters_and_class_vectors_are_exported(
    make_cache: Callable[..., Path], empty_folder: Path, settings: list[str]
) -> None:
    make_cache({"photo": 30})
    common = ["--lr", "1e-2", "--rounds", "2", "--name", "one"]
    assert run(["federate", *settings, *common]) == 0
    assert run(["export", "--run", "one", "--out", "one.onnx"]) == 0
    use = load_classifier("one")
    (cache,) = load_cache(resolve_cache(empty_folder / "caches", "tiny"))
    features = torch.from_numpy(cache.image_features)
    same(onnx_program(Path("one.onnx")), [features], use.classifier(cache.image_features))


@pytest.mark.slow
@pytest.mark.parametrize(("to", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
@pytest.mark.parametrize(
    "models", [["timm:test_vit"], ["timm:test_efficientnet", "local-dir:{tiny_clip}"]]
)
def test_encoders_of_timm_and_joined_ones_are_exported(
    make_images: MakeImages,
    empty_folder: Path,
    tiny_clip: Path,
    capsys: pytest.CaptureFixture[str],
    models: list[str],
    to: str,
    suffix: str,
) -> None:
    folder = make_images(images=10)
    words = []
    for model in models:
        words += ["--model", model.format(tiny_clip=tiny_clip), "--pretrained", "random"]
    assert run(["extract", "--dataset", str(folder), *words]) == 0
    assert run(["federate", "--rounds", "1", "--name", "one", "--target", "none"]) == 0
    file = Path(f"model{suffix}")
    capsys.readouterr()
    options = ["--run", "one", "--with-encoder", "--to", to, "--out", str(file)]
    assert run(["export", *options]) == 0
    printed = capsys.readouterr().out
    images = sorted(folder.rglob("*.png"))
    use = load_classifier("one")
    hold_to_images(use, onnx_program(file) if to == "onnx" else torch_program(file), images)

    shutil.copy(images[5], "photo.jpg")
    code: dict[str, Any] = {}
    exec(printed[printed.index("import json") :], code)
    probabilities = torch.as_tensor(np.asarray(code["probabilities"]))
    (scored, _), *_ = use.stream(as_images([images[5]]))
    expected = scored.scores.adapted.softmax(dim=1)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=1e-4)
    assert "zero_shot" not in code


def test_a_text_model_is_left_out_in_one_line(
    tiny_bert: Path, empty_folder: Path, refusal: Refusal
) -> None:
    rows = [f"{word} {of},{word},{of}s" for of in ("film", "phone") for word in ("good", "bad")]
    Path("reviews.csv").write_text("\n".join(["text,label,domain", *rows * 10]))
    model = ["--model", f"hf:{tiny_bert}", "--pretrained", "random"]
    assert run(["extract", "--dataset", "reviews.csv", *model]) == 0
    assert run(["federate", "--rounds", "1", "--name", "one", "--target", "none"]) == 0
    line = refusal("export", "--run", "one", "--with-encoder", "--out", "one.onnx")
    assert "encodes texts, and only encoders of images can be exported; leave out" in line
    assert run(["export", "--run", "one", "--out", "one.onnx"]) == 0
    (cache, _) = load_cache(resolve_cache(empty_folder / "caches", "reviews"))
    features = torch.from_numpy(cache.image_features)
    scores = load_classifier("one").classifier(cache.image_features)
    same(onnx_program(Path("one.onnx")), [features], scores)
    card = Path("README.md").read_text()
    assert "image" not in card


@pytest.mark.long
@pytest.mark.parametrize("model", ["ViT-B-32", "RN50"])
def test_large_encoders_are_exported(
    make_images: MakeImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = make_images(images=5)
    random = ["--model", model, "--pretrained", "random"]
    assert run(["extract", "--dataset", str(folder), *random]) == 0
    assert run(["federate", "--rounds", "2", "--name", "one", "--target", "none"]) == 0
    assert run(["export", "--run", "one", "--with-encoder", "--out", "model.onnx"]) == 0
    use = load_classifier("one")
    hold_to_images(use, onnx_program(Path("model.onnx")), sorted(folder.rglob("*.png")))


def test_the_card_says_what_the_adapter_is_and_where_it_stands(demo: Demo, tmp_path: Path) -> None:
    base = ["--run", "demo", "--target", "sketch", "--to", "safetensors"]
    assert run(demo.command("export", *base, "--out", tmp_path / "a.safetensors")) == 0
    card = (tmp_path / "README.md").read_text()
    result = json.loads((demo.run / "sketch" / "result.json").read_text())
    assert card.startswith("---\nlibrary_name: fedclip\nlicense: unknown\n")
    assert "| sketch | 300 |" in card
    assert f"| {100 * result['accuracy']['sketch']:.2f} |" in card
    assert "## Limits" in card
    assert "## Licence" in card
    assert str(demo.place) not in card
    license_given = ["--license", "mit", "--out", tmp_path / "b.safetensors"]
    assert run(demo.command("export", *base, *license_given)) == 0
    assert "license: mit\n" in (tmp_path / "README.md").read_text()


def test_somebody_else_s_readme_is_left_alone(
    demo: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# My project\n")
    options = ["--run", "demo", "--target", "sketch", "--to", "safetensors"]
    assert run(demo.command("export", *options, "--out", tmp_path / "a.safetensors")) == 0
    assert readme.read_text() == "# My project\n"
    assert "card       not written" in capsys.readouterr().out


def test_what_cannot_be_exported_is_one_line(
    demo: Demo, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ["--run", "demo", "--target", "sketch"]

    def refused(*options: object) -> str:
        return refusal(*demo.command("export", *one, *options))

    assert "must be a file that ends in .onnx" in refused("--out", tmp_path)
    assert "must be a file that ends in .pt2" in refused(
        "--to", "torch", "--out", tmp_path / "a.onnx"
    )
    assert "--fp16: needs --with-encoder" in refused("--fp16")
    assert "--with-encoder: needs --to onnx or torch" in refused(
        "--to", "safetensors", "--with-encoder"
    )
    monkeypatch.setattr("fedclip.cache.common.extras.find_spec", lambda name: None)
    line = refused("--out", tmp_path / "a.onnx")
    assert "run 'pip install fedclip[onnx]'" in line
    assert list(tmp_path.iterdir()) == []
