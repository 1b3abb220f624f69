"""What training costs: parameters, bytes, multiply-adds, and seconds on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from ...cache import EncoderFacts, FeatureCache
from ...cache.common.text import counted, duration, inflected
from ...cache.schema import DIGEST_SIZE
from ..data.federation import FeaturePool, class_texts
from ..data.samples import Samples
from ..models.base import Model
from ..models.network import Network, trainable_parameters
from ..seeding import generator, seed_of
from ..settings import Settings
from ..simulation import Run
from ..training.engine import train_clients
from ..training.evaluate import accuracy
from ..training.tasks import LocalTask, copy_parameters, size_of

# Minibatches are timed for about this many seconds, and at most this many of them.
SECONDS_TIMED = 1.0
MOST_STEPS = 50


@dataclass(frozen=True)
class Pace:
    """How fast a model is trained and evaluated here.

    Attributes:
        step: Seconds that a minibatch takes.
        sample: Seconds that evaluating a sample takes.
    """

    step: float
    sample: float


def measure_pace(network: Network, task: LocalTask) -> Pace:
    """Time a few minibatches of a task, and the evaluation of one.

    Args:
        network: What is trained; its own parameters are overwritten.
        task: Of which the rows of one minibatch are taken.
    """
    rows = task.samples.rows[: task.settings.batch_size]
    part = replace(task.samples, rows=rows)
    task = replace(task, samples=part)

    def train(steps: int) -> float:
        settings = replace(task.settings, local_epochs=steps)
        return _seconds(lambda: train_clients(network, [replace(task, settings=settings)]))

    def evaluate() -> float:
        return _seconds(lambda: accuracy(network, task.model, part, task.text, task.logit_scale))

    train(1)
    evaluate()
    steps = max(1, min(MOST_STEPS, round(SECONDS_TIMED / train(1))))
    return Pace(train(steps) / steps, evaluate() / len(part))


def _seconds(work: Callable[[], object]) -> float:
    # The timed work ends by copying a number to the CPU, so a GPU has finished by then.
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forecast(run: Run, runs: int) -> str:
    """Forecast in a line what training will cost, from a few minibatches.

    Args:
        run: The one that is about to begin.
        runs: Number of runs like it that are to be done, this one included.
    """
    settings, federation = run.settings, run.federation
    tasks = [
        task
        for name, instruction in run.server.instruct(run.state.server).items()
        for task in settings.strategy.tasks(run.client_round(name, instruction)).values()
    ]
    pace = measure_pace(run.network, tasks[0])
    steps = sum(task.steps for task in tasks)
    samples = sum(len(each.validation) + len(each.test) for each in federation.clients)
    seconds = pace.step * steps + pace.sample * samples / settings.eval_every
    rounds = settings.rounds * runs - run.number
    return (
        f"cost       {run.trainable_parameters:,} trainable "
        f"{inflected(run.trainable_parameters, 'parameter')}, "
        f"{decimal(run.bytes_per_client)} per round and client each way; about {seconds:.0f} s a "
        f"round here ({counted(steps, 'minibatch', 'minibatches')} of {pace.step:.2f} s, "
        f"{counted(samples, 'image')} to evaluate), {counted(rounds, 'round')} left: about "
        f"{duration(seconds * rounds)}"
    )


@dataclass(frozen=True)
class Counts:
    """What a model costs on any machine.

    Attributes:
        parameters: Trainable ones.
        message: Bytes that a client sends, and receives, in a round.
        inference: Multiply-adds of classifying one sample more, class texts not counted.
        training: Multiply-adds of training on a sample, forward and backward, in a full
            minibatch and with the texts of all classes.
    """

    parameters: int
    message: int
    inference: int
    training: int


@dataclass(frozen=True)
class Cost(Counts):
    """What a model costs here.

    Attributes:
        epoch: Seconds that a client's local epoch takes on this machine.
    """

    epoch: float


def drawn_cache(embed_dim: int, classes: int, rows: int) -> FeatureCache:
    """Draw a client's cache to measure on: what the numbers in it are changes no cost.

    Args:
        embed_dim: Width of the features, D.
        classes: Number of classes, C.
        rows: Number of samples, N.
    """
    random = generator("cost", embed_dim, classes, rows)
    features = random.standard_normal((rows, embed_dim), np.float32)
    return FeatureCache(
        dataset="drawn",
        client="drawn",
        encoder=EncoderFacts(),
        logit_scale=100.0,
        normalized=False,
        image_features=features,
        labels=np.arange(rows, dtype=np.int32) % classes,
        ids=tuple(map(str, range(rows))),
        digests=np.zeros((rows, DIGEST_SIZE), np.uint8),
        class_names=tuple(f"class {index}" for index in range(classes)),
        templates=("{}",),
        text_features=random.standard_normal((classes, 1, embed_dim), np.float32),
    )


class ClientCost:
    """What a client's round costs with a model.

    Args:
        cache: Whose rows are trained on, again and again if they are few; two at least.
        settings: The adapter, batches, loss and optimizer.
        samples: Of a local epoch; two at least.
        device: Where it is trained.
        model: What is trained; by default the settings' adapter.
    """

    def __init__(
        self,
        cache: FeatureCache,
        settings: Settings,
        samples: int,
        device: torch.device,
        model: Model | None = None,
    ) -> None:
        model = model or settings.adapter
        (domain,) = FeaturePool([cache], None, device, model=model).domains
        train = Samples(domain, torch.arange(samples, device=device) % len(cache.labels))
        text = torch.from_numpy(class_texts(cache, settings.prompts)).to(device)
        self._network = model.make(text, seed_of(model.kind, settings.seed)).to(device)
        start = copy_parameters(self._network)
        self._task = LocalTask(
            domain.name, model, train, text, cache.logit_scale, settings.training, 1, start
        )
        self._loss = settings.loss

    def count(self) -> Counts:
        """Count parameters, bytes and multiply-adds."""
        task, network, batch = self._task, self._network, self._task.settings.batch_size
        classes = task.model.texts(task.text)

        def classify(rows: int) -> Tensor:
            inputs, _ = task.samples[:rows]
            return network.logits(inputs, classes, task.logit_scale)

        def learn() -> None:
            inputs, labels = task.samples[:batch]
            loss = network.loss(inputs, classes, labels, task.logit_scale, self._loss)
            if loss.requires_grad:
                torch.autograd.backward(loss)

        return Counts(
            parameters=trainable_parameters(network),
            message=size_of(task.start),
            inference=multiply_adds(lambda: classify(2)) - multiply_adds(lambda: classify(1)),
            training=multiply_adds(learn) // min(len(task.samples), batch),
        )

    def time(self, counts: Counts) -> Cost:
        """Add the seconds that a local epoch takes on this machine."""
        epoch = measure_pace(self._network, self._task).step * self._task.steps
        return Cost(**vars(counts), epoch=epoch)


def multiply_adds(work: Callable[[], object]) -> int:
    """Count the multiply-adds of the matrix products and convolutions in `work`."""
    # Importing it loads a compiler: 70 MB that no run over features needs.
    from torch.utils.flop_counter import FlopCounterMode

    # The fused path of nn.MultiheadAttention is one operation that the counter does not know.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
