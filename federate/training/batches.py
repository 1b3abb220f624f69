"""The minibatches of several tasks, step by step, padded to one shape."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data.samples import Samples
from ..models.losses import Batch
from .tasks import LocalTask

# Added to the logits of padding: small enough for exp() to make it 0, and finite.
_NEVER = -1e30


class Batches:
    """Every minibatch of K tasks.

    Args:
        tasks: Of one width D, one number of classes C and one device.

    Attributes:
        features: (N, D) float32, the tasks' features, those of several tasks once.
        steps: Minibatches of each task.
        samples: Samples in them, counted once an epoch.
        longest: B, the samples of the largest minibatch.
    """

    def __init__(self, tasks: Sequence[LocalTask]) -> None:
        drawn = [task.batches() for task in tasks]
        self.steps = [len(batches) for batches in drawn]
        self.samples = [sum(map(len, batches)) for batches in drawn]
        self.longest = max((len(batch) for batches in drawn for batch in batches), default=0)
        parts = dict.fromkeys(task.samples for task in tasks)
        self.features = _joined([part.features for part in parts])
        labels = _joined([part.labels for part in parts])
        rows = torch.zeros(max(self.steps), len(tasks), self.longest, dtype=torch.int64)
        sizes = torch.zeros(max(self.steps), len(tasks), 1, dtype=torch.int64)
        first_rows = _first_rows(parts)
        for k, (task, batches) in enumerate(zip(tasks, drawn, strict=True)):
            if batches:
                padded = pad_sequence(batches, batch_first=True)
                rows[: len(batches), k, : padded.shape[1]] = padded
                rows[:, k] += first_rows[task.samples]
                sizes[: len(batches), k, 0] = torch.tensor([len(batch) for batch in batches])
        mask = (torch.arange(self.longest) < sizes).float()
        rows = rows.to(labels.device)
        classes = labels[rows]
        first_texts = torch.arange(len(tasks), device=labels.device) * len(tasks[0].text)
        self._steps = Batch(
            rows=rows,
            labels=classes,
            texts=classes + first_texts[:, None],
            mask=mask.to(labels.device),
            weight=(mask / sizes.clamp(min=1)).to(labels.device),
            bias=((1 - mask) * _NEVER).to(labels.device),
        )

    def __call__(self, first: int, last: int, active: int) -> Iterator[Batch]:
        """Yield the minibatches of the steps from `first` to before `last`, of the first tasks."""
        tables = (table[first:last, :active].unbind() for table in self._steps)
        return map(Batch, *tables)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _first_rows(parts: Sequence[Samples] | dict[Samples, None]) -> dict[Samples, int]:
    """Return the first row of each part when they are stacked."""
    firsts, row = {}, 0
    for part in parts:
        firsts[part] = row
        row += len(part)
    return firsts
