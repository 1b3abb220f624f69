# /// script
# requires-python = ">=3.11"
# dependencies = ["flwr[simulation]==1.41.*", "numpy", "torch"]
# ///
# Flower is not installed in the environment in which this file is type-checked.
# mypy: disable-error-code="import-not-found,untyped-decorator,misc"
"""The same local training under Flower's simulation, which runs each client in a Ray process.

``uv run --no-project benchmarks/flower.py`` trains 3 clients x 72 steps of 32 x 512, the
case of that name in ``benchmarks/federate.py``, with FedAvg, and prints the seconds of
the median round. It has its own environment, since Flower requires older versions of some
of the package's dependencies.
"""

import argparse
import time
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn
from torch.nn import functional

CLIENTS, ROWS, WIDTH, CLASSES, BATCH, LOGIT_SCALE = 3, 2304, 512, 65, 32, 100.0

client_app = ClientApp()
server_app = ServerApp()
rounds = 5
times: list[float] = []
_data: dict[int, tuple[Tensor, Tensor, Tensor]] = {}


def make_adapter() -> nn.Sequential:
    """Make the attention network of FedCLIP."""
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Softmax(dim=1)
    )


def load(client: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a client's features, labels and class texts, once per process."""
    if client not in _data:
        text = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
        random = torch.Generator().manual_seed(1 + client)
        labels = torch.randint(0, CLASSES, (ROWS,), generator=random)
        noise = torch.randn(ROWS, WIDTH, generator=random)
        _data[client] = 0.2 * text[labels] + 0.4 * noise, labels, text
    return _data[client]


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train a client for an epoch."""
    features, labels, text = load(int(context.node_config["partition-id"]))
    adapter = make_adapter()
    adapter.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.Adam(
        adapter.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
    )
    for batch in torch.split(torch.randperm(ROWS), BATCH):
        image = adapter(features[batch]) * features[batch]
        image = functional.normalize(image, dim=1)
        own = functional.normalize(text[labels[batch]], dim=1)
        logits = LOGIT_SCALE * image @ own.t()
        target = torch.arange(len(batch))
        loss = functional.cross_entropy(logits, target) + functional.cross_entropy(
            logits.t(), target
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss / 2)
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(adapter.state_dict()),
            "metrics": MetricRecord({"num-examples": ROWS}),
        }
    )
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that records when each round starts."""

    def configure_train(self, *arguments: Any, **options: Any) -> Any:
        """Start a round."""
        times.append(time.perf_counter())
        return super().configure_train(*arguments, **options)


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the rounds."""
    strategy = Timed(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_available_nodes=CLIENTS,
        min_train_nodes=CLIENTS,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(make_adapter().state_dict()),
        train_config=ConfigRecord({}),
        num_rounds=rounds + 1,
    )
    times.append(time.perf_counter())
    seconds = [later - earlier for earlier, later in pairwise(times)]
    print(f"seconds per round, without the first: median {median(seconds[1:]):.3f}", seconds)


def main() -> None:
    """Run from the command line."""
    global rounds
    parser = argparse.ArgumentParser(description="Flower's simulation of a round.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=1, help="cores per client process")
    options = parser.parse_args()
    rounds = options.rounds
    start = time.perf_counter()
    run_simulation(
        server_app,
        client_app,
        num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": options.cpus, "num_gpus": 0.0}},
    )
    print(f"total {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
