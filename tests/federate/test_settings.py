"""The settings of a run."""

import json
from typing import Any

import pytest

from fedclip.cache import FedclipError
from fedclip.cache.common.fields import options_of
from fedclip.federate.models.losses import ClassLoss, ClipLoss
from fedclip.federate.settings import Settings
from fedclip.federate.strategies.fedprox import FedProx
from fedclip.federate.training.settings import TrainingSettings


def test_the_paper_preset_is_the_paper_to_the_letter() -> None:
    settings = Settings.preset("paper")
    assert settings == Settings()
    assert (settings.lr, settings.betas, settings.eps) == (5e-5, (0.9, 0.98), 1e-6)
    assert (settings.weight_decay, settings.batch_size, settings.local_epochs) == (0.2, 32, 1)
    assert (settings.loss, settings.weighting) == (ClipLoss(), "samples")
    assert settings.feature_norm is None


def test_the_tuned_preset_changes_loss_rate_and_decay_only() -> None:
    assert Settings.preset("tuned") == Settings(loss=ClassLoss(), lr=3e-4, weight_decay=0.0)


def test_single_options_override_a_preset_and_none_leaves_it() -> None:
    settings = Settings.preset("tuned", lr=1e-3, loss=None, rounds=7)
    assert (settings.lr, settings.loss, settings.rounds) == (1e-3, ClassLoss(), 7)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"batch_size": 1}, "--batch-size 1: must be at least 2"),
        ({"lr": 0.0}, "--lr 0.0: must be above 0"),
        ({"lr": float("nan")}, "--lr nan: must be a finite number"),
        ({"clients": 2, "alpha": float("inf")}, "--alpha inf: must be a finite number"),
        ({"alpha": 1.0}, "--alpha 1.0: needs --clients"),
        ({"feature_norm": -1.0}, "--feature-norm -1.0: must be at least 1e-06"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1: must be at least 0"),
        ({"loss": "mse"}, "unknown loss 'mse'; choose clip or class"),
        ({"weighting": "size"}, "--weighting size: unknown weighting; choose samples or uniform"),
        ({"adapter": "lora"}, "unknown adapter 'lora'; choose attention, .*cache-model or none"),
        ({"optimizer": "lion"}, "--optimizer lion: unknown optimizer; choose adam or sgd"),
        (
            {"ratio": 0.3},
            "--ratio 0.3: has no effect with --adapter attention; it belongs to residual, taskres "
            "and cache-model",
        ),
        ({"ratio": 0.0, "adapter": "taskres"}, "--ratio 0.0: must be above 0"),
        ({"ratio": 1.1, "adapter": "residual"}, "--ratio 1.1: must be above 0 and at most 1"),
        ({"colour": 1}, "--colour 1: unknown setting"),
    ],
)
def test_invalid_values_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FedclipError, match=complaint):
        Settings.preset("paper", change)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"rounds": 2.5}, "--rounds 2.5: must be a whole number"),
        ({"participation": 1.5}, "--participation 1.5: a share must be at most 1.0"),
        ({"participation": True}, "--participation True: must be a whole number or a number"),
        ({"betas": ""}, "betas  and eps 1e-06: must be two numbers such as 0.9"),
        ({"betas": (0.9,)}, "must be two numbers such as 0.9"),
        ({"betas": (0, 0.9)}, "must be two numbers such as 0.9"),
        ({"betas": (0.9, 1.0)}, "must be two numbers such as 0.9"),
    ],
)
def test_the_class_itself_checks_its_values(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FedclipError, match=complaint):
        Settings(**change)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        *(("30%", 0.3), ("0.3", 0.3), ("100%", 1.0), ("7 %", 0.07)),
        *(("20clients", 20), ("20 clients", 20), ("20", 20), ("1client", 1), ("1clients", 1)),
    ],
)
def test_participation_is_a_share_or_a_number(typed: str, value: float) -> None:
    read = options_of(Settings)["participation"].read(typed)
    assert (read, type(read)) == (value, type(value))


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(FedclipError, match="unknown preset 'best'; choose paper or tuned"):
        Settings.preset("best")


def test_the_training_settings_are_those_that_clients_are_told() -> None:
    settings = Settings(lr=0.5, batch_size=7, rounds=9, seed=4)
    assert settings.training == TrainingSettings(lr=0.5, batch_size=7, seed=4)


def test_json_has_methods_by_name_with_their_options_beside_them() -> None:
    settings = Settings.preset(
        "tuned", adapter="residual", ratio=0.3, strategy="fedprox", clients=4, prompts=("a {}",)
    )
    values = settings.to_json()
    assert {name: values[name] for name in ("adapter", "ratio", "strategy", "mu", "loss")} == {
        **{"adapter": "residual", "ratio": 0.3, "strategy": "fedprox", "mu": 1e-3, "loss": "class"}
    }
    assert (values["partition"], values["clients"], values["alpha"]) == ("dirichlet", 4, 0.5)
    assert values["prompts"] == ["a {}"]
    assert not [name for name in values if name.endswith("_source")]
    assert Settings.from_json(json.loads(json.dumps(values))) == settings


def test_json_of_the_version_before_is_read() -> None:
    before = {"strategy": "fedprox", "mu": 0.5, "tau": None, "clients": None, "alpha": 0.5}
    assert Settings.from_json({**before, "ratio": None, "betas": [0.9, 0.98]}) == Settings(
        strategy=FedProx(mu=0.5)
    )
