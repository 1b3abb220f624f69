"""FedCLIP as a feature-cache pipeline.

Stage one, `fedclip.extract`, runs a frozen CLIP once and keeps its features in
`fedclip.cache`; stage two, `fedclip.federate`, trains and federates small adapters
over the features alone (Lu et al. 2023, arXiv:2302.13485).

The names below are the Python API. Each is imported on first use, so that importing this module
loads nothing heavy. What needs both stages is defined here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache.collection import Cache, load_cache
    from .cache.common.errors import FedclipError
    from .cache.common.progress import Progress
    from .extract.api import extract_features
    from .extract.datasets.inputs import Image, ImageLike
    from .extract.datasets.registry import SampleKind
    from .extract.encoders.base import SampleEncoder
    from .federate.api import Ablation, SavedRun, run_ablation, run_federation
    from .federate.models.classifier import Classifier
    from .federate.report.predictions import Predictions, Scored
    from .federate.simulation import Callback

__version__ = "0.1.0"

__all__ = [
    "Ablation",
    "Cache",
    "Callback",
    "FedclipError",
    "ImageClassifier",
    "SavedRun",
    "extract_features",
    "load_cache",
    "load_classifier",
    "load_run",
    "run_ablation",
    "run_federation",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())  # an application chooses others

# The files that a repository of an adapter on the hub has.
HUB_FILES = ("adapter.safetensors", "run.json", "result.json", "rounds.jsonl", "README.md")


class ImageClassifier:
    """A trained adapter with the encoder that it was trained with; made by `load_classifier`.

    Called with images it classifies them. One that was trained on texts classifies texts.

    Attributes:
        classifier: The adapter, which classifies features.
    """

    def __init__(
        self,
        classifier: Classifier,
        request: Mapping[str, Any] | None,
        model: str | None,
        pretrained: str | None,
        device: str,
    ) -> None:
        self.classifier = classifier
        self._request = request
        self._place = model, pretrained
        self._device = device

    def __repr__(self) -> str:
        return f"<classifier of {self.samples} by {self.classifier}>"

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classifier.class_names

    @property
    def samples(self) -> SampleKind:
        """What it classifies: ``images`` or ``texts``."""
        from .extract.encoders.rebuild import samples_of

        return samples_of(self.classifier.encoder)

    @cached_property
    def encoder(self) -> SampleEncoder:
        """The frozen encoder, which is loaded on first use, and downloaded if necessary.

        Raises:
            FedclipError: it is not on this machine, or is another one.
        """
        return self._load_encoder()

    def _load_encoder(self, progress: Progress | None = None) -> SampleEncoder:
        from .cache.common.device import resolve_device
        from .cache.common.progress import no_progress
        from .extract.encoders.rebuild import load_recorded, recorded_name

        facts = self.classifier.encoder
        name = recorded_name(facts, *self._place, request=self._request)
        return load_recorded(name, facts, resolve_device(self._device), progress or no_progress)

    def stream(
        self,
        images: Iterable[Image],
        batch_size: int | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[Scored, Sequence[tuple[Image, str]]]]:
        """Classify images, or texts, batch by batch, in memory that does not grow with them.

        Args:
            images: A sequence, or a stream of any length.
            batch_size: Size of every batch; None for that of the adapter's cache.
            workers: Number of processes that decode; None for the device's default.
            progress: Called after each batch.

        Yields:
            The classified samples of a batch, and those that could not be decoded, with the reason.
        """
        from .cache.common.progress import no_progress
        from .extract.encoding.stream import encode_images
        from .federate.report.predictions import Scored

        batch_size = batch_size or self.classifier.facts.get("batch_size")
        batches = encode_images(self.encoder, images, batch_size, workers, progress or no_progress)
        for batch in batches:
            scored = Scored(
                self.classifier(batch.features),
                [image.name for image in batch.images],
                [image.id for image in batch.images],
                [image.label for image in batch.images],
                [image.client for image in batch.images],
                batch.digests,
            )
            yield scored, batch.skipped

    def __call__(
        self,
        images: ImageLike | Iterable[ImageLike],
        top_k: int = 1,
        *,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Predictions:
        """Classify images, or texts.

        Args:
            images: One image or several: paths (also folders and lists, as `fedclip predict` takes
                them), PIL images, bytes of image files, or (H, W, 3) uint8 arrays. One text or
                several: strings, or bytes of them in UTF-8; a `pathlib.Path` is a path here too.
            top_k: Number of classes of each image or text.
            batch_size: Size of every batch; None for that of the adapter's cache.
            workers: Number of processes that decode; None for the device's default.

        Raises:
            FedclipError: the encoder is not on this machine, or a path does not exist.
        """
        from .extract.datasets.inputs import as_images
        from .extract.datasets.registry import noun
        from .federate.report.predictions import Predictions

        found = Predictions(self.classifier, top_k, noun(self.samples))
        coming = as_images(images, self.class_names, self.samples)
        for scored, skipped in self.stream(coming, batch_size, workers):
            found.add(scored)
            found.skipped.update((image.where, reason) for image, reason in skipped)
        return found

    def from_cache(self, cache: Cache, top_k: int = 1) -> Predictions:
        """Classify cached features, which takes no encoder.

        Raises:
            FedclipError: they come from another encoder.
        """
        from .extract.datasets.registry import noun
        from .federate.report.predictions import Predictions, score_cache

        found = Predictions(self.classifier, top_k, noun(self.samples))
        for scored in score_cache(self.classifier, list(cache.values())):
            found.add(scored)
        return found


def load_classifier(
    run: str | Path | SavedRun,
    *,
    target: str | None = None,
    client: str | None = None,
    runs_dir: str | Path = "runs",
    cache_dir: str | Path | None = None,
    model: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
) -> ImageClassifier:
    """Load a trained adapter to classify images with.

    Args:
        run: A run, its name or folder, an exported ``.safetensors`` file, or ``hf:OWNER/NAME``.
        target: The domain that was left out, if the run left out several.
        client: The client whose own adapter to use, if the strategy gave them their own.
        runs_dir: Where runs are kept.
        cache_dir: Where the cache of a run of an earlier version is; None for where it was.
        model: The encoder's place on this machine, such as ``local-dir:FOLDER``; None for where
            it was.
        pretrained: The encoder's weights, if they are a file of their own.
        device: ``auto`` or a torch device.

    Raises:
        FedclipError: the run does not exist, or has no adapter that can be used here.
    """
    from .cache.common.device import resolve_device
    from .federate.runs.saved import encoder_request_of, load_saved

    path = find_run(run, Path(runs_dir), target)
    classifier = load_saved(path, client, Path(cache_dir) if cache_dir is not None else None)
    request = encoder_request_of(path)
    return ImageClassifier(
        classifier.to(resolve_device(device)), request, model, pretrained, device
    )


def find_run(run: str | Path | SavedRun, runs_dir: Path, target: str | None = None) -> Path:
    """Find the folder or file of a trained adapter; one on the hub is downloaded.

    Raises:
        FedclipError: it does not exist, or has several targets of which none is chosen.
    """
    from .federate.runs.find import HUB
    from .federate.runs.saved import find_saved

    if isinstance(run, str) and run.startswith(HUB):
        return fetch_run(run)
    folder = getattr(run, "folder", run)
    return find_saved(runs_dir, str(folder), target)


def fetch_run(run: str) -> Path:
    """Download a trained adapter and what is known of its run from the hub.

    Args:
        run: ``hf:OWNER/NAME``.

    Returns:
        The folder of its files.

    Raises:
        FedclipError: it does not exist, has no adapter, or the hub cannot be reached.
    """
    from .cache.common.progress import show_progress
    from .extract.hub import fetch_files

    with show_progress() as progress:
        return fetch_files(run, HUB_FILES, progress)


def load_run(run: str | Path, runs_dir: str | Path = "runs") -> SavedRun:
    """Read a run.

    Args:
        run: Its name below `runs_dir`, its folder or that of one target, or ``hf:OWNER/NAME``.
        runs_dir: Where runs are kept.

    Raises:
        FedclipError: it does not exist, the name means several runs, or the hub has no record of
            it.
    """
    from .cache.common.errors import FedclipError
    from .federate.api import SavedRun
    from .federate.runs.catalog import find_recorded

    found = find_recorded(Path(runs_dir), str(run), fetch_run)
    if len(found) > 1:
        names = ", ".join(each.name for each in found)
        raise FedclipError(f"run {str(run)!r} means several runs; name one of {names}")
    return SavedRun(found[0].path, found[0].config)


# Where the names above that are not defined here come from.
_MODULES = {
    "Ablation": "federate.api",
    "Cache": "cache.collection",
    "Callback": "federate.simulation",
    "FedclipError": "cache.common.errors",
    "SavedRun": "federate.api",
    "extract_features": "extract.api",
    "load_cache": "cache.collection",
    "run_ablation": "federate.api",
    "run_federation": "federate.api",
}


if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
