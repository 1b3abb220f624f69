"""The method, compared with a few lines of plain PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedclip.cache import FeatureCache, import_npz
from fedclip.federate.data.federation import Federation, build_federation
from fedclip.federate.models.adapters import Attention
from fedclip.federate.models.network import Network, trainable_parameters
from fedclip.federate.runs.results import Facts, result_of
from fedclip.federate.seeding import seed_of
from fedclip.federate.server import Round
from fedclip.federate.settings import Settings
from fedclip.federate.simulation import Callback, Run, simulate
from fedclip.federate.strategies.base import SERVER, Cohort
from fedclip.federate.training.engine import train_clients
from fedclip.federate.training.tasks import LocalTask, Parameters, Update, draw_batches

MakeFeatures = Callable[..., FeatureCache]
CPU = torch.device("cpu")


def two_clients(make_features: MakeFeatures, settings: Settings) -> Federation:
    # 49 and 55 rows: 29 and 33 to train on, so batches of 8 end short and in a single sample.
    caches = [make_features("photo", 49, width=12), make_features("sketch", 55, width=12)]
    return build_federation(caches, settings, None, CPU)


def attention_adapter(width: int, seed: int) -> Network:
    return Attention().make(torch.zeros(3, width), seed)


def plain_loss(loss: str, image: Tensor, text: Tensor, labels: Tensor, scale: float) -> Tensor:
    image = image / image.norm(dim=1, keepdim=True)
    if loss == "class":
        text = text / text.norm(dim=1, keepdim=True)
        return functional.cross_entropy(scale * image @ text.t(), labels)
    rows = text[labels] / text[labels].norm(dim=1, keepdim=True)
    logits = scale * image @ rows.t()
    own = torch.arange(len(labels))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.t(), own)) / 2


@pytest.mark.parametrize("loss", ["clip", "class"])
@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("local_epochs", [1, 2])
def test_two_rounds_of_two_clients_equal_plain_pytorch_batch_by_batch(
    make_features: MakeFeatures, loss: str, weighting: str, local_epochs: int
) -> None:
    settings = Settings.preset(
        "paper",
        rounds=2,
        batch_size=8,
        lr=1e-2,
        seed=3,
        loss=loss,
        weighting=weighting,
        local_epochs=local_epochs,
    )
    federation = two_clients(make_features, settings)
    adapter = attention_adapter(12, seed_of("adapter", settings.seed))
    names = ["attention.0.weight", "attention.0.bias", "attention.2.weight", "attention.2.bias"]
    server = [adapter.state_dict()[name].clone() for name in names]
    servers = servers_of(federation, settings)

    for number in (1, 2):
        trained, sizes = [], []
        for client in federation.participants:
            own = [tensor.clone().requires_grad_() for tensor in server]
            # Fused, since Adam magnifies the rounding of gradients that are almost 0.
            optimizer = torch.optim.Adam(
                own, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True
            )
            for batch in draw_batches(len(client.train), settings, number, client.name):
                image, labels = client.train.features[batch], client.train.labels[batch]
                hidden = torch.tanh(image @ own[0].t() + own[1])
                attention = torch.softmax(hidden @ own[2].t() + own[3], dim=1)
                value = plain_loss(
                    loss, attention * image, federation.text, labels, federation.logit_scale
                )
                optimizer.zero_grad()
                torch.autograd.backward(value)
                optimizer.step()
            trained.append([tensor.detach() for tensor in own])
            sizes.append(len(client.train) if weighting == "samples" else 1)
        server = [
            sum((size * t for size, t in zip(sizes, ts, strict=True)), torch.zeros(())) / sum(sizes)
            for ts in zip(*trained, strict=True)
        ]
        for name, expected in zip(names, server, strict=True):
            ours = servers[number - 1][name]
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_each_round_has_a_new_optimizer(make_features: MakeFeatures) -> None:
    settings = Settings.preset("paper", rounds=2, batch_size=8, lr=1e-2)
    federation = two_clients(make_features, settings)
    first, second = servers_of(federation, settings)
    tasks = [
        LocalTask(
            client=client.name,
            model=settings.model,
            samples=client.train,
            text=federation.text,
            logit_scale=federation.logit_scale,
            settings=settings.training,
            round_number=2,
            start=first,
        )
        for client in federation.participants
    ]
    trained = train_clients(attention_adapter(12, 1), tasks, "plain")
    sizes = {task.client: len(task.samples) for task in tasks}
    updates = [
        Update(task.client, each.parameters, sizes[task.client], each.loss)
        for task, each in zip(tasks, trained, strict=True)
    ]
    for name, tensor in Cohort(sizes, "samples").average(updates).items():
        assert torch.equal(tensor, second[name])


def update(client: str, samples: int, *values: float) -> Update:
    return Update(client, {"w": torch.tensor(values)}, samples, loss=0.0)


@pytest.mark.parametrize(
    ("weighting", "expected"), [("samples", [3.25, 7.0]), ("uniform", [2.5, 6.0])]
)
def test_fedavg_weighs_by_samples_or_equally(weighting: str, expected: list[float]) -> None:
    updates = [update("a", 10, 1.0, 4.0), update("b", 30, 4.0, 8.0)]
    cohort = Cohort({"a": 10, "b": 30}, weighting)  # type: ignore[arg-type]
    assert cohort.average(updates)["w"].tolist() == expected


def test_the_adapter_for_512_features_has_525312_parameters() -> None:
    assert trainable_parameters(attention_adapter(512, 0)) == 525_312


def test_the_adapter_weighs_images_and_leaves_texts_alone() -> None:
    adapter = attention_adapter(4, 0)
    image, text = torch.randn(3, 4), torch.randn(2, 4)
    with torch.no_grad():
        adapted, same = adapter(image, text)
    assert same is text
    weights = adapted / image
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    assert (weights > 0).all()


def test_equal_seeds_make_equal_adapters_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = attention_adapter(4, 7), attention_adapter(4, 7), attention_adapter(4, 8)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    assert not torch.equal(
        one.state_dict()["attention.0.weight"], other.state_dict()["attention.0.weight"]
    )


class Watched(Callback):
    """Keeps each round of a run, and the server's parameters after it.

    Attributes:
        flights: After each step, the runs that were stepped.
    """

    def __init__(self) -> None:
        self.rounds: dict[Run, list[Round]] = {}
        self.servers: dict[Run, list[Parameters]] = {}
        self.flights: list[list[Run]] = []

    def on_step(self, runs: Sequence[Run]) -> None:
        self.flights.append([*runs])
        for run in runs:
            assert run.last is not None
            self.rounds.setdefault(run, []).append(run.last)
            self.servers.setdefault(run, []).append(run.state.server.strategy[SERVER])


def done(run: Run) -> list[Round]:
    """Do a run by itself."""
    watched = Watched()
    assert simulate([run], [watched])
    return watched.rounds[run]


def rounds_of(federation: Federation, settings: Settings, engine: str = "plain") -> list[Round]:
    return done(Run(federation, settings, engine=engine))


def servers_of(
    federation: Federation, settings: Settings, engine: str = "plain"
) -> list[Parameters]:
    """Do a run, and return the server's parameters after each round."""
    run, watched = Run(federation, settings, engine=engine), Watched()
    simulate([run], [watched])
    return watched.servers[run]


def test_the_best_round_has_the_best_mean_validation_and_the_earlier_of_equals_wins(
    make_features: MakeFeatures,
) -> None:
    settings = Settings.preset("tuned", rounds=8, batch_size=8, lr=1e-3)
    federation = two_clients(make_features, settings)
    run = Run(federation, settings)
    rounds = done(run)
    scores = [current.mean_validation for current in rounds]
    best = run.state.server.best
    assert best is not None
    assert len(set(scores)) < len(scores)
    assert best.round.number == 1 + scores.index(max(scores))
    assert [current.number for current in rounds] == list(range(1, 9))


def test_training_lowers_the_training_loss(make_features: MakeFeatures) -> None:
    settings = Settings.preset("tuned", rounds=20, batch_size=16, lr=1e-2)
    federation = build_federation([make_features("photo", 300, width=12)], settings, None, CPU)
    losses = [current.train_loss for current in rounds_of(federation, settings)]
    assert losses[-1] < losses[0] / 3


def test_real_features_gain_over_zero_shot(shared_data: Path, tmp_path: Path) -> None:
    archive = shared_data / "features" / "caltech101-vitb32.npz"
    clients = import_npz(archive, tmp_path, "caltech101").clients
    settings = Settings.preset("tuned", rounds=10, clients=5, alpha=0.3, feature_norm=10.0)
    federation = build_federation(clients, settings, None, CPU)
    run = Run(federation, settings)
    done(run)
    result = result_of(Facts.of(run), "finished", [])
    assert result.pooled is not None
    assert result.zero_shot_pooled is not None
    assert result.zero_shot_pooled == pytest.approx(0.9677, abs=1e-4)
    assert 0.003 < result.pooled - result.zero_shot_pooled < 0.02


def test_a_run_that_diverges_ends_as_failed(make_features: MakeFeatures) -> None:
    settings = Settings.preset("paper", rounds=5, batch_size=8, lr=1e38)
    run = Run(two_clients(make_features, settings), settings)
    rounds = done(run)
    assert run.over
    assert run.state.server.failed
    assert not rounds[-1].finite
    assert len(rounds) < 5


@pytest.mark.parametrize("engine", ["plain", "threads"])
def test_runs_side_by_side_give_what_each_gives_alone(
    make_features: MakeFeatures, engine: str
) -> None:
    several = [
        Settings.preset("tuned", rounds=rounds, batch_size=8, lr=lr, seed=seed)
        for rounds, lr, seed in ((3, 1e-3, 0), (1, 1e-2, 0), (2, 1e38, 1), (4, 1e-3, 2))
    ]
    by_themselves = Watched()
    alone = [Run(two_clients(make_features, each), each, engine=engine) for each in several]
    for run in alone:
        simulate([run], [by_themselves])
    for tasks_at_once in (1, 3, 100):
        together = Watched()
        runs = [Run(two_clients(make_features, each), each, engine=engine) for each in several]
        simulate(runs, [together], tasks_at_once)
        assert all(len(flight) <= (tasks_at_once + 1) // 2 for flight in together.flights)
        for single, run in zip(alone, runs, strict=True):
            expected, found = by_themselves.rounds[single], together.rounds[run]
            assert len(found) == len(expected)
            for one, two in zip(expected, found, strict=True):
                assert (one.number, one.validation, one.test) == (
                    *(two.number, two.validation, two.test),
                )
                assert one.train_loss == two.train_loss or not one.finite
            for one, before, after in zip(
                expected, by_themselves.servers[single], together.servers[run], strict=True
            ):
                for name, tensor in before.items():
                    assert torch.equal(tensor, after[name]) or not one.finite


@pytest.mark.parametrize(
    ("participation", "number"),
    [(1.0, 10), (0.3, 3), (0.25, 2), (0.01, 1), (1, 1), (4, 4), (99, 10)],
)
def test_participation_is_a_share_or_a_number_of_the_clients_and_one_at_least(
    make_features: MakeFeatures, participation: float, number: int
) -> None:
    settings = Settings.preset("paper", clients=10, alpha=100.0, participation=participation)
    federation = build_federation([make_features("photo", 200)], settings, None, CPU)
    run = Run(federation, settings)
    drawn = set()
    for _ in range(6):
        names = [*run.server.instruct(run.state.server)]
        assert len(names) == run.server.clients_per_round == number
        assert names == sorted(set(names))
        again = Run(federation, settings)
        assert [*again.server.instruct(run.state.server)] == names
        drawn.add(tuple(names))
        server = replace(run.state.server, number=run.number + 1)
        run.state = replace(run.state, server=server)
    assert len(drawn) > 1 or number == 10


def test_a_run_is_opened_no_sooner_than_there_is_place_for_it(make_features: MakeFeatures) -> None:
    settings = Settings.preset("paper", rounds=2, batch_size=8)
    opened = []

    def openings() -> Iterator[Run]:
        for index in range(3):
            opened.append(index)
            yield Run(two_clients(make_features, settings), settings)

    seen = []

    class Seen(Callback):
        def on_step(self, runs: Sequence[Run]) -> None:
            seen.append((len(opened), len(runs)))

    assert simulate(openings(), [Seen()], tasks_at_once=1)
    assert seen == [(1, 1), (1, 1), (2, 1), (2, 1), (3, 1), (3, 1)]


@pytest.mark.parametrize(("strategy", "together"), [("fedavg", 3), ("local", 1)])
def test_fewer_runs_fly_where_a_part_of_each_client_is_kept(
    make_features: MakeFeatures, strategy: str, together: int
) -> None:
    settings = Settings.preset(
        "paper", rounds=1, clients=6, alpha=100.0, participation=2, strategy=strategy
    )
    federation = build_federation([make_features("photo", 120)], settings, None, CPU)
    watched = Watched()
    simulate([Run(federation, settings) for _ in range(3)], [watched], tasks_at_once=6)
    assert len(watched.flights[0]) == together


def test_the_target_changes_nothing_for_those_who_train(make_features: MakeFeatures) -> None:
    settings = Settings.preset("paper", rounds=2, batch_size=8)
    caches = [make_features("photo", 49), make_features("sketch", 55)]
    alone = rounds_of(build_federation(caches[:1], settings, None, CPU), settings)
    with_target = rounds_of(build_federation(caches, settings, "sketch", CPU), settings)
    for one, two in zip(alone, with_target, strict=True):
        assert one.validation == two.validation
        assert one.train_loss == two.train_loss
        assert set(two.test or ()) - set(one.test or ()) == {"sketch"}
