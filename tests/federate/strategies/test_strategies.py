"""The strategies, compared with a few lines of plain PyTorch, saved and read back."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fedclip.cache import FeatureCache, FedclipError, find_caches, load_cache
from fedclip.cli import run
from fedclip.federate.data.federation import Client, Federation, build_federation
from fedclip.federate.data.samples import Samples
from fedclip.federate.models.adapters import ADAPTERS, Attention
from fedclip.federate.runs.checkpoint import read_state, write_state
from fedclip.federate.seeding import seed_of
from fedclip.federate.settings import Settings
from fedclip.federate.simulation import Run, RunState, simulate, step
from fedclip.federate.strategies import STRATEGIES
from fedclip.federate.strategies.base import SERVER, State, personal
from fedclip.federate.training.tasks import Parameters, draw_batches

MakeFeatures = Callable[..., FeatureCache]
MakeCache = Callable[..., Path]
Weights = dict[str, Tensor]
Hook = Callable[[Weights], Weights]

CPU = torch.device("cpu")
NAMES = tuple(STRATEGIES)
PERSONALIZED = [name for name, kind in STRATEGIES.classes().items() if kind.personalized]
SPLIT = {name: kind.local_parts for name, kind in ADAPTERS.classes().items() if kind.local_parts}
WIDTH = 10


def settings_of(strategy: str, **changes: Any) -> Settings:
    given = {"rounds": 3, "batch_size": 8, "lr": 1e-2, "loss": "class", "seed": 5, **changes}
    if strategy == "scaffold":
        given["lr"] = 0.1  # a larger one is less stable, and amplifies rounding
    return Settings.preset("paper", strategy=strategy, **given)


def clients_of(make_features: MakeFeatures, settings: Settings) -> Federation:
    sizes = {"art": 49, "photo": 55, "sketch": 31}
    caches = [make_features(name, rows, width=WIDTH) for name, rows in sizes.items()]
    return build_federation(caches, settings, None, CPU)


def run_of(federation: Federation, settings: Settings, rounds: int) -> Run:
    """Do so many rounds of a run, with the engine whose rounding is PyTorch's own."""
    made = Run(federation, settings, engine="plain")
    for _ in range(rounds):
        step([made])
    return made


def server_of(made: Run) -> Parameters:
    """Give the server's parameters."""
    return made.state.server.strategy[SERVER]


def own_of(made: Run, client: str) -> Parameters:
    """Give a client's own model."""
    return personal(server_of(made), made.state.clients.get(client, {}))


def states_of(made: Run, part: str) -> dict[str, Parameters]:
    """Give what each client keeps under a name."""
    return {client: state[part] for client, state in made.state.clients.items()}


class Plain:
    """A federation in plain PyTorch: the loops of the papers, for the attention adapter."""

    def __init__(self, federation: Federation, settings: Settings) -> None:
        self.federation, self.settings = federation, settings
        self.clients = federation.participants
        seed = seed_of("adapter", settings.seed)
        adapter = Attention().make(federation.text, seed)
        self.first: Weights = {n: p.detach().clone() for n, p in adapter.named_parameters()}

    def loss(self, weights: Weights, image: Tensor, labels: Tensor) -> Tensor:
        hidden = torch.tanh(image @ weights["attention.0.weight"].T + weights["attention.0.bias"])
        scores = hidden @ weights["attention.2.weight"].T + weights["attention.2.bias"]
        adapted = torch.softmax(scores, dim=1) * image
        adapted = adapted / adapted.norm(dim=1, keepdim=True)
        text = self.federation.text / self.federation.text.norm(dim=1, keepdim=True)
        return functional.cross_entropy(self.federation.logit_scale * adapted @ text.T, labels)

    def train(
        self, name: str, samples: Samples, number: int, start: Weights, extra: Hook | None = None
    ) -> tuple[Weights, int]:
        """Train from `start`, adding to each gradient what `extra` makes of the weights."""
        settings = self.settings
        weights = {n: w.clone().requires_grad_() for n, w in start.items()}
        optimizer = (
            torch.optim.SGD(weights.values(), lr=settings.lr, weight_decay=settings.weight_decay)
            if settings.optimizer == "sgd"
            else torch.optim.Adam(
                weights.values(),
                lr=settings.lr,
                betas=settings.betas,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
                fused=True,  # Adam magnifies the rounding of gradients that are almost 0
            )
        )
        steps = 0
        for batch in draw_batches(len(samples), settings, number, name):
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(weights, *samples[batch]))
            now = {n: w.detach() for n, w in weights.items()}
            for n, added in (extra(now) if extra else {}).items():
                gradient = weights[n].grad
                assert gradient is not None
                gradient += added
            optimizer.step()
            steps += 1
        return {n: w.detach() for n, w in weights.items()}, steps

    def mean(self, trained: Sequence[Weights], clients: Sequence[Client] | None = None) -> Weights:
        sizes = [float(len(client.train)) for client in clients or self.clients]
        shares = torch.tensor(sizes) / sum(sizes)
        return {
            n: torch.stack([s * w[n] for s, w in zip(shares, trained, strict=True)]).sum(dim=0)
            for n in trained[0]
        }

    def all_from(self, server: Weights, number: int) -> list[Weights]:
        return [self.train(c.name, c.train, number, server)[0] for c in self.clients]


def assert_close(ours: Mapping[str, Tensor], expected: Weights) -> None:
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


def pull(strength: float, anchor: Weights) -> Hook:
    return lambda now: {n: strength * (w - anchor[n]) for n, w in now.items()}


def add(tensors: Weights) -> Hook:
    return lambda _: tensors


def test_fedprox_pulls_to_the_server(make_features: MakeFeatures) -> None:
    settings = settings_of("fedprox", mu=0.5)
    plain = Plain(federation := clients_of(make_features, settings), settings)
    server = plain.first
    for number in (1, 2, 3):
        trained = [
            plain.train(c.name, c.train, number, server, pull(0.5, server))[0]
            for c in plain.clients
        ]
        server = plain.mean(trained)
    done = run_of(federation, settings, 3)
    assert_close(server_of(done), server)
    free = server_of(run_of(federation, settings_of("fedavg"), 3))
    assert not torch.allclose(free["attention.0.weight"], server["attention.0.weight"], atol=1e-4)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi"])
def test_the_server_optimizers_take_the_mean_update_for_a_gradient(
    make_features: MakeFeatures, strategy: str
) -> None:
    rate, beta, beta2, tau = 0.3, 0.8, 0.95, 0.01
    second = {} if strategy == "fedavgm" else {"server_beta2": beta2, "tau": tau}
    settings = settings_of(strategy, server_lr=rate, server_momentum=beta, **second)
    plain = Plain(federation := clients_of(make_features, settings), settings)
    server = plain.first
    m = {n: torch.zeros_like(w) for n, w in server.items()}
    v = {n: torch.full_like(w, tau**2) for n, w in server.items()}
    for number in (1, 2, 3):
        mean = plain.mean(plain.all_from(server, number))
        for n, w in server.items():
            d = mean[n] - w
            if strategy == "fedavgm":
                m[n] = beta * m[n] + d
                continue
            m[n] = beta * m[n] + (1 - beta) * d
            if strategy == "fedadam":
                v[n] = beta2 * v[n] + (1 - beta2) * d**2
            else:
                v[n] = v[n] - (1 - beta2) * d**2 * torch.sign(v[n] - d**2)
        server = {
            n: w + rate * (m[n] if strategy == "fedavgm" else m[n] / (v[n] ** 0.5 + tau))
            for n, w in server.items()
        }
    assert_close(server_of(run_of(federation, settings, 3)), server)


@pytest.mark.parametrize("weighting", ["samples", "uniform"])
@pytest.mark.parametrize("participation", [1.0, 2])
def test_scaffold_corrects_each_step_by_the_controls(
    make_features: MakeFeatures, weighting: str, participation: float
) -> None:
    settings = settings_of("scaffold", weighting=weighting, participation=participation)
    assert settings.optimizer == "sgd"
    federation = clients_of(make_features, settings)
    plain = Plain(federation, settings)
    ours = Run(federation, settings)
    server = plain.first
    c = {n: torch.zeros_like(w) for n, w in server.items()}
    own = {client.name: dict(c) for client in plain.clients}
    seen = set()
    for number in (1, 2, 3):
        instructed = ours.server.instruct(ours.state.server)
        drawn = [client for client in plain.clients if client.name in instructed]
        seen |= {*instructed}
        trained, drift = [], {n: torch.zeros_like(w) for n, w in server.items()}
        for client in drawn:
            ci = own[client.name]
            correction = {n: c[n] - ci[n] for n in c}
            y, steps = plain.train(client.name, client.train, number, server, add(correction))
            new = {n: ci[n] - c[n] + (server[n] - y[n]) / (steps * settings.lr) for n in c}
            everyone = [len(each.train) for each in plain.clients]
            share = len(client.train) / sum(everyone) if weighting == "samples" else 1 / 3
            drift = {n: drift[n] + share * (new[n] - ci[n]) for n in c}
            own[client.name] = new
            trained.append(y)
        if weighting == "samples":
            server = plain.mean(trained, drawn)
        else:
            server = {n: sum(y[n] for y in trained) / len(trained) for n in server}  # type: ignore[misc]
        c = {n: c[n] + drift[n] for n in c}
        step([ours])
        assert_close(server_of(ours), server)
        assert_close(ours.state.server.strategy["control"], c)
        for name in seen:
            assert_close(ours.state.clients[name]["control"], own[name])
        assert {*ours.state.server.strategy} == {SERVER, "control"}
        assert {*states_of(ours, "control")} == seen
        assert all({*state} == {"control"} for state in ours.state.clients.values())


def test_the_controls_take_the_drift_out(make_features: MakeFeatures) -> None:
    # One full batch an epoch: with all clients in a round, the corrected step is the one that
    # the pooled gradient of the round before would make.
    settings = settings_of("scaffold", batch_size=64, local_epochs=1, rounds=2)
    federation = clients_of(make_features, settings)
    state = run_of(federation, settings, 2).state
    parts = [state.clients[client.name]["control"] for client in federation.participants]
    sizes = torch.tensor([float(len(client.train)) for client in federation.participants])
    for name, tensor in state.server.strategy["control"].items():
        stacked = torch.stack([part[name] for part in parts])
        expected = torch.einsum("c,c...->...", sizes / sizes.sum(), stacked)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_fedrep_averages_the_first_layer_and_leaves_the_second(
    make_features: MakeFeatures,
) -> None:
    settings = settings_of("fedrep")
    plain = Plain(federation := clients_of(make_features, settings), settings)
    server = plain.first
    own = {c.name: {n: w for n, w in server.items() if "2" in n} for c in plain.clients}
    for number in (1, 2, 3):
        trained = [
            plain.train(c.name, c.train, number, {**server, **own[c.name]})[0]
            for c in plain.clients
        ]
        mean = plain.mean(trained)
        server = {n: w if "2" in n else mean[n] for n, w in server.items()}
        for client, weights in zip(plain.clients, trained, strict=True):
            own[client.name] = {n: w for n, w in weights.items() if "2" in n}
    done = run_of(federation, settings, 3)
    assert_close(server_of(done), server)
    for name, part in own.items():
        assert_close(own_of(done, name), {**server, **part})
    assert set(server_of(done)) == set(plain.first)
    assert done.bytes_per_client == 4 * (WIDTH * WIDTH + WIDTH)


def test_ditto_trains_a_model_of_its_own_beside_the_servers(make_features: MakeFeatures) -> None:
    settings = settings_of("ditto", ditto_lambda=0.5)
    plain = Plain(federation := clients_of(make_features, settings), settings)
    server = plain.first
    own = {client.name: server for client in plain.clients}
    for number in (1, 2, 3):
        for client in plain.clients:
            hold = pull(0.5, server)
            own[client.name], _ = plain.train(
                client.name, client.train, number, own[client.name], hold
            )
        server = plain.mean(plain.all_from(server, number))
    done = run_of(federation, settings, 3)
    assert_close(server_of(done), server)
    for name, weights in own.items():
        assert_close(own_of(done, name), weights)
    shared = server_of(run_of(federation, settings_of("fedavg"), 3))
    for name, tensor in server_of(done).items():
        assert torch.equal(tensor, shared[name])


def test_local_clients_know_nothing_of_each_other(make_features: MakeFeatures) -> None:
    settings = settings_of("local")
    plain = Plain(federation := clients_of(make_features, settings), settings)
    done = run_of(federation, settings, 3)
    for client in plain.clients:
        weights = plain.first
        for number in (1, 2, 3):
            weights, _ = plain.train(client.name, client.train, number, weights)
        assert_close(own_of(done, client.name), weights)
    assert_close(server_of(done), plain.first)


def test_centralized_trains_one_client_on_everybodys_samples(make_features: MakeFeatures) -> None:
    settings = settings_of("centralized")
    plain = Plain(federation := clients_of(make_features, settings), settings)
    features = torch.cat([c.train.features for c in plain.clients])
    labels = torch.cat([c.train.labels for c in plain.clients])
    together = federation.together
    assert torch.equal(together.train.features, features)
    assert torch.equal(together.train.labels, labels)
    server = plain.first
    for number in (1, 2, 3):
        server, _ = plain.train(together.name, together.train, number, server)
    done = run_of(federation, settings, 3)
    assert_close(server_of(done), server)


def changes_of(strategy: str) -> dict[str, Any]:
    """Let only some clients train, where a strategy can."""
    return {} if strategy == "centralized" else {"participation": 2}


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("adapter", ["attention", "none"])
def test_a_run_resumed_from_its_saved_state_ends_with_the_same_bytes(
    make_features: MakeFeatures, tmp_path: Path, strategy: str, adapter: str
) -> None:
    if (strategy, adapter) == ("fedrep", "none"):
        pytest.skip("fedrep refuses an adapter without parts")
    settings = settings_of(strategy, adapter=adapter, rounds=4, **changes_of(strategy))
    federation = clients_of(make_features, settings)
    unbroken = run_of(federation, settings, 4)
    broken = run_of(federation, settings, 2)
    write_state(tmp_path / "state", broken.state)
    resumed = Run(federation, settings, engine="plain")
    resumed.state = read_state(tmp_path / "state", resumed.state)
    assert {*resumed.state.server.strategy} == {*broken.state.server.strategy}
    assert {*resumed.state.clients} == {*broken.state.clients}
    simulate([resumed])
    files = []
    for made in (unbroken, resumed):
        write_state(tmp_path / "end", timeless(made))
        files.append((tmp_path / "end").read_bytes())
    assert files[0] == files[1]
    assert bool(load_file(tmp_path / "end")) == (adapter == "attention")


def timeless(made: Run) -> RunState:
    """Give a run's state without what a clock said."""
    server = made.state.server
    assert server.best is not None
    best = replace(server.best, round=replace(server.best.round, seconds=0.0))
    return replace(made.state, server=replace(server, best=best))


@pytest.mark.parametrize("strategy", ["scaffold", "ditto", "fedrep", "local"])
def test_the_state_has_a_part_for_those_who_trained_and_for_no_one_else(
    make_features: MakeFeatures, strategy: str
) -> None:
    settings = settings_of(strategy, clients=6, alpha=100.0, participation=2)
    federation = build_federation([make_features("photo", 200)], settings, None, CPU)
    made, trained = Run(federation, settings), set()
    for _ in range(2):
        trained |= {*made.server.instruct(made.state.server)}
        step([made])
        assert {*made.state.clients} == trained
    assert len(trained) < 6


@pytest.mark.parametrize(
    ("strategy", "factor"),
    [("fedavg", 1), ("fedprox", 1), ("fedadam", 1), ("ditto", 1), ("scaffold", 2)],
)
def test_what_crosses_the_network_is_counted_for_those_who_trained(
    make_features: MakeFeatures, strategy: str, factor: int
) -> None:
    settings = settings_of(strategy, participation=2)
    (current,) = step([Run(clients_of(make_features, settings), settings)])
    adapter = 4 * 2 * (WIDTH * WIDTH + WIDTH)
    assert current.bytes_up == current.bytes_down == 2 * factor * adapter


@pytest.mark.parametrize("strategy", ["local", "centralized"])
def test_where_nothing_is_sent_nothing_is_counted(
    make_features: MakeFeatures, strategy: str
) -> None:
    settings = settings_of(strategy)
    (current,) = step([Run(clients_of(make_features, settings), settings)])
    assert current.bytes_up == current.bytes_down == 0


def accuracy_of(adapter: nn.Module, federation: Federation, samples: Samples) -> float:
    with torch.no_grad():
        image, text = adapter(samples.features, federation.text)
        logits = functional.normalize(image) @ functional.normalize(text).T
    return float((logits.argmax(dim=1) == samples.labels).float().mean())


@pytest.mark.parametrize("strategy", PERSONALIZED)
def test_personalized_strategies_are_judged_by_the_clients_own_models(
    make_features: MakeFeatures, strategy: str
) -> None:
    settings = settings_of(strategy, rounds=3, lr=0.05, weight_decay=0.0)
    caches = [make_features(name, 150, width=WIDTH) for name in ("art", "photo", "sketch")]
    federation = build_federation(caches, settings, "sketch", CPU)
    made = Run(federation, settings)
    while not made.over:
        (current,) = step([made])
        assert current.personal is not None
        assert current.test is not None
        assert current.validation is not None
        on_target = []
        for client in federation.participants:
            own = Attention().make(federation.text, 0)
            own.load_state_dict(own_of(made, client.name))
            tested = accuracy_of(own, federation, client.test)
            assert current.personal[client.name] == pytest.approx(tested)
            validated = accuracy_of(own, federation, client.validation)
            assert current.validation[client.name] == pytest.approx(validated)
            assert federation.target is not None
            on_target.append(accuracy_of(own, federation, federation.target.test))
        shared = Attention().make(federation.text, 0)
        shared.load_state_dict(server_of(made))
        if strategy == "local":
            expected = {**current.personal, "sketch": sum(on_target) / 2}
        else:
            expected = {c.name: accuracy_of(shared, federation, c.test) for c in federation.clients}
        assert current.test == pytest.approx(expected)


@pytest.mark.parametrize("strategy", PERSONALIZED)
@pytest.mark.usefixtures("empty_folder")
def test_the_clients_own_models_of_the_best_round_are_kept(
    make_cache: MakeCache, strategy: str
) -> None:
    make_cache({"art": 150, "photo": 160})
    options = ["--target", "none", "--rounds", "15", "--preset", "tuned", "--lr", "0.05"]
    assert run(["federate", "--strategy", strategy, *options, "--name", "one"]) == 0
    result = json.loads(Path("runs/one/result.json").read_text())
    tensors = load_file(Path("runs/one/personal.safetensors"))
    federation = build_federation(load_cache(find_caches(Path("caches"))[0]), Settings(), None, CPU)
    for client in federation.participants:
        model = Attention().make(federation.text, 0)
        prefix = f"{client.name}/"
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        model.load_state_dict(own)
        tested = accuracy_of(model, federation, client.test)
        assert result["personal"][client.name] == pytest.approx(tested)
    assert result["best_round"] < 15


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.usefixtures("empty_folder")
def test_a_run_records_its_strategy_and_its_personal_accuracies(
    make_cache: MakeCache,
    capsys: pytest.CaptureFixture[str],
    strategy: str,
) -> None:
    make_cache({"art": 60, "photo": 70, "sketch": 40})
    options = ["--target", "sketch", "--rounds", "2", "--preset", "tuned", "--name", "one"]
    assert run(["federate", "--strategy", strategy, *options]) == 0
    config = json.loads(Path("runs/one/config.json").read_text())
    result = json.loads(Path("runs/one/result.json").read_text())
    lines = [json.loads(line) for line in Path("runs/one/rounds.jsonl").read_text().splitlines()]
    assert config["strategy"] == config["settings"]["strategy"] == strategy
    best = lines[result["best_round"] - 1]
    assert result["personal"] == best["personal"]
    printed = capsys.readouterr().out
    if strategy in PERSONALIZED:
        assert set(result["personal"]) == {"art", "photo"}
        assert result["personal_mean"] == pytest.approx(sum(result["personal"].values()) / 2)
        assert result["zero_shot_personal_mean"] == result["zero_shot_personalization"]
    else:
        assert result["personal"] is None
        assert result["personal_mean"] is None
    assert ("personal mean" in printed) == (strategy in PERSONALIZED)
    assert Path("runs/one/adapter.safetensors").exists() == (strategy != "local")
    assert Path("runs/one/personal.safetensors").exists() == (strategy in PERSONALIZED)
    assert result["status"] == "finished"


def test_the_settings_record_the_defaults_of_a_strategy() -> None:
    fedadam = Settings.preset("paper", strategy="fedadam").to_json()
    assert fedadam["server_lr"] == 1e-2
    assert "mu" not in fedadam
    assert (
        Settings.preset("paper", strategy="ditto").to_json()
        == Settings.preset("paper", strategy="ditto", ditto_lambda=1.0).to_json()
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"strategy": "gossip"}, "unknown strategy 'gossip'; choose fedavg, .* or centralized"),
        (
            {"mu": 0.1},
            "--mu 0.1: has no effect with --strategy fedavg; it belongs to fedprox",
        ),
        ({"strategy": "fedprox", "mu": -1.0}, "--mu -1.0: must be at least 0"),
        (
            {"strategy": "ditto", "ditto_lambda": float("nan")},
            "--lambda nan: must be a finite number",
        ),
        ({"strategy": "fedavgm", "tau": 0.1}, "--tau 0.1: has no effect with --strategy fedavgm"),
        ({"strategy": "fedadam", "tau": 0.0}, "--tau 0.0: must be above 0"),
        ({"strategy": "fedadam", "server_lr": -1.0}, "--server-lr -1.0: must be above 0"),
        (
            {"strategy": "fedyogi", "server_beta2": 1.0},
            "--server-beta2 1.0: must be at least 0 and below 1",
        ),
        (
            {"strategy": "scaffold", "optimizer": "adam"},
            "--optimizer adam: --strategy scaffold works with sgd only",
        ),
        (
            {"strategy": "fedrep", "adapter": "scale"},
            "--adapter scale: has no part that --strategy fedrep could leave with the client",
        ),
        (
            {"strategy": "centralized", "participation": 1},
            "--participation 1: --strategy centralized trains on all",
        ),
        (
            {"strategy": "centralized", "participation": 0.5},
            "--participation 0.5: --strategy centralized trains on all",
        ),
        ({"data_fraction": 0.0}, "--data-fraction 0.0: must be above 0 and at most 1"),
        ({"data_fraction": float("nan")}, "--data-fraction nan: must be a finite number"),
        ({"data_fraction": 1.5}, "--data-fraction 1.5: must be"),
    ],
)
def test_options_that_do_not_fit_a_strategy_are_refused(
    change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(FedclipError, match=complaint):
        Settings.preset("paper", change)


def test_scaffold_refuses_the_default_optimizer_unless_a_preset_chooses_it() -> None:
    with pytest.raises(FedclipError, match="--strategy scaffold works with sgd only"):
        Settings(strategy=STRATEGIES.make("scaffold", {}))


def test_sgd_has_a_learning_rate_of_its_own() -> None:
    for settings in (
        Settings.preset("tuned", strategy="scaffold"),
        Settings.preset("paper", optimizer="sgd"),
    ):
        assert settings.optimizer == "sgd"
        assert settings.lr > 1e-2
        assert settings.weight_decay == 0.0
    given = Settings.preset("paper", strategy="scaffold", lr=0.25, weight_decay=0.1)
    assert (given.lr, given.weight_decay) == (0.25, 0.1)


@pytest.mark.parametrize("adapter", SPLIT)
def test_every_adapter_of_fedrep_has_a_part_to_share_and_a_part_to_keep(adapter: str) -> None:
    names = list(ADAPTERS.make(adapter, {}).make(torch.zeros(3, 8), 0).state_dict())
    kept = [name for name in names if name.startswith(SPLIT[adapter])]
    assert 0 < len(kept) < len(names)


def test_a_share_of_the_data_is_part_of_a_larger_share(make_features: MakeFeatures) -> None:
    def rows(fraction: float) -> dict[str, list[list[int]]]:
        settings = settings_of("fedavg", data_fraction=fraction)
        return {
            c.name: [part.rows.tolist() for part in (c.train, c.validation, c.test)]
            for c in clients_of(make_features, settings).participants
        }

    whole, half, least = rows(1.0), rows(0.5), rows(1e-9)
    for name, (train, validation, test) in whole.items():
        assert half[name] == [train[: round(len(train) / 2)], validation, test]
        assert least[name] == [train[:2], validation, test]


EDGES: dict[str, list[str]] = {
    "one client": ["--clients", "1"],
    "very uneven": ["--clients", "4", "--alpha", "0.01"],
    "very even": ["--clients", "4", "--alpha", "1000"],
    "two samples each": ["--data-fraction", "1e-9"],
}


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.usefixtures("empty_folder")
def test_odd_federations_work(
    make_cache: MakeCache,
    strategy: str,
    edge: str,
) -> None:
    make_cache({"photo": 90})
    options = ["--rounds", "2", "--name", "odd", "--strategy", strategy, *EDGES[edge]]
    assert run(["federate", *options]) == 0
    result = json.loads(Path("runs/odd/result.json").read_text())
    assert result["status"] == "finished"
    assert all(value is not None for value in result["accuracy"].values())


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("loss", ["clip", "class"])
@pytest.mark.usefixtures("empty_folder")
def test_a_client_with_one_class_only_works(
    make_cache: MakeCache,
    make_features: MakeFeatures,
    strategy: str,
    loss: str,
) -> None:
    one = make_features("photo", 30, labels=np.zeros(30, np.int32))
    make_cache([one, make_features("sketch", 40)])
    options = ["--rounds", "2", "--name", "odd", "--strategy", strategy, "--loss", loss]
    assert run(["federate", "--target", "none", *options]) == 0
    assert json.loads(Path("runs/odd/result.json").read_text())["status"] == "finished"


@pytest.mark.usefixtures("empty_folder")
def test_a_draw_that_leaves_nobody_enough_rows_says_so(
    make_cache: MakeCache,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_cache({"photo": 12})
    assert run(["federate", "--clients", "12", "--alpha", "1000"]) == 2
    errors = capsys.readouterr().err
    assert "no client is left to train with target none and 12 clients under 5 rows" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.usefixtures("empty_folder")
def test_updates_that_are_not_finite_end_the_run_as_failed(
    make_cache: MakeCache,
    capsys: pytest.CaptureFixture[str],
    strategy: str,
) -> None:
    make_cache({"photo": 60})
    options = ["--rounds", "5", "--lr", "1e38", "--weight-decay", "0.2", "--name", "hot"]
    assert run(["federate", "--strategy", strategy, *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: training diverged (NaN")
    last = json.loads(Path("runs/hot/rounds.jsonl").read_text().splitlines()[-1])
    assert last["personal"] in (None, {"photo": None})
    assert json.loads(Path("runs/hot/result.json").read_text())["status"] == "failed"


def test_the_state_of_the_server_alone_is_what_fedavg_keeps(make_features: MakeFeatures) -> None:
    settings = settings_of("fedavg")
    done = run_of(clients_of(make_features, settings), settings, 1).state
    state: State = done.server.strategy
    assert {*state} == {SERVER}
    assert done.clients == {}
