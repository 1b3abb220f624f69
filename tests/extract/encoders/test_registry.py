"""Encoders of any family: with images only, and with texts of another width."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fedclip.cache import EncoderFacts, load_cache, verify_cache
from fedclip.cli import run
from fedclip.extract.datasets.registry import SampleKind
from fedclip.extract.encoders import registry
from fedclip.extract.encoders.base import (
    Encoder,
    Launched,
    Launcher,
    SampleEncoder,
    TextEncoder,
    Vectors,
)
from fedclip.extract.encoders.openclip import open_clip_decoder
from fedclip.extract.encoders.registry import Family, family_of, library_versions, load_encoder
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Extraction, Request

MakeImages = Callable[..., Path]
Refusal = Callable[..., str]
Run = Callable[[str], Extraction]

WIDTH = 6


@dataclass(frozen=True, eq=False)
class Toy:
    """What every encoder has."""

    name: EncoderName
    facts: EncoderFacts = field(
        default_factory=lambda: EncoderFacts({"library": "toy"}, {"size": 8}, {}, {"parameters": 0})
    )
    sources: tuple[Path, ...] = ()
    logit_scale: float = 1.0
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class ToyImages(Toy):
    """An encoder of images: the mean of each channel, and of its square."""

    samples: SampleKind = "images"

    @property
    def blank(self) -> torch.Tensor:
        return torch.zeros(3, 8, 8)

    def decode(self, content: bytes) -> torch.Tensor:
        from open_clip.transform import PreprocessCfg

        return open_clip_decoder(PreprocessCfg(size=8), "pillow")(content)

    def launch(self, pixels: torch.Tensor) -> Launched:
        def encode(there: torch.Tensor) -> torch.Tensor:
            return torch.cat([there.mean((2, 3)), there.square().mean((2, 3))], 1)

        return Launcher(encode, self.device)(pixels)


class ToyTexts(Toy):
    """An encoder of prompts alone: their lengths."""

    def encode_texts(self, prompts: Sequence[str]) -> Vectors:
        return np.array([[len(text), text.count(" ")] for text in prompts], np.float32)


class ToyBoth(ToyImages, ToyTexts):
    """An encoder of images and of texts that cannot be compared with them."""


TOYS = {"images": ToyImages, "both": ToyBoth}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Register a family of toys, and give the names of those that were loaded."""
    loaded: list[str] = []

    def load(name: EncoderName, device: torch.device) -> Encoder:
        loaded.append(name.model)
        toy: Encoder = TOYS[name.model.removeprefix("toy:")](name, device=device)
        return toy

    module = ModuleType("toy")
    module.load_encoder = load  # type: ignore[attr-defined]
    module.fetch_encoder = lambda name, progress: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fedclip.extract.encoders.toy", module)
    families = (Family("toy:", "images", "toy", ("torch",)), *registry.FAMILIES)
    monkeypatch.setattr(registry, "FAMILIES", families)
    return loaded


@pytest.fixture
def extracted(make_images: MakeImages, empty_folder: Path) -> Run:
    """Give a function that extracts images with a toy."""
    root = make_images()

    def call(toy: str) -> Extraction:
        return extract(
            Request(
                dataset=str(root),
                encoder=EncoderName.of(f"toy:{toy}", None),
                templates=("a {}", "the {}"),
                data_dir=root,
                cache_dir=empty_folder / "caches",
                workers=0,
                device="cpu",
            )
        )

    return call


def test_a_family_is_found_by_the_beginning_of_the_name() -> None:
    assert family_of(EncoderName.of("toy:images", None)).module == "toy"
    assert family_of(EncoderName.of("ViT-B-32", None)).module == "openclip"
    assert family_of(EncoderName.of("local-dir:toy:images", None)).module == "openclip"


def test_the_versions_that_count_are_those_of_the_family() -> None:
    assert [*library_versions(EncoderName.of("toy:images", None))] == ["torch"]
    assert [*library_versions(EncoderName.of("ViT-B-32", None))] == [
        *("open_clip_torch", "torch", "torchvision", "pillow")
    ]


def test_open_clip_s_encoders_have_both_sides(tiny_clip: Path) -> None:
    name = EncoderName.of(f"local-dir:{tiny_clip}", None)
    encoder = load_encoder(name, torch.device("cpu"))
    assert isinstance(encoder, SampleEncoder)
    assert isinstance(encoder, TextEncoder)


def test_images_are_extracted_without_a_text_side(extracted: Run, toys: list[str]) -> None:
    extraction = extracted("images")
    assert (extraction.embed_dim, extraction.classes, extraction.encoded_texts) == (WIDTH, 2, 0)
    assert verify_cache(extraction.folder) == []
    for cache in load_cache(extraction.folder):
        assert cache.image_features.shape == (6, WIDTH)
        assert cache.class_names == ("big_dog", "cat")
        assert cache.templates == ()
        assert cache.text_features.shape == (2, 0, 0)
    again = extracted("images")
    assert (again.written, again.encoded, again.embed_dim) == (False, 0, WIDTH)
    assert toys == ["toy:images"]


def test_texts_may_be_of_another_width(extracted: Run) -> None:
    extraction = extracted("both")
    assert (extraction.embed_dim, extraction.encoded_texts) == (WIDTH, 4)
    for cache in load_cache(extraction.folder):
        # "a big dog", "the big dog", "a cat", "the cat"
        assert cache.text_features.tolist() == [[[9, 2], [11, 2]], [[5, 1], [7, 1]]]
    assert not extracted("both").written


@pytest.mark.parametrize(
    ("toy", "reason"),
    [
        ("images", "photo: has no class texts to compare its images with; "),
        ("both", "photo: its image features are 6 wide and its text features 2, "),
    ],
)
def test_comparing_with_texts_that_cannot_be_compared_is_refused_in_one_line(
    extracted: Run, refusal: Refusal, toy: str, reason: str
) -> None:
    extracted(toy)
    command = ("federate", "--cache", "pets", "--rounds", "1", "--class-vectors")
    assert refusal(*command, "text").startswith(f"error: {reason}")


@pytest.mark.parametrize("options", [(), ("--class-vectors", "head")])
def test_images_without_texts_are_federated_with_class_means_and_clip_s_scale(
    extracted: Run,
    empty_folder: Path,
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    extracted("images")
    command = ["federate", "--cache", "pets", "--rounds", "1", "--target", "none", *options]
    assert run(command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "logit scale 100 (CLIP's, as the encoder has none)" in told
    (written,) = (empty_folder / "runs").glob("*/result.json")
    result = json.loads(written.read_text())
    assert set(result["zero_shot"].values()) == {None}
    assert result["zero_shot_metrics"] is None
    assert result["metrics"].keys() == result["accuracy"].keys()
    assert set(result["accuracy"].values()) <= {0.0, 0.5, 1.0}


@pytest.mark.parametrize("toy", ["images", "both"])
def test_a_cache_that_cannot_be_federated_is_listed_shown_and_verified(
    extracted: Run, capsys: pytest.CaptureFixture[str], toy: str
) -> None:
    extracted(toy)
    capsys.readouterr()
    assert [run(["cache", what, "pets"]) for what in ("show", "verify")] == [0, 0]
    assert run(["cache", "ls"]) == 0
    told = capsys.readouterr().out
    assert "none; similarities are multiplied by 100, which is CLIP's" in told
    assert "2 files are intact" in told
