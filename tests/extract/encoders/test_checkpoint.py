"""Files of weights that are not what they seem: recognized, unwrapped, or refused by name."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedclip.cache import FedclipError, image_key
from fedclip.extract.encoders.openclip import OpenClipEncoder, load_encoder
from fedclip.extract.encoders.spec import EncoderName

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
PLAIN, QUICK = "Toy-8", "Toy-8-quickgelu"

# What OpenAI's archives have beside the weights.
ENTRIES = {
    "input_resolution": torch.tensor(32),
    "context_length": torch.tensor(16),
    "vocab_size": torch.tensor(49408),
}

Save = Callable[[dict[str, Tensor]], Any]


@pytest.fixture
def toys(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Register the tiny CLIP's architecture with GELU and QuickGELU; give the tags of the first."""
    factory, pretrained = open_clip.factory, open_clip.pretrained
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    config = json.loads((tiny_clip / CONFIG).read_text())["model_cfg"]
    for name, changes in ((PLAIN, {}), (QUICK, {"quick_gelu": True})):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**config, **changes}))
        open_clip.add_model_config(path)
    tags: dict[str, Any] = {}
    monkeypatch.setitem(pretrained._PRETRAINED, PLAIN, tags)
    return tags


@pytest.fixture
def weights(tiny_clip: Path) -> dict[str, Tensor]:
    return load_file(tiny_clip / WEIGHTS)


def load(model: str, path: Path | str) -> OpenClipEncoder:
    return load_encoder(EncoderName.of(model, str(path)), torch.device("cpu"))


def refusal(path: Path, model: str = PLAIN) -> str:
    with pytest.raises(FedclipError) as caught:
        load(model, path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def activations(encoder: OpenClipEncoder) -> set[str]:
    names = {type(module).__name__ for module in encoder.model.modules()}
    return names & {"GELU", "QuickGELU"}


def features(encoder: OpenClipEncoder) -> Any:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return encoder.launch(pixels).numpy()


def url_of(path: Path) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"https://openaipublic.azureedge.net/clip/models/{digest}/toy.pt"


class _Archived(nn.Module):
    """A module whose state_dict is that of a CLIP, as OpenAI's archives have it."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            module: nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if not hasattr(module, folder):
                    module.add_module(folder, nn.Module())
                module = module.get_submodule(folder)
            module.register_buffer(last, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return x


def archive(path: Path, tensors: dict[str, Tensor]) -> Path:
    traced = torch.jit.trace(_Archived(tensors), torch.zeros(1))  # type: ignore[no-untyped-call]
    traced.save(path)
    return path


@pytest.mark.usefixtures("toys")
def test_a_state_dict_of_openai_s_archive_is_encoded_with_quick_gelu(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({**weights, **ENTRIES}, path := tmp_path / "ViT-B-32.pt")
    with caplog.at_level(logging.INFO, "fedclip"):
        encoder = load(PLAIN, path)
    assert [record.message for record in caplog.records] == [
        "weights    ViT-B-32.pt: trained with QuickGELU, which is used"
    ]
    assert activations(encoder) == {"QuickGELU"}
    assert encoder.facts["architecture"]["quick_gelu"] is True
    named = load(QUICK, path)
    assert image_key(encoder.facts) == image_key(named.facts)
    np.testing.assert_array_equal(features(encoder), features(named))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_file_is_recognized_by_the_hash_in_a_tag_s_url(
    tmp_path: Path,
    toys: dict[str, Any],
    weights: dict[str, Tensor],
    caplog: pytest.LogCaptureFixture,
    quick_gelu: bool,
) -> None:
    torch.save(weights, path := tmp_path / "downloaded.pt")
    toys["openai"] = {"url": url_of(path), "file": str(path), "quick_gelu": quick_gelu}
    encoder, tagged = load(PLAIN, path), load(PLAIN, "openai")
    assert activations(encoder) == {"QuickGELU" if quick_gelu else "GELU"}
    assert image_key(encoder.facts) == image_key(tagged.facts)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_short_hash_at_the_end_of_a_url_is_recognized_too(
    tmp_path: Path, toys: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    torch.save(weights, path := tmp_path / "mine.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    place = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights"
    toys["laion"] = {"url": f"{place}/toy-quickgelu-{digest[:8]}.pt", "quick_gelu": True}
    assert activations(load(PLAIN, path)) == {"QuickGELU"}


def test_the_hashes_of_openai_s_files_are_known() -> None:
    from fedclip.extract.encoders.checkpoint import _digests

    digests = _digests()
    assert digests["ViT-B-32", "openai"].startswith("40d365715913")
    assert digests["ViT-B-32", "laion400m_e32"] == "46683a32"
    assert all(digest is not None for digest in digests.values())


def test_weights_known_to_need_gelu_are_refused_with_quick_gelu(
    tmp_path: Path, toys: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    torch.save(weights, path := tmp_path / "mine.pt")
    toys["laion"] = {"url": url_of(path)}
    assert refusal(path, QUICK) == (
        f"{path}: these weights were trained with GELU, and {QUICK} has QuickGELU; pass "
        f"--model {PLAIN}"
    )


@pytest.mark.usefixtures("toys")
def test_a_file_that_does_not_tell_is_encoded_with_a_warning_that_names_the_other_architecture(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(weights, path := tmp_path / "mine.pt")
    assert activations(load(PLAIN, path)) == {"GELU"}
    assert [record.message for record in caplog.records] == [
        f"{path}: nothing in it tells whether it was trained with GELU, which is used, or with "
        f"QuickGELU, as OpenAI's weights were; for QuickGELU pass --model {QUICK}"
    ]
    caplog.clear()
    assert activations(load(QUICK, path)) == {"QuickGELU"}
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_an_archive_is_loaded_only_if_openai_published_it(
    tmp_path: Path, toys: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    path = archive(tmp_path / "ViT-B-32.pt", {**weights, **ENTRIES})
    assert (
        "(it is a TorchScript archive, which is a program, and not one that OpenAI published; if "
        "you trust it, save the state_dict() of torch.jit.load(FILE) with torch.save); pass "
    ) in refusal(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    toys["short"] = {"url": f"https://example.org/toy-{digest[:8]}.pt", "quick_gelu": True}
    assert "not one that OpenAI published" in refusal(path)
    toys["openai"] = {"url": url_of(path), "quick_gelu": True}
    encoder = load(PLAIN, path)
    assert activations(encoder) == {"QuickGELU"}
    torch.save(weights, plain := tmp_path / "plain.pt")
    np.testing.assert_array_equal(features(encoder), features(load(QUICK, plain)))


def prefixed(prefix: str) -> Save:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


WRAPPED: dict[str, Save] = {
    "module": prefixed("module."),
    "_orig_mod": prefixed("_orig_mod."),
    "model": prefixed("model."),
    "module._orig_mod": prefixed("module._orig_mod."),
    "_orig_mod.module": prefixed("_orig_mod.module."),
    "model.module": prefixed("model.module."),
    "compiled tower": lambda weights: {
        name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in weights.items()
    },
    "state_dict": lambda weights: {"epoch": 3, "state_dict": weights, "optimizer": {}},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "step": 3},
    "nested": lambda weights: {"model": {"state_dict": prefixed("module.")(weights)}, "epoch": 1},
    "lightning": lambda weights: {"state_dict": prefixed("model.")(weights), "loops": {}},
}


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("how", WRAPPED)
def test_a_wrapped_checkpoint_is_loaded_as_what_it_is(
    tmp_path: Path, weights: dict[str, Tensor], how: str
) -> None:
    torch.save(weights, plain := tmp_path / "plain.pt")
    torch.save(WRAPPED[how](weights), wrapped := tmp_path / "wrapped.pt")
    np.testing.assert_array_equal(features(load(PLAIN, wrapped)), features(load(PLAIN, plain)))


@pytest.mark.usefixtures("toys")
def test_position_embeddings_that_are_resized_are_warned_of(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    positions = weights["visual.positional_embedding"]
    longer = torch.cat([positions, positions[1:].repeat(3, 1)])[: 1 + 8 * 8]
    torch.save({**weights, "visual.positional_embedding": longer}, path := tmp_path / "large.pt")
    load(QUICK, path)
    assert [record.message for record in caplog.records] == [
        f"{path}: is for images or texts of another size than {QUICK} takes; "
        "visual.positional_embedding was resized"
    ]


def without(*starts: str) -> Save:
    return lambda weights: {
        name: tensor for name, tensor in weights.items() if not name.startswith(starts)
    }


def changed(name: str, value: float) -> Save:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        tensor = weights[name].clone()
        tensor.view(-1)[0] = value
        return {**weights, name: tensor}

    return change


TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")

FAULTS: dict[str, tuple[Save, str]] = {
    "NaN": (changed("visual.proj", float("nan")), "has NaN or Inf in visual.proj"),
    "Inf": (changed("logit_scale", float("inf")), "has NaN or Inf in logit_scale"),
    "no logit scale": (without("logit_scale"), "has no logit_scale"),
    "no projection": (without("visual.proj"), "has no visual.proj"),
    "no image tower": (without("visual."), "has no image tower (visual."),
    "no text tower": (without(*TEXT), "has no text tower ("),
    "nothing of it": (lambda _: {"fc.weight": torch.zeros(1)}, "has none of the model's tensors"),
    "more": (
        lambda weights: {**weights, "head.bias": torch.zeros(1)},
        "has head.bias, which the architecture lacks",
    ),
    "partly prefixed": (
        lambda weights: {**prefixed("model.")(weights), "loss.weight": torch.zeros(1)},
        "has none of the model's tensors, only ",
    ),
    "numbers": (lambda _: {"epoch": 3}, "has no tensor as epoch"),
    "a list": (lambda weights: list(weights.values()), "contains a list, and no tensors by name"),
    "empty": (lambda _: {"state_dict": {}}, "is empty"),
}


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("fault", FAULTS)
def test_weights_with_a_fault_are_refused_by_name(
    tmp_path: Path, weights: dict[str, Tensor], fault: str
) -> None:
    save, expected = FAULTS[fault]
    torch.save(save(weights), path := tmp_path / "bad.pt")
    message = refusal(path)
    assert message.startswith(f"{path}: cannot be loaded as weights of {PLAIN} (it {expected}")
    assert message.endswith("pass safetensors or a plain state_dict of this architecture")


@pytest.mark.usefixtures("toys")
def test_a_checkpoint_that_contains_itself_is_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["state_dict"] = endless
    torch.save(endless, path := tmp_path / "endless.pt")
    assert "(it has no tensor as state_dict)" in refusal(path)


@pytest.mark.usefixtures("toys")
def test_nan_in_half_precision_is_found_in_safetensors_too(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    halves = {
        name: tensor.half() for name, tensor in changed("visual.proj", np.nan)(weights).items()
    }
    save_file(halves, path := tmp_path / "bad.safetensors")
    assert "has NaN or Inf in visual.proj" in refusal(path)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("name", ["mine.pt", "mine.bin"])
def test_safetensors_are_read_whatever_their_suffix(
    tmp_path: Path, weights: dict[str, Tensor], name: str
) -> None:
    save_file(weights, path := tmp_path / name)
    save_file(weights, usual := tmp_path / "mine.safetensors")
    np.testing.assert_array_equal(features(load(PLAIN, path)), features(load(PLAIN, usual)))


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("dtype", "shown"), [(torch.int8, "torch.int8"), (torch.complex64, "torch.complex64")]
)
def test_weights_that_are_not_floats_are_refused(
    tmp_path: Path, weights: dict[str, Tensor], dtype: torch.dtype, shown: str
) -> None:
    changed = {**weights, "text_projection": weights["text_projection"].to(dtype)}
    torch.save(changed, path := tmp_path / "mine.pt")
    assert f"(it has {shown} in place of floats in text_projection)" in refusal(path)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(("value", "shown"), [(100.0, "100"), (-1000.0, "-1000")])
def test_a_logit_scale_that_is_no_logarithm_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], value: float, shown: str
) -> None:
    changed = {**weights, "logit_scale": torch.tensor(value)}
    torch.save(changed, path := tmp_path / "mine.pt")
    exponential = "inf" if value > 0 else "0"
    assert (
        f"(it has the logit_scale {shown}, of which the exponential is {exponential}; it must be a "
        "logarithm, such as 4.6)"
    ) in refusal(path)
