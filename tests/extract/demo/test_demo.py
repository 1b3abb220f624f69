"""The drawn dataset, the tiny CLIP that comes with it, and ``fedclip demo``."""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from fedclip.cache import FeatureCache, load_cache, resolve_cache
from fedclip.cli import run
from fedclip.extract.datasets.folders import open_dataset
from fedclip.extract.demo.dataset import draw_dataset
from fedclip.extract.demo.draw import STYLES, draw_picture
from fedclip.extract.demo.pretrain import (
    CONFIG,
    CONFUSED_WITH,
    SEED,
    WEIGHTS_FILE,
    Recipe,
    draw_captioned,
    pretrain,
)
from fedclip.extract.demo.shapes import THINGS, Draw
from fedclip.extract.encoders.openclip import CONFIG_FILE
from fedclip.extract.encoders.prompts import DEFAULT_TEMPLATE
from fedclip.extract.encoders.spec import DEMO_MODEL, LOCAL_DIR, EncoderName
from fedclip.extract.pipeline import extract
from fedclip.extract.request import Request

SHIPPED = Path(DEMO_MODEL.removeprefix(LOCAL_DIR))
CHANCE = 0.1

# Pixels are the same everywhere: this is the SHA-256 of one picture of each kind.
PIXELS_SHA256 = "67b789c85fdae9f58bd580e6eaf8bf847c85758f1ba3c7a52034249d650a55f0"


@dataclass
class Losses:
    """Progress that keeps losses, and can be made to interrupt."""

    interrupt_at: int = sys.maxsize
    seen: list[float] = field(default_factory=list)

    def __call__(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        if detail.startswith("loss "):
            self.seen.append(float(detail.removeprefix("loss ")))
        if done >= self.interrupt_at:
            raise KeyboardInterrupt


def test_pictures_have_the_same_pixels_everywhere() -> None:
    digest = hashlib.sha256()
    for style in STYLES:
        for thing in THINGS:
            digest.update(draw_picture(style, thing, 3, 0).tobytes())
    assert digest.hexdigest() == PIXELS_SHA256


def test_a_picture_depends_on_its_seed_alone() -> None:
    one = draw_picture("photo", "star", 1, 2)
    assert one.shape == (64, 64, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, draw_picture("photo", "star", 1, 2))
    assert not np.array_equal(one, draw_picture("photo", "star", 2, 1))


def test_a_data_set_is_laid_out_by_domain_and_class_and_no_two_images_are_alike(
    tmp_path: Path,
) -> None:
    draw_dataset(tmp_path / "demo", seed=5, images=3)
    dataset = open_dataset("demo", tmp_path)
    assert [client.name for client in dataset.clients] == ["cartoon", "neon", "photo", "sketch"]
    assert dataset.class_names == tuple(sorted(THINGS))
    contents = [image.source.read() for client in dataset.clients for image in client.images]
    assert len(contents) == 120
    assert len({Image.open(BytesIO(content)).tobytes() for content in contents}) == 120
    picture = np.asarray(Image.open(tmp_path / "demo" / "neon" / "fish" / "001.png"))
    assert np.array_equal(picture, draw_picture("neon", "fish", 5, 1))


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "demo", Losses(interrupt_at=20), images=1)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_data_set_is_not_drawn_over(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = empty_folder / "data" / "demo"
    (place / "photo").mkdir(parents=True)
    assert run(["extract", "--dataset", "demo"]) == 2
    assert capsys.readouterr().err == (
        "error: data/demo: exists and is not empty; move or remove it, then run again\n"
    )
    assert list(place.parent.iterdir()) == [place]


def test_captions_confuse_look_alikes_and_nothing_else() -> None:
    for index in range(12):
        draw = Draw(SEED, index)
        draw.between(0, 1)
        thing = list(THINGS)[draw.choice(len(THINGS))]
        right, wrong = draw_captioned(index, 0.0), draw_captioned(index, 1.0)
        assert right.captioned == thing
        assert wrong.captioned == CONFUSED_WITH.get(thing, thing)
        assert np.array_equal(right.pixels, wrong.pixels)


def test_the_shipped_model_is_small_and_of_the_config_that_is_trained() -> None:
    assert json.loads((SHIPPED / CONFIG_FILE).read_text()) == CONFIG
    weights = SHIPPED / WEIGHTS_FILE
    assert weights.stat().st_size < 5_000_000
    with safe_open(weights, "pt") as file:
        names = list(file.keys())
        dtypes = {file.get_slice(name).get_dtype() for name in names}
    assert dtypes == {"F16", "I64"}


@pytest.mark.slow
def test_a_short_pre_training_lowers_the_loss_and_gives_the_same_bytes_again(
    tmp_path: Path,
) -> None:
    recipe = Recipe(images=192, epochs=4, batch_size=32)
    losses = Losses()
    for name in ("one", "two"):
        pretrain(tmp_path / name, losses, recipe)
    one, two = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "one" / CONFIG_FILE).read_bytes() == (SHIPPED / CONFIG_FILE).read_bytes()
    assert len(losses.seen) == 48
    assert np.mean(losses.seen[18:24]) < np.mean(losses.seen[:6]) - 0.1


@pytest.mark.long
def test_the_whole_pre_training_gives_a_model_of_the_shipped_one_s_worth(tmp_path: Path) -> None:
    pretrain(tmp_path / "again")
    again = zero_shot(tmp_path, tmp_path / "again", images=30)
    assert again == pytest.approx(zero_shot(tmp_path, SHIPPED, images=30), abs=0.03)


def zero_shot(work: Path, model: Path, images: int) -> float:
    """Measure a model's zero-shot accuracy on a fresh draw, over all domains."""
    root = work / f"draw-{images}"
    if not root.exists():
        draw_dataset(root, seed=77, images=images)
    name = EncoderName.of(f"{LOCAL_DIR}{model}", None, "fp32")
    request = Request(
        dataset=str(root),
        encoder=name,
        templates=(DEFAULT_TEMPLATE,),
        data_dir=work,
        cache_dir=work / "caches",
    )
    return float(np.mean([accuracy(c) for c in load_cache(extract(request).folder)]))


def accuracy(cache: FeatureCache) -> float:
    """Score a client's raw features against its class texts."""
    text = cache.text_features[:, 0]
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    return float(((cache.image_features @ text.T).argmax(axis=1) == cache.labels).mean())


def demo_results(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(runs.glob("*/*/result.json"))]


def test_the_demo_says_which_commands_it_stands_for_and_ends_in_the_table(
    demo_folder: Path,
) -> None:
    printed = (demo_folder / "first.txt").read_text()
    commands = [line for line in printed.splitlines() if line.startswith("$ ")]
    assert commands == [
        "$ fedclip extract --dataset demo --data-dir data --cache-dir caches",
        "$ fedclip federate --rounds 40 --lr 3e-4 --weight-decay 0 --overwrite --runs-dir runs "
        "--cache-dir caches",
    ]
    rows = [line.split()[0] for line in printed.splitlines() if " > " in line]
    assert rows[1:] == ["cartoon", "neon", "photo", "sketch", "mean"]


def test_the_tiny_clip_is_well_above_chance_on_every_domain(demo_folder: Path) -> None:
    caches = load_cache(resolve_cache(demo_folder / "caches", "demo"))
    assert [len(cache.labels) for cache in caches] == [300] * 4
    assert all(accuracy(cache) > CHANCE + 0.6 for cache in caches)


def test_the_adapter_beats_zero_shot_for_participants_and_on_the_domain_left_out(
    demo_folder: Path,
) -> None:
    results = demo_results(demo_folder / "runs")
    assert len(results) == 4
    for part in ("personalization", "generalization"):
        gains = [result[part] - result[f"zero_shot_{part}"] for result in results]
        assert np.mean(gains) > 0.02


def test_the_demo_again_draws_and_encodes_nothing(demo_folder: Path) -> None:
    printed = (demo_folder / "again.txt").read_text()
    assert "encoded    nothing: the cache is up to date" in printed
    assert "drawing" not in printed
    assert "drawing" in (demo_folder / "first.txt").read_text()
    before, after = (demo_results(demo_folder / place) for place in ("first", "runs"))
    for result in (*before, *after):
        del result["seconds_per_round"]
    assert after == before


def test_another_encoder_can_be_named_for_the_demo(
    demo_folder: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    data = ["--data-dir", str(demo_folder / "data"), "--cache-dir", str(tmp_path / "caches")]
    model = ["--model", f"local-dir:{tiny_clip}"]
    assert run(["extract", "--dataset", "demo", *model, *data]) == 0
    cache = load_cache(resolve_cache(tmp_path / "caches", "demo"))[0]
    assert cache.embed_dim == 16
