"""What a user calls an encoder, and what of that a cache shows."""

from pathlib import Path

import pytest

from fedclip.cache import FedclipError
from fedclip.cache.common.files import check_name
from fedclip.extract.encoders.spec import EncoderName


@pytest.mark.parametrize(
    ("model", "pretrained", "expected"),
    [
        ("ViT-B-32", None, "openai"),
        ("RN50", None, "openai"),
        ("ViT-B-32", "laion2b_s34b_b79k", "laion2b_s34b_b79k"),
        ("ViT-B-32", "Laion2B-s34b-b79k", "laion2b_s34b_b79k"),
        ("ViT-B-32", "random", "random"),
        ("ViT-B-32", "Weights/My-CLIP", "Weights/My-CLIP"),
        ("ViT-B-32", "My-CLIP.pt", "My-CLIP.pt"),
        ("local-dir:models/tiny", None, None),
        ("hf-hub:owner/name", None, None),
        ("local-dir:models/tiny", "random", "random"),
        ("hf-hub:owner/name", "random", "random"),
        ("timm:vit_tiny.tag", None, None),
        ("timm:vit_tiny.tag", "random", "random"),
        ("timm:local-dir:models/tiny", None, None),
        ("timm:hf-hub:owner/name", "random", "random"),
    ],
)
def test_weights_default_to_openai_s_or_to_those_of_the_place(
    model: str, pretrained: str | None, expected: str | None
) -> None:
    assert EncoderName.of(model, pretrained, "bf16") == EncoderName(model, expected, "bf16")


@pytest.mark.parametrize(
    "model",
    [
        *("local-dir:models/tiny", "hf-hub:owner/name", "hf:owner/name"),
        *("timm:local-dir:models/tiny", "timm:hf-hub:owner/name"),
    ],
)
def test_weights_named_for_a_place_that_brings_its_own_are_refused(model: str) -> None:
    with pytest.raises(FedclipError) as error:
        EncoderName.of(model, "openai", "fp32")
    assert str(error.value) == (
        f"--pretrained openai: {model} has its own weights; leave out --pretrained"
    )


@pytest.mark.parametrize(
    ("model", "pretrained"), [("local-dir:tiny\udcff", None), ("ViT-B-32", "tiny\udcff.pt")]
)
def test_a_name_that_is_not_utf_8_is_refused(model: str, pretrained: str | None) -> None:
    with pytest.raises(FedclipError, match=r"tiny\\udcff.*: this name is not UTF-8"):
        EncoderName.of(model, pretrained)


@pytest.mark.parametrize(
    ("precision", "hint"),
    [
        ("", "choose fp32, fp16 or bf16"),
        ("FP32", "did you mean fp32?"),
        ("float32", "choose fp32, fp16 or bf16"),
        ("fp8", "choose fp32, fp16 or bf16"),
        ("amp", "choose fp32, fp16 or bf16"),
        ("pure_fp16", "choose fp32, fp16 or bf16"),
    ],
)
def test_a_precision_that_is_none_of_the_three_is_refused(precision: str, hint: str) -> None:
    with pytest.raises(FedclipError) as error:
        EncoderName.of("ViT-B-32", None, precision)
    assert str(error.value) == f"--precision {precision}: unknown precision; {hint}"


@pytest.mark.parametrize(
    ("model", "pretrained", "expected"),
    [
        ("ViT-B-32", "openai", "ViT-B-32-openai"),
        ("ViT-B-32", "laion2b_s34b_b79k", "ViT-B-32-laion2b_s34b_b79k"),
        ("hf-hub:owner/name", None, "owner-name-own"),
        ("hf-hub:owner/name", "random", "owner-name-random"),
        ("local-dir:/home/me/models/tiny clip", None, "tiny-clip-own"),
        ("local-dir:/home/me/models/tiny/", None, "tiny-own"),
        ("local-dir:/home/me/models/../tiny", None, "tiny-own"),
        ("local-dir:/", None, "own"),
        ("timm:local-dir:/home/me/models/tiny/", None, "tiny-own"),
        ("timm:hf-hub:owner/name", None, "owner-name-own"),
        ("timm:vit_tiny.tag", None, "vit_tiny.tag-own"),
        ("ViT-B-32", "../../etc/passwd.pt", "ViT-B-32-..-..-etc-passwd.pt"),
        ("../..", "openai", "openai"),
    ],
)
def test_a_variant_is_always_the_name_of_one_folder(
    model: str, pretrained: str | None, expected: str
) -> None:
    variant = EncoderName(model, pretrained).variant
    assert variant == expected
    assert check_name(f"{variant}-0123abcd", "variant").count("/") == 0


def test_a_checkpoint_file_is_shown_without_its_folder(tmp_path: Path) -> None:
    checkpoint = tmp_path / "secret-project" / "my weights.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    name = EncoderName.of("ViT-B-32", str(checkpoint), "fp32")
    assert name.shown == ("ViT-B-32", "my weights.pt")
    assert name.variant == "ViT-B-32-my-weights.pt"


def test_a_local_folder_is_shown_by_its_own_name_from_wherever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "secret-project" / "tiny"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for place in (f"{folder}", f"{folder}/", ".", "../tiny"):
        for family in ("", "timm:"):
            name = EncoderName.of(f"{family}local-dir:{place}", None, "fp32")
            assert name.shown == (f"{family}local-dir:tiny", "own")
