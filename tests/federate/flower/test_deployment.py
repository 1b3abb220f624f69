"""A server and sites on loopback, with TLS and keys, against the simulation of the same."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from fedclip.cache import FeatureCache
from fedclip.federate.data.federation import class_texts
from fedclip.federate.models.classifier import CLASS_TEXTS, read_classifier
from fedclip.federate.settings import Settings

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
pytestmark = pytest.mark.flower

MakeFeatures = Callable[..., FeatureCache]
SITES = {"hospital-a": 40, "hospital-b": 50, "hospital-c": 60}
CHANGES: Mapping[str, Any] = {"rounds": 3, "lr": 0.01, "weight_decay": 0.0}
OPTIONS = ("--lr", 0.01, "--weight-decay", 0, "--name", "run")

# The largest distance from the simulation, as a share of the adapter's norm.
CLOSE = 1e-5


@pytest.fixture
def caches(make_features: MakeFeatures) -> list[FeatureCache]:
    return [make_features(client, rows) for client, rows in SITES.items()]


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "ditto"])
def test_sites_train_what_the_simulation_trains(
    strategy: str, caches: list[FeatureCache], loopback: Any, simulated: Any, distance: Any
) -> None:
    place = loopback(caches, fresh=strategy == "fedavg")
    place.keys(*SITES)
    server = place.serve(
        *("--clients-expected", 3, "--min-clients", 3, "--rounds", 3, "--strategy", strategy),
        *OPTIONS,
    )
    sites = [place.join(client) for client in SITES]
    assert server.wait() == 0, server.output
    assert [site.wait() for site in sites] == [0, 0, 0], sites[0].output

    run = simulated(caches, Settings.preset("paper", {**CHANGES, "strategy": strategy}))
    assert distance(place.adapter(), run.state.server.best.parameters) <= CLOSE
    result, best = place.result(), run.state.server.best.round
    assert (result["status"], result["rounds"]) == ("finished", 3)
    assert result["best_round"] == best.number
    assert result["accuracy"] == best.test
    assert result["validation"] == best.validation
    assert result["zero_shot"] == run.state.zero_shot
    assert result["personal"] == best.personal
    assert [line["round"] for line in place.rounds()] == [1, 2, 3]
    for line in place.sites():
        assert line["took_part"] == line["evaluated"] == [*SITES]
        assert line["left_out"] == {}
        assert line["bytes_sent"] > 0 < line["bytes_received"]
    assert "accuracy in %" in server.output
    assert "TLS" in server.output

    for client, cache in zip(SITES, caches, strict=True):
        (path,) = place.folder.glob(f"joined/{client}-*/adapter.safetensors")
        saved = load_file(path)
        texts = saved.pop(CLASS_TEXTS)
        np.testing.assert_array_equal(texts, class_texts(cache, ()))
        assert distance(saved, run.state.server.best.parameters) <= CLOSE
        assert read_classifier(path)(cache.image_features).adapted.shape == (len(cache.labels), 3)
    for client, own in run.state.best_own.items():
        (path,) = place.folder.glob(f"joined/{client}-*/personal.safetensors")
        parts = {name.partition("/")[::2]: tensor for name, tensor in load_file(path).items()}
        kept = {name: tensor for (first, name), tensor in parts.items() if first != CLASS_TEXTS}
        assert distance(kept, own) <= CLOSE


@pytest.mark.usefixtures("ray")
def test_flowers_simulation_trains_what_ours_trains(
    caches: list[FeatureCache], loopback: Any, simulated: Any, distance: Any
) -> None:
    place = loopback(caches, fresh=True)
    folder = place.folder / "caches" / "tiny" / "drawn"
    folder.mkdir(parents=True)
    for client in SITES:
        (place.folder / f"{client}.h5").rename(folder / f"{client}.h5")
    done = place.start(
        "flower",
        *("federate", "--engine", "flower", "--target", "hospital-b", "--strategy", "ditto"),
        *("--rounds", 3, *OPTIONS),
    )
    assert done.wait() == 0, done.output
    settings = Settings.preset("paper", {**CHANGES, "strategy": "ditto"})
    run = simulated(caches, settings, target="hospital-b")
    best = run.state.server.best
    saved = place.adapter()
    assert [*saved.pop(CLASS_TEXTS).shape] == [len(caches[0].class_names), caches[0].embed_dim]
    assert distance(saved, best.parameters) <= CLOSE
    assert place.result()["accuracy"] == best.round.test
    assert place.result()["personal"] == best.round.personal
