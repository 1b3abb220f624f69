"""What a run's models of the best round predict, image by image: `predictions.npz`.

The file stays with the run. On a network a client counts its own predictions instead
(`training/metrics.py`), and sends the counts.

Importing this imports no torch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...cache import FedclipError
from ...cache.common.files import replacing
from ...cache.common.limits import check_unpacked
from ..training.metrics import Predicted, Tally

if TYPE_CHECKING:
    from ..data.federation import Client
    from ..simulation import Run

PREDICTIONS = "predictions.npz"

# What a server records of a run across sites, by round.
SITES = "sites.jsonl"

# Version of the file.
VERSION = 1

# The models that predict: the features themselves, the one that the run is judged by, and the
# participants' own where the strategy makes them.
ZERO_SHOT, ADAPTED, PERSONAL = MODELS = ("zero_shot", "adapted", "personal")

# Stands for a class where a model does not predict, such as a participant's own on the target.
NOTHING = -1


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for all test samples of a run, client by client.

    Attributes:
        clients: Names of the clients, the target last.
        class_names: Names of the C classes.
        client: (N,) int32, index into `clients`.
        ids: (N,) fixed-length UTF-8, the rows' ids in the cache.
        labels: (N,) int32, the right classes.
        classes: By model, the (N,) int32 predicted classes; `NOTHING` where it predicts none.
        confidence: By model, the (N,) float32 probabilities of the predicted classes.
    """

    clients: tuple[str, ...]
    class_names: tuple[str, ...]
    client: npt.NDArray[np.int32]
    ids: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int32]
    classes: Mapping[str, npt.NDArray[np.int32]]
    confidence: Mapping[str, npt.NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def _rows(self) -> dict[str, npt.NDArray[np.intp]]:
        return {name: np.flatnonzero(self.client == i) for i, name in enumerate(self.clients)}

    def of(self, client: str, model: str) -> Predicted | None:
        """Return what a model predicts for a client's samples; None if it predicts nothing."""
        rows = self._rows[client]
        if model not in self.classes or (self.classes[model][rows] == NOTHING).any():
            return None
        labels, classes = self.labels[rows], self.classes[model][rows]
        confidence = self.confidence[model][rows]
        return Predicted(labels.astype(np.int64), classes.astype(np.int64), confidence)

    def tally(self, client: str, model: str) -> Tally | None:
        """Count what a model predicts for a client's samples; None if it predicts nothing."""
        predicted = self.of(client, model)
        return None if predicted is None else Tally.of(predicted, len(self.class_names))

    def tallies(self, model: str) -> dict[str, Tally]:
        """Count what a model predicts, by client; those it predicts nothing for are left out."""
        counted = {client: self.tally(client, model) for client in self.clients}
        return {client: tally for client, tally in counted.items() if tally is not None}


def predictions_of(run: Run) -> Predictions | None:
    """Let the models of a run's best round predict all test samples; None without such a round.

    Of a strategy without a model at the server, each participant's own is the adapted one, and
    nothing is predicted for the target.
    """
    best, federation = run.state.server.best, run.federation
    if best is None:
        return None
    strategy, own = run.settings.strategy, dict[str, Predicted]()
    if strategy.personalized and run.keep_own:
        for client in federation.participants:
            run.network.remember(client.train)
            own[client.name] = run.predict(client, run.state.best_own[client.name])
    adapted = own
    if strategy.shared:
        adapted = {each.name: run.predict(each, best.parameters) for each in federation.clients}
    if not adapted:  # nothing but the participants' own models, which are not kept
        return None
    before = {client.name: run.zero_shot_predict(client) for client in federation.clients}
    found: dict[str, Mapping[str, Predicted]] = {ADAPTED: adapted}
    zero_shot = {name: each for name, each in before.items() if each is not None}
    if zero_shot:
        found[ZERO_SHOT] = zero_shot
    if own and strategy.shared:
        found[PERSONAL] = own
    return _joined(federation.clients, found)


def _joined(clients: Sequence[Client], found: Mapping[str, Mapping[str, Predicted]]) -> Predictions:
    sizes = [len(client.test) for client in clients]
    ids = [
        client.test.domain.cache.ids[row] for client in clients for row in client.test.rows.tolist()
    ]
    labels = [client.test.labels.cpu().numpy() for client in clients]
    classes, confidence = {}, {}
    for model, predicted in found.items():
        parts = [
            predicted.get(client.name)
            or Predicted(none := np.full(size, NOTHING), none, np.full(size, np.nan, np.float32))
            for client, size in zip(clients, sizes, strict=True)
        ]
        classes[model] = np.concatenate([part.classes for part in parts]).astype(np.int32)
        confidence[model] = np.concatenate([part.confidence for part in parts])
    return Predictions(
        clients=tuple(client.name for client in clients),
        class_names=clients[0].test.domain.cache.class_names,
        client=np.repeat(np.arange(len(clients), dtype=np.int32), sizes),
        ids=_texts(ids),
        labels=np.concatenate(labels).astype(np.int32),
        classes=classes,
        confidence=confidence,
    )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as a compressed .npz file: whole, or not at all."""
    arrays: dict[str, Any] = {
        "version": np.int32(VERSION),
        "clients": _texts(predictions.clients),
        "class_names": _texts(predictions.class_names),
        "client": predictions.client,
        "ids": predictions.ids,
        "labels": predictions.labels,
    }
    for model in predictions.classes:
        arrays[f"{model}_classes"] = predictions.classes[model]
        arrays[f"{model}_confidence"] = predictions.confidence[model]
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_predictions(folder: Path) -> Predictions:
    """Read the predictions in the folder of a run, or of one target of it.

    Raises:
        FedclipError: they are missing or damaged.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        if (folder / SITES).is_file():
            raise FedclipError(
                f"{folder}: has no {PREDICTIONS}, as no site of a run across sites sends its own"
            )
        raise FedclipError(
            f"{folder}: has no {PREDICTIONS}; it was made by an earlier fedclip or is not over, so "
            "run it again with --overwrite, or resume it"
        )
    try:
        return _checked(_arrays(path))
    except Exception as error:  # zipfile, zlib and NumPy raise errors of many types
        reason = " ".join(str(error).split())[:200]
        raise FedclipError(
            f"{path}: is damaged ({reason}); run it again with --overwrite"
        ) from None


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    check_unpacked("the archive", path.stat().st_size, unpacked)
    with np.load(path, allow_pickle=False) as archive:
        return {name: np.asarray(archive[name]) for name in archive.files}


def _checked(arrays: Mapping[str, npt.NDArray[Any]]) -> Predictions:
    """Make predictions of arrays, trusting none of them."""
    if int(arrays["version"]) != VERSION:
        raise ValueError(f"it has version {arrays['version']}, not {VERSION}")
    clients, class_names = (_names(arrays[name]) for name in ("clients", "class_names"))
    ids = arrays["ids"]
    models = [model for model in MODELS if f"{model}_classes" in arrays]
    if ids.ndim != 1 or ids.dtype.kind != "S" or ADAPTED not in models:
        raise ValueError("its arrays are not those of predictions")

    def indices(name: str, least: int, count: int) -> npt.NDArray[np.int32]:
        values = arrays[name]
        if values.dtype != np.int32 or values.shape != ids.shape:
            raise ValueError(f"{name} is not an int32 per sample")
        if len(values) and not (least <= values.min() and values.max() < count):
            raise ValueError(f"{name} is out of range")
        return values

    for model in models:
        confidence = arrays[f"{model}_confidence"]
        if confidence.dtype != np.float32 or confidence.shape != ids.shape:
            raise ValueError(f"{model}_confidence is not a float32 per sample")
    return Predictions(
        clients=clients,
        class_names=class_names,
        client=indices("client", 0, len(clients)),
        ids=ids,
        labels=indices("labels", 0, len(class_names)),
        classes={model: indices(f"{model}_classes", NOTHING, len(class_names)) for model in models},
        confidence={model: arrays[f"{model}_confidence"] for model in models},
    )


def _texts(texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    return np.array([text.encode() for text in texts], dtype=np.bytes_)


def _names(texts: npt.NDArray[Any]) -> tuple[str, ...]:
    if texts.ndim != 1 or texts.dtype.kind != "S":
        raise ValueError("its names are not texts")
    return tuple(text.decode() for text in texts.tolist())
