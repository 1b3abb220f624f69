"""Full models trained on images, compared with a few lines of plain PyTorch."""

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import AlexNet_Weights, alexnet

from fedclip.cache import CacheFolder, FedclipError, load_cache
from fedclip.cli import run
from fedclip.extract.encoders.prompts import DEFAULT_TEMPLATE
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.finetune.source import Materials, Origin, load_materials
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Request
from fedclip.federate.data.federation import FeaturePool, Federation
from fedclip.federate.models.full import Classifier, FullClip, FullModel
from fedclip.federate.models.network import Network
from fedclip.federate.runs.checkpoint import read_state, write_state
from fedclip.federate.server import Round
from fedclip.federate.settings import Settings
from fedclip.federate.simulation import Run, step
from fedclip.federate.strategies.base import SERVER
from fedclip.federate.training.tasks import Parameters, draw_batches

MakeImages = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def extracted(make_images: MakeImages, tiny_clip: Path, tmp_path: Path) -> tuple[Path, CacheFolder]:
    """Draw two domains of 20 and encode them."""
    root = make_images(images=10)
    request = Request(
        dataset=str(root),
        encoder=EncoderName.of(f"local-dir:{tiny_clip}", None),
        templates=(DEFAULT_TEMPLATE,),
        data_dir=tmp_path,
        cache_dir=tmp_path / "caches",
        workers=0,
    )
    return root, extract(request).folder


def lent(
    backbone: str, extracted: tuple[Path, CacheFolder], tiny_clip: Path, weights: str = "random"
) -> Materials:
    root, cache = extracted
    encoder = EncoderName.of(f"local-dir:{tiny_clip}", None)
    origin = Origin.of(backbone, weights, encoder, str(root), cache)
    return load_materials(Origin(**origin.to_json()), load_cache(cache), DEFAULT_TEMPLATE, CPU)


def full(materials: Materials, wrapper: type[FullClip | Classifier]) -> FullModel:
    backbone = materials.backbone
    return FullModel(
        facts=backbone.facts,
        origin={},
        network=lambda seed: wrapper(backbone.network(seed), backbone.mean, backbone.std),
        images=lambda cache: materials.images[cache.client],
        tokens=materials.tokens,
        zero_shot=wrapper is FullClip,
    )


def federation_of(
    extracted: tuple[Path, CacheFolder], model: FullModel, settings: Settings
) -> Federation:
    clients = load_cache(extracted[1])
    return FeaturePool(clients, None, CPU, model=model).federation(settings, None)


def rounds_of(
    federation: Federation, settings: Settings, model: FullModel
) -> list[tuple[Round, Parameters]]:
    """Do a run; give each round and the server's parameters after it."""
    run, rounds = Run(federation, settings, model), []
    while not run.over:
        (current,) = step([run])
        rounds.append((current, run.state.server.strategy[SERVER]))
    return rounds


def make(model: FullModel, seed: int) -> Network:
    return model.make(torch.zeros(0), seed)


@pytest.mark.parametrize(("strategy", "mu"), [("fedavg", None), ("fedprox", 0.5)])
def test_two_rounds_of_a_full_clip_equal_plain_pytorch(
    extracted: tuple[Path, CacheFolder], tiny_clip: Path, strategy: Any, mu: float | None
) -> None:
    # The keys' biases have no gradient but rounding, which Adam would blow up with a smaller eps.
    settings = Settings.preset(
        "paper",
        rounds=2,
        batch_size=4,
        lr=1e-3,
        eps=1e-4,
        strategy=strategy,
        mu=mu,
        adapter="none",
        seed=3,
    )
    model = full(lent("clip", extracted, tiny_clip), FullClip)
    federation = federation_of(extracted, model, settings)
    rounds = rounds_of(federation, settings, model)

    root, cache = extracted
    name = f"local-dir:{tiny_clip}"
    clip, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(["a picture of a big dog", "a picture of a cat"])
    ids = {client.client: client.ids for client in load_cache(cache)}
    server = {name: value.clone() for name, value in clip.state_dict().items()}
    for number in (1, 2):
        trained = []
        for client in federation.participants:
            pixels = torch.stack(
                [preprocess(Image.open(root / ids[client.name][row])) for row in client.train.rows]
            )
            labels = client.train.labels
            clip.load_state_dict(server)
            optimizer = torch.optim.Adam(
                clip.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-4, weight_decay=0.2
            )
            for batch in draw_batches(len(labels), settings, number, client.name):
                image = functional.normalize(clip.encode_image(pixels[batch]), dim=1)
                text = functional.normalize(clip.encode_text(tokens), dim=1)[labels[batch]]
                logits = clip.logit_scale.exp() * image @ text.T
                own = torch.arange(len(batch))
                loss = functional.cross_entropy(logits, own) / 2
                loss = loss + functional.cross_entropy(logits.T, own) / 2
                if mu is not None:
                    for name, value in clip.named_parameters():
                        loss = loss + mu / 2 * ((value - server[name]) ** 2).sum()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            trained.append({name: value.clone() for name, value in clip.state_dict().items()})
        server = {name: sum((t[name] for t in trained), torch.zeros(())) / 2 for name in server}
        for name, expected in server.items():
            ours = rounds[number - 1][1][f"clip.{name}"]
            torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
    begun = make(model, 0).get_parameter("clip.logit_scale")
    assert not torch.equal(rounds[1][1]["clip.logit_scale"], begun)


def test_a_full_clip_encodes_images_and_prompts_as_the_cache_has_them(
    extracted: tuple[Path, CacheFolder], tiny_clip: Path
) -> None:
    materials = lent("clip", extracted, tiny_clip)
    model = make(full(materials, FullClip), 0).eval()
    for cache in load_cache(extracted[1]):
        with torch.no_grad():
            pixels = materials.images[cache.client][torch.arange(len(cache.labels))]
            image, text = model(pixels, materials.tokens)
        assert pixels.dtype == torch.uint8
        features = torch.from_numpy(cache.image_features)
        torch.testing.assert_close(image, features, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            text, torch.from_numpy(cache.text_features[:, 0]), rtol=0, atol=1e-5
        )


@pytest.mark.slow
def test_the_seed_decides_dropout_and_an_alexnet_begins_from_it(
    extracted: tuple[Path, CacheFolder], tiny_clip: Path
) -> None:
    model = full(lent("alexnet", extracted, tiny_clip), Classifier)
    settings = Settings.preset(
        "paper", rounds=1, batch_size=4, lr=1e-4, loss="class", adapter="none"
    )
    federation = federation_of(extracted, model, settings)
    torch.manual_seed(1)
    ((one, before),) = rounds_of(federation, settings, model)
    torch.manual_seed(2)
    ((two, after),) = rounds_of(federation, settings, model)
    assert one.train_loss == two.train_loss
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    first, same, other = (make(model, seed) for seed in (1, 1, 2))
    head = "network.classifier.6.weight"
    assert torch.equal(first.get_parameter(head), same.get_parameter(head))
    assert not torch.equal(first.get_parameter(head), other.get_parameter(head))


@pytest.mark.parametrize("classes", [2, 1000])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_alexnet_takes_a_file_and_a_new_last_layer_where_the_classes_are_others(
    extracted: tuple[Path, CacheFolder],
    tiny_clip: Path,
    tmp_path: Path,
    classes: int,
    suffix: str,
) -> None:
    state = alexnet(num_classes=classes).state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        save_file(state, file)
    materials = lent("alexnet", extracted, tiny_clip, str(file))
    network = materials.backbone.network(5)
    assert materials.backbone.facts["weights"] == file.name
    assert torch.equal(network.get_parameter("features.0.weight"), state["features.0.weight"])
    head = network.get_parameter("classifier.6.weight")
    assert head.shape == (2, 4096)
    assert torch.equal(head, state["classifier.6.weight"]) == (classes == 2)


def test_alexnet_sees_images_as_torchvision_prepares_them(
    extracted: tuple[Path, CacheFolder], tiny_clip: Path
) -> None:
    materials = lent("alexnet", extracted, tiny_clip)
    (cache, _) = load_cache(extracted[1])
    model = make(full(materials, Classifier), 0)
    pixels = materials.images[cache.client][torch.tensor([3])]
    image = Image.open(extracted[0] / cache.ids[3]).convert("RGB")
    expected: Tensor = AlexNet_Weights.IMAGENET1K_V1.transforms()(image)
    assert isinstance(model, Classifier)
    torch.testing.assert_close(model.normalize(pixels)[0], expected, rtol=0, atol=1e-5)


def test_an_image_that_changed_since_it_was_encoded_is_refused(
    extracted: tuple[Path, CacheFolder], tiny_clip: Path
) -> None:
    materials = lent("clip", extracted, tiny_clip)
    cache = load_cache(extracted[1])[0]
    Image.new("RGB", (40, 48)).save(extracted[0] / cache.ids[2])
    images = materials.images[cache.client]
    assert images[torch.tensor([0, 1])].shape == (2, 3, 32, 32)
    with pytest.raises(FedclipError, match="differs from the image that was encoded"):
        images[torch.tensor([2])]


def test_buffers_are_averaged_and_keep_their_type(
    extracted: tuple[Path, CacheFolder], tiny_clip: Path
) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.out = nn.Linear(3, 2)

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.out(self.norm(pixels).mean(dim=(2, 3)))
            return logits

    materials = lent("alexnet", extracted, tiny_clip)
    model = FullModel(
        facts={},
        origin={},
        network=lambda seed: Classifier(Normed(), materials.backbone.mean, materials.backbone.std),
        images=lambda cache: materials.images[cache.client],
        tokens=materials.tokens,
        zero_shot=False,
    )
    settings = Settings.preset("paper", rounds=1, batch_size=4, loss="class", adapter="none")
    federation = federation_of(extracted, model, settings)
    ((_, only),) = rounds_of(federation, settings, model)
    counted = only["network.norm.num_batches_tracked"]
    assert counted.dtype == torch.int64
    assert counted.item() == 3
    assert not torch.equal(only["network.norm.running_mean"], torch.zeros(3))


@pytest.fixture
def command(
    make_images: MakeImages, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Give a baseline's command line, to be run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    make_images(images=10)
    return ["baseline", "--dataset", "pets", "--data-dir", ".", "--model", f"local-dir:{tiny_clip}"]


def test_a_baseline_leaves_the_records_of_a_run_with_federates_splits(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", "2", "--batch-size", "4", "--target", "sketch"]
    assert run([*command, *options, "--name", "full", "--keep-model"]) == 0
    printed = capsys.readouterr()
    assert "minibatches of" in printed.err
    assert "all of clip, strategy fedavg" in printed.out
    assert run(["federate", *options, "--name", "small"]) == 0
    ours, theirs = (
        json.loads(Path(f"runs/{n}/result.json").read_text()) for n in ("full", "small")
    )
    assert ours["zero_shot"] == theirs["zero_shot"]
    assert ours["test_samples"] == theirs["test_samples"]
    assert ours["model"]["backbone"] == "clip"
    assert ours["trainable_parameters"] == ours["model"]["parameters"]
    assert ours["status"] == "finished"
    tensors = load_file("runs/full/model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == ours["trainable_parameters"]
    names = {path.name for path in Path("runs/full").iterdir()}
    kept = {"config.json", "rounds.jsonl", "result.json", "predictions.npz"}
    assert names == {*kept, "model.safetensors"}


@pytest.mark.slow
def test_alexnet_has_no_zero_shot_and_says_its_weights(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--backbone", "alexnet", "--alexnet-weights", "random", "--rounds", "1"]
    assert run([*command, *options, "--target", "sketch", "--name", "one"]) == 0
    assert "all of alexnet (random weights) trained" in capsys.readouterr().out
    result = json.loads(Path("runs/one/result.json").read_text())
    assert result["zero_shot_mean"] is None
    assert 0 <= result["mean"] <= 1
    assert result["model"]["weights"] == "random"


@pytest.mark.slow
def test_a_killed_baseline_is_resumed_to_the_same_result(
    command: list[str], tmp_path: Path
) -> None:
    options = ["--rounds", "12", "--batch-size", "2", "--target", "none", "--save-every", "1"]
    assert run([*command, *options, "--name", "straight"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "fedclip", *command, *options, "--name", "killed"],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    while not Path("runs/killed/state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("runs/killed/result.json").exists()
    assert run(["baseline", "--resume", "killed"]) == 0
    results = [
        json.loads(Path(f"runs/{n}/result.json").read_text()) for n in ("straight", "killed")
    ]
    for result in results:
        del result["seconds_per_round"]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--backbone", "resnet"], "unknown backbone; choose clip or alexnet"),
        (["--mu", "0.1"], "it belongs to fedprox"),
        (["--backbone", "alexnet", "--loss", "clip"], "no text side"),
        (["--backbone", "alexnet", "--alexnet-weights", "no.pth"], "file not found"),
        (["--strategy", "best"], "--strategy best: unknown strategy; choose fedavg or fedprox"),
        (["--strategy", "fedrep"], "works with adapters only; full models take fedavg or fedprox"),
        (["--alexnet-weights", "random"], "needs --backbone alexnet"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_begun(
    command: list[str], capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert run([*command, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # so nothing was extracted either
    assert line.startswith("error")
    assert says in line
    assert not Path("runs").exists()


@pytest.mark.parametrize("model", ["timm:test_vit", "hf:owner/bert"])
def test_another_encoder_than_a_clip_is_refused_before_anything_is_extracted(
    command: list[str], capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert run([*command[:-1], model]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --model {model}: is not a CLIP of open_clip, which alone can ")
    assert not Path("caches").exists()


def test_a_state_without_zero_shot_is_read_back_as_it_was_saved(
    extracted: tuple[Path, CacheFolder], tiny_clip: Path, tmp_path: Path
) -> None:
    settings = Settings.preset(
        "paper", rounds=2, batch_size=4, lr=1e-4, loss="class", adapter="none"
    )
    model = full(lent("alexnet", extracted, tiny_clip), Classifier)
    begun = Run(federation_of(extracted, model, settings), settings, model)
    write_state(tmp_path / "state", begun.state)
    state = read_state(tmp_path / "state", begun.state)
    assert state.zero_shot.keys() == begun.state.zero_shot.keys() == {"photo", "sketch"}
    assert all(math.isnan(value) for value in state.zero_shot.values())


def test_federate_does_not_resume_a_baseline(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--rounds", "1", "--target", "none", "--name", "full"]) == 0
    assert run(["federate", "--resume", "full"]) == 2
    assert "fedclip baseline --resume" in capsys.readouterr().err
