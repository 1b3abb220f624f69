"""The adapters: what each does to the features, and what a run makes of it."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from fedclip.cache import FeatureCache, find_caches, load_cache
from fedclip.cli import run
from fedclip.federate.data.federation import build_federation
from fedclip.federate.models.adapters import ADAPTERS, Adapter
from fedclip.federate.models.network import Network, trainable_parameters
from fedclip.federate.settings import Settings
from fedclip.federate.training.evaluate import accuracy

MakeCache = Callable[..., Path]
MakeFeatures = Callable[..., FeatureCache]

NAMES = tuple(ADAPTERS)
D, C = 8, 3
IMAGE = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(C, D, generator=torch.Generator().manual_seed(1))

Sides = tuple[Tensor, Tensor]


def adapter_of(name: str, ratio: float | None = None) -> Adapter:
    return ADAPTERS.make(name, {} if ratio is None else {"ratio": ratio})


def make_adapter(name: str, text: Tensor, seed: int, ratio: float | None = None) -> Network:
    return adapter_of(name, ratio).make(text, seed)


def adapted(
    name: str,
    state: Mapping[str, Tensor] = MappingProxyType({}),
    ratio: float | None = None,
) -> Sides:
    """Adapt the sample features, with some of the parameters set."""
    adapter = make_adapter(name, TEXT, 0, ratio)
    adapter.load_state_dict(state, strict=False)
    with torch.no_grad():
        image, text = adapter(IMAGE, TEXT)
    return image, text


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("attention", 525_312),
        ("attention-text", 525_312),
        ("attention-both", 1_050_624),
        ("linear", 262_656),
        ("residual", 131_072),
        ("taskres", 33_280),
        ("scale", 512),
        ("linear-probe", 33_280),
        ("cache-model", 0),
        ("none", 0),
    ],
)
def test_the_size_of_each_adapter_for_512_features_and_65_classes(
    name: str, parameters: int
) -> None:
    adapter = make_adapter(name, torch.zeros(65, 512), seed=0)
    assert trainable_parameters(adapter) == parameters
    # What is federated is the whole state: nothing is trained that does not travel.
    assert sum(tensor.numel() for tensor in adapter.state_dict().values()) == parameters


@pytest.mark.parametrize(
    "name", ["linear", "taskres", "scale", "linear-probe", "cache-model", "none"]
)
def test_adapters_that_start_at_the_identity_start_at_zero_shot(name: str) -> None:
    image, text = adapted(name)
    assert torch.equal(image, IMAGE)
    assert torch.equal(text, TEXT)


def attention(rows: Tensor, prefix: str, state: dict[str, Tensor]) -> Tensor:
    hidden = torch.tanh(rows @ state[f"{prefix}.0.weight"].T + state[f"{prefix}.0.bias"])
    scores = hidden @ state[f"{prefix}.2.weight"].T + state[f"{prefix}.2.bias"]
    return torch.softmax(scores, dim=1) * rows


def test_the_attention_adapters_weigh_their_side() -> None:
    state = make_adapter("attention-text", TEXT, 0).state_dict()
    image, text = adapted("attention-text")
    assert torch.equal(image, IMAGE)
    torch.testing.assert_close(text, attention(TEXT, "attention", state))
    state = make_adapter("attention-both", TEXT, 0).state_dict()
    image, text = adapted("attention-both")
    torch.testing.assert_close(image, attention(IMAGE, "image_attention", state))
    torch.testing.assert_close(text, attention(TEXT, "text_attention", state))


def test_the_linear_adapter_maps_images() -> None:
    weight, bias = torch.randn(D, D), torch.randn(D)
    image, text = adapted("linear", {"linear.weight": weight, "linear.bias": bias})
    torch.testing.assert_close(image, IMAGE @ weight.T + bias)
    assert torch.equal(text, TEXT)


@pytest.mark.parametrize(("ratio", "share"), [(None, 0.2), (0.7, 0.7), (1.0, 1.0)])
def test_the_residual_adapter_blends_by_its_ratio(ratio: float | None, share: float) -> None:
    down, up = torch.randn(D // 4, D), torch.randn(D, D // 4)
    image, text = adapted(
        "residual", {"bottleneck.0.weight": down, "bottleneck.2.weight": up}, ratio
    )
    bottleneck = functional.relu(functional.relu(IMAGE @ down.T) @ up.T)
    torch.testing.assert_close(image, share * bottleneck + (1 - share) * IMAGE)
    assert torch.equal(text, TEXT)


@pytest.mark.parametrize(("ratio", "scale"), [(None, 0.5), (2.0, 2.0)])
def test_taskres_moves_each_class_text(ratio: float | None, scale: float) -> None:
    residual = torch.randn(C, D)
    image, text = adapted("taskres", {"residual": residual}, ratio)
    assert torch.equal(image, IMAGE)
    torch.testing.assert_close(text, TEXT + scale * residual)


def test_scale_and_linear_probe_do_what_they_are_called() -> None:
    weight = torch.randn(D)
    assert torch.equal(adapted("scale", {"weight": weight})[0], IMAGE * weight)
    vectors = torch.randn(C, D)
    image, text = adapted("linear-probe", {"weight": vectors})
    assert torch.equal(image, IMAGE)
    assert torch.equal(text, vectors)


def test_the_linear_probe_does_not_train_the_texts_that_it_starts_from() -> None:
    text = TEXT.clone()
    adapter = make_adapter("linear-probe", text, 0)
    with torch.no_grad():
        next(adapter.parameters()).zero_()
    assert torch.equal(text, TEXT)


@given(st.sampled_from(NAMES), st.integers(1, 9), st.integers(1, 4), st.integers(1, 6))
def test_every_adapter_keeps_the_shapes_and_adapts_rows_by_themselves(
    name: str, width: int, classes: int, rows: int
) -> None:
    random = torch.Generator().manual_seed(rows)
    image = torch.randn(rows, width, generator=random)
    text = torch.randn(classes, width, generator=random)
    adapter = make_adapter(name, text, 0)
    with torch.no_grad():
        new_image, new_text = adapter(image, text)
        alone, _ = adapter(image[:1], text)
    assert new_image.shape == image.shape
    assert new_text.shape == text.shape
    torch.testing.assert_close(alone, new_image[:1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("empty_folder")
def test_a_run_records_the_adapter_that_it_used(make_cache: MakeCache, name: str) -> None:
    make_cache({"art": 30, "photo": 40})
    options = ["--target", "none", "--rounds", "2", "--lr", "1e-3", "--name", "one"]
    if name == "cache-model":
        options += ["--strategy", "local"]
    assert run(["federate", "--adapter", name, *options]) == 0
    config = json.loads(Path("runs/one/config.json").read_text())
    result = json.loads(Path("runs/one/result.json").read_text())
    expected = trainable_parameters(make_adapter(name, torch.zeros(C, 8), 0))
    assert config["adapter"] == config["settings"]["adapter"] == name
    assert result["status"] == "finished"
    assert result["rounds"] == 2
    assert result["trainable_parameters"] == expected
    assert result["bytes_per_round"] == 4 * expected
    file_name = "personal" if name == "cache-model" else "adapter"
    with safe_open(Path(f"runs/one/{file_name}.safetensors"), "pt") as file:
        assert json.loads(file.metadata()["fedclip"])["adapter"] == name
        parameters = make_adapter(name, torch.zeros(C, 8), 0).state_dict()
        assert set(file.keys()) == {"@class_texts", *parameters}


@pytest.mark.parametrize(("ratio", "weight"), [(None, 1.0), (3.0, 3.0)])
def test_the_cache_model_lets_the_training_samples_vote(
    make_features: MakeFeatures, ratio: float | None, weight: float
) -> None:
    federation = build_federation([make_features(rows=40)], Settings(), None, torch.device("cpu"))
    client, text = federation.participants[0], federation.text
    adapter = make_adapter("cache-model", text, 0, ratio)
    image = client.test.features
    zero_shot = adapter.logits(image, text, 20.0)
    torch.testing.assert_close(
        zero_shot, 20 * functional.normalize(image) @ functional.normalize(text).T
    )
    adapter.remember(client.train)
    votes = torch.zeros(len(image), C)
    for row, one in enumerate(image):
        for key, label in zip(client.train.features, client.train.labels, strict=True):
            cosine = functional.cosine_similarity(one, key, dim=0)
            votes[row, label] += torch.exp(-5.5 * (1 - cosine))
    torch.testing.assert_close(adapter.logits(image, text, 20.0), zero_shot + weight * votes)
    # It holds the samples of one client, and they are no part of what is saved.
    adapter.remember(client.validation)
    assert not torch.allclose(adapter.logits(image, text, 20.0), zero_shot + weight * votes)
    assert not adapter.state_dict()


@pytest.mark.usefixtures("empty_folder")
def test_a_run_with_the_cache_model_tests_each_client_with_its_own_samples(
    make_cache: MakeCache,
) -> None:
    make_cache({"art": 60, "photo": 70, "sketch": 50})
    options = ["--strategy", "local", "--target", "sketch", "--rounds", "1", "--name", "one"]
    assert run(["federate", "--adapter", "cache-model", *options]) == 0
    result = json.loads(Path("runs/one/result.json").read_text())
    caches = load_cache(find_caches(Path("caches"))[0])
    federation = build_federation(caches, Settings(), "sketch", torch.device("cpu"))
    expected, on_target, scale = {}, [], federation.logit_scale
    for client in federation.participants:
        adapter = make_adapter("cache-model", federation.text, 0)
        adapter.remember(client.train)
        assert federation.target is not None
        expected[client.name], tested = (
            accuracy(adapter, adapter_of("cache-model"), part, federation.text, scale)
            for part in (client.test, federation.target.test)
        )
        on_target.append(tested)
    assert result["personal"] == expected
    assert result["generalization"] == pytest.approx(sum(on_target) / 2)
    assert result["bytes_per_round"] == 0
    assert result["accuracy"] != result["zero_shot"]


@pytest.mark.usefixtures("empty_folder")
def test_the_cache_model_is_not_federated(
    make_cache: MakeCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cache({"photo": 60})
    assert run(["federate", "--adapter", "cache-model"]) == 2
    assert "has no effect; choose --strategy local" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("empty_folder")
def test_a_run_without_an_adapter_stays_at_zero_shot(
    make_cache: MakeCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cache({"art": 60, "photo": 70})
    options = ["--target", "art", "--rounds", "3", "--name", "one"]
    assert run(["federate", "--adapter", "none", *options]) == 0
    lines = [json.loads(line) for line in Path("runs/one/rounds.jsonl").read_text().splitlines()]
    result = json.loads(Path("runs/one/result.json").read_text())
    assert result["accuracy"] == result["zero_shot"]
    assert [line["test"] for line in lines] == 3 * [result["zero_shot"]]
    assert all(line["train_loss"] > 0 for line in lines)
    assert "0 trainable parameters, 0 bytes per round" in capsys.readouterr().out


def test_the_list_of_adapters_names_each_with_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["adapters", "--embed-dim", "512", "--classes", "65"]) == 0
    rows = {
        name: cells
        for name, *cells in (
            re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()
        )
    }
    assert rows["attention"][1:] == ["525,312"]
    assert rows["taskres"][1:] == ["33,280", "--ratio 0.5 (Yu et al. 2023)"]
    assert rows["residual"][2] == "--ratio 0.2 (Gao et al. 2021, code)"
    assert set(NAMES) <= set(rows)
