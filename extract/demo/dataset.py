"""Writes the drawn dataset as image files, ``<domain>/<class>/<number>.png``."""

import logging
from pathlib import Path

from PIL import Image

from ...cache.common.files import check_writable, replacing_folder
from ...cache.common.progress import Progress, no_progress
from ...cache.common.text import counted
from .draw import STYLES, draw_picture
from .shapes import THINGS

logger = logging.getLogger(__name__)

SEED = 0
IMAGES_PER_CLASS = 30


def draw_dataset(
    folder: Path,
    progress: Progress = no_progress,
    seed: int = SEED,
    images: int = IMAGES_PER_CLASS,
) -> None:
    """Draw `images` pictures of each thing in each style into `folder`, whole or not at all.

    Raises:
        FedclipError: the folder is not empty, or cannot be written.
    """
    check_writable(folder.parent, f"--data-dir {folder.parent}")
    total, done = len(STYLES) * len(THINGS) * images, 0
    with replacing_folder(folder) as temporary:
        logger.info(
            "drawing    %s of %d things in %s", counted(total, "image"), len(THINGS), folder
        )
        for style in STYLES:
            for thing in THINGS:
                place = temporary / style / thing
                place.mkdir(parents=True)
                for index in range(images):
                    pixels = draw_picture(style, thing, seed, index)
                    Image.fromarray(pixels).save(place / f"{index:03d}.png")
                done += images
                progress("drawing", done, total, "images")
