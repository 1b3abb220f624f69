"""The code that an export prints makes the pixels that the encoder takes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedclip.extract.encoders import timm as timm_family
from fedclip.extract.encoders.base import SampleEncoder
from fedclip.extract.encoders.pixels import pixel_encoder
from fedclip.extract.encoders.registry import load_encoder
from fedclip.extract.encoders.spec import EncoderName
from fedclip.federate.report.snippets import image_snippet

Hold = Callable[[SampleEncoder], None]


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """Give a function that compares an encoder's pixels with those of the printed code."""
    monkeypatch.chdir(tmp_path)

    def check(encoder: SampleEncoder) -> None:
        side = pixel_encoder(encoder)
        for size in ((97, 61), (61, 98), (200, 333), (40, 40)):
            noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(noise).save("photo.png")
            content = Path("photo.png").read_bytes()
            (expected,) = side.decode(content)
            ((name, how),) = side.preprocessing.items()
            code = image_snippet(name, how).replace("photo.jpg", "photo.png")
            made: dict[str, Any] = {"Image": Image, "np": np}
            exec(code, made)
            assert made["pixels"].shape == (1, *expected.shape)
            np.testing.assert_array_equal(made["pixels"][0], expected.numpy())

    return check


@pytest.mark.parametrize("size", [32, [32, 48]])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_the_code_follows_open_clip(
    tiny_clip: Path, tmp_path: Path, hold: Hold, mode: str, size: object
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_clip, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = size
    config["preprocess_cfg"] |= {"resize_mode": mode, "fill_color": 7}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    name = EncoderName.of(f"local-dir:{folder}", "random")
    hold(load_encoder(name, torch.device("cpu")))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_code_follows_timm(hold: Hold, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    from timm.data.config import resolve_model_data_config as resolve

    monkeypatch.setattr(
        timm_family,
        "resolve_model_data_config",
        lambda model: {**resolve(model), "crop_mode": mode, "crop_pct": 0.9},  # type: ignore[no-untyped-call]
    )
    hold(load_encoder(EncoderName.of("timm:test_vit", "random"), torch.device("cpu")))
