"""What a run can be told."""

from typing import Any

import pytest

from fedclip.cache import FedclipError
from fedclip.federate.settings import Settings


def test_the_paper_preset_is_the_paper_to_the_letter() -> None:
    settings = Settings.preset("paper")
    assert settings == Settings()
    assert (settings.lr, settings.betas, settings.eps) == (5e-5, (0.9, 0.98), 1e-6)
    assert (settings.weight_decay, settings.batch_size, settings.local_epochs) == (0.2, 32, 1)
    assert (settings.loss, settings.weighting, settings.feature_norm) == ("clip", "samples", None)


def test_the_tuned_preset_changes_loss_rate_and_decay_only() -> None:
    assert Settings.preset("tuned") == Settings(loss="class", lr=3e-4, weight_decay=0.0)


def test_single_options_override_a_preset_and_none_leaves_it() -> None:
    settings = Settings.preset("tuned", lr=1e-3, loss=None, rounds=7)
    assert (settings.lr, settings.loss, settings.rounds) == (1e-3, "class", 7)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rounds": 0}, "rounds is 0; it must be at least 1"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"lr": 0.0}, "lr is 0.0; it must be a positive number"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"feature_norm": -1.0}, "feature_norm is -1.0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must not be negative"),
        ({"loss": "mse"}, "loss is 'mse'; it must be clip or class"),
        ({"weighting": "size"}, "weighting is 'size'; it must be samples or uniform"),
        ({"adapter": "lora"}, "adapter is 'lora'; it must be attention, .*cache-model or none"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; it must be adam or sgd"),
        ({"ratio": 0.3}, "ratio is 0.3, but the adapter attention has none; residual, taskres"),
        ({"ratio": 0.0, "adapter": "taskres"}, "ratio is 0.0; it must be a positive number"),
        ({"ratio": 1.1, "adapter": "residual"}, "ratio is 1.1; of the adapter residual"),
    ],
)
def test_values_that_make_no_sense_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(FedclipError, match=complaint):
        Settings(**change)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(FedclipError, match="no preset 'best'; there is paper, tuned"):
        Settings.preset("best")
