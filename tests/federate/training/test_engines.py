"""The back ends of local training: one answer, whatever the shapes and whoever else trains."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedclip.cache import FedclipError
from fedclip.cli import run
from fedclip.federate.data.federation import Client, Federation
from fedclip.federate.data.samples import Domain, Samples
from fedclip.federate.models.adapters import ADAPTERS, Adapter, Attention
from fedclip.federate.models.base import Model
from fedclip.federate.models.losses import LOSSES, ClassLoss, ClipLoss
from fedclip.federate.settings import Settings
from fedclip.federate.strategies.base import Cohort
from fedclip.federate.training import threads
from fedclip.federate.training.engine import EngineName, choose_engine, train_clients
from fedclip.federate.training.settings import OptimizerName, TrainingSettings
from fedclip.federate.training.tasks import (
    LocalTask,
    Parameters,
    Proximal,
    Trained,
    Update,
    copy_parameters,
)

MakeCache = Callable[..., Path]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
FAST: tuple[EngineName, ...] = ("threads", "batched")
# All that are trained; a cache model is made of its client's features.
TRAINED = tuple(name for name in ADAPTERS if name != "cache-model")
TOLERANCE = 1e-5


def make_samples(features: Tensor, labels: Tensor) -> Samples:
    order = np.arange(len(labels))
    domain = Domain(None, features, labels, order, features)  # type: ignore[arg-type]  # no cache behind it
    return Samples(domain, torch.from_numpy(order))


def make_federation(sizes: Sequence[int], width: int = 12, classes: int = 4) -> Federation:
    """Draw clients with so many rows to train on, around their class texts."""
    random = torch.Generator().manual_seed(0)
    text = torch.randn(classes, width, generator=random)
    nothing = make_samples(torch.zeros(0, width), torch.zeros(0, dtype=torch.int64))
    clients = []
    for index, size in enumerate(sizes):
        labels = torch.randint(0, classes, (size,), generator=random)
        features = text[labels] + torch.randn(size, width, generator=random)
        name = f"client-{index}"
        clients.append(Client(name, "photo", make_samples(features, labels), nothing, nothing))
    return Federation(tuple(clients), None, text, 20.0)


def settings_of(adapter: str = "attention", loss: str = "clip", **changes: Any) -> Settings:
    return Settings(adapter=ADAPTERS.make(adapter, {}), loss=LOSSES.make(loss, {}), **changes)


def task_of(
    federation: Federation,
    index: int,
    model: Model,
    settings: TrainingSettings,
    start: Parameters | None = None,
    round_number: int = 1,
) -> LocalTask:
    """Make a task of one client, which starts from the parameters that seed 0 draws."""
    client, text = federation.participants[index], federation.text
    if start is None:
        start = copy_parameters(model.make(text, seed=0))
    return LocalTask(
        *(client.name, model, client.train, text, federation.logit_scale, settings),
        *(round_number, start),
    )


def make_task(federation: Federation, settings: Settings, index: int = 0) -> LocalTask:
    return task_of(federation, index, settings.adapter, settings.training)


def train(engine: EngineName, tasks: Sequence[LocalTask]) -> list[Trained]:
    network = tasks[0].model.make(tasks[0].text, seed=1)
    return train_clients(network, tasks, engine)


def vector(parameters: Parameters) -> Tensor:
    return torch.cat([torch.zeros(1), *(tensor.flatten() for tensor in parameters.values())])


def assert_close(ours: Parameters, plain: Parameters) -> None:
    assert ours.keys() == plain.keys()
    distance = torch.dist(vector(ours), vector(plain)).item()
    assert distance <= TOLERANCE * vector(plain).norm().item()


def assert_same_bits(one: Sequence[Trained], other: Sequence[Trained]) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.steps == b.steps
        assert a.loss == b.loss or (math.isnan(a.loss) and math.isnan(b.loss))
        assert all(torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters)


def federate_by(
    engine: EngineName,
    federation: Federation,
    settings: Sequence[Settings],
    participants: Sequence[Sequence[int]],
    *,
    adjusted: bool,
) -> list[tuple[Parameters, list[Trained]]]:
    """Run a round for each list of participants; every client has settings of its own."""
    adapter = settings[0].adapter
    network = adapter.make(federation.text, seed=0)
    parameters = anchor = copy_parameters(network)
    correction = {name: torch.full_like(tensor, 1e-3) for name, tensor in anchor.items()}
    rounds = []
    for number, chosen in enumerate(participants, start=1):
        tasks = [
            replace(
                task_of(federation, index, adapter, settings[index].training, parameters, number),
                proximal=Proximal(0.1, anchor) if adjusted and index % 3 != 1 else None,
                correction=correction if adjusted and index % 3 != 2 else None,
            )
            for index in chosen
        ]
        trained = train_clients(network, tasks, engine)
        updates = [
            Update(task.client, each.parameters, len(task.samples), each.loss)
            for task, each in zip(tasks, trained, strict=True)
        ]
        cohort = Cohort({update.client: update.samples for update in updates}, "samples")
        parameters = cohort.average(updates)
        rounds.append((parameters, trained))
    return rounds


def assert_agree(
    engine: EngineName,
    federation: Federation,
    settings: Sequence[Settings],
    participants: Sequence[Sequence[int]],
    *,
    adjusted: bool,
) -> None:
    ours, plain = (
        federate_by(name, federation, settings, participants, adjusted=adjusted)
        for name in (engine, "plain")
    )
    for (our_parameters, our_updates), (parameters, updates) in zip(ours, plain, strict=True):
        assert_close(our_parameters, parameters)
        for our, update in zip(our_updates, updates, strict=True):
            assert our.steps == update.steps
            assert our.loss == pytest.approx(update.loss, rel=1e-4, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("adapter", TRAINED)
@pytest.mark.parametrize("loss", [*LOSSES])
@pytest.mark.parametrize("adjusted", [False, True])
def test_back_ends_agree_after_three_rounds_on_clients_of_mixed_sizes_and_settings(
    engine: EngineName, adapter: str, loss: str, adjusted: bool
) -> None:
    # 70 and 33 end in short batches, 65 in a batch of one; 2 are one batch and 1 is none.
    federation = make_federation([70, 33, 1, 65, 2, 48])
    base = settings_of(adapter, loss, lr=1e-3)
    settings = [
        base,
        replace(base, lr=3e-3, weight_decay=0.0),
        base,
        replace(base, local_epochs=2, seed=3),
        replace(base, betas=(0.8, 0.9), eps=1e-5),
        replace(base, batch_size=7, loss=ClassLoss() if loss == "clip" else ClipLoss()),
    ]
    everyone = [range(6)] * 3
    assert_agree(engine, federation, settings, everyone, adjusted=adjusted)


@hypothesis_settings(max_examples=60)
@given(data=st.data())
def test_back_ends_agree_whatever_the_shapes_and_whoever_takes_part(data: st.DataObject) -> None:
    draw = data.draw
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5), "sizes")
    federation = make_federation(
        sizes, draw(st.integers(2, 9), "width"), draw(st.integers(1, 5), "classes")
    )
    settings = settings_of(
        adapter=draw(st.sampled_from(TRAINED), "adapter"),
        loss=draw(st.sampled_from([*LOSSES]), "loss"),
        optimizer=draw(st.sampled_from(get_args(OptimizerName)), "optimizer"),
        batch_size=draw(st.integers(2, 33), "batch size"),
        local_epochs=draw(st.integers(1, 2), "epochs"),
        lr=1e-3,
    )
    someone = st.lists(st.sampled_from(range(len(sizes))), min_size=1, unique=True)
    participants = draw(st.lists(someone, min_size=1, max_size=3), "participants")
    adjusted = draw(st.booleans(), "adjusted")
    for engine in FAST:
        assert_agree(engine, federation, [settings] * len(sizes), participants, adjusted=adjusted)


@given(samples=st.integers(1, 200), batch_size=st.integers(2, 64), epochs=st.integers(1, 3))
def test_a_task_knows_its_number_of_steps(samples: int, batch_size: int, epochs: int) -> None:
    federation = make_federation([samples], width=2)
    settings = settings_of("scale", batch_size=batch_size, local_epochs=epochs)
    task = make_task(federation, settings)
    assert task.steps == len(task.batches())


@pytest.mark.parametrize("adapter", ["attention", "attention-both"])
def test_threads_give_the_same_bits_whatever_their_number_and_whoever_else_trains(
    adapter: str,
) -> None:
    federation = make_federation([300, 290, 40, 301, 1, 77], width=64)
    settings = settings_of(adapter, lr=1e-3)
    tasks = [make_task(federation, settings, index) for index in range(6)]
    network = settings.adapter.make(federation.text, seed=1)
    alone = [threads.train(network, [task], workers=1)[0] for task in tasks]
    for workers in (1, 2, 3, 8):
        assert_same_bits(threads.train(network, tasks, workers), alone)
    backwards = threads.train(network, tasks[::-1], workers=2)
    assert_same_bits(backwards[::-1], alone)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_task_changes_nothing_for_another(engine: EngineName) -> None:
    federation = make_federation([70, 48])
    first = make_task(federation, Settings(lr=1e-3))
    broken = make_task(federation, Settings(lr=1e38), 1)
    alone = train(engine, [first])[0]
    beside = train(engine, [broken, first])[1]
    if engine == "batched":
        assert_close(beside.parameters, alone.parameters)
    else:
        assert_same_bits([beside], [alone])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("adapter", TRAINED)
def test_a_client_without_a_batch_returns_what_it_was_given(
    engine: EngineName, adapter: str
) -> None:
    task = make_task(make_federation([1]), settings_of(adapter))
    (update,) = train(engine, [task])
    assert (len(task.samples), update.steps) == (1, 0)
    assert math.isnan(update.loss)
    assert torch.equal(vector(update.parameters), vector(task.start))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("adapter", ["attention", "linear"])
def test_training_that_diverges_ends(engine: EngineName, adapter: str) -> None:
    federation = make_federation([70, 40])
    settings = settings_of(adapter, lr=1e38)
    updates = train(engine, [make_task(federation, settings, index) for index in (0, 1)])
    for update in updates:
        assert not torch.isfinite(vector(update.parameters)).all() or not math.isfinite(update.loss)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_handed_in_stays_as_it_was(engine: EngineName) -> None:
    task = make_task(make_federation([40]), Settings(lr=1e-2))
    task = replace(task, proximal=Proximal(0.5, task.start), correction=task.start)
    before = vector(task.start).clone()
    (update,) = train(engine, [task])
    assert not torch.equal(vector(update.parameters), before)
    assert torch.equal(vector(task.start), before)
    storages = {tensor.untyped_storage().data_ptr() for tensor in update.parameters.values()}
    assert len(storages) == len(update.parameters)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("loss", [*LOSSES])
def test_a_step_follows_the_gradient_the_pull_and_the_correction(
    engine: EngineName, loss: str
) -> None:
    federation = make_federation([20])
    settings = settings_of(loss=loss, optimizer="sgd", lr=0.1, weight_decay=0.3, batch_size=32)
    task = make_task(federation, settings)
    anchor = {name: tensor + 1 for name, tensor in task.start.items()}
    correction = {name: torch.full_like(tensor, 0.05) for name, tensor in task.start.items()}
    task = replace(task, proximal=Proximal(0.7, anchor), correction=correction)
    (update,) = train(engine, [task])
    assert update.steps == 1

    adapter = Attention().make(federation.text, seed=0)
    (batch,) = task.batches()
    samples = task.samples
    image, text = adapter(samples.features[batch], federation.text)
    value = settings.loss(image, text, samples.labels[batch], federation.logit_scale)
    torch.autograd.backward(value)
    assert update.loss == pytest.approx(value.item(), rel=1e-5)
    for name, weight in adapter.named_parameters():
        assert weight.grad is not None
        start = task.start[name]
        gradient = weight.grad + 0.3 * start + 0.7 * (start - anchor[name]) + 0.05
        torch.testing.assert_close(update.parameters[name], start - 0.1 * gradient)


@pytest.mark.parametrize("loss", [*LOSSES])
def test_features_and_texts_of_zeros_do_no_harm(loss: str) -> None:
    federation = make_federation([40])
    federation.participants[0].train.domain.features[3:9] = 0
    federation.text[1] = 0
    settings = settings_of(loss=loss, lr=1e-3)
    assert_agree("threads", federation, [settings], [[0]] * 3, adjusted=False)
    assert_agree("batched", federation, [settings], [[0]] * 3, adjusted=False)


@dataclass(frozen=True)
class Strange(Adapter):
    """A user's adapter of a single number, which fails on batches of six."""

    def layers(self, text: Tensor) -> dict[str, nn.Parameter]:
        return {"weight": nn.Parameter(torch.ones(()))}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        if len(image) == 6:
            raise ArithmeticError("six")
        return layers.weight * image + layers.weight, text


def strange_tasks(sizes: Sequence[int]) -> list[LocalTask]:
    federation, settings = make_federation(sizes), TrainingSettings(lr=1e-2)
    return [task_of(federation, index, Strange(), settings) for index in range(len(sizes))]


def test_an_adapter_may_have_a_single_number() -> None:
    tasks = strange_tasks([69, 41, 33])
    plain, ours, stacked = (train(engine, tasks) for engine in ENGINES)
    for one, two, three in zip(plain, ours, stacked, strict=True):
        assert_close(two.parameters, one.parameters)
        assert_close(three.parameters, one.parameters)


def test_an_error_in_a_thread_ends_the_training_and_is_raised() -> None:
    tasks = strange_tasks([3200, 6, *[3200] * 20])
    with pytest.raises(ArithmeticError, match="six"):
        threads.train(Strange().make(tasks[0].text, 0), tasks, workers=2)


def test_threads_leave_the_number_of_threads_of_others_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train("threads", [make_task(make_federation([40]), Settings())])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_plain_loop_leaves_cudnn_on_or_off(enabled: bool) -> None:
    (task,) = strange_tasks([8])
    adapter = task.model.make(task.text, 0)
    seen: list[bool] = []
    adapter.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    with torch.backends.cudnn.flags(enabled=enabled):
        train_clients(adapter, [task], "plain")
    assert seen == [enabled]


def test_nothing_to_do_is_done() -> None:
    for engine in ENGINES:
        assert train_clients(Strange().make(torch.zeros(3, 4), 0), [], engine) == []


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", "threads"),
        ("auto", "cuda", "batched"),
        ("plain", "cuda", "plain"),
        ("batched", "cpu", "batched"),
    ],
)
def test_the_engine_is_chosen_by_the_device(name: str, device: str, expected: str) -> None:
    assert (
        choose_engine(name, torch.device(device), Attention().make(torch.zeros(3, 4), 0))
        == expected
    )


def test_unknown_and_unfit_engines_are_refused() -> None:
    unknown = "unknown engine 'warp'; choose auto, plain, threads or batched"
    network = Attention().make(torch.zeros(3, 4), 0)
    with pytest.raises(FedclipError, match=unknown):
        choose_engine("warp", torch.device("cpu"), network)
    with pytest.raises(FedclipError, match="CPU only; on cuda choose batched or plain"):
        choose_engine("threads", torch.device("cuda"), network)


@pytest.mark.usefixtures("empty_folder")
def test_a_run_records_its_engine_and_is_named_without_it(
    make_cache: MakeCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cache({"art": 60, "photo": 70})
    found: dict[str, Any] = {}
    for engine in ENGINES:
        options = ["--rounds", "3", "--lr", "1e-3", "--target", "none", "--engine", engine]
        assert run(["federate", *options, "--overwrite"]) == 0
        (folder,) = Path("runs").iterdir()
        assert json.loads((folder / "config.json").read_text())["engine"] == engine
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        found[engine] = [json.loads(line) for line in lines]
    for ours in (found["threads"], found["batched"]):
        for line, plain in zip(ours, found["plain"], strict=True):
            assert line["test"] == plain["test"]
            assert line["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-5)
    capsys.readouterr()
    assert run(["federate", "--engine", "warp", "--name", "other"]) == 2
    assert "error: --engine warp: unknown engine; choose auto" in capsys.readouterr().err
    assert not Path("runs/other").exists()


def test_the_fast_back_end_does_not_load_what_torch_optim_loads() -> None:
    code = """
import sys, torch
before = set(sys.modules)
from fedclip.federate.models.adapters import Attention
from fedclip.federate.data.samples import Domain, Samples
from fedclip.federate.training.engine import train_clients
from fedclip.federate.training.settings import TrainingSettings
from fedclip.federate.training.tasks import LocalTask, copy_parameters

features, rows = torch.randn(40, 8), torch.arange(40)
part = Samples(Domain(None, features, rows % 3, rows.numpy(), features), rows)
text = part.features[:3]
network = Attention().make(text, 0)
task = LocalTask(
    "a", Attention(), part, text, 9.0, TrainingSettings(), 1, copy_parameters(network)
)
assert train_clients(network, [task], "threads")[0].steps == 2
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclass(frozen=True)
class Frozen(Adapter):
    """Has a parameter that is not trained."""

    def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
        fixed = nn.Parameter(torch.full((text.shape[1],), 2.0), requires_grad=False)
        return {"fixed": fixed, "scale": nn.Parameter(torch.ones(text.shape[1]))}

    def forward(self, layers: Any, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return layers.fixed * layers.scale * image, text


class Tied(Frozen):
    """Has one parameter under two names."""

    def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
        shared = nn.Parameter(torch.ones(text.shape[1]))
        return {"fixed": shared, "scale": shared}


class Buffered(Frozen):
    """Has a buffer."""

    def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
        linear = nn.Identity()
        linear.register_buffer("moved", torch.zeros(3))
        return {"other": linear, **super().layers(text)}


class Dropped(Frozen):
    """Has dropout, which training and evaluation treat differently."""

    def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
        scale = nn.Parameter(torch.ones(text.shape[1]))
        return {"drop": nn.Dropout(0.5), "fixed": scale, "scale": nn.Parameter(scale.detach() + 1)}


class Halved(Frozen):
    """Has parameters in half precision."""

    def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
        half = torch.ones(text.shape[1], dtype=torch.float16)
        return {"fixed": nn.Parameter(half), "scale": nn.Parameter(half.clone())}


@pytest.mark.parametrize("adapter", [Frozen(), Tied(), Buffered(), Dropped(), Halved()])
def test_an_adapter_that_cannot_be_stacked_is_trained_by_the_plain_loop(adapter: Adapter) -> None:
    network = adapter.make(torch.zeros(3, 4), 0)
    assert not network.stackable
    assert choose_engine("auto", torch.device("cpu"), network) == "plain"
    for engine in ("threads", "batched"):
        with pytest.raises(FedclipError, match=f"--engine {engine}: .*; for this one choose plain"):
            choose_engine(engine, torch.device("cpu"), network)


def test_our_own_adapters_can_all_be_stacked() -> None:
    for name in ADAPTERS:
        assert ADAPTERS.make(name, {}).make(torch.randn(3, 8), 0).stackable, name


def test_a_parameter_without_effect_is_named() -> None:
    class Idle(Frozen):
        def layers(self, text: Tensor) -> Mapping[str, nn.Module | nn.Parameter]:
            ones = torch.ones(text.shape[1])
            return {name: nn.Parameter(ones.clone()) for name in ("fixed", "scale", "idle")}

    federation = make_federation([20], width=8)
    task = replace(make_task(federation, Settings.preset("tuned")), model=(idle := Idle()))
    network = idle.make(federation.text, 0)
    with pytest.raises(FedclipError, match="idle: this parameter has no effect on the loss"):
        train_clients(network, [replace(task, start=copy_parameters(network))], "threads")
