"""Pre-trains the demo's tiny CLIP on drawn pictures with captions, some of them wrong.

``python -m fedclip.extract.demo.pretrain FOLDER`` draws the pictures, trains for a few minutes
on 2 cores and writes a folder that ``local-dir:`` loads. On one machine it writes the same bytes
each time; elsewhere rounding leads to different weights of the same quality.

The captions confuse look-alikes, as captions from the web do: some of the cups are captioned
house, some of the moons heart and some of the keys arrow, in every style. The demo's adapter has
to repair this planted fault.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ...cache.common.files import replacing_folder, to_json
from ...cache.common.progress import Progress, no_progress, show_progress
from ..encoders.base import quiet
from ..encoders.openclip import CONFIG_FILE
from ..encoders.spec import LOCAL_DIR
from .draw import SIZE, draw_picture
from .shapes import THINGS, Draw

WEIGHTS_FILE = "open_clip_model.safetensors"

# No dataset is drawn from this seed, so pre-training never sees a dataset's pictures.
SEED = 1_000_003
THREADS = 2

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "timm_model_name": "test_resnet",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": SIZE,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
        },
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}

STYLE_SHARES = {"cartoon": 0.30, "neon": 0.15, "photo": 0.40, "sketch": 0.15}
CONFUSED_WITH = {"cup": "house", "key": "arrow", "moon": "heart"}

# Templates that fit any style, and one for each style.
ANY_STYLE = ("a {}", "a picture of a {}")
OWN_STYLE = {
    "cartoon": "a cartoon of a {}",
    "neon": "a neon sign of a {}",
    "photo": "a photo of a {}",
    "sketch": "a sketch of a {}",
}
CAPTIONS = [
    template.format(thing) for thing in THINGS for template in (*ANY_STYLE, *OWN_STYLE.values())
]


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of the pre-training.

    Attributes:
        images: Number of pictures to draw.
        epochs: Passes over the pictures.
        batch_size: Pictures per minibatch.
        lr: Peak learning rate of AdamW's one cycle.
        weight_decay: Weight decay of AdamW.
        caption_noise: Share of the confusable things that are captioned as their look-alikes.
    """

    images: int = 6000
    epochs: int = 20
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05
    caption_noise: float = 0.4


@dataclass(frozen=True)
class Captioned:
    """A picture, (64, 64, 3) uint8, its style and the thing that its captions name."""

    pixels: npt.NDArray[np.uint8]
    style: str
    captioned: str


def draw_captioned(index: int, caption_noise: float) -> Captioned:
    """Draw the pre-training picture of a number, which is always the same."""
    draw = Draw(SEED, index)
    place = draw.between(0, 1)
    bounds = zip(STYLE_SHARES, itertools.accumulate(STYLE_SHARES.values()), strict=True)
    style = next((style for style, bound in bounds if place < bound), "sketch")
    thing = list(THINGS)[draw.choice(len(THINGS))]
    confused = draw.chance(caption_noise)
    captioned = CONFUSED_WITH.get(thing, thing) if confused else thing
    return Captioned(draw_picture(style, thing, SEED, index), style, captioned)


def _draw_all(recipe: Recipe, progress: Progress) -> list[Captioned]:
    noise = [recipe.caption_noise] * recipe.images
    pictures = []
    with ProcessPoolExecutor(THREADS) as pool:
        for picture in pool.map(draw_captioned, range(recipe.images), noise, chunksize=50):
            pictures.append(picture)
            progress("drawing", len(pictures), recipe.images, "images")
    return pictures


def _caption_targets(pictures: Sequence[Captioned]) -> Tensor:
    """Spread each picture's target evenly over the captions that fit it: (N, captions)."""
    targets = torch.zeros(len(pictures), len(CAPTIONS))
    for row, picture in zip(targets, pictures, strict=True):
        fitting = [
            template.format(picture.captioned)
            for template in (*ANY_STYLE, OWN_STYLE[picture.style])
        ]
        for caption in fitting:
            row[CAPTIONS.index(caption)] = 1 / len(fitting)
    return targets


def _batches(recipe: Recipe) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(recipe.epochs):
        order = torch.randperm(recipe.images, generator=generator)
        yield from torch.split(order, recipe.batch_size)


def train(
    model: nn.Module, tokens: Tensor, recipe: Recipe, progress: Progress = no_progress
) -> None:
    """Train a CLIP in place; each picture is scored against all captions, several correct."""
    pictures = _draw_all(recipe, progress)
    stacked = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    mean, std = CONFIG["preprocess_cfg"]["mean"][0], CONFIG["preprocess_cfg"]["std"][0]
    pixels = stacked.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
    targets = _caption_targets(pictures)
    batches = list(_batches(recipe))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=len(batches))
    model.train()
    for step, batch in enumerate(batches, start=1):
        image = functional.normalize(model.encode_image(pixels[batch]), dim=-1)  # type: ignore[operator]
        text = functional.normalize(model.encode_text(tokens), dim=-1)  # type: ignore[operator]
        logits = model.logit_scale.exp() * image @ text.T  # type: ignore[operator]
        loss = functional.cross_entropy(logits, targets[batch])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        progress("training", step, len(batches), "steps", f"loss {loss.item():.3f}")
    model.eval()


def pretrain(folder: Path, progress: Progress = no_progress, recipe: Recipe | None = None) -> None:
    """Draw, train and write config and float16 weights to `folder`, whole or not at all."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)  # another number would round differently
    try:
        with replacing_folder(folder) as temporary, torch.random.fork_rng():
            (temporary / CONFIG_FILE).write_text(to_json(CONFIG))
            torch.manual_seed(SEED)
            place = f"{LOCAL_DIR}{temporary}"
            with quiet():
                model = open_clip.create_model(place, load_weights=False)
            tokens = open_clip.get_tokenizer(place)(CAPTIONS)
            train(model, tokens, recipe or Recipe(), progress)
            halves = {
                name: tensor.half() if tensor.is_floating_point() else tensor
                for name, tensor in model.state_dict().items()
            }
            save_file(halves, temporary / WEIGHTS_FILE)
    finally:
        torch.set_num_threads(threads)


def main(arguments: Sequence[str]) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fedclip.extract.demo.pretrain",
        description="Pre-train the demo's tiny CLIP.",
    )
    parser.add_argument("folder", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--caption-noise",
        type=float,
        default=Recipe.caption_noise,
        help="share of the confusable things captioned as their look-alikes (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.folder.exists():
        parser.error(f"{options.folder}: exists already; choose a new folder")
    with show_progress() as progress:
        pretrain(options.folder, progress, Recipe(caption_noise=options.caption_noise))


if __name__ == "__main__":
    main(sys.argv[1:])
