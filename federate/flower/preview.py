"""What a site would send, field by field, without sending it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from ...cache.common.device import resolve_device
from ...cache.key import canonical_json
from ..settings import Settings
from .client_app import opened
from .messages import Order, pack
from .site import Memory, Site

# Longer values are cut.
_WIDTH = 60


def preview(path: Path, device: str) -> list[tuple[str, str, str, int]]:
    """Do a round with the default settings, and list every field of what would be sent.

    Returns:
        Kind of message, field, value and size in bytes.
    """
    settings = Settings.preset("paper")
    site = Site(opened(str(path)), settings, device=resolve_device(device))
    parameters, extra = site.like
    order = Order(
        run="preview",
        number=2,
        settings=canonical_json(settings.to_json()),
        target="",
        train=True,
        evaluate=True,
        best=0,
        parameters=parameters,
        extra=extra,
    )
    answer = site.answer(order, Memory())
    records = {
        "describe, once": site.facts().to_record(),
        "initial, once by one site": RecordDict({"parameters": pack(site.run.initial, {})}),
        "every round": answer.to_record(),
    }
    return [(kind, *row) for kind, record in records.items() for row in sorted(fields_of(record))]


def fields_of(record: RecordDict) -> Iterator[tuple[str, str, int]]:
    """Yield every field of a message: its name, value and size in bytes."""
    for part, content in record.items():
        if isinstance(content, ArrayRecord):
            for name, array in content.items():
                yield f"{part}.{name}", "tensors of the adapter", len(array.data)
        else:
            for name, value in content.items():
                yield f"{part}.{name}", _short(value), _size(value)


def _short(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value.encode()) if isinstance(value, str) else 8 if isinstance(value, float) else 4
