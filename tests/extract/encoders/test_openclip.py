"""Frozen encoders: open_clip's own features, what identifies them, and what is refused."""

import hashlib
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from fedclip.cache import FeatureCache, FedclipError, image_key, read_cache
from fedclip.cache.reader import group_flat_facts
from fedclip.extract.encoders.openclip import OpenClipEncoder, load_encoder
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Request

Register = Callable[..., str]
MakePlace = Callable[..., str]

TEMPLATES = ("a picture of a {}", "a sketch of a {}.")
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


def noise(mode: str = "RGB", size: tuple[int, int] = (40, 48), seed: int = 0) -> Image.Image:
    random = np.random.default_rng([seed, *size])
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8))
    return (image.convert("RGB") if mode == "LAB" else image).convert(mode)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def load(model: str | Path, pretrained: object = None, precision: str = "fp32") -> OpenClipEncoder:
    asked = f"local-dir:{model}" if isinstance(model, Path) else model
    weights = None if pretrained is None else str(pretrained)
    return load_encoder(EncoderName.of(asked, weights, precision), torch.device("cpu"))


def refusal(model: str | Path, pretrained: object = None) -> str:
    with pytest.raises(FedclipError) as error:
        load(model, pretrained)
    assert "\n" not in str(error.value)
    return str(error.value)


def pixels(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def register(tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Make the tiny CLIP's architecture one of open_clip's own, with tags of weights."""
    factory, pretrained = open_clip.factory, open_clip.pretrained
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))

    def add(name: str = "Toy-8", vision: dict[str, Any] | None = None, **tags: Any) -> str:
        config = json.loads((tiny_clip / CONFIG).read_text())["model_cfg"]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**config, "vision_cfg": vision or config["vision_cfg"]}))
        open_clip.add_model_config(path)
        monkeypatch.setitem(pretrained._PRETRAINED, name, tags)
        return name

    return add


@pytest.fixture
def make_place(tmp_path: Path, tiny_clip: Path) -> MakePlace:
    """Give a function that copies the tiny CLIP's folder with another config."""

    def make(name: str = "other", weights: bool = True, **changes: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((tiny_clip / CONFIG).read_text())
        config["model_cfg"].update(changes)
        (folder / CONFIG).write_text(json.dumps(config))
        if weights:
            shutil.copy(tiny_clip / WEIGHTS, folder)
        return f"local-dir:{folder}"

    return make


MODES = {
    "rgb.png": "RGB",
    "rgb.jpg": "RGB",
    "rgb.webp": "RGB",
    "rgb.bmp": "RGB",
    "rgb.ppm": "RGB",
    "rgba.png": "RGBA",
    "grey.png": "L",
    "grey_alpha.png": "LA",
    "grey.jpeg": "L",
    "palette.png": "P",
    "bilevel.png": "1",
    "cmyk.jpg": "CMYK",
    "lab.tiff": "LAB",
}
SIZES = ((1, 1), (500, 7), (7, 500), (32, 32), (33, 31))
ZOO = (
    *MODES,
    *(f"{width}x{height}.png" for width, height in SIZES),
    "sixteen_bits.png",
    "float.tif",
    "animated.gif",
    "rotated_by_exif.jpg",
)


def save_zoo(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed, (name, mode) in enumerate(MODES.items()):
        noise(mode, seed=seed).save(folder / name)
    for width, height in SIZES:
        noise(size=(width, height)).save(folder / f"{width}x{height}.png")
    grey = np.asarray(noise("L", seed=20))
    Image.fromarray(grey.astype(np.uint16) * 3).save(folder / "sixteen_bits.png")
    Image.fromarray(255 - grey.astype(np.float32)).save(folder / "float.tif")
    frames = [noise("P", seed=seed) for seed in (30, 31, 32)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(size=(60, 30)).save(folder / "rotated_by_exif.jpg", exif=exif)


@dataclass(frozen=True)
class Zoo:
    """Odd images, their cache, and open_clip's own model and transform."""

    cache: FeatureCache
    root: Path
    model: Any
    preprocess: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def zoo(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root = tmp_path_factory.mktemp("zoo") / "zoo"
    save_zoo(root / "odd" / "big_dog")
    (root / "odd" / "cat").mkdir()
    noise(size=(50, 50)).save(root / "odd" / "cat" / "1.png")
    request = Request(
        dataset=str(root),
        encoder=EncoderName.of(f"local-dir:{tiny_clip}", None, "fp32"),
        templates=TEMPLATES,
        data_dir=root,
        cache_dir=root.parent / "caches",
        batch_size=5,
        workers=0,
        device="cpu",
    )
    extraction = extract(request)
    place = f"local-dir:{tiny_clip}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    return Zoo(
        cache=read_cache(extraction.folder.file("odd")),
        root=root,
        model=model.eval(),
        preprocess=preprocess,
        tokenizer=open_clip.get_tokenizer(place),
    )


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", ZOO)
def test_a_cached_vector_is_the_one_that_open_clip_itself_makes_of_the_image(
    zoo: Zoo, name: str
) -> None:
    identifier = f"odd/big_dog/{name}"
    image = zoo.preprocess(Image.open(zoo.root / identifier)).unsqueeze(0)
    with torch.no_grad():
        expected = zoo.model.encode_image(image, normalize=False)[0].numpy()
    cached = zoo.cache.image_features[zoo.cache.ids.index(identifier)]
    np.testing.assert_allclose(cached, expected, rtol=0, atol=1e-4)


def test_every_odd_image_is_in_the_cache_and_each_has_its_own_vector(zoo: Zoo) -> None:
    assert zoo.cache.ids == tuple(
        sorted([*(f"odd/big_dog/{name}" for name in ZOO), "odd/cat/1.png"])
    )
    distances = np.abs(zoo.cache.image_features[:, None] - zoo.cache.image_features[None]).max(-1)
    assert np.sort(distances, axis=1)[:, 1].min() > 1e-3


def test_cached_texts_and_logit_scale_are_those_that_open_clip_itself_makes(zoo: Zoo) -> None:
    assert zoo.cache.class_names == ("big_dog", "cat")
    assert zoo.cache.templates == TEMPLATES
    prompts = [template.format(name) for name in ("big dog", "cat") for template in TEMPLATES]
    with torch.no_grad():
        expected = torch.cat(
            [zoo.model.encode_text(zoo.tokenizer([prompt]), normalize=False) for prompt in prompts]
        )
        scale = float(zoo.model.logit_scale.exp())
    np.testing.assert_allclose(
        zoo.cache.text_features, expected.reshape(2, 2, 16).numpy(), rtol=0, atol=1e-4
    )
    assert zoo.cache.logit_scale == scale
    assert not zoo.cache.normalized


def test_the_facts_are_those_of_the_model(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)
    config = json.loads((tiny_clip / CONFIG).read_text())
    weights = load_file(tiny_clip / WEIGHTS)
    assert encoder.facts == {
        "library": "open_clip",
        "model": "local-dir:tinyclip",
        "pretrained": "own",
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "weights_sha256": sha256(tiny_clip / WEIGHTS),
        "random_weights": False,
        "architecture": config["model_cfg"],
        "image_size": [32, 32],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.3, 0.3, 0.25],
        "resize": "shortest",
        "interpolation": "bicubic",
        "mode": "RGB",
        "fill_color": 0,
        "decoder": "pillow",
        "resizer": "pillow",
        "precision": "fp32",
        "tokenizer": encoder.facts["tokenizer"],
    }
    assert len(encoder.facts["tokenizer"]) == 64
    assert encoder.sources == (tiny_clip, tiny_clip / CONFIG, tiny_clip / WEIGHTS)
    assert encoder.blank.shape == (3, 32, 32)
    assert encoder.logit_scale == float(weights["logit_scale"].exp())
    assert json.loads(json.dumps(encoder.facts.groups)) == encoder.facts.groups
    assert {group: sorted(facts) for group, facts in encoder.facts.groups.items()} == {
        "shared": ["architecture", "library", "precision", "random_weights", "weights_sha256"],
        "image": [
            *("decoder", "fill_color", "image_size", "interpolation", "mean", "mode"),
            *("resize", "resizer", "std"),
        ],
        "text": ["tokenizer"],
        "about": ["model", "parameters", "pretrained"],
    }
    assert encoder.facts.groups == group_flat_facts(dict(encoder.facts)).groups


def test_an_encoder_is_frozen(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_texts_are_encoded_in_full_whatever_the_batch_size(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)
    prompts = [f"a picture of {number} dogs" for number in range(5)]
    expected = encoder.encode_texts(prompts, batch_size=1)
    assert expected.shape == (5, 16)
    for batch_size in (2, 5, 64):
        features = encoder.encode_texts(prompts, batch_size)
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)


def test_loading_leaves_torch_s_random_numbers_alone(tiny_clip: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        before = torch.get_rng_state()
        load(tiny_clip)
        load(tiny_clip, "random")
        assert torch.equal(torch.get_rng_state(), before)


def test_encoding_leaves_torch_s_precision_as_it_was(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        encoder.launch(pixels()).numpy()
        after = torch.get_float32_matmul_precision()
    finally:
        torch.set_float32_matmul_precision(before)
    assert after == "medium"


@pytest.mark.parametrize("enabled", [True, False])
def test_encoding_leaves_cudnn_on_or_off(tiny_clip: Path, enabled: bool) -> None:
    encoder = load(tiny_clip)
    seen: list[bool] = []
    assert isinstance(encoder.model.visual, nn.Module)
    encoder.model.visual.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cudnn.enabled)
    )
    with torch.backends.cudnn.flags(enabled=enabled):
        encoder.launch(pixels()).numpy()
    assert seen == [enabled]


class Copied:
    """Features that note how they were taken home."""

    def __init__(self) -> None:
        self.copies: list[dict[str, object]] = []

    def float(self) -> "Copied":
        return self

    def to(self, _device: str, **options: object) -> torch.Tensor:
        self.copies.append(options)
        return torch.zeros(3, 16)


def test_where_no_event_tells_of_its_end_a_copy_is_waited_for(tiny_clip: Path) -> None:
    encoder, features = load(tiny_clip), Copied()
    encoder.model.encode_image = lambda *_, **__: features  # type: ignore[assignment]
    assert encoder.launch(pixels()).arrived is None
    assert features.copies == [{"non_blocking": False}]


def test_an_architecture_with_quick_gelu_is_another_encoder(
    tiny_clip: Path, make_place: MakePlace
) -> None:
    plain, quick = load(tiny_clip), load(make_place(quick_gelu=True))
    assert quick.facts["weights_sha256"] == plain.facts["weights_sha256"]
    assert image_key(quick.facts) != image_key(plain.facts)
    difference = np.abs(quick.launch(pixels()).numpy() - plain.launch(pixels()).numpy())
    assert difference.max() > 1e-3


def activations(encoder: OpenClipEncoder) -> set[str]:
    names = {type(module).__name__ for module in encoder.model.modules()}
    return names & {"GELU", "QuickGELU"}


def test_a_tag_trained_with_quick_gelu_is_encoded_with_it(
    tiny_clip: Path, register: Register
) -> None:
    tag = {
        "file": str(tiny_clip / WEIGHTS),
        "quick_gelu": True,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    model = register(toy=tag, plain={**tag, "quick_gelu": False})
    quick, plain = load(model, "toy"), load(model, "plain")
    assert activations(quick) == {"QuickGELU"}
    assert activations(plain) == {"GELU"}
    assert quick.facts["architecture"]["quick_gelu"] is True
    assert "quick_gelu" not in plain.facts["architecture"]
    assert quick.facts["weights_sha256"] == plain.facts["weights_sha256"]
    assert image_key(quick.facts) != image_key(plain.facts)
    assert quick.facts["mean"] == [0.1, 0.2, 0.3]
    assert quick.facts["std"] == [0.4, 0.5, 0.6]
    assert quick.facts["interpolation"] == "bilinear"
    assert quick.facts["resize"] == "squash"
    own, _, preprocess = open_clip.create_model_and_transforms(
        model, pretrained="toy", force_quick_gelu=True
    )
    image = preprocess(noise()).unsqueeze(0)
    assert torch.equal(quick.decode(png(noise())).unsqueeze(0), image)
    with torch.no_grad():
        expected = own.eval().encode_image(image, normalize=False).numpy()
    np.testing.assert_allclose(quick.launch(image).numpy(), expected, rtol=0, atol=1e-4)
    assert np.abs(plain.launch(image).numpy() - expected).max() > 1e-3


def test_a_tag_trained_with_quick_gelu_is_refused_where_the_architecture_cannot_use_it(
    tmp_path: Path, register: Register
) -> None:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "image_size": 32}
    model = register("Toy-timm", vision)
    save_file(open_clip.create_model(model).state_dict(), tmp_path / "timm.safetensors")
    register("Toy-timm", vision, toy={"file": str(tmp_path / "timm.safetensors"), "quick_gelu": 1})
    assert refusal(model, "toy").startswith(
        "Toy-timm toy: these weights were trained with QuickGELU"
    )


def checkpoint(tiny_clip: Path, folder: Path, kind: str) -> Path:
    weights = load_file(tiny_clip / WEIGHTS)
    path = folder / f"weights{'.safetensors' if kind == 'safetensors' else '.pt'}"
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "state_dict":
        torch.save(weights, path)
    else:
        training = {f"module.{name}": tensor for name, tensor in weights.items()}
        torch.save({"epoch": 3, "state_dict": training}, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "training checkpoint"])
def test_a_checkpoint_file_is_loaded_and_identified_by_its_bytes(
    tmp_path: Path, tiny_clip: Path, register: Register, kind: str
) -> None:
    path = checkpoint(tiny_clip, tmp_path, kind)
    encoder = load(register(), path)
    assert encoder.facts["weights_sha256"] == sha256(path)
    assert encoder.facts["pretrained"] == path.name
    assert encoder.sources == (path,)
    assert str(tmp_path) not in json.dumps(encoder.facts.groups)
    np.testing.assert_array_equal(
        encoder.launch(pixels()).numpy(), load(tiny_clip).launch(pixels()).numpy()
    )


def test_one_file_has_one_key_whether_called_by_its_tag_or_by_its_path(
    tiny_clip: Path, register: Register
) -> None:
    model = register(toy={"file": str(tiny_clip / WEIGHTS)})
    by_tag, by_path = load(model, "toy"), load(model, tiny_clip / WEIGHTS)
    assert by_tag.facts["pretrained"] == "toy"
    assert by_path.facts["pretrained"] == WEIGHTS
    assert image_key(by_tag.facts) == image_key(by_path.facts)


def test_the_weights_hashed_are_the_weights_loaded_where_a_file_is_named_like_a_tag(
    tmp_path: Path, tiny_clip: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(tiny_clip / WEIGHTS)
    torch.save({name: tensor * 1.1 for name, tensor in weights.items()}, tmp_path / "toy")
    model = register(toy={"file": str(tiny_clip / WEIGHTS)})
    tagged = load(model, "toy")
    monkeypatch.chdir(tmp_path)
    shadowed = load(model, "toy")
    same_vectors = np.array_equal(
        shadowed.launch(pixels()).numpy(), tagged.launch(pixels()).numpy()
    )
    same_hash = shadowed.facts["weights_sha256"] == tagged.facts["weights_sha256"]
    assert same_vectors == same_hash


def test_a_checkpoint_named_like_a_tag_is_loaded_where_it_is_called_by_its_path(
    tmp_path: Path, tiny_clip: Path, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(load_file(tiny_clip / WEIGHTS), tmp_path / "toy")
    model = register(toy={"file": "nowhere"})
    monkeypatch.chdir(tmp_path)
    encoder = load(model, "./toy")
    assert encoder.facts["weights_sha256"] == sha256(tmp_path / "toy")
    assert encoder.name.shown == ("Toy-8", "toy")


def test_the_file_hashed_is_the_one_loaded_of_several_in_a_folder(
    tmp_path: Path, tiny_clip: Path, make_place: MakePlace
) -> None:
    weights = load_file(tiny_clip / WEIGHTS)
    place = Path(make_place().removeprefix("local-dir:"))
    torch.save({name: tensor * 1.1 for name, tensor in weights.items()}, place / "model.pth")
    torch.save({name: tensor * 1.2 for name, tensor in weights.items()}, place / "a.bin")
    encoder = load(place)
    assert encoder.facts["weights_sha256"] == sha256(tiny_clip / WEIGHTS)
    np.testing.assert_array_equal(
        encoder.launch(pixels()).numpy(), load(tiny_clip).launch(pixels()).numpy()
    )


def test_random_weights_are_the_same_each_time_and_said_to_be_random(tiny_clip: Path) -> None:
    first = load(tiny_clip, "random")
    torch.randn(10)
    load(tiny_clip)
    second = load(tiny_clip, "random")
    assert first.facts == second.facts
    assert first.facts["random_weights"] is True
    assert first.facts["pretrained"] == "random"
    assert first.facts["weights_sha256"] != load(tiny_clip).facts["weights_sha256"]
    assert first.sources == (tiny_clip, tiny_clip / CONFIG, tiny_clip / WEIGHTS)
    np.testing.assert_array_equal(first.launch(pixels()).numpy(), second.launch(pixels()).numpy())


def test_random_weights_of_an_architecture_need_no_file(register: Register) -> None:
    model = register()
    encoder = load(model, "random")
    assert encoder.sources == ()
    assert encoder.name.variant == "Toy-8-random"
    assert encoder.facts["random_weights"] is True
    torch.manual_seed(0)
    expected = open_clip.create_model(model).eval().encode_image(pixels())
    np.testing.assert_allclose(
        encoder.launch(pixels()).numpy(), expected.detach().numpy(), rtol=0, atol=1e-5
    )


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))]
)
@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_pickle_with_code_in_it_is_refused_and_the_code_not_run(
    tmp_path: Path,
    register: Register,
    make_place: MakePlace,
    save: Callable[[Any, Path], None],
    where: str,
) -> None:
    intruded = tmp_path / "intruded"
    place = make_place(weights=False)
    path = Path(place.removeprefix("local-dir:")) / "open_clip_pytorch_model.bin"
    save({"state_dict": Intruder(intruded)}, path)
    message = refusal(place) if where == "folder" else refusal(register(), path)
    assert message.startswith(f"{path}: cannot be loaded as weights of ")
    assert "pass safetensors or a plain state_dict" in message
    assert not intruded.exists()
    pickle.loads(pickle.dumps(Intruder(intruded)))
    assert intruded.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path, register: Register) -> None:
    path = tmp_path / "archive.pt"
    torch.jit.script(torch.nn.Linear(1, 1)).save(path)  # type: ignore[no-untyped-call]
    message = refusal(register(), path)
    assert message.startswith(f"{path}: cannot be loaded as weights of Toy-8")
    assert "pass safetensors or a plain state_dict" in message


def tensors(**values: torch.Tensor) -> Callable[[Path], None]:
    return lambda path: (
        save_file(values, path) if path.suffix == ".safetensors" else torch.save(values, path)
    )


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("no_bytes.safetensors", Path.touch),
        ("no_bytes.pt", Path.touch),
        ("text.safetensors", lambda path: path.write_text("not weights")),
        ("text.pt", lambda path: path.write_text("not weights")),
        ("no_tensors.safetensors", tensors()),
        ("no_tensors.pt", tensors()),
        ("list.pt", lambda path: torch.save([torch.zeros(1)], path)),
        ("number.pt", lambda path: torch.save(3, path)),
        ("others.safetensors", tensors(weight=torch.zeros(2, 2))),
        ("others.pt", tensors(weight=torch.zeros(2, 2))),
        ("others.npz", lambda path: np.savez(path, weight=np.zeros((2, 2)))),
    ],
)
def test_a_file_that_holds_no_weights_of_the_model_is_refused(
    tmp_path: Path, register: Register, name: str, save: Callable[[Path], None]
) -> None:
    save(tmp_path / name)
    message = refusal(register(), tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: cannot be loaded as weights of Toy-8")


def test_a_corrupt_safetensors_is_refused(
    tmp_path: Path, tiny_clip: Path, make_place: MakePlace
) -> None:
    place = make_place()
    path = Path(place.removeprefix("local-dir:")) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(place).startswith(f"{path}: cannot be loaded as weights of {place}")


def test_weights_of_another_architecture_are_refused(make_place: MakePlace) -> None:
    place = make_place(embed_dim=8)
    path = Path(place.removeprefix("local-dir:")) / WEIGHTS
    message = refusal(place)
    assert message.startswith(f"{path}: cannot be loaded as weights of {place}")
    assert "size mismatch" in message


def test_an_unknown_model_is_refused_with_similar_names(register: Register) -> None:
    assert refusal("ViT-B-23").startswith("unknown model 'ViT-B-23'; did you mean ViT-B-")
    assert "Toy-8" in refusal(register().replace("8", "9"))
    assert "open_clip.list_models()" in refusal("qqqqqqqq")


def test_an_unknown_tag_is_refused_with_the_tags_there_are(
    tiny_clip: Path, register: Register
) -> None:
    model = register(one={"file": str(tiny_clip / WEIGHTS)}, two={"file": "nowhere"})
    assert refusal(model, "three") == (
        "unknown weights 'three' of Toy-8, and no such file; choose one, two or random "
        "(write a file without a suffix as ./NAME)"
    )


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert refusal(folder).startswith(f"local-dir:{folder}: has no {CONFIG}; ")


@pytest.mark.parametrize(
    "files", [(), ("a.bin", "b.pth"), ("readme.md", "weights.npz")], ids=["none", "two", "others"]
)
def test_a_folder_without_one_file_of_weights_is_refused(
    make_place: MakePlace, files: tuple[str, ...]
) -> None:
    place = make_place(weights=False)
    folder = Path(place.removeprefix("local-dir:"))
    for name in files:
        (folder / name).touch()
    count = 2 if files == ("a.bin", "b.pth") else 0
    assert refusal(place).startswith(f"{folder}: contains {count} weight files")


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"model_cfg": {}}',
        '{"model_cfg": {"embed_dim": 16, "vision_cfg": {}}}',
        '{"model_cfg": {"embed_dim": "wide", "vision_cfg": {}, "text_cfg": {}}}',
    ],
)
def test_a_config_that_is_none_is_refused(make_place: MakePlace, config: str) -> None:
    place = make_place()
    folder = Path(place.removeprefix("local-dir:"))
    (folder / CONFIG).write_text(config)
    assert str(folder) in refusal(place)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("text_cfg", {"heads": 3}),
        ("text_cfg", {"no_such_option": 1}),
        ("vision_cfg", {"patch_size": 0}),
    ],
)
def test_a_config_that_no_model_can_be_built_of_is_refused(
    tiny_clip: Path, make_place: MakePlace, part: str, change: dict[str, int]
) -> None:
    config = json.loads((tiny_clip / CONFIG).read_text())["model_cfg"]
    place = make_place(**{part: {**config[part], **change}})
    assert place.removeprefix("local-dir:") in refusal(place)


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "foo"}, {"resize_mode": "foo"}, {"mean": 5}, {"mode": "L"}],
    ids=str,
)
def test_a_preprocessing_that_open_clip_does_not_know_is_refused(
    tiny_clip: Path, make_place: MakePlace, change: dict[str, Any]
) -> None:
    place = make_place()
    path = Path(place.removeprefix("local-dir:")) / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "preprocess_cfg": change}))
    message = refusal(place)
    assert message.startswith(f"{place}: its preprocess_cfg ")
    assert repr(next(iter(change.values()))) in message


class _Tokenizers(ModuleType):
    """Stands in for `transformers`, and notes how tokenizers are asked for."""

    def __init__(self) -> None:
        super().__init__("transformers")
        self.asked: list[dict[str, object]] = []
        self.AutoTokenizer = self

    def from_pretrained(self, _place: str, **options: object) -> Callable[..., Any]:
        self.asked.append(options)
        return lambda texts, **_: SimpleNamespace(input_ids=torch.zeros(len(texts), 16).long())


def test_a_config_cannot_have_its_tokenizer_s_code_run(
    tiny_clip: Path, make_place: MakePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = _Tokenizers()
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    text = json.loads((tiny_clip / CONFIG).read_text())["model_cfg"]["text_cfg"]
    asking = {"hf_tokenizer_name": "own", "tokenizer_kwargs": {"trust_remote_code": True}}
    load(make_place(text_cfg={**text, **asking}))
    (options,) = transformers.asked
    assert options["trust_remote_code"] is False


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Stand in for the hub, which tests never call: repositories by name, and none at first."""
    repositories: dict[str, Path] = {}

    def download(repo_id: str, filename: str, **_: object) -> str:
        path = repositories.get(repo_id, Path("/nowhere")) / filename
        if not path.is_file():
            raise OSError("offline\nand more lines")
        return str(path)

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", download)
    return repositories


def test_a_model_of_the_hub_is_the_model_that_its_files_make(
    tiny_clip: Path, hub: dict[str, Path]
) -> None:
    hub["owner/tiny"] = tiny_clip
    encoder, local = load("hf-hub:owner/tiny"), load(tiny_clip)
    assert encoder.name.shown == ("hf-hub:owner/tiny", "own")
    assert encoder.sources == (tiny_clip / WEIGHTS,)
    assert image_key(encoder.facts) == image_key(local.facts)
    np.testing.assert_array_equal(encoder.launch(pixels()).numpy(), local.launch(pixels()).numpy())


@pytest.mark.usefixtures("hub")
def test_a_model_of_the_hub_that_cannot_be_had_is_not_looked_for_in_a_folder() -> None:
    message = refusal("hf-hub:owner/tiny")
    assert message.startswith("hf-hub:owner/tiny: ")
    assert "offline" in message
    assert "folder" not in message.split("; ")[0]


@pytest.mark.usefixtures("hub")
def test_weights_that_cannot_be_downloaded_are_refused_with_other_ways(register: Register) -> None:
    message = refusal(register(toy={"hf_hub": "owner/toy/"}), "toy")
    assert message.startswith("Toy-8 toy: the weights cannot be downloaded (")
    assert "offline" in message
    assert "local checkpoint file with --pretrained" in message


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_lower_precision_is_another_encoder_with_close_float32_features(
    tiny_clip: Path, precision: str
) -> None:
    full, half = load(tiny_clip), load(tiny_clip, precision=precision)
    assert half.facts["precision"] == precision
    assert half.facts["weights_sha256"] == full.facts["weights_sha256"]
    assert image_key(half.facts) != image_key(full.facts)
    prompts = ["a picture of a dog", "a picture of a cat"]
    pairs: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = [
        (half.launch(pixels()).numpy(), full.launch(pixels()).numpy()),
        (half.encode_texts(prompts), full.encode_texts(prompts)),
    ]
    for features, expected in pairs:
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
        assert 0 < error < 0.05


@pytest.mark.long
def test_a_compiled_encoder_is_another_one_within_rounding(tiny_clip: Path) -> None:
    plain = load(tiny_clip)
    name = EncoderName.of(f"local-dir:{tiny_clip}", None, compiled=True)
    compiled = load_encoder(name, torch.device("cpu"))
    np.testing.assert_allclose(
        compiled.launch(pixels()).numpy(), plain.launch(pixels()).numpy(), rtol=0, atol=1e-5
    )
    assert compiled.facts == {**plain.facts, "compiled": True}


def test_where_compiling_fails_the_line_says_so(
    tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_without_compiler(*_arguments: Any, **_options: Any) -> Callable[..., Any]:
        def fail(*_arguments: Any, **_options: Any) -> None:
            raise RuntimeError("no C++ compiler found\nlong story")

        return fail

    monkeypatch.setattr(torch, "compile", compile_without_compiler)
    name = EncoderName.of(f"local-dir:{tiny_clip}", None, compiled=True)
    compiled = load_encoder(name, torch.device("cpu"))
    with pytest.raises(FedclipError, match=r"--compile: does not work here \(no C\+\+ compiler"):
        compiled.launch(pixels()).numpy()
