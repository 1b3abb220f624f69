"""What an extraction remembers, so that a second one need not load the encoder to skip it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..cache import CacheFolder, FedclipError
from ..cache.store import MANIFEST
from .datasets import ClientImages, ImageDataset
from .names import LOCAL_DIR, EncoderName, is_file

# A new version of these might encode otherwise, so the encoder is loaded and compared.
_LIBRARIES = ("open_clip_torch", "torch", "torchvision", "pillow")


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, by id, and why."""

    id: str
    reason: str


def encoder_request(name: EncoderName) -> dict[str, Any]:
    """Describe what was asked for, the same from every working directory."""
    model, pretrained = name.model, name.pretrained
    if model.startswith(LOCAL_DIR):
        model = f"{LOCAL_DIR}{Path(model.removeprefix(LOCAL_DIR)).resolve()}"
    if pretrained is not None and is_file(pretrained):
        pretrained = str(Path(pretrained).resolve())
    return {**asdict(name), "model": model, "pretrained": pretrained}


def library_versions() -> dict[str, str]:
    """Look up the versions of what encodes, without importing it."""
    return {library: version(library) for library in _LIBRARIES}


def stat_files(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Describe files by place, size and time of change."""
    stats = [(path, path.stat()) for path in paths]
    return [
        {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        for path, stat in stats
    ]


def listing(images: ClientImages) -> str:
    """Hash a domain's ids, labels, sizes and times of change: equal, nothing was touched."""
    digest = hashlib.sha256()
    for image in images.images:
        stat = image.path.stat()
        digest.update(f"{image.id}\0{image.label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def variants(cache_dir: Path, dataset: str) -> list[CacheFolder]:
    """List a data set's caches that have a manifest, the last one made first."""
    folders = [CacheFolder(path.parent) for path in (cache_dir / dataset).glob(f"*/{MANIFEST}")]
    return sorted(folders, key=lambda folder: -folder.made)


def check_root(cache_dir: Path, dataset: ImageDataset) -> None:
    """Refuse to file two different folders under one name.

    Raises:
        FedclipError: a cache of this name was made from another folder that still exists.
    """
    for folder in variants(cache_dir, dataset.name):
        root = Path(str(folder.read_manifest().get("root", dataset.root)))
        if root != dataset.root and root.is_dir():
            raise FedclipError(
                f"{dataset.root}: the caches of {dataset.name!r} were made from {root}; "
                "file this folder under a name of its own with --name"
            )


def recall(cache_dir: Path, dataset: str, name: EncoderName) -> CacheFolder | None:
    """Find the cache that this encoder made, if its weights and the libraries are unchanged."""
    for folder in variants(cache_dir, dataset):
        manifest = folder.read_manifest()
        if (
            manifest.get("request") == encoder_request(name)
            and manifest.get("versions") == library_versions()
            and _unchanged(manifest.get("weights"))
        ):
            return folder
    return None


def _unchanged(files: Any) -> bool:
    try:
        return bool(files == stat_files([Path(file["path"]) for file in files]))
    except (OSError, TypeError, KeyError):
        return False


def client_entry(
    manifest: Mapping[str, Any], client: str
) -> tuple[str | None, tuple[Skipped, ...]]:
    """Read a client's listing and skipped images; (None, ()) where it has no entry."""
    try:
        entry = manifest["clients"][client]
        skipped = tuple(Skipped(str(item["id"]), str(item["reason"])) for item in entry["skipped"])
        return str(entry["listing"]), skipped
    except (KeyError, TypeError):
        return None, ()
