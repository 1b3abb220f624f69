"""Stage one for the Python API."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ..cache.collection import Cache
from ..cache.common.progress import showing
from ..cache.store import load_cache
from .encoders.prompts import DEFAULT_TEMPLATE, check_templates
from .encoders.spec import EncoderName, default_model
from .pipeline import extract
from .request import Request

logger = logging.getLogger(__name__)


def extract_features(
    dataset: str | Path | None = None,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    precision: str = "fp32",
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    images: str | Path | None = None,
    client: str | None = None,
    class_names: Sequence[str] = (),
    name: str | None = None,
    data_dir: str | Path = "data",
    cache_dir: str | Path = "caches",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    force: bool = False,
    strict: bool = False,
    offline: bool = False,
    progress: bool = True,
) -> Cache:
    """Encode every image of a dataset that is not in its cache yet, and return the cache.

    Args:
        dataset: A known dataset, a folder ``<domain>/<class>/<image>``, or ``hf:OWNER/NAME``.
        model: An open_clip architecture, ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``; None for
            ViT-B-32, or the tiny CLIP for the dataset demo.
        pretrained: A tag, a checkpoint file or ``random``; None for OpenAI's weights, or those of
            the folder or repository.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        templates: Prompts with ``{}`` for the class name.
        images: A ``.csv`` or ``.parquet`` list of images, as `fedclip extract --manifest` takes it.
        client: Name of the only client, to which all images belong.
        class_names: Classes in order; empty for all that have images, sorted.
        name: First part of the cache's name; None for the dataset's.
        data_dir: Folder to look for datasets in.
        cache_dir: Folder of the caches.
        batch_size: Images per batch of the encoder; None for the device's default.
        workers: Processes that decode images; None for the device's default.
        device: ``auto`` or a torch device.
        force: Whether to encode everything again.
        strict: Whether an image that cannot be used is an error; otherwise it is skipped.
        offline: Whether to stay off the network.
        progress: Whether to show progress, warnings and skipped images.

    Raises:
        FedclipError: the dataset, the encoder or the cache on disk cannot be used.
    """
    chosen = None if dataset is None else str(dataset)
    request = Request(
        dataset=chosen,
        encoder=EncoderName.of(model or default_model(chosen), pretrained, precision),
        templates=check_templates(templates),
        data_dir=Path(data_dir),
        cache_dir=Path(cache_dir),
        name=name,
        batch_size=batch_size,
        workers=workers,
        device=device,
        force=force,
        strict=strict,
        listed=None if images is None else Path(images),
        client=client,
        class_names=tuple(class_names),
        offline=offline,
    )
    with showing(progress) as show:
        extraction = extract(request, show)
        for item in extraction.skipped:
            logger.warning("skipped %s: %s", item.id, item.reason)
    return Cache(extraction.folder, load_cache(extraction.folder))
