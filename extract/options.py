"""Options of stage one's commands; cheap to import."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..cache import FedclipError
from ..cache.common.fields import option, options_of, suggest
from ..cache.common.options import CacheOptions, DeviceOptions
from .datasets.registry import HF, KNOWN, Columns, HubDataset
from .encoders.prompts import DEFAULT_TEMPLATE, PLAIN_TEMPLATE, TEMPLATE_SETS
from .encoders.spec import (
    DEFAULT_MODEL,
    DEFAULT_PRETRAINED,
    OWN,
    POOLINGS,
    PRECISIONS,
    RANDOM,
    RESIZERS,
    TIMM,
    TRANSFORMERS,
    EncoderName,
    default_model,
)


def architectures() -> Sequence[str]:
    """List open_clip's architectures without importing it."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        return ()
    return sorted(file.stem for file in Path(spec.origin).parent.glob("model_configs/*.json"))


def check_architecture(model: str) -> None:
    """Find a misspelled architecture before a library is imported.

    Raises:
        FedclipError: `model` is neither an architecture nor names its place, as in
            ``hf-hub:OWNER/NAME``.
    """
    known = architectures()
    if known and ":" not in model and model.replace("/", "-") not in known:
        raise FedclipError(
            f"unknown model {model!r}{suggest(model, known)} "
            "(python -c 'import open_clip; print(open_clip.list_models())' lists all)"
        )


@dataclass(frozen=True)
class DataOptions:
    """The location of datasets."""

    PANEL = "Dataset"

    data_dir: Path = option(
        Path("data"), envvar="FEDCLIP_DATA_DIR", help="Folder to look for datasets in."
    )


@dataclass(frozen=True)
class DatasetOptions(DataOptions):
    """The samples to encode, and their classes."""

    dataset: str | None = option(
        None,
        choices=lambda: tuple(KNOWN),
        closed=False,
        metavar="DATASET",
        help="A known dataset (see 'fedclip datasets'), read from --data-dir or else from the "
        "Hugging Face hub; a folder of images or .txt files laid out <domain>/<class>/<image>; "
        f"{HF}OWNER/NAME; or a list, as for --manifest. With --manifest, the folder that its paths "
        "are relative to.",
    )
    listed: Path | None = option(
        None,
        flags=("--manifest",),
        metavar="FILE",
        help="A .csv, .tsv or .parquet list with the columns path (of an image) or text, label "
        "and, unless --client is set, client or domain.",
    )
    client: str | None = option(
        None,
        metavar="NAME",
        help="Name of the only client, to which all samples belong: those of a folder laid out "
        "<class>/<image>, or all rows of a list or table.",
    )
    class_names: str | None = option(
        None,
        metavar="A,B,C|@FILE",
        shown="those that have samples, sorted",
        help="Classes in order, separated by commas or one per line of a file, so that separate "
        "sites agree. A class may have no samples.",
    )
    column: tuple[str, ...] = option(
        (),
        metavar="NAME=COLUMN",
        help="Column of a list that holds path, text, label or client, such as path=file; may be "
        "repeated.",
    )
    offline: bool = option(False, help="Use only files on this machine, as with HF_HUB_OFFLINE=1.")


@dataclass(frozen=True)
class TableOptions:
    """How to read a dataset on the hub; None for the known dataset's value or the usual one.

    Attributes:
        image: Name of the image column.
        text: Name of the text column.
        label: Name of the class column.
        domain: Name of the domain column.
        split: Splits, joined by ``+``.
        revision: A branch, tag or commit.
    """

    PANEL = "Dataset on the Hugging Face hub"

    image: str | None = option(
        None,
        flags=("--image-column",),
        metavar="COLUMN",
        shown="image",
        help="Column of images.",
    )
    text: str | None = option(
        None,
        flags=("--text-column",),
        metavar="COLUMN",
        shown="text, for a table without images",
        help="Column of texts.",
    )
    label: str | None = option(
        None,
        flags=("--label-column",),
        metavar="COLUMN",
        shown="label",
        help="Column of classes.",
    )
    domain: str | None = option(
        None,
        flags=("--domain-column",),
        metavar="COLUMN",
        shown="domain",
        help="Column of domains; each domain is a client.",
    )
    split: str | None = option(
        None,
        metavar="SPLIT",
        panel="Dataset",
        shown="train on the hub; all splits of a folder",
        help="Split, or several joined by +: of a repository on the hub, or of a folder that has "
        "folders such as train and test above its domains or below each.",
    )
    revision: str | None = option(
        None,
        metavar="REVISION",
        shown="main",
        help="Branch, tag or commit of the repository.",
    )

    @property
    def options(self) -> dict[str, str | None]:
        """The values by option name."""
        return {each.flag: getattr(self, name) for name, each in options_of(TableOptions).items()}

    def over(self, place: HubDataset) -> HubDataset:
        """Return `place` with the parts replaced that the user set."""
        columns = Columns(
            image=self.image or ("" if self.text else place.columns.image),
            text=self.text or ("" if self.image else place.columns.text),
            label=self.label or place.columns.label,
            domain=self.domain or place.columns.domain,
        )
        return HubDataset(
            place.repository,
            self.split or place.split,
            columns,
            self.revision or place.revision,
            None if self.domain else place.client,
        )


_DEFAULT_MODELS = f"{DEFAULT_MODEL}; the tiny CLIP for the dataset demo"
_DEFAULT_WEIGHTS = f"{DEFAULT_PRETRAINED}, or the weights of the folder or repository"
_OPEN_CLIP = "An open_clip architecture, local-dir:FOLDER or hf-hub:OWNER/NAME"


@dataclass(frozen=True)
class ModelOptions:
    """The model and its weights."""

    PANEL = "Encoder"

    model: str | None = option(
        None,
        choices=architectures,
        closed=False,
        metavar="MODEL",
        shown=_DEFAULT_MODELS,
        help=f"{_OPEN_CLIP}.",
    )
    pretrained: str | None = option(
        None,
        choices=(DEFAULT_PRETRAINED, RANDOM),
        closed=False,
        metavar="TAG|FILE",
        shown=_DEFAULT_WEIGHTS,
        help=f"A pretrained tag, a checkpoint file, or {RANDOM}.",
    )

    def __post_init__(self) -> None:
        if self.model is not None:
            check_architecture(self.model)

    def encoder_of(self, dataset: str) -> EncoderName:
        """Return the encoder that was chosen, or else the dataset's default."""
        return EncoderName.of(self.model or default_model(dataset), self.pretrained)


@dataclass(frozen=True)
class ArchitectureOptions:
    """An architecture, whatever its weights."""

    PANEL = "Measurement"

    model: str = option(
        DEFAULT_MODEL, metavar="MODEL", help="An open_clip architecture, or local-dir:FOLDER."
    )

    def __post_init__(self) -> None:
        check_architecture(self.model)


@dataclass(frozen=True)
class RecordedOptions:
    """Where the encoder is that an adapter was trained with."""

    PANEL = "Encoder"

    model: str | None = option(
        None,
        metavar="MODEL",
        shown="as the adapter records it",
        help="The encoder's place on this machine, such as local-dir:FOLDER.",
    )
    pretrained: str | None = option(
        None,
        metavar="TAG|FILE",
        shown="as the adapter records it",
        help="The encoder's weights, if they are a file of their own.",
    )


@dataclass(frozen=True)
class EncoderOptions:
    """The encoders and how they compute."""

    PANEL = "Encoder"

    model: tuple[str, ...] = option(
        (),
        choices=architectures,
        closed=False,
        metavar="MODEL",
        shown=_DEFAULT_MODELS,
        help=f"{_OPEN_CLIP}; an image model of timm, {TIMM}NAME.TAG or {TIMM}local-dir:FOLDER; "
        f"or a text model of transformers, {TRANSFORMERS}OWNER/NAME or {TRANSFORMERS}FOLDER. If "
        "repeated, the features of the models are normalized and joined.",
    )
    pretrained: tuple[str, ...] = option(
        (),
        choices=(DEFAULT_PRETRAINED, RANDOM),
        closed=False,
        metavar="TAG|FILE",
        shown=_DEFAULT_WEIGHTS,
        help=f"A pretrained tag, a checkpoint file, or {RANDOM}. With several models, once for "
        f"each; {OWN} stands for the default.",
    )
    precision: str = option(
        "fp32", choices=PRECISIONS, help="Floating-point format of the encoder."
    )
    resizer: str = option(
        "pillow",
        choices=RESIZERS,
        help="Library that resizes images. open_clip uses pillow; torchvision takes half the time "
        "but rounds differently, usually by up to 2/255.",
    )
    pooling: str | None = option(
        None,
        choices=POOLINGS,
        shown="the model's own, else mean",
        help="How the tokens of a text model are pooled to one vector: their mean, or the first.",
    )
    compiled: bool = option(
        False,
        flags=("--compile",),
        help="Compile the encoder with torch.compile, which is worthwhile on a GPU.",
    )

    def __post_init__(self) -> None:
        for model in self.model:
            check_architecture(model)


@dataclass(frozen=True)
class EncodingOptions(DeviceOptions):
    """The device, the batch size and the number of worker processes."""

    PANEL = "Encoding"

    batch_size: int | None = option(
        None,
        least=1,
        most=10**18,
        shown="the cache's; for a new one 64 on a CPU, 256 on a GPU",
        help="Number of samples per batch of the encoder.",
    )
    workers: int | None = option(
        None,
        least=0,
        shown="0 on a CPU; on a GPU one per core, less one",
        help="Number of processes that decode samples in parallel with the encoder; with 0, "
        "threads decode between its batches.",
    )


@dataclass(frozen=True)
class PromptOptions:
    """The prompts of the class texts."""

    PANEL = "Prompts"

    template: tuple[str, ...] = option(
        (),
        shown=f"{DEFAULT_TEMPLATE}; {PLAIN_TEMPLATE} for text models",
        help="Prompt with {} for the class name; may be repeated.",
    )
    template_set: str | None = option(
        None,
        choices=tuple(TEMPLATE_SETS),
        help="Add the prompts published with CLIP for ImageNet.",
    )


@dataclass(frozen=True)
class OutputOptions(CacheOptions):
    """The cache to write."""

    PANEL = "Cache"

    name: str | None = option(None, shown="the dataset's", help="First part of the cache's name.")
    force: bool = option(False, help="Encode everything again.")
    strict: bool = option(False, help="Write nothing if any sample is unusable.")
