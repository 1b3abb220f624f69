"""What travels between a server and its sites, and its translation to Flower's records.

The server sends an `Order` and a site returns an `Answer`; before training a site describes itself
by `SiteFacts`, and if class vectors are means it sends its `ClassSums`. A record has parts:
`config` (numbers and text), `metrics` (accuracies, loss, seconds), and tensors as one safetensors
file each, which costs one request where an array each would cost two for every tensor:
`parameters`, `class_sums` and `class_means`. docs/federate-across-sites.md lists all fields that
leave a site.

Everything is checked on arrival: whatever is missing, has another type, name, shape or dtype is
refused with a reason.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ...cache import EncoderFacts, FedclipError
from ...cache.common.errors import CacheError
from ...cache.key import canonical_json, image_key
from ..training.tasks import Parameters, all_finite, size_of

# Version of what is exchanged.
FORMAT = 1

# Kinds of messages, in the form that Flower wants.
DESCRIBE = "query.describe"
SUMS = "query.sums"
INITIAL = "query.initial"
ROUND = "train"
END = "query.end"

# Parts of messages that have tensors.
PARAMETERS, CLASS_SUMS, CLASS_MEANS = "parameters", "class_sums", "class_means"

# How much longer than its samples allow a sum of unit vectors may be, by rounding.
_ROUNDING = 1e-6

# Room for the header of a safetensors file, in bytes for every tensor and at least once.
_HEADER = 4096

# The most tensors that a site's initial parameters have room for, and the bytes of a number.
_MOST_TENSORS, _LARGEST_NUMBER = 256, 8

T = TypeVar("T")
Named = Mapping[str, Parameters]


@dataclass(frozen=True)
class SiteFacts:
    """What a site says of itself before it trains: what sites must agree on, and counts.

    Attributes:
        fedclip: Version of the package.
        train: Rows of its training part.
        validation: Rows of its validation part.
        test: Rows of its test part.
        zero_shot: Accuracy of its cached features on its test part.
        parameters: Number of trained numbers.
        target: Whether the site takes no part in training and is only tested.
    """

    fedclip: str
    client: str
    dataset: str
    encoder: EncoderFacts
    embed_dim: int
    logit_scale: float
    normalized: bool
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: int
    validation: int
    test: int
    zero_shot: float
    parameters: int
    target: bool

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of its training, validation and test part."""
        return self.train, self.validation, self.test

    @property
    def key(self) -> str:
        """The image key of its encoder."""
        return image_key(self.encoder)

    def to_record(self) -> RecordDict:
        """Translate to Flower's records."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        values |= {
            "format": FORMAT,
            "encoder": canonical_json(self.encoder.groups),
            "class_names": list(self.class_names),
            "templates": list(self.templates),
        }
        metrics = {"zero_shot": values.pop("zero_shot")}
        return RecordDict({"config": ConfigRecord(values), "metrics": MetricRecord(metrics)})

    @classmethod
    def of_record(cls, record: RecordDict) -> "SiteFacts":
        """Read what `to_record` made.

        Raises:
            FedclipError: something is missing or of another type.
        """
        config, metrics = _part(record, "config"), _part(record, "metrics")
        _check_format(config)
        plain = (str, int, float, bool)
        values: dict[str, Any] = {
            each.name: _value(config, each.name, each.type)
            for each in fields(cls)
            if isinstance(each.type, type) and each.type in plain and each.name != "zero_shot"
        }
        try:
            encoder = EncoderFacts.from_groups(json.loads(_value(config, "encoder", str)))
            image_key(encoder)
            canonical_json(encoder.groups).encode()
            if not isinstance(encoder.get("parameters"), int | None):
                raise ValueError("parameters is not a number")
        except (CacheError, ValueError, TypeError, RecursionError) as error:
            raise FedclipError(f"its encoder is described badly ({error})") from None
        counts = [values[name] for name in ("train", "validation", "test", "parameters")]
        if min(counts) < 0 or values["embed_dim"] < 1:
            raise FedclipError("it reports a negative number of rows")
        return cls(
            **values,
            encoder=encoder,
            class_names=_texts(config, "class_names"),
            templates=_texts(config, "templates"),
            zero_shot=_accuracy(metrics, "zero_shot"),
        )


@dataclass(frozen=True, eq=False)
class ClassSums:
    """What a site sends once, and only if it allows that, so that all can have class means.

    Attributes:
        sums: (C, D) float64 sums of its normalized training features by class.
        counts: (C,) int64 numbers of its training samples by class.
    """

    sums: Tensor
    counts: Tensor

    @property
    def digest(self) -> str:
        """SHA-256 of both, 64 hex digits."""
        both = (each.cpu().numpy().tobytes() for each in (self.sums, self.counts))
        return hashlib.sha256(b"".join(both)).hexdigest()

    def to_record(self) -> RecordDict:
        """Translate to Flower's records."""
        sums = pack({"sums": self.sums, "counts": self.counts}, {})
        return RecordDict({"config": ConfigRecord({"format": FORMAT}), CLASS_SUMS: sums})

    @classmethod
    def of_record(cls, record: RecordDict, facts: SiteFacts) -> "ClassSums":
        """Read what `to_record` made.

        Args:
            record: As it arrived.
            facts: What the site said of itself.

        Raises:
            FedclipError: something is missing or of another type or shape, or cannot be what the
                site's training samples come to.
        """
        _check_format(_part(record, "config"))
        classes, width = len(facts.class_names), facts.embed_dim
        like = {
            "sums": torch.empty(classes, width, dtype=torch.float64, device="meta"),
            "counts": torch.empty(classes, dtype=torch.int64, device="meta"),
        }
        found, _ = unpack(record, like, {}, CLASS_SUMS)
        sums, counts = found["sums"], found["counts"]
        if counts.min() < 0 or counts.max() > facts.train or counts.sum() != facts.train:
            raise FedclipError("its counts by class are not those of its training samples")
        if not bool((sums.norm(dim=1) <= counts * (1 + _ROUNDING)).all()):
            raise FedclipError("its sums by class are not those of normalized features")
        return cls(sums, counts)


@dataclass(frozen=True, eq=False)
class Order:
    """What the server sends a site for a round.

    Attributes:
        run: Identifies the run, so that a site knows what it kept for it.
        number: The round, counted from 1.
        settings: All settings of the run as JSON text.
        target: Name of the client that takes no part in training and is only tested; '' if
            there is none.
        train: Whether to train.
        evaluate: Whether to evaluate `parameters` before training, which are those of the
            round before.
        best: The best round so far, 0 if none is.
        parameters: As in an `Instruction`.
        extra: As in an `Instruction`.
        means: (C, D) class means of all sites; None if classes have texts, or the site has them.
    """

    run: str
    number: int
    settings: str
    target: str
    train: bool
    evaluate: bool
    best: int
    parameters: Parameters
    extra: Named
    means: Tensor | None = None

    def to_record(self) -> RecordDict:
        """Translate to Flower's records."""
        config = {
            "format": FORMAT,
            "run": self.run,
            "number": self.number,
            "settings": self.settings,
            "target": self.target,
            "train": self.train,
            "evaluate": self.evaluate,
            "best": self.best,
        }
        parts = {PARAMETERS: pack(self.parameters, self.extra), **with_means(self.means)}
        return RecordDict({"config": ConfigRecord(config), **parts})

    @classmethod
    def of_record(
        cls, record: RecordDict, like: tuple[Parameters, Named], means: Tensor
    ) -> "Order":
        """Read what `to_record` made.

        Args:
            record: As it arrived.
            like: Parameters and extras whose names, shapes and dtypes it must have.
            means: A tensor whose shape and dtype class means must have.

        Raises:
            FedclipError: something is missing or of another type, or a tensor does not fit.
        """
        config = _part(record, "config")
        _check_format(config)
        parameters, extra = unpack(record, *like)
        number, best = _value(config, "number", int), _value(config, "best", int)
        if number < 1 or not 0 <= best < number:
            raise FedclipError(f"round {number} with best round {best} cannot be")
        return cls(
            run=_value(config, "run", str),
            number=number,
            settings=_value(config, "settings", str),
            target=_value(config, "target", str),
            train=_value(config, "train", bool),
            evaluate=_value(config, "evaluate", bool),
            best=best,
            parameters=parameters,
            extra=extra,
            means=means_of(record, means),
        )


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of a model at a site; NaN where a part is empty or there is no such model.

    Attributes:
        validation: On the validation part, of the model that the strategy is for.
        test: On the test part, of the server's model.
        personal: On the test part, of the site's own model.
    """

    validation: float
    test: float
    personal: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What a site sends back.

    Attributes:
        number: The round.
        samples: Rows of its training part.
        trained: Whether it trained; otherwise `parameters` and `extra` are empty.
        finite: Whether everything that it trained is finite, what it keeps included.
        loss: Mean training loss; NaN if it did not train.
        seconds: What evaluating and training took.
        evaluation: Of what it received, if it was to evaluate.
    """

    number: int
    samples: int
    trained: bool
    finite: bool
    loss: float
    seconds: float
    evaluation: Evaluation | None
    parameters: Parameters
    extra: Named

    def to_record(self) -> RecordDict:
        """Translate to Flower's records."""
        config = {
            "format": FORMAT,
            "number": self.number,
            "samples": self.samples,
            "trained": self.trained,
            "finite": self.finite,
        }
        metrics = {"loss": self.loss, "seconds": self.seconds}
        if self.evaluation is not None:
            metrics |= asdict(self.evaluation)
        content = {"config": ConfigRecord(config), "metrics": MetricRecord(metrics)}
        if self.trained:
            content[PARAMETERS] = pack(self.parameters, self.extra)
        return RecordDict(content)

    @classmethod
    def of_record(cls, record: RecordDict, like: tuple[Parameters, Named]) -> "Answer":
        """Read what `to_record` made.

        Args:
            record: As it arrived.
            like: As of `Order`.

        Raises:
            FedclipError: as `Order`, or an accuracy is not one.
        """
        config, metrics = _part(record, "config"), _part(record, "metrics")
        _check_format(config)
        trained = _value(config, "trained", bool)
        parameters, extra = unpack(record, *like) if trained else ({}, {})
        evaluation = None
        if "validation" in metrics:
            evaluation = Evaluation(
                **{each.name: _accuracy(metrics, each.name) for each in fields(Evaluation)}
            )
        return cls(
            number=_value(config, "number", int),
            samples=_value(config, "samples", int),
            trained=trained,
            finite=_value(config, "finite", bool),
            loss=_value(metrics, "loss", float),
            seconds=_seconds(metrics),
            evaluation=evaluation,
            parameters=parameters,
            extra=extra,
        )


def pack(parameters: Parameters, extra: Named) -> ArrayRecord:
    """Put tensors into a record: one array that holds the bytes of a safetensors file."""
    tensors = {f"parameters/{name}": tensor for name, tensor in parameters.items()}
    tensors |= {
        f"extra/{part}/{name}": tensor
        for part, more in extra.items()
        for name, tensor in more.items()
    }
    # Copied, as parts may share tensors, which safetensors refuses.
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    content = save(copies)
    array = Array(dtype="uint8", shape=(len(content),), stype="safetensors", data=content)
    return ArrayRecord({"safetensors": array})


def unpack(
    record: RecordDict, parameters: Parameters, extra: Named, part: str = PARAMETERS
) -> tuple[Parameters, Named]:
    """Read what `pack` made; it must have the names, shapes and dtypes of what is given.

    Raises:
        FedclipError: it differs, or is no safetensors file.
    """
    count = len(parameters) + sum(map(len, extra.values()))
    tensors = _load(record, part, size_of(parameters, *extra.values()) + _HEADER * (1 + count))
    found = _checked(tensors, "parameters", parameters)
    more = {name: _checked(tensors, f"extra/{name}", wanted) for name, wanted in extra.items()}
    if tensors:
        raise FedclipError(f"{min(tensors)}: is not a name of a parameter here")
    return found, more


def initial_of(record: RecordDict, count: int) -> Parameters:
    """Read the initial parameters that a site sent, whose names and shapes only sites know.

    Args:
        record: As it arrived.
        count: How many numbers there must be in all.

    Raises:
        FedclipError: they are missing, too many or too few, or not finite.
    """
    tensors = _load(record, PARAMETERS, _LARGEST_NUMBER * count + _HEADER * _MOST_TENSORS)
    parameters = {name.removeprefix("parameters/"): each for name, each in tensors.items()}
    numbers = sum(each.numel() for each in parameters.values())
    if numbers != count or any("/" in name for name in parameters):
        raise FedclipError(f"its initial parameters are {numbers:,} numbers in place of {count:,}")
    floats = all(each.is_floating_point() for each in parameters.values())
    if not (floats and all_finite([parameters])):
        raise FedclipError("its initial parameters are not finite numbers")
    return parameters


def _load(record: RecordDict, part: str, largest: int) -> dict[str, Tensor]:
    """Read the safetensors file in a part of a message, of at most `largest` bytes."""
    packed, what = record.get(part), part.replace("_", " ")
    if not isinstance(packed, ArrayRecord) or [*packed] != ["safetensors"]:
        raise FedclipError(f"the message has no {what}")
    content = packed["safetensors"].data
    if len(content) > largest:
        raise FedclipError(f"the message has {len(content):,} bytes of {what}, too many")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FedclipError(f"the {what} cannot be read ({error})") from None


def with_means(means: Tensor | None) -> dict[str, ArrayRecord]:
    """Return the part of a message that has class means; nothing if there are none."""
    return {} if means is None else {CLASS_MEANS: pack({"means": means}, {})}


def means_of(record: RecordDict, like: Tensor) -> Tensor | None:
    """Read what `with_means` made; None if the message has no class means.

    Raises:
        FedclipError: they have another shape or dtype than `like`, or NaN or Inf.
    """
    if CLASS_MEANS not in record:
        return None
    found, _ = unpack(record, {"means": like}, {}, CLASS_MEANS)
    if not all_finite([found]):
        raise FedclipError("the server sent class means with NaN or Inf")
    return found["means"]


def _checked(tensors: dict[str, Tensor], part: str, wanted: Parameters) -> Parameters:
    """Take the tensors of a part out of `tensors`, on the device of those wanted if it is one."""
    found = {}
    for name, like in sorted(wanted.items()):
        tensor = tensors.pop(f"{part}/{name}", None)
        if tensor is None:
            raise FedclipError(f"{part}/{name}: is missing")
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise FedclipError(
                f"{part}/{name}: has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, but "
                f"{tuple(like.shape)} and {like.dtype} are expected"
            )
        found[name] = tensor if like.is_meta else tensor.to(like.device)
    return found


def _part(record: RecordDict, name: str) -> Mapping[str, Any]:
    part = record.get(name)
    if not isinstance(part, ConfigRecord | MetricRecord):
        raise FedclipError(f"the message has no {name}")
    values: Mapping[str, Any] = part
    return values


def _value(part: Mapping[str, Any], name: str, kind: type[T]) -> T:
    value = part.get(name)
    if type(value) is not kind:
        raise FedclipError(f"{name}: is {value!r}, but a value of type {kind.__name__} is expected")
    return value


def _accuracy(metrics: Mapping[str, Any], name: str) -> float:
    value = _value(metrics, name, float)
    if not (math.isnan(value) or 0 <= value <= 1):
        raise FedclipError(f"{name}: is {value}, which is no accuracy")
    return value


def _seconds(metrics: Mapping[str, Any]) -> float:
    value = _value(metrics, "seconds", float)
    if not 0 <= value < math.inf:
        raise FedclipError(f"seconds: is {value}, which is no duration")
    return value


def _texts(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = _value(config, name, list)
    if not all(isinstance(each, str) for each in value):
        raise FedclipError(f"{name}: has values that are not text")
    return tuple(value)


def _check_format(config: Mapping[str, Any]) -> None:
    if config.get("format") != FORMAT:
        raise FedclipError(
            f"the message has format {config.get('format')!r}, but this fedclip has {FORMAT}; "
            "install the same version on server and sites"
        )
