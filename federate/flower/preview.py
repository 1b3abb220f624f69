"""What a site would send, field by field, without sending it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, RecordDict

from ...cache.common.device import resolve_device
from ...cache.key import canonical_json
from ..settings import MEANS, Settings
from .client_app import opened
from .messages import CLASS_SUMS, PARAMETERS, Order, pack
from .site import Memory, Site

# What the parts of a message with tensors are.
_TENSORS = {
    PARAMETERS: "tensors of the adapter",
    CLASS_SUMS: "by class, the sum of training features and their number",
}


def preview(path: Path, device: str, *, allow_class_means: bool) -> list[tuple[str, str, str, int]]:
    """Do a round with the default settings, and list every field of what would be sent.

    Returns:
        Kind of message, field, value and size in bytes.

    Raises:
        FedclipError: the file has no class texts, and class means are not allowed.
    """
    cache, where = opened(str(path)), resolve_device(device)
    settings = Settings.preset("paper")
    site = Site(cache, settings, device=where, allow_class_means=allow_class_means)
    sums, means = None, None
    if allow_class_means:
        asking = replace(settings, class_vectors=MEANS)
        sums = Site(cache, asking, device=where, allow_class_means=True).class_sums()
        means = (sums.sums / sums.counts.clamp(min=1)[:, None]).float()
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
        means=means,
    )
    answer = site.answer(order, Memory())
    records = {
        "describe, once": site.facts().to_record(),
        **({"class means, once if asked": sums.to_record()} if sums else {}),
        "initial, once by one site": RecordDict({PARAMETERS: pack(site.run.initial, {})}),
        "every round": answer.to_record(),
    }
    return [(kind, *row) for kind, record in records.items() for row in sorted(fields_of(record))]


def fields_of(record: RecordDict) -> Iterator[tuple[str, str, int]]:
    """Yield every field of a message: its name, value and size in bytes."""
    for part, content in record.items():
        if isinstance(content, ArrayRecord):
            for name, array in content.items():
                yield f"{part}.{name}", _TENSORS[part], len(array.data)
        else:
            for name, value in content.items():
                yield f"{part}.{name}", _shown(value), _size(value)


def _shown(value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "nan, for none"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value.encode()) if isinstance(value, str) else 8 if isinstance(value, float) else 4
