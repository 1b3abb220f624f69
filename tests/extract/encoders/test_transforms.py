"""Pixels: open_clip's own transform to the bit, or a faster one within its stated distance."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, UnidentifiedImageError

from fedclip.cache import FedclipError
from fedclip.extract.encoders.openclip import load_encoder, open_clip_decoder
from fedclip.extract.encoders.spec import LOCAL_DIR, EncoderName
from fedclip.extract.encoders.transforms import Decoder
from fedclip.extract.finetune.backbones import alexnet_backbone, clip_backbone

PREPROCESS = PreprocessCfg(size=224)
STD = torch.tensor(PREPROCESS.std)[:, None, None]


def smooth(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng([*size])
    coarse = random.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str = "jpeg", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(content: bytes, preprocess: PreprocessCfg = PREPROCESS) -> float:
    """Largest difference of the two resizers' pixels, in steps of 1/255."""
    pixels = [open_clip_decoder(preprocess, name)(content) for name in ("torchvision", "pillow")]
    assert pixels[0].shape == pixels[1].shape
    assert pixels[0].dtype == torch.float32
    return float(((pixels[0] - pixels[1]) * STD * 255).abs().max())


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "bmp", "webp", "tiff"])
def test_pillow_s_pixels_are_open_clip_s(kind: str) -> None:
    content = saved(smooth((300, 260)), kind)
    expected = image_transform_v2(PREPROCESS, is_train=False)(Image.open(BytesIO(content)))
    assert torch.equal(open_clip_decoder(PREPROCESS, "pillow")(content), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (227, 227), (80, 60)])
def test_torchvision_s_pixels_are_within_two_steps_of_pillow_s(
    size: tuple[int, int], interpolation: str
) -> None:
    preprocess = PreprocessCfg(size=224, interpolation=interpolation)
    assert distance(saved(smooth(size), quality=90), preprocess) < 2.01


def test_torchvision_s_pixels_are_within_two_steps_of_pillow_s_on_real_images(
    shared_data: Path,
) -> None:
    paths = sorted((shared_data / "pacs").rglob("*.*"))[::20]
    assert len(paths) > 50
    assert max(distance(path.read_bytes()) for path in paths) < 2.01


@pytest.mark.parametrize(
    ("kind", "mode"), [("jpeg", "L"), ("jpeg", "CMYK"), ("png", "RGBA"), ("png", "P")]
)
def test_torchvision_leaves_what_is_not_rgb_to_the_reference(kind: str, mode: str) -> None:
    assert distance(saved(smooth((300, 260), mode), kind)) == 0


def test_neither_turns_images_as_their_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert distance(saved(smooth((300, 260)), exif=exif)) < 2.01


@pytest.mark.parametrize("resizer", ["pillow", "torchvision"])
def test_a_truncated_jpeg_is_refused(resizer: str) -> None:
    content = saved(smooth((300, 260)))[:-2000]
    with pytest.raises(OSError, match="image file is truncated"):
        open_clip_decoder(PREPROCESS, resizer)(content)


@pytest.mark.parametrize("resizer", ["pillow", "torchvision"])
def test_an_image_above_pillow_s_limit_is_refused(
    monkeypatch: pytest.MonkeyPatch, resizer: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    with pytest.raises(Image.DecompressionBombError):
        open_clip_decoder(PREPROCESS, resizer)(saved(smooth((300, 260))))


@pytest.mark.parametrize("resizer", ["pillow", "torchvision"])
def test_an_image_so_thin_that_it_would_grow_beyond_the_limit_is_refused(resizer: str) -> None:
    with pytest.raises(Image.DecompressionBombError, match="1x20000 pixels would be resized to"):
        open_clip_decoder(PREPROCESS, resizer)(saved(Image.new("RGB", (1, 20_000)), "png"))


def test_a_file_that_would_run_another_program_is_no_image() -> None:
    with pytest.raises(UnidentifiedImageError):
        open_clip_decoder(PREPROCESS, "pillow")(saved(smooth((40, 48)), "eps"))


@pytest.mark.parametrize(
    ("size", "mode"), [(224, "squash"), (224, "longest"), ((224, 336), "shortest")]
)
def test_torchvision_is_refused_where_it_cannot_resize_alike(
    size: int | tuple[int, int], mode: str
) -> None:
    with pytest.raises(FedclipError, match="--resizer torchvision: cannot resize"):
        open_clip_decoder(PreprocessCfg(size=size, resize_mode=mode), "torchvision")


def clip_decoder(folder: Path, resizer: str) -> Decoder:
    name = EncoderName.of(f"{LOCAL_DIR}{folder}", None, resizer=resizer)
    return clip_backbone(load_encoder(name, torch.device("cpu"))).decode


@pytest.mark.parametrize(
    "make",
    [
        lambda _: open_clip_decoder(PREPROCESS, "pillow"),
        lambda _: open_clip_decoder(PREPROCESS, "torchvision"),
        lambda _: open_clip_decoder(PreprocessCfg(size=224, resize_mode="longest"), "pillow"),
        lambda _: open_clip_decoder(PreprocessCfg(size=224, resize_mode="squash"), "pillow"),
        lambda folder: clip_decoder(folder, "pillow"),
        lambda folder: clip_decoder(folder, "torchvision"),
        lambda _: alexnet_backbone("random", classes=2).decode,
    ],
    ids=["pillow", "torchvision", "longest", "squash", "lent", "lent torchvision", "alexnet"],
)
def test_a_pickled_copy_of_a_decoder_gives_the_same_bits(
    tiny_clip: Path, make: Callable[[Path], Decoder]
) -> None:
    decode = make(tiny_clip)
    copy = pickle.loads(pickle.dumps(decode))
    for image in (smooth((300, 260)), smooth((80, 60), "L")):
        assert torch.equal(copy(saved(image)), decode(saved(image)))


FORKSERVER = """
import multiprocessing, sys
from pathlib import Path

import torch
from open_clip.transform import PreprocessCfg

from fedclip.extract.encoders.openclip import open_clip_decoder
from fedclip.extract.encoding.loader import load_batches
from fedclip.extract.datasets.base import FileSource

multiprocessing.set_start_method("forkserver")
sources = [FileSource(Path(path)) for path in sys.argv[1:]]
for resizer in ("pillow", "torchvision"):
    decode = open_clip_decoder(PreprocessCfg(size=32), resizer)
    blank = torch.zeros(3, 32, 32)
    there, here = (
        next(load_batches(sources, decode, blank, 4, workers)) for workers in (1, 0)
    )
    assert not any(there.problems), there.problems
    assert torch.equal(there.inputs, here.inputs)
"""


@pytest.mark.long  # each process loads torch anew; that decoders survive pickling is tested above
def test_worker_processes_that_are_not_forked_decode_the_same_bits(
    tmp_path: Path, hangs: int
) -> None:
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, path in enumerate(paths):
        path.write_bytes(saved(smooth((300 + index, 260)), "png"))
    command = [sys.executable, "-c", FORKSERVER, *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=hangs)
    assert result.returncode == 0, result.stderr
