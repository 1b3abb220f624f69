"""Class vectors that are not of texts: means over the clients, and a head that is trained."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedclip.cache import FeatureCache, FedclipError
from fedclip.federate.data.federation import build_federation, class_means, class_sums
from fedclip.federate.models.adapters import ADAPTERS
from fedclip.federate.settings import Settings
from fedclip.federate.simulation import Run, step

MakeFeatures = Callable[..., FeatureCache]

CPU = torch.device("cpu")
CLIENTS = ("photo", "sketch", "cartoon")


@pytest.fixture
def caches(make_features: MakeFeatures) -> list[FeatureCache]:
    return [make_features(name, 30, templates=(), logit_scale=1.0) for name in CLIENTS]


def test_means_are_those_of_all_normalized_training_features(caches: list[FeatureCache]) -> None:
    federation = build_federation(caches, Settings(), "cartoon", CPU)
    parts = [client.train for client in federation.participants]
    features = np.concatenate([part.features.numpy() for part in parts])
    labels = np.concatenate([part.labels.numpy() for part in parts])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.stack([unit[labels == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(federation.text.numpy(), expected, rtol=0, atol=1e-6)
    assert not federation.zero_shot


def test_means_do_not_depend_on_which_client_has_which_sample(caches: list[FeatureCache]) -> None:
    federation = build_federation(caches, Settings(), None, CPU)
    parts = [client.train for client in federation.participants]
    names = caches[0].class_names
    sent = [class_sums(part, len(names)) for part in parts]
    torch.testing.assert_close(class_means(sent, names), class_means(sent[::-1], names))
    sums, counts = sent[0]
    assert counts.sum() == len(parts[0])
    assert sums.shape == (3, 8)


def test_the_target_has_no_part_in_the_means(caches: list[FeatureCache]) -> None:
    without = build_federation(caches[:2], Settings(), None, CPU)
    left_out = build_federation(caches, Settings(), "cartoon", CPU)
    assert torch.equal(without.text, left_out.text)


def test_a_class_without_a_training_sample_is_refused(make_features: MakeFeatures) -> None:
    labels = np.repeat([0, 1], 15).astype(np.int32)
    cache = make_features("photo", 30, templates=(), labels=labels)
    with pytest.raises(FedclipError, match="no client has a training sample of fish"):
        build_federation([cache], Settings(), None, CPU)


def test_an_encoder_without_a_logit_scale_gets_that_of_clip(caches: list[FeatureCache]) -> None:
    assert build_federation(caches, Settings(), None, CPU).logit_scale == 100
    assert build_federation(caches, Settings(logit_scale=7.0), None, CPU).logit_scale == 7


def test_a_logit_scale_that_the_encoder_has_is_kept(make_features: MakeFeatures) -> None:
    cache = make_features("photo", 30)
    assert build_federation([cache], Settings(), None, CPU).logit_scale == 20
    assert build_federation([cache], Settings(logit_scale=5.0), None, CPU).logit_scale == 5


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [
        (name, kind)
        for name in ADAPTERS
        for kind in ("means", "head")
        if (name, kind) != ("linear-probe", "head")
    ],
)
def test_every_adapter_trains_with_class_vectors_of_any_kind(
    caches: list[FeatureCache], adapter: str, kind: str
) -> None:
    strategy = "fedavg" if ADAPTERS.get(adapter).sends else "local"
    settings = Settings.preset(
        "tuned", adapter=adapter, strategy=strategy, class_vectors=kind, rounds=2
    )
    run = Run(build_federation(caches, settings, "cartoon", CPU), settings)
    while not run.over:
        current = step([run])[0]
    assert current.finite
    assert current.test is not None
    assert all(0 <= value <= 1 for value in current.test.values())
    assert all(np.isnan(value) for value in run.state.zero_shot.values())
    head = run.state.server.strategy["server"].get("head")
    assert (head is not None) == (kind == "head")
    if head is not None:
        assert head.shape == (3, 8)


def test_a_head_starts_at_the_means_and_moves(caches: list[FeatureCache]) -> None:
    settings = Settings.preset("tuned", class_vectors="head", rounds=1)
    run = Run(build_federation(caches, settings, None, CPU), settings)
    assert torch.equal(run.initial["head"], run.federation.text)
    step([run])
    assert not torch.equal(run.state.server.strategy["server"]["head"], run.federation.text)


def test_the_name_of_a_run_does_not_change_unless_they_are_chosen() -> None:
    names = Settings().identity().keys()
    assert "class_vectors" not in names
    assert "logit_scale" not in names
    assert Settings(class_vectors="means").identity()["class_vectors"] == "means"
    recorded = Settings(class_vectors="head", logit_scale=50.0)
    assert Settings.from_json(recorded.to_json()) == recorded


def test_a_head_behind_class_vectors_of_one_s_own_is_refused() -> None:
    with pytest.raises(FedclipError, match="linear-probe has class vectors of its own"):
        Settings.preset("tuned", adapter="linear-probe", class_vectors="head")
