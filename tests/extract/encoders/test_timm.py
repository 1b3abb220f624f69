"""Image models of timm: its own pooled features, its own preprocessing, and what is refused."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from fedclip.cache import FedclipError, image_key, load_cache
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.encoders.timm import TimmEncoder, load_encoder
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Request

MakeImages = Callable[..., Path]

# Small models of three kinds, which timm keeps for tests; their tags name weights on the hub.
MODELS = ("test_vit", "test_convnext", "test_efficientnet")


def load(model: str = "test_vit", pretrained: object = "random") -> TimmEncoder:
    weights = None if pretrained is None else str(pretrained)
    return load_encoder(EncoderName.of(f"timm:{model}", weights), torch.device("cpu"))


def refusal(model: str, pretrained: object = "random") -> str:
    with pytest.raises(FedclipError) as error:
        load(model, pretrained)
    assert "\n" not in str(error.value)
    return str(error.value)


def pre_logits(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    features: torch.Tensor = model.forward_head(model.forward_features(pixels), pre_logits=True)
    return features


def picture(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (200, 240, 4), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_vectors_are_timm_s_pooled_features_of_its_own_pixels(model: str, mode: str) -> None:
    encoder = load(model)
    content = io.BytesIO()
    picture(mode).save(content, "png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = timm.create_model(model, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(theirs), is_training=False)  # type: ignore[no-untyped-call]
    pixels = transform(picture(mode).convert("RGB"))[None]
    assert torch.equal(encoder.decode(content.getvalue())[None], pixels)
    with torch.inference_mode():
        expected = theirs(pixels).numpy()
    np.testing.assert_allclose(encoder.launch(pixels).numpy(), expected, rtol=0, atol=1e-5)


def test_a_model_without_pretrained_head_and_one_with_it_have_the_same_features(
    tmp_path: Path,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model("test_vit", num_classes=1000).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    # A training script's checkpoint: wrapped, with a prefix on every name.
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "w.pth")
    pixels = torch.randn(2, *load().blank.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = pre_logits(model, pixels).numpy()
    for file in ("w.safetensors", "w.pth"):
        encoder = load(pretrained=tmp_path / file)
        np.testing.assert_allclose(encoder.launch(pixels).numpy(), expected, rtol=0, atol=1e-5)
        assert encoder.facts["random_weights"] is False
        assert encoder.facts["pretrained"] == file
        assert encoder.sources == (tmp_path / file,)


CONFIG = {
    "architecture": "test_vit",
    "num_classes": 3,
    "model_args": {"depth": 2},
    "pretrained_cfg": {
        "input_size": [3, 96, 96],
        "fixed_input_size": True,
        "interpolation": "bilinear",
        "crop_pct": 0.5,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "num_classes": 3,
    },
}


def saved(folder: Path, config: object = CONFIG, seed: int = 3) -> Any:
    """Write a model that somebody trained to a folder, with its config; return the model."""
    folder.mkdir(exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("test_vit", num_classes=3, img_size=96, depth=2).eval()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return model


def place(folder: Path) -> TimmEncoder:
    return load(f"local-dir:{folder}", None)


def test_a_folder_s_model_is_preprocessed_by_its_own_config(tmp_path: Path) -> None:
    model = saved(tmp_path / "mine")
    encoder = place(tmp_path / "mine")
    content = io.BytesIO()
    picture().save(content, "png")
    pixels = encoder.decode(content.getvalue())
    mean, std = (torch.tensor(CONFIG["pretrained_cfg"][name]) for name in ("mean", "std"))  # type: ignore[index]
    resized = picture().resize((192 * 240 // 200, 192), Image.Resampling.BILINEAR)
    left, top = (resized.width - 96) // 2, (192 - 96) // 2
    cropped = torch.from_numpy(np.array(resized.crop((left, top, left + 96, top + 96))))
    expected = (cropped / 255 - mean) / std
    np.testing.assert_allclose(pixels, expected.permute(2, 0, 1), rtol=0, atol=1e-5)
    with torch.inference_mode():
        features = pre_logits(model, pixels[None]).numpy()
    np.testing.assert_allclose(encoder.launch(pixels[None]).numpy(), features, rtol=0, atol=1e-5)
    # The same as timm's own reading of the folder.
    theirs = timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(theirs), is_training=False)  # type: ignore[no-untyped-call]
    assert torch.equal(pixels, transform(picture()))
    with torch.inference_mode():
        np.testing.assert_allclose(pre_logits(theirs, pixels[None]).numpy(), features, atol=1e-5)


def test_a_folder_s_key_depends_on_its_config_and_not_on_where_it_is(tmp_path: Path) -> None:
    other = {**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], "mean": [0.5] * 3}}  # type: ignore[dict-item]
    for folder, config in (("here", CONFIG), ("there", CONFIG), ("other", other)):
        saved(tmp_path / folder, config)
    here, there, changed = (place(tmp_path / each).facts for each in ("here", "there", "other"))
    assert image_key(here) == image_key(there)
    assert image_key(here) != image_key(changed)
    assert (here["mean"], changed["mean"]) == ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5])
    assert (here["architecture"], here["arguments"]) == ("test_vit", {"depth": 2})
    assert (here["model"], here["pretrained"]) == ("timm:local-dir:here", "own")
    assert str(tmp_path) not in str(here)


def test_a_folder_s_weights_are_its_safetensors_or_its_only_file(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    model = saved(folder)
    for other in ("last.pth.tar", "pytorch_model.bin"):
        torch.save({"state_dict": model.state_dict()}, folder / other)
    assert {each.name for each in place(folder).sources} == {
        *("mine", "config.json", "last.pth.tar", "model.safetensors", "pytorch_model.bin")
    }
    expected = place(folder).facts["weights_sha256"]
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    assert place(folder).facts["weights_sha256"] != expected
    (folder / "pytorch_model.bin").unlink()
    assert "has 2 files of weights" in refusal(f"local-dir:{folder}", None)
    (folder / "last.pth.tar").unlink()
    assert place(folder).facts["weights_sha256"] == expected
    (folder / "best.safetensors").unlink()
    assert "has 0 files of weights" in refusal(f"local-dir:{folder}", None)
    assert load(f"local-dir:{folder}").facts["random_weights"] is True


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "No such file or directory; timm:local-dir:"),
        ([], "is not a config of timm; it needs at least an architecture"),
        ({"architecture": 3}, "architecture must be a name"),
        ({**CONFIG, "model_args": [1]}, "and model_args an object"),
        ({**CONFIG, "architecture": "test_vitt"}, "did you mean timm:test_vit"),
        ({**CONFIG, "model_args": {"depth": 3}}, "cannot be loaded as weights"),
        (
            {**CONFIG, "model_args": {"depth": 1}},
            "(has blocks.1.attn.proj.bias, blocks.1.attn.proj.weight, blocks.1.attn.qkv.bias and 9 "
            "more, which the architecture lacks)",
        ),
        ({**CONFIG, "model_args": {"features_only": True}}, "cannot be loaded as weights"),
        ({"architecture": "test_vit", "crop_pct": 0, "input_size": [3, 96, 96]}, "cannot be"),
        ({**CONFIG, "pretrained_cfg": {"mean": [0, 0, "a"]}}, "check input_size, mean, std"),
        ({**CONFIG, "pretrained_cfg": {"std": [1, 1]}}, "check input_size, mean, std"),
        ({**CONFIG, "pretrained_cfg": {"interpolation": "cubist"}}, "check input_size, mean, std"),
        ({**CONFIG, "pretrained_cfg": {"crop_pct": 1e-6}}, "check input_size, mean, std"),
        ({**CONFIG, "pretrained_cfg": {"unknown": 1}}, "cannot be loaded as weights"),
        ({**CONFIG, "pretrained_cfg": {"input_size": [1, 160, 160]}}, "cannot be loaded"),
    ],
)
def test_a_folder_s_config_that_cannot_be_followed_is_refused_in_a_line(
    tmp_path: Path, config: object, problem: str
) -> None:
    saved(tmp_path / "mine", config)
    if config is None:
        (tmp_path / "mine" / "config.json").unlink()
    assert problem in refusal(f"local-dir:{tmp_path / 'mine'}", None)


def test_a_config_cannot_make_other_weights_be_loaded(tmp_path: Path) -> None:
    evil = saved(tmp_path / "other", seed=4)
    torch.save(evil.state_dict(), tmp_path / "other" / "pytorch_model.bin")
    elsewhere = {
        **{"file": str(tmp_path / "other"), "source": "local-dir", "custom_load": True},
        **{"url": (tmp_path / "other").as_uri(), "hf_hub_id": "owner/name"},
    }
    config = {**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], **elsewhere}}  # type: ignore[dict-item]
    model = saved(tmp_path / "mine", config)
    encoder = place(tmp_path / "mine")
    own = dict(model.named_parameters())
    for name, tensor in encoder.model.named_parameters():
        assert torch.equal(tensor, own[name]), name


def test_random_weights_and_the_key_are_the_same_every_time() -> None:
    one, other = load(), load()
    assert image_key(one.facts) == image_key(other.facts)
    assert image_key(one.facts) != image_key(load("test_convnext").facts)
    assert (one.facts["library"], one.facts["random_weights"]) == ("timm", True)
    assert one.facts["architecture"] == "test_vit"


def test_images_are_extracted_without_class_texts(
    make_images: MakeImages, empty_folder: Path
) -> None:
    extraction = extract(
        Request(
            dataset=str(make_images()),
            encoder=EncoderName.of("timm:test_vit", "random"),
            templates=("a {}",),
            data_dir=empty_folder,
            cache_dir=empty_folder / "caches",
            device="cpu",
        )
    )
    assert extraction.folder.path.name.startswith("test_vit-random-")
    for cache in load_cache(extraction.folder):
        assert cache.templates == ()
        assert cache.logit_scale == 1
        assert cache.image_features.shape == (6, extraction.embed_dim)
        assert not math.isclose(np.linalg.norm(cache.image_features[0]), 1, rel_tol=1e-2)


def test_what_cannot_be_loaded_is_refused_in_a_line(tmp_path: Path) -> None:
    assert "did you mean timm:test_vit" in refusal("test_vitt")
    assert "unknown weights" in refusal("test_vit.nonsense")
    assert "no such file" in refusal("test_vit", tmp_path / "absent.pth")
    assert "no such file" in refusal("test_vit", "openai")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    assert "cannot be loaded as weights of timm:test_vit" in refusal(
        "test_vit", tmp_path / "other.safetensors"
    )
    weights = timm.create_model("test_vit", num_classes=0).state_dict()
    weights["norm.weight"][0] = math.nan
    save_file(weights, tmp_path / "nan.safetensors")
    assert "(has NaN or Inf in norm.weight)" in refusal("test_vit", tmp_path / "nan.safetensors")
    with pytest.raises(FedclipError, match="use --resizer pillow"):
        load_encoder(
            EncoderName.of("timm:test_vit", "random", resizer="torchvision"), torch.device("cpu")
        )


class Dangerous:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (Path.write_text, (Path("ran"), "code"))  # type: ignore[return-value]


def test_code_in_a_checkpoint_is_not_run(empty_folder: Path) -> None:
    torch.save({"state_dict": Dangerous()}, empty_folder / "evil.pth")
    assert "cannot be loaded" in refusal("test_vit", empty_folder / "evil.pth")
    assert not Path("ran").exists()
