"""Imports features that another program extracted, from a NumPy archive."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import CacheError
from .files import check_name, replacing_folder
from .schema import FeatureCache, content_digest
from .store import CacheFolder
from .writer import write_cache

REQUIRED = ("image_features", "labels", "text_features")
OPTIONAL = ("class_names", "logit_scale", "domain")
TEMPLATE = "{}"
UNIT_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Import:
    """What an import made: the cache, its clients, and the arrays it had no use for."""

    folder: CacheFolder
    clients: tuple[FeatureCache, ...]
    ignored: tuple[str, ...]


def import_npz(path: Path, cache_dir: Path, name: str) -> Import:
    """Make a cache named `name` of the arrays in an ``.npz`` file.

    The file holds `image_features` (N, D), `labels` (N,) and `text_features` (C, D),
    and may hold `class_names` (C,), `logit_scale` (default 100) and `domain` (N,),
    which makes a client of each domain.

    Raises:
        CacheError: the file is no such archive, its arrays do not fit together or
            are not finite, or a cache of this name exists.
    """
    check_name(name, "cache")
    dataset_dir = cache_dir / name
    if dataset_dir.exists():
        raise CacheError(
            f"a cache {name!r} exists below {cache_dir}; remove it (fedclip cache rm {name}) or "
            "choose another --name"
        )
    arrays, ignored = _load(path)
    try:
        clients = _clients(arrays, name)
    except CacheError as error:
        raise CacheError(f"{path}: {error}") from None
    variant = f"imported-{clients[0].key[:8]}"
    manifest = {
        "dataset": name,
        "key": clients[0].key,
        "encoder": dict(clients[0].encoder),
        "imported": {"file": str(path.resolve()), "ignored": list(ignored)},
        "clients": {
            client.client: {"rows": len(client.labels), "skipped": []} for client in clients
        },
    }
    with replacing_folder(dataset_dir) as temporary:
        folder = CacheFolder(temporary / variant)
        folder.path.mkdir()
        for client in clients:
            write_cache(client, folder.file(client.client))
        folder.write_manifest(manifest)
    return Import(CacheFolder(dataset_dir / variant), tuple(clients), ignored)


def _load(path: Path) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CacheError(f"{path}: is a single array; save a .npz with named arrays")
            missing = [name for name in REQUIRED if name not in archive]
            if missing:
                raise CacheError(
                    f"{path}: has no array {missing[0]!r}; it has {', '.join(archive.files)}"
                )
            known = [name for name in (*REQUIRED, *OPTIONAL) if name in archive]
            ignored = tuple(sorted(set(archive.files) - set(known)))
            return {name: archive[name] for name in known}, ignored
    except FileNotFoundError:
        raise CacheError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise CacheError(f"{path}: is a folder; give the .npz file") from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CacheError(
            f"{path}: cannot be read as .npz ({error}); save it with numpy.savez and no objects"
        ) from None


def _clients(arrays: dict[str, npt.NDArray[Any]], name: str) -> list[FeatureCache]:
    images = _features(arrays, "image_features")
    texts = _features(arrays, "text_features")
    if images.shape[1] != texts.shape[1]:
        raise CacheError(
            f"has image_features {images.shape[1]} wide and text_features {texts.shape[1]} wide; "
            "both must come from one encoder"
        )
    rows, classes = len(images), len(texts)
    labels = _labels(arrays, rows, classes)
    domains = _strings(arrays, "domain", rows) or (name,) * rows
    class_names = _strings(arrays, "class_names", classes) or tuple(
        f"class {index}" for index in range(classes)
    )
    logit_scale = arrays.get("logit_scale", np.array(100.0))
    if logit_scale.size != 1 or logit_scale.dtype.kind not in "fiu":
        raise CacheError("has a logit_scale that is not one number")
    norms = np.linalg.norm(images, axis=1)
    normalized = bool(np.all(np.abs(norms - 1) < UNIT_NORM_TOLERANCE))
    scale = float(logit_scale.reshape(()))
    encoder = {
        # A file says nothing of its encoder but what it brings of it.
        "library": "import",
        "text_sha256": hashlib.sha256(texts.tobytes()).hexdigest(),
        "logit_scale": scale,
        "normalized": normalized,
    }
    ids = np.array([f"{row:0{len(str(rows))}d}" for row in range(rows)])
    clients = []
    for client, members in _rows_by_client(domains).items():
        features = images[members]
        digests = [np.frombuffer(content_digest(row.tobytes()), np.uint8) for row in features]
        clients.append(
            FeatureCache(
                dataset=name,
                client=client,
                encoder=encoder,
                logit_scale=scale,
                normalized=normalized,
                image_features=features,
                labels=labels[members],
                ids=tuple(ids[members].tolist()),
                digests=np.stack(digests),
                class_names=class_names,
                templates=(TEMPLATE,),
                text_features=texts[:, None, :],
            )
        )
    return clients


def _features(arrays: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[np.float32]:
    array = arrays[name]
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise CacheError(
            f"has {name} of shape {array.shape} and dtype {array.dtype}; "
            "a filled (rows, width) array of floats belongs there"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _labels(arrays: dict[str, npt.NDArray[Any]], rows: int, classes: int) -> npt.NDArray[np.int32]:
    labels = arrays["labels"]
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise CacheError(
            f"has labels of shape {labels.shape} and dtype {labels.dtype}; "
            f"({rows},) integers belong there"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        row = int(outside[0])
        raise CacheError(f"has label {labels[row]} in row {row}, outside its {classes} classes")
    return labels.astype(np.int32)


def _strings(arrays: dict[str, npt.NDArray[Any]], name: str, length: int) -> tuple[str, ...] | None:
    if name not in arrays:
        return None
    array = arrays[name]
    if array.shape != (length,) or array.dtype.kind not in "USiu":
        raise CacheError(
            f"has {name} of shape {array.shape} and dtype {array.dtype}; "
            f"({length},) strings belong there"
        )
    return tuple(
        string.decode() if isinstance(string, bytes) else str(string) for string in array.tolist()
    )


def _rows_by_client(domains: tuple[str, ...]) -> dict[str, npt.NDArray[np.intp]]:
    names = np.array([domain.lower().replace(" ", "_") for domain in domains])
    return {
        check_name(client, "domain"): np.flatnonzero(names == client)
        for client in np.unique(names).tolist()
    }
