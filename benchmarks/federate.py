"""Compares a round of federation with its bare arithmetic and with the public FedCLIP script.

``uv run python benchmarks/federate.py`` measures, in one run and on the same random
features, how many seconds a round's local training takes

- (a) in each back end of `fedclip.federate.training.engine`,
- (b) in a loop over clients like that of the public FedCLIP script, over the same features,
- (c) in only the matrix products and fused Adam updates of the same shapes, spread evenly
  over the cores,
- (d) in the public script, which encodes every image in every round: (b) plus the number of
  images over the images/s of ViT-B/32 with random weights, measured here,

and how many seconds the round's evaluation takes. The contenders alternate, and the median
of their rounds is reported, since the speed of a machine drifts.
"""

import argparse
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedclip.cache.common.device import resolve_device
from fedclip.extract.encoders.openclip import load_encoder
from fedclip.extract.encoders.spec import EncoderName
from fedclip.federate.data.federation import Client, Federation
from fedclip.federate.data.samples import Domain, Samples
from fedclip.federate.settings import Settings
from fedclip.federate.training.engine import EngineName, train_clients
from fedclip.federate.training.evaluate import accuracy
from fedclip.federate.training.tasks import LocalTask, copy_parameters

WIDTH = 512
LOGIT_SCALE = 100.0

# Rows of the participants and of the target, and classes.
CASES: Mapping[str, tuple[Sequence[int], int, int]] = {
    "3 x 72 steps": ((3840, 3840, 3840), 0, 65),
    "PACS": ((2048, 2344, 1670), 3929, 7),
    "Office-Home": ((2427, 4365, 4439), 4357, 65),
}


def make_federation(sizes: Sequence[int], target: int, classes: int) -> Federation:
    """Draw features around class texts; a participant's are split 60/20/20 into parts."""
    random = torch.Generator().manual_seed(0)
    text = torch.randn(classes, WIDTH, generator=random)

    def draw(rows: int) -> Samples:
        labels = torch.randint(0, classes, (rows,), generator=random)
        noise = torch.randn(rows, WIDTH, generator=random)
        order = torch.arange(rows)
        features = 0.2 * text[labels] + 0.4 * noise
        domain = Domain(None, features, labels, order.numpy(), features)  # type: ignore[arg-type]
        return Samples(domain, order)

    participants = []
    for index, size in enumerate(sizes):
        train, validation = int(0.6 * size), int(0.2 * size)
        parts = (draw(train), draw(validation), draw(size - train - validation))
        participants.append(Client(f"client-{index}", "drawn", *parts))
    left_out = Client("target", "target", draw(0), draw(0), draw(target)) if target else None
    return Federation(tuple(participants), left_out, text, LOGIT_SCALE)


class PublicAdapter(nn.Module):
    """The adapter as plain modules, without optimization."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Softmax(dim=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return the attention of (B, D) features."""
        attention: Tensor = self.layers(features)
        return attention


def public_loop(federation: Federation, settings: Settings) -> None:
    """Train a round as (b)."""
    for client in federation.participants:
        adapter = PublicAdapter()
        optimizer = torch.optim.Adam(
            adapter.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        order = torch.randperm(len(client.train))
        for batch in torch.split(order, settings.batch_size):
            if len(batch) < 2:
                continue
            image = client.train.features[batch]
            text = federation.text[client.train.labels[batch]]
            image = adapter(image) * image
            image = image / image.norm(dim=1, keepdim=True)
            text = text / text.norm(dim=1, keepdim=True)
            by_image = federation.logit_scale * image @ text.t()
            by_text = by_image.t()
            own = torch.arange(len(batch))
            loss = functional.cross_entropy(by_image, own) + functional.cross_entropy(by_text, own)
            optimizer.zero_grad()
            torch.autograd.backward(loss / 2)
            optimizer.step()


def bare_arithmetic(steps: int, settings: Settings) -> None:
    """Do (c): a step's products and update, `steps` times, spread over the cores."""
    workers = torch.get_num_threads()

    def work(share: int) -> None:
        torch.set_num_threads(1)
        rows, size = settings.batch_size, WIDTH * WIDTH
        image, hidden = torch.randn(2, rows, WIDTH)
        text, out = torch.randn(2, rows, WIDTH)
        logits = torch.empty(rows, rows)
        weights, gradients, first, second = (torch.zeros(2 * size + 2 * WIDTH) for _ in range(4))
        gradients.normal_()
        one, two = (weights[at : at + size].view(WIDTH, WIDTH) for at in (0, size))
        d_one, d_two = (gradients[at : at + size].view(WIDTH, WIDTH) for at in (0, size))
        count = torch.ones(())
        for _ in range(share):
            torch.mm(image, one.t(), out=out)
            torch.mm(hidden, two.t(), out=out)
            torch.mm(hidden, text.t(), out=logits)
            torch.mm(logits, text, out=out)
            torch.mm(out.t(), hidden, out=d_two)
            torch.mm(hidden, two, out=out)
            torch.mm(out.t(), image, out=d_one)
            torch._fused_adam_(
                [weights],
                [gradients],
                [first],
                [second],
                [],
                [count],
                lr=settings.lr,
                beta1=settings.betas[0],
                beta2=settings.betas[1],
                weight_decay=settings.weight_decay,
                eps=settings.eps,
                amsgrad=False,
                maximize=False,
            )

    shares = [len(range(index, steps, workers)) for index in range(workers)]
    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(torch.get_num_threads())


def images_per_second(batches: int = 4) -> float:
    """Measure ViT-B/32 with random weights on decoded images in memory."""
    name = EncoderName.of("ViT-B-32", "random", "fp32")
    encoder = load_encoder(name, resolve_device("cpu"))
    pixels = torch.randn(64, *encoder.blank.shape)
    encoder.launch(pixels).numpy()
    start = time.perf_counter()
    for _ in range(batches):
        encoder.launch(pixels).numpy()
    return batches * len(pixels) / (time.perf_counter() - start)


def measure(contenders: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Run the contenders alternately; return each one's median seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if turn:  # The first round is a warm-up.
                seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def measure_case(sizes: Sequence[int], target: int, classes: int, turns: int) -> dict[str, float]:
    """Measure a case's contenders."""
    settings = Settings()
    federation = make_federation(sizes, target, classes)
    adapter, text, scale = settings.adapter, federation.text, federation.logit_scale
    network = adapter.make(text, seed=0)
    start = copy_parameters(network)
    tasks = [
        LocalTask(each.name, adapter, each.train, text, scale, settings.training, 1, start)
        for each in federation.participants
    ]
    parts = [each.validation for each in federation.participants]
    parts += [each.test for each in federation.clients]
    steps = sum(task.steps for task in tasks)

    def engine(name: EngineName) -> Callable[[], object]:
        return lambda: train_clients(network, tasks, name)

    return measure(
        {
            "threads": engine("threads"),
            "batched": engine("batched"),
            "plain": engine("plain"),
            "public loop": lambda: public_loop(federation, settings),
            "bare": lambda: bare_arithmetic(steps, settings),
            "evaluation": lambda: [accuracy(network, adapter, part, text, scale) for part in parts],
        },
        turns,
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="A round of federation and its bare arithmetic.")
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    rate = images_per_second()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, ViT-B/32 {rate:.1f} images/s\n")
    headings = (
        *("case", "(a) threads", "(a) batched", "(a) plain", "(b) public loop", "(c) bare"),
        *("(d) encoders", "a/c", "b/a", "d/a", "evaluation", "of training"),
    )
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for name, (sizes, target, classes) in CASES.items():
        found = measure_case(sizes, target, classes, options.turns)
        engine, public, bare = found["threads"], found["public loop"], found["bare"]
        encoding = public + sum(int(0.6 * size) for size in sizes) / rate
        cells = (
            *(f"{found[key]:.3f}" for key in ("threads", "batched", "plain")),
            *(f"{public:.3f}", f"{bare:.3f}", f"{encoding:.0f}"),
            *(f"{engine / bare:.2f}", f"{public / engine:.1f}", f"{encoding / engine:.0f}"),
            *(f"{found['evaluation']:.3f}", f"{found['evaluation'] / engine:.0%}"),
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
