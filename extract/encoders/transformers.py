"""Encoders of Hugging Face's transformers: text models such as BERT and sentence-transformers.

A text's vector is pooled over its tokens: their mean, or that of the first token (CLS). A folder
of sentence-transformers says which it was trained with; others use the mean. A final
normalization is left out, since caches contain raw vectors. One tower serves both samples and
prompts, so texts compare with class names.

Any error that transformers, torch or the hub's client raises on weights, configs or tokenizers is
reported in one line.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.extras import load_extra
from ...cache.common.progress import Progress, no_progress
from ...cache.key import EncoderFacts, file_sha256
from ..hub import MODEL, Repository, download, look_up, remember
from .base import (
    DTYPES,
    Launched,
    Launcher,
    Vectors,
    check_finite,
    check_unused,
    compiled,
    facts_of,
    pad_batch,
    quiet,
    tokenizer_sha256,
)
from .sentences import MODULES_FILE, PROMPTS_FILE, SENTENCE_FILES, read_json, read_sentences
from .spec import RANDOM, TRANSFORMERS, EncoderName
from .transforms import UnusableError
from .weights import TOKENIZER_FILES

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# The longest text of a model whose config names none, in tokens.
LONGEST = 512

# Texts are padded to the first of these numbers of tokens that they fit into. A text's number
# depends on itself alone, so its vector does not depend on the texts beside it.
BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

PROMPT_BATCH = 16

_CUT = 2

# Unicode's categories of control characters, such as NUL and zero-width ones, and of spaces.
_INVISIBLE = "CZ"


@dataclass(frozen=True, eq=False)
class TransformersEncoder:
    """A frozen text model on a device, a `SampleEncoder` and a `TextEncoder`.

    Attributes:
        name: The encoder as the user names it.
        facts: The facts that identify it.
        sources: The files on this machine that it was loaded from.
        model: The network, in evaluation mode.
        decode: Function from UTF-8 bytes to (2, L) int64 tokens, see `Tokenize`.
        device: The device it runs on.
        logit_scale: 1, as it has none.
        samples: Texts.
    """

    name: EncoderName
    facts: EncoderFacts
    sources: tuple[Path, ...]
    model: nn.Module
    decode: "Tokenize"
    device: torch.device
    logit_scale: float = 1.0
    samples: Literal["texts"] = "texts"

    @property
    def blank(self) -> Tensor:
        """No tokens, (2, L) int64."""
        return torch.zeros(2, self.decode.context, dtype=torch.int64)

    def launch(self, inputs: Tensor) -> Launched:
        """Start encoding (B, 2, L) int64 tokens to (B, D) float32 raw features."""
        return self._launcher(inputs)

    def cut_off(self, inputs: Tensor) -> Tensor:
        """Return which of (B, 2, L) tokenized texts were longer than L tokens, (B,) bool."""
        return (inputs[:, 1] == _CUT).any(dim=1)

    def encode_texts(self, prompts: Sequence[str]) -> Vectors:
        """Encode N prompts to (N, D) float32 raw features, in batches of one size."""
        tokens = torch.stack([self.decode(text.encode()) for text in prompts])
        batches = [
            self.launch(pad_batch(batch, PROMPT_BATCH)).features
            for batch in torch.split(tokens, PROMPT_BATCH)
        ]
        array: Vectors = torch.cat(batches)[: len(prompts)].numpy()
        return array

    @cached_property
    def _launcher(self) -> Launcher:
        encode = compiled(self._pooled) if self.name.compiled else self._pooled

        def by_length(inputs: Tensor) -> Tensor:
            features = torch.zeros(len(inputs), _width(self.model), device=inputs.device)
            for rows, length in _buckets((inputs[:, 1] > 0).sum(dim=1), inputs.shape[2]):
                batch = pad_batch(inputs[rows, :, :length], len(inputs))
                features[rows] = encode(batch)[: len(rows)].float()
            return features

        return Launcher(by_length, self.device)

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Encode (B, 2, L) tokens of which each row has at least one."""
        numbers, mask = tokens[:, 0], (tokens[:, 1] > 0).long()
        hidden: Tensor = self.model(input_ids=numbers, attention_mask=mask).last_hidden_state
        if self.facts["pooling"] == "cls":
            return hidden[:, 0]
        # As sentence-transformers computes it: Reimers and Gurevych 2019, section 3.
        weights = mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


@dataclass(frozen=True, eq=False)
class Tokenize:
    """Turns a text's bytes into tokens, without white space around it; longer texts are cut off.

    Attributes:
        tokenizer: A fast tokenizer of transformers, which can be pickled.
        context: Number of tokens, L.
        lower: Whether texts are turned to lower case first.
    """

    tokenizer: Any
    context: int
    lower: bool = False

    def __call__(self, content: bytes) -> Tensor:
        """Tokenize UTF-8 bytes to (2, L) int64: token numbers, and 1 for each token.

        In a text that is cut off, the last token has a 2.

        Raises:
            UnusableError: the bytes are not UTF-8 or contain no text.
        """
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise UnusableError("is not UTF-8") from None
        if all(unicodedata.category(each)[0] in _INVISIBLE for each in text):
            raise UnusableError("is empty")
        tokens = self.encode([text])[0]
        if not tokens[1].any():
            raise UnusableError("has nothing that the tokenizer knows")
        return tokens

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Tokenize N texts to (N, 2, L) int64, each as above."""
        stripped = [text.strip() for text in texts]
        encoded = self.tokenizer(
            [text.lower() for text in stripped] if self.lower else stripped,
            truncation=True,
            max_length=self.context,
            padding="max_length",
            return_attention_mask=True,
        )
        mask = torch.tensor(encoded["attention_mask"])
        for row, encoding in zip(mask, encoded.encodings, strict=True):
            if encoding.overflowing:
                row[-1] = _CUT
        return torch.stack([torch.tensor(encoded["input_ids"]), mask], dim=1)


def _buckets(lengths: Tensor, context: int) -> Iterator[tuple[Tensor, int]]:
    """Group the rows of a batch that are padded alike; rows without tokens are in no group."""
    shorter = 0
    for bucket in (*(each for each in BUCKETS if each < context), context):
        (rows,) = torch.nonzero((lengths > shorter) & (lengths <= bucket), as_tuple=True)
        if len(rows):
            yield rows, bucket
        shorter = bucket


def fetch_encoder(name: EncoderName, progress: Progress = no_progress) -> None:
    """Download a model's files if they are on the hub and not on this machine.

    Raises:
        FedclipError: a file is missing and cannot be downloaded.
    """
    _folder(name, progress)


def load_encoder(name: EncoderName, device: torch.device) -> TransformersEncoder:
    """Build a model, load its weights and tokenizer and collect the facts that identify it.

    Raises:
        FedclipError: transformers is not installed, or the folder lacks a file or has one that
            does not fit or cannot be loaded safely.
    """
    load_extra("text")
    folder = _folder(name)
    config = read_json(folder / CONFIG_FILE)
    sentences = read_sentences(folder, name.pooling)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # makes random weights reproducible
        model = _build(name, folder)
        tokenizer = _tokenizer(name, folder)
    weights = [] if name.pretrained == RANDOM else _weights(folder)
    tokenize = Tokenize(tokenizer, _context(sentences.longest, tokenizer, model), sentences.lower)
    _check_texts(name, model.eval(), tokenize)
    facts = facts_of(
        name,
        "transformers",
        model,
        _sha256_of(weights) if weights else None,
        shared={
            "architecture": {
                key: value
                for key, value in config.items()
                if key not in ("_name_or_path", "transformers_version")
            },
            "pooling": sentences.pooling,
            "context": tokenize.context,
            "tokenizer": tokenizer_sha256(lambda texts: tokenize.encode(texts)[:, 0]),
        },
        place=folder,
    )
    return TransformersEncoder(
        name=name,
        facts=facts,
        sources=(folder.absolute(), *sorted(_files(folder))),
        model=model.to(DTYPES[name.precision]).requires_grad_(False).to(device),
        decode=tokenize,
        device=device,
    )


def _files(folder: Path) -> list[Path]:
    """List a model's files: those of the folder, and the configs of its parts."""
    return [each for each in (*folder.glob("*"), *folder.glob("*/config.json")) if each.is_file()]


def _check_texts(name: EncoderName, model: nn.Module, tokenize: "Tokenize") -> None:
    """Encode one text, to find out whether the model takes texts at all.

    Raises:
        FedclipError: it does not, such as one of images.
    """
    try:
        with quiet(), torch.inference_mode():
            numbers = tokenize.encode(["a"])[:, 0, :1]
            hidden = model(input_ids=numbers, attention_mask=torch.ones_like(numbers))
            shape = tuple(hidden.last_hidden_state.shape)
        if shape != (1, 1, _width(model)):
            raise ValueError(f"its output is of shape {shape}")
    except Exception as error:  # models of other kinds fail in many ways
        raise FedclipError(
            f"{name.model}: does not encode texts ({first_line(error)}); choose a text encoder "
            "such as BERT, with a tokenizer of the tokenizers library"
        ) from None


def _width(model: nn.Module) -> int:
    """Return the width of a network's output, whatever its family calls it."""
    config: Any = model.config
    return int(config.hidden_size)


def _folder(name: EncoderName, progress: Progress = no_progress) -> Path:
    """Find the model's folder, and download its files first if it is on the hub."""
    place = name.model.removeprefix(TRANSFORMERS)
    if Path(place).is_dir():
        return Path(place)
    if place.startswith(("/", ".", "~")):
        raise FedclipError(f"{name.model}: no such folder; check the path")
    snapshot = look_up(Repository(place, MODEL))
    wanted = {*TOKENIZER_FILES, CONFIG_FILE, MODULES_FILE, PROMPTS_FILE, *SENTENCE_FILES}
    wanted |= {each for each in snapshot.files if fnmatch(each, f"*/{CONFIG_FILE}")}
    if name.pretrained != RANDOM:
        shards = {each for each in snapshot.files if fnmatch(each, "model-*.safetensors")}
        wanted |= {WEIGHTS_FILE} if WEIGHTS_FILE in snapshot.files else {INDEX_FILE, *shards}
    folder = download(snapshot, sorted(wanted & snapshot.files.keys()), progress)
    remember(snapshot)
    return folder


def _weights(folder: Path) -> list[Path]:
    """List the files of weights.

    Raises:
        FedclipError: the folder has no safetensors, or names a file outside of it.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        raise FedclipError(
            f"{folder}: has no {WEIGHTS_FILE}; pass a folder or repository with safetensors, or "
            f"--pretrained {RANDOM}"
        )
    shards = read_json(folder / INDEX_FILE).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) else []
    if not names or any(not isinstance(each, str) or Path(each).name != each for each in names):
        raise FedclipError(f"{folder / INDEX_FILE}: names no files of this folder; get it again")
    return [folder / each for each in names]


def _sha256_of(files: Sequence[Path]) -> str:
    """Hash a model's files: that of the only one, or that of all their hashes."""
    hashes = [file_sha256(each) for each in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _context(longest: int | None, tokenizer: Any, model: nn.Module) -> int:
    """Return the longest text in tokens: what the folder or tokenizer says, if it fits."""
    limits = [longest or tokenizer.model_max_length, _positions(model)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit <= BUCKETS[-1]]
    return min(known, default=LONGEST)


def _positions(model: nn.Module) -> Any:
    """Return how many tokens a network has positions for; None if it does not say."""
    for name, part in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            # Families such as RoBERTa number positions from the padding's number on.
            first = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - first
    return getattr(model.config, "max_position_embeddings", None)


def _build(name: EncoderName, folder: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        if config.is_encoder_decoder:
            raise ValueError(f"{config.model_type} is an encoder-decoder")
        if name.pretrained == RANDOM:
            made: nn.Module = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
            return made
        files = _weights(folder)
        model, report = AutoModel.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
    except FedclipError:
        raise
    except Exception as error:
        raise FedclipError(
            f"{folder}: cannot be loaded as a text model ({first_line(error)}); pass a folder that "
            "transformers has saved as safetensors"
        ) from None
    _check_numbers(folder, model, files)
    missing = sorted(each for each in report["missing_keys"] if not each.startswith("pooler."))
    if missing:
        raise FedclipError(
            f"{folder}: its weights lack {missing[0]}"
            + (f" and {len(missing) - 1} more" if missing[1:] else "")
            + f"; get them again, or pass --pretrained {RANDOM}"
        )
    try:
        check_unused(model, report["unexpected_keys"], model.base_model_prefix)
    except FedclipError as error:
        raise FedclipError(f"{folder}: {error}; get {CONFIG_FILE} and weights again") from None
    return model  # type: ignore[no-any-return]


def _check_numbers(folder: Path, model: nn.Module, files: Sequence[Path]) -> None:
    """Refuse weights that are quantized, of which loading keeps other numbers, or not finite.

    Raises:
        FedclipError: they are.
    """
    own = model.state_dict()
    base = f"{model.base_model_prefix}."
    for file in files:
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                tensor = own.get(key.removeprefix(base))
                dtype = opened.get_slice(key).get_dtype()
                if tensor is not None and tensor.is_floating_point() and "F" not in dtype:
                    raise FedclipError(
                        f"{file}: has {dtype} in place of floats in {key}; pass weights that are "
                        "not quantized"
                    )
    try:
        check_finite(own)
    except FedclipError as error:
        raise FedclipError(f"{folder}: {error}; get its weights again") from None


def _tokenizer(name: EncoderName, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_fast=True
        )
        if {*tokenizer.get_vocab()} <= {*tokenizer.all_special_tokens}:
            raise ValueError("it has no words; its vocabulary is missing")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        return tokenizer
    except Exception as error:
        raise FedclipError(
            f"{name.model}: its tokenizer cannot be loaded ({first_line(error)}); get its files "
            "again"
        ) from None
