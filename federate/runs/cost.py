"""What training costs: parameters, bytes, multiply-adds, and seconds on this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import torch
from rich.filesize import decimal
from torch import Tensor

from ...cache import FeatureCache
from ...cache.schema import DIGEST_SIZE
from ..data.federation import Client, FeaturePool, Federation, class_texts
from ..data.samples import Samples
from ..models.adapters import Adapter, trainable_parameters
from ..models.full import WholeModel, training_loss
from ..seeding import generator
from ..server import Run, make_model
from ..settings import Settings
from ..training.engine import LocalTask, copy_parameters, train_clients
from ..training.evaluate import accuracy

# Minibatches are timed for about so long, and at most so many.
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


def measure_pace(model: Adapter, task: LocalTask) -> Pace:
    """Time a few minibatches of a task, and the evaluation of one.

    Args:
        model: What is trained; its own parameters are overwritten.
        task: Of which the rows of one minibatch are taken.
    """
    rows = task.client.train.rows[: task.settings.batch_size]
    part = replace(task.client.train, rows=rows)
    task = replace(task, client=replace(task.client, train=part))

    def train(steps: int) -> float:
        settings = replace(task.settings, local_epochs=steps)
        return _seconds(lambda: train_clients(model, [replace(task, settings=settings)]))

    def evaluate() -> float:
        return _seconds(lambda: accuracy(model, task.federation, part))

    train(1)
    evaluate()
    steps = max(1, min(MOST_STEPS, round(SECONDS_TIMED / train(1))))
    return Pace(train(steps) / steps, evaluate() / len(part))


def _seconds(work: Callable[[], object]) -> float:
    # What is timed ends by taking a number home, so a GPU has done it by then.
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def forecast(run: Run, runs: int) -> str:
    """Say in a line what training a whole model will cost, from a few minibatches.

    Args:
        run: The one that is about to begin.
        runs: How many like it are to be done, this one among them.
    """
    settings, federation = run.settings, run.federation
    pace = measure_pace(run.adapter, run.tasks()[0])
    steps = sum(task.steps for task in run.tasks())
    samples = sum(len(each.validation) + len(each.test) for each in federation.clients)
    seconds = pace.step * steps + pace.sample * samples / settings.eval_every
    rounds = settings.rounds * runs - run.state.number
    total = timedelta(seconds=round(seconds * rounds))
    return (
        f"cost       {run.trainable_parameters:,} trainable parameters, "
        f"{decimal(run.bytes_per_client)} per round and client each way; about {seconds:.0f} s a "
        f"round here ({steps} minibatches of {pace.step:.2f} s, {samples} images to evaluate), "
        f"{rounds} rounds to go: about {total}"
    )


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        parameters: Trainable ones.
        message: Bytes that a client sends, and receives, in a round.
        inference: Multiply-adds of classifying one sample more, class texts not counted.
        training: Multiply-adds of training on a sample, forward and backward, in a full
            minibatch and with the texts of all classes.
        epoch: Seconds that a client's local epoch takes on this machine.
    """

    parameters: int
    message: int
    inference: int
    training: int
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
        encoder={},
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


def measure_cost(
    cache: FeatureCache,
    settings: Settings,
    samples: int,
    device: torch.device,
    whole: WholeModel | None = None,
) -> Cost:
    """Count and measure what a client's round costs.

    Args:
        cache: Whose rows are trained on, again and again if they are few; two at least.
        settings: The adapter, batches, loss and optimizer.
        samples: Of a local epoch; two at least.
        device: Where it is trained.
        whole: A whole model, to be trained in the adapter's place.
    """
    (domain,) = FeaturePool([cache], None, device, whole=whole).domains
    train = Samples(domain, torch.arange(samples, device=device) % len(cache.labels))
    client = Client(domain.name, domain.name, train, train, train)
    text = torch.from_numpy(class_texts(cache, settings.prompts)).to(device)
    federation = Federation((client,), None, text, cache.logit_scale, whole=whole)
    model = make_model(federation, settings).to(device)
    task = LocalTask(client, federation, settings, 1, copy_parameters(model))

    def classify(rows: int) -> Tensor:
        inputs, _ = train[:rows]
        return model.logits(inputs, federation.model_text, federation.logit_scale)

    def learn() -> None:
        inputs, labels = train[: settings.batch_size]
        scale, name = federation.logit_scale, settings.loss
        loss = training_loss(model, inputs, federation.model_text, labels, scale, name)
        if loss.requires_grad:
            torch.autograd.backward(loss)

    learnt = min(samples, settings.batch_size)
    return Cost(
        parameters=trainable_parameters(model),
        message=sum(tensor.numel() * tensor.element_size() for tensor in task.start.values()),
        inference=multiply_adds(lambda: classify(2)) - multiply_adds(lambda: classify(1)),
        training=multiply_adds(learn) // learnt,
        epoch=measure_pace(model, task).step * task.steps,
    )


def multiply_adds(work: Callable[[], object]) -> int:
    """Count the multiply-adds of the matrix products and convolutions in `work`."""
    # Its import loads a compiler: 70 MB that no run over features needs.
    from torch.utils.flop_counter import FlopCounterMode

    # The fused path of nn.MultiheadAttention is one operation that nobody counts.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
