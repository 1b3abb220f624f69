"""Downloads an encoder's files before it is loaded: config, weights, tokenizer.

open_clip would download them itself, from the same repositories to the same folder, but
neither shows progress nor resumes after a broken connection.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import open_clip
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

from ...cache import FedclipError
from ...cache.common.progress import Progress, no_progress
from ..hub import MODEL, Repository, Snapshot, download, how_to_carry, look_up, remember
from .spec import HF_HUB, LOCAL_DIR, RANDOM, EncoderName

# Files of which a tokenizer of the `transformers` library consists.
TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json",
        "config.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)


def fetch_encoder(name: EncoderName, progress: Progress = no_progress) -> None:
    """Download the files of an encoder that are on the hub and not on this machine.

    Raises:
        FedclipError: a file is missing and cannot be downloaded; the message explains how to
            copy it here.
    """
    try:
        text = _fetch_model(name, progress).get("text_cfg")
        wanted = ["hf_model_name"]  # its config is among a tokenizer's files
        if not name.model.startswith(LOCAL_DIR):  # a folder has its own tokenizer
            wanted.append("hf_tokenizer_name")
        named = [text.get(each) for each in wanted] if isinstance(text, dict) else []
        for place in sorted({str(each) for each in named if each}):
            if not Path(place).is_dir():
                _fetch_tokenizer(Repository(place, MODEL, prefix=HF_HUB), progress)
    except FedclipError as error:
        raise FedclipError(
            f"{error}; or pass a checkpoint file with --pretrained, or a folder with --model "
            "local-dir:FOLDER"
        ) from None


def _fetch_model(name: EncoderName, progress: Progress) -> Mapping[str, Any]:
    """Fetch config and weights, and return the architecture's config."""
    if name.model.startswith(LOCAL_DIR):
        return _read_config(Path(name.model.removeprefix(LOCAL_DIR)) / HF_CONFIG_NAME)
    if name.model.startswith(HF_HUB):
        snapshot = look_up(Repository(name.model.removeprefix(HF_HUB), MODEL, prefix=HF_HUB))
        wanted = [_first(snapshot, HF_CONFIG_NAME)]
        if name.pretrained != RANDOM:
            wanted.append(_weights(snapshot, HF_WEIGHTS_NAME))
        folder = download(snapshot, wanted, progress)
        remember(snapshot)
        return _read_config(folder / HF_CONFIG_NAME)
    tag = open_clip.get_pretrained_cfg(name.model, name.pretrained or "")
    if tag.get("hf_hub"):
        place = PurePosixPath(tag["hf_hub"])
        bare = tag["hf_hub"].endswith("/")
        repository = str(place if bare else place.parent)
        snapshot = look_up(Repository(repository, MODEL, prefix=HF_HUB))
        filename = HF_WEIGHTS_NAME if bare else place.name
        download(snapshot, [_weights(snapshot, filename)], progress)
        remember(snapshot)
    return open_clip.get_model_config(name.model) or {}


def _read_config(path: Path) -> Mapping[str, Any]:
    """Read an architecture's config; an invalid one is reported when the encoder is loaded."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return dict(config.get("model_cfg", config))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _weights(snapshot: Snapshot, filename: str) -> str:
    """Choose the weights as open_clip does: safetensors if the repository has them."""
    safe = (
        HF_SAFE_WEIGHTS_NAME
        if filename == HF_WEIGHTS_NAME
        else str(PurePosixPath(filename).with_suffix(".safetensors"))
    )
    return _first(snapshot, safe, filename)


def _first(snapshot: Snapshot, *names: str) -> str:
    found = next((name for name in names if name in snapshot.files), None)
    if found is not None:
        return found
    repository = snapshot.repository
    if snapshot.partial:
        raise FedclipError(
            f"{repository}: {names[0]} is not on this machine; {how_to_carry(repository, names[0])}"
        )
    raise FedclipError(
        f"{repository}: has no {' or '.join(names)}, only {', '.join(sorted(snapshot.files))}; "
        "choose a repository of open_clip"
    )


def _fetch_tokenizer(repository: Repository, progress: Progress) -> None:
    snapshot = look_up(repository)
    download(snapshot, sorted(TOKENIZER_FILES & snapshot.files.keys()), progress)
    remember(snapshot)
