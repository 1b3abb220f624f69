"""Imports features that another program extracted from a NumPy archive."""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.format import MAGIC_PREFIX

from .common.errors import CacheError, FedclipError
from .common.files import check_name, client_name, replacing_folder
from .common.limits import check_unpacked
from .common.text import check_utf8, counted
from .key import EncoderFacts
from .schema import FeatureCache, content_digest
from .store import CacheFolder
from .writer import write_cache

REQUIRED = ("image_features", "labels", "text_features")
OPTIONAL = ("class_names", "logit_scale", "domain")
TEMPLATE = "{}"
UNIT_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Import:
    """The result of an import: the cache, its clients, and the names of ignored arrays."""

    folder: CacheFolder
    clients: tuple[FeatureCache, ...]
    ignored: tuple[str, ...]


def import_npz(path: Path, cache_dir: Path, name: str) -> Import:
    """Make a cache named `name` from the arrays in an ``.npz`` file.

    The file must contain `image_features` (N, D), `labels` (N,) and `text_features` (C, D).
    It may also contain `class_names` (C,), `logit_scale` (default 100) and `domain` (N,),
    which makes one client per domain.

    Raises:
        CacheError: the file is not such an archive, its arrays are inconsistent or not
            finite, or a cache of this name exists.
    """
    check_name(name, "cache")
    check_utf8(path.resolve())
    dataset_dir = cache_dir / name
    if dataset_dir.exists():
        raise CacheError(
            f"--name {name}: a cache of this name exists in {cache_dir}; remove it (fedclip cache "
            f"rm {name}) or choose another name"
        )
    arrays, ignored = _load(path)
    try:
        clients = _clients(arrays, name)
    except FedclipError as error:
        raise CacheError(f"{path}: {error}") from None
    variant = f"imported-{clients[0].key[:8]}"
    manifest = {
        "dataset": name,
        "key": clients[0].key,
        "encoder": clients[0].encoder.groups,
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
    if not path.is_file():
        reason = (
            "is a folder; pass the .npz file" if path.is_dir() else "file not found; check the path"
        )
        raise CacheError(f"{path}: {reason}")
    with path.open("rb") as file:
        if file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
            raise CacheError(f"{path}: is a single array; save a .npz with named arrays")
        try:
            arrays = _arrays(file)
        except Exception as error:  # zipfile and NumPy raise errors of many types
            reason = " ".join(str(error).split())[:200]
            raise CacheError(
                f"{path}: cannot be read as .npz ({reason}); save it with numpy.savez and "
                "without object arrays"
            ) from None
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise CacheError(f"{path}: has no array {missing[0]!r}, only {', '.join(arrays)}; add it")
    ignored = tuple(sorted(name for name, array in arrays.items() if array is None))
    return {name: array for name, array in arrays.items() if array is not None}, ignored


def _arrays(file: BufferedReader) -> dict[str, npt.NDArray[Any] | None]:
    """Read the arrays that are used; the others are None."""
    known = {*REQUIRED, *OPTIONAL}
    with zipfile.ZipFile(file) as archive:
        names = [Path(name).stem for name in archive.namelist() if name.endswith(".npy")]
        unpacked = sum(
            member.file_size
            for member in archive.infolist()
            if member.filename.removesuffix(".npy") in known
        )
    check_unpacked("the archive", os.fstat(file.fileno()).st_size, unpacked)
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        return {name: np.asarray(archive[name]) if name in known else None for name in names}


def _clients(arrays: dict[str, npt.NDArray[Any]], name: str) -> list[FeatureCache]:
    images = _features(arrays, "image_features")
    texts = _features(arrays, "text_features")
    if images.shape[1] != texts.shape[1]:
        raise CacheError(
            f"has image_features {images.shape[1]} wide and text_features {texts.shape[1]} wide; "
            "both must come from one encoder"
        )
    rows, classes = len(images), len(texts)
    if not texts.any(axis=1).all():
        raise CacheError("has a row of zeros in text_features, with which no image can be compared")
    labels = _labels(arrays, rows, classes)
    domains = _strings(arrays, "domain", rows) or (name,) * rows
    class_names = _strings(arrays, "class_names", classes) or tuple(
        f"class {index}" for index in range(classes)
    )
    logit_scale = arrays.get("logit_scale", np.array(100.0))
    if logit_scale.size != 1 or logit_scale.dtype.kind not in "fiu":
        raise CacheError("has a logit_scale that is not a single number")
    norms = np.linalg.norm(images, axis=1)
    normalized = bool(np.all(np.abs(norms - 1) < UNIT_NORM_TOLERANCE))
    scale = float(logit_scale.reshape(()))
    # An archive does not describe its encoder, so the text features stand for it in the key.
    encoder = EncoderFacts(
        shared={
            "library": "import",
            "text_sha256": hashlib.sha256(texts.tobytes()).hexdigest(),
            "logit_scale": scale,
            "normalized": normalized,
        }
    )
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
            "expected a non-empty (rows, width) array of floats"
        )
    with np.errstate(over="ignore"):  # overflow becomes Inf, which is refused later
        return np.ascontiguousarray(array, dtype=np.float32)


def _labels(arrays: dict[str, npt.NDArray[Any]], rows: int, classes: int) -> npt.NDArray[np.int32]:
    labels = arrays["labels"]
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise CacheError(
            f"has labels of shape {labels.shape} and dtype {labels.dtype}; "
            f"expected ({rows},) integers"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        row = int(outside[0])
        raise CacheError(
            f"has label {labels[row]} in row {row}, outside its "
            f"{counted(classes, 'class', 'classes')}"
        )
    return labels.astype(np.int32)


def _strings(arrays: dict[str, npt.NDArray[Any]], name: str, length: int) -> tuple[str, ...] | None:
    if name not in arrays:
        return None
    array = arrays[name]
    if array.shape != (length,) or array.dtype.kind not in "USiu":
        raise CacheError(
            f"has {name} of shape {array.shape} and dtype {array.dtype}; "
            f"expected ({length},) strings"
        )
    try:
        return tuple(
            string.decode() if isinstance(string, bytes) else str(string)
            for string in array.tolist()
        )
    except UnicodeDecodeError:
        raise CacheError(f"has a {name} that is not UTF-8") from None


def _rows_by_client(domains: tuple[str, ...]) -> dict[str, npt.NDArray[np.intp]]:
    clients: dict[str, str] = {}
    for domain in sorted(set(domains)):
        client = client_name(domain)
        if client in clients:
            raise CacheError(
                f"has domains {clients[client]!r} and {domain!r}, which would both become the "
                f"client {client!r}; rename one"
            )
        clients[client] = domain
    names = np.array(domains)
    return {client: np.flatnonzero(names == domain) for client, domain in sorted(clients.items())}
