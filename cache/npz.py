"""Imports features that another program extracted from a NumPy archive."""

import hashlib
import logging
import math
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
from .common.fields import suggest
from .common.files import check_name, client_name, regular, replacing_folder
from .common.limits import check_unpacked
from .common.text import check_utf8, counted, near_twins, nfc
from .key import EncoderFacts
from .labels import name_labels, outside_hint, whole_numbers
from .schema import CLIP_SCALE, FeatureCache, content_digest
from .store import CacheFolder
from .writer import write_cache

logger = logging.getLogger(__name__)

REQUIRED = ("image_features", "labels", "text_features")
OPTIONAL = ("class_names", "templates", "logit_scale", "domain")
TEMPLATE = "{}"
# CLIP stores ln(scale), which training keeps at most at ln(100); such a number is no scale.
LOG_TOLERANCE = 1e-3
SMALLEST_USUAL_SCALE = 5.0
UNIT_NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Import:
    """The result of an import.

    Attributes:
        folder: The cache.
        clients: Its clients.
        ignored: The names of ignored arrays.
        understood: What the arrays were read as, in one line.
    """

    folder: CacheFolder
    clients: tuple[FeatureCache, ...]
    ignored: tuple[str, ...]
    understood: str


@dataclass(frozen=True)
class _Labels:
    """Labels as they were understood.

    Attributes:
        indices: (N,) int32.
        form: What they were understood as, in words.
        numbered: Whether the archive has class numbers, which might count from 1.
    """

    indices: npt.NDArray[np.int32]
    form: str
    numbered: bool = False


def import_npz(path: Path, cache_dir: Path, name: str) -> Import:
    """Make a cache named `name` from the arrays in an ``.npz`` file.

    The file must contain `image_features` (N, D), `labels` and `text_features`. Labels are
    (N,) or (N, 1) numbers of classes or class names, or (N, C) one-hot rows. Text features are
    (C, D), or (C, P, D) for several prompts. The file may also contain `class_names` (C,),
    `templates` (P,), `logit_scale` (default 100) and `domain` (N,), which makes one client per
    domain. What could be meant otherwise is logged as a warning.

    Raises:
        CacheError: the file is not such an archive, its arrays are inconsistent or not
            finite, an image's features are all zero, or a cache of this name exists.
    """
    name = check_name(name, "cache")
    check_utf8(path.resolve())
    dataset_dir = cache_dir / name
    if dataset_dir.exists():
        raise CacheError(
            f"--name {name}: a cache of this name exists in {cache_dir}; remove it (fedclip cache "
            f"rm {name}) or choose another name"
        )
    arrays, ignored = _load(path)
    try:
        clients, understood = _clients(arrays, name)
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
    return Import(CacheFolder(dataset_dir / variant), tuple(clients), ignored, understood)


def _load(path: Path) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    if not regular(path).is_file():
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


def _clients(arrays: dict[str, npt.NDArray[Any]], name: str) -> tuple[list[FeatureCache], str]:
    """Make the clients, and say what the arrays were understood as."""
    images = _features(arrays, "image_features", (2,))
    texts = _features(arrays, "text_features", (2, 3))
    texts = texts[:, None, :] if texts.ndim == 2 else texts
    if images.shape[1] != texts.shape[2]:
        raise CacheError(
            f"has image_features {images.shape[1]} wide and text_features {texts.shape[2]} wide; "
            "both must come from one encoder"
        )
    _check_filled(images, texts)
    (rows, _), (classes, prompts, _) = images.shape, texts.shape
    domains = _strings(arrays, "domain", rows) or (name,) * rows
    given = _strings(arrays, "class_names", classes)
    class_names = given or tuple(f"class {index}" for index in range(classes))
    _check_class_names(class_names)
    templates = _strings(arrays, "templates", prompts) or _unnamed_templates(prompts)
    labels = _labels(arrays["labels"], rows, classes, given)
    logit_scale, scale_form = _logit_scale(arrays.get("logit_scale", np.array(CLIP_SCALE)))
    used = np.unique(labels.indices)
    understood = [f"labels as {labels.form}, {len(used)} of {classes} classes have rows"]
    if prompts > 1:
        understood.append(f"text_features as {prompts} prompts per class, for --prompt")
    if scale_form:
        understood.append(f"logit_scale as {scale_form}")
    if labels.numbered and used[0] > 0:
        logger.warning(
            "labels: class %r, number 0, has no rows; if the labels count from 1, subtract 1 from "
            "each, as otherwise all of them are wrong",
            class_names[0],
        )
    norms = np.linalg.norm(images, axis=1)
    normalized = bool(np.all(np.abs(norms - 1) < UNIT_NORM_TOLERANCE))
    # An archive does not describe its encoder, so the text features stand for it in the key.
    encoder = EncoderFacts(
        shared={
            "library": "import",
            "text_sha256": hashlib.sha256(texts.tobytes()).hexdigest(),
            "logit_scale": logit_scale,
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
                logit_scale=logit_scale,
                normalized=normalized,
                image_features=features,
                labels=labels.indices[members],
                ids=tuple(ids[members].tolist()),
                digests=np.stack(digests),
                class_names=class_names,
                templates=templates,
                text_features=texts,
            )
        )
    return clients, "; ".join(understood)


def _features(
    arrays: dict[str, npt.NDArray[Any]], name: str, dimensions: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    array = arrays[name]
    if array.ndim not in dimensions or array.dtype.kind != "f" or 0 in array.shape:
        prompts = " or (classes, prompts, width)" if 3 in dimensions else ""
        raise CacheError(
            f"has {name} of shape {array.shape} and dtype {array.dtype}; "
            f"expected a non-empty (rows, width){prompts} array of floats"
        )
    with np.errstate(over="ignore"):  # overflow becomes Inf, which is refused later
        return np.ascontiguousarray(array, dtype=np.float32)


def _check_filled(images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32]) -> None:
    """Refuse rows of zeros, which have no direction and so are compared with nothing."""
    if not texts.any(axis=2).all():
        raise CacheError("has a row of zeros in text_features, with which no image can be compared")
    empty = np.flatnonzero(~images.any(axis=1))
    if empty.size:
        raise CacheError(
            f"has {empty.size} of {len(images)} rows of image_features that are all zeros, the "
            f"first is row {empty[0]}, so they were not filled in; leave these rows out of all "
            "arrays"
        )


def _check_class_names(class_names: tuple[str, ...]) -> None:
    for one, other in near_twins(class_names):
        logger.warning(
            "class_names: %r and %r differ only in case, spaces or underscores; merge them if they "
            "are one class",
            one,
            other,
        )


def _unnamed_templates(prompts: int) -> tuple[str, ...]:
    numbered = (f"prompt {number}: {TEMPLATE}" for number in range(1, prompts + 1))
    return (TEMPLATE,) if prompts == 1 else tuple(numbered)


def _labels(
    labels: npt.NDArray[Any], rows: int, classes: int, class_names: tuple[str, ...] | None
) -> _Labels:
    """Read labels, whichever way they name their classes."""
    if labels.shape == (rows, classes) and _is_one_hot(labels):
        return _Labels(labels.argmax(axis=1).astype(np.int32), "one-hot rows")
    plain = _plain(labels)
    if plain.shape == (rows,) and plain.dtype.kind == "f":
        row = int(np.flatnonzero(~_whole(plain))[0])
        raise CacheError(f"has label {plain[row]} in row {row}, which is not the number of a class")
    if plain.shape != (rows,) or plain.dtype.kind not in "biuUS":
        raise CacheError(
            f"has labels of shape {labels.shape} and dtype {labels.dtype}; expected ({rows},) "
            f"integers or class names, or ({rows}, {classes}) one-hot rows"
        )
    if plain.dtype.kind in "US":
        return _named_labels(plain, class_names)
    outside = np.flatnonzero((plain < 0) | (plain >= classes))
    if outside.size:
        row, limits = int(outside[0]), [int(plain.min()), int(plain.max())]
        raise CacheError(
            f"has label {plain[row]} in row {row}, outside its "
            f"{counted(classes, 'class', 'classes')}{outside_hint(limits, classes)}"
        )
    return _Labels(plain.astype(np.int32), "class numbers from 0", numbered=True)


def _named_labels(labels: npt.NDArray[Any], class_names: tuple[str, ...] | None) -> _Labels:
    """Read labels that are texts: class names, or numbers of classes."""
    distinct, rows = np.unique(labels, return_inverse=True)
    texts = _texts(distinct, "labels")
    if class_names is None:
        raise CacheError(
            f"has labels that are texts such as {texts[0]!r}, but no class_names, which say "
            "what class each row of text_features is of; add class_names (C,)"
        )
    names, understood = name_labels(texts, class_names)
    numbers = {name: number for number, name in enumerate(class_names)}
    for text, name in names.items():
        if name not in numbers:
            raise CacheError(
                f"has the label {text!r}, which is not in class_names{suggest(text, numbers)}"
            )
    found = np.array([numbers[names[text]] for text in texts], np.int32)
    numbered = whole_numbers(texts) is not None
    return _Labels(found[rows.reshape(-1)], understood or "class names", numbered)


def _is_one_hot(labels: npt.NDArray[Any]) -> bool:
    if labels.dtype.kind not in "biuf":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _logit_scale(array: npt.NDArray[Any]) -> tuple[float, str]:
    """Read the logit scale, and say so if the archive has its logarithm."""
    if array.size != 1 or array.dtype.kind not in "fiu":
        raise CacheError("has a logit_scale that is not a single number")
    scale = float(array.reshape(()))
    if abs(scale - math.log(CLIP_SCALE)) < LOG_TOLERANCE:
        return CLIP_SCALE, f"{CLIP_SCALE:g}, as {scale:g} is its logarithm"
    if 1 < scale < SMALLEST_USUAL_SCALE:
        logger.warning(
            "logit_scale: %g is taken as it is; if it is a logarithm, as CLIP stores it, import "
            "%.4g instead",
            scale,
            math.exp(scale),
        )
    return scale, ""


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Flatten a column, and turn floats that are all integers into integers."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind == "f" and array.size and _whole(array).all():
        return array.astype(np.int64)
    return array


def _whole(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which floats are integers; from 2**53 on a float may stand for several."""
    values = array.astype(np.float64)
    whole = np.isfinite(values) & (np.rint(values) == values) & (np.abs(values) < 2**53)
    return np.asarray(whole, np.bool_)


def _strings(arrays: dict[str, npt.NDArray[Any]], name: str, length: int) -> tuple[str, ...] | None:
    """Read texts or numbers as composed texts, without the spaces around them."""
    if name not in arrays:
        return None
    array = _plain(arrays[name])
    if array.shape != (length,) or array.dtype.kind not in "USiu":
        raise CacheError(
            f"has {name} of shape {arrays[name].shape} and dtype {arrays[name].dtype}; "
            f"expected ({length},) strings"
        )
    return tuple(nfc(text.strip()) for text in _texts(array, name))


def _texts(array: npt.NDArray[Any], name: str) -> tuple[str, ...]:
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
