"""Image models of timm: its own pooled features, its own preprocessing, and what is refused."""

import io
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
