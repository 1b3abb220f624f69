"""Results as typed objects, and as `result.json`."""

import json
import math
from typing import Any

import pytest

from fedclip.cache import FedclipError
from fedclip.federate.runs.results import (
    FIGURES,
    RunResult,
    Status,
    TargetsResult,
    read_result,
    summary_of,
)


def result(status: Status = "finished", target: str | None = "art", **changes: Any) -> RunResult:
    figures = dict.fromkeys([name for each in FIGURES for name in (each, f"zero_shot_{each}")], 0.5)
    values: dict[str, Any] = {
        **figures,
        "status": status,
        "target": target,
        "rounds": 3,
        "best_round": 1,
        "trainable_parameters": 1,
        "bytes_per_round": 4,
        "seconds_per_round": 1.0,
        "validation": {"photo": 0.5},
        "zero_shot": {"photo": 0.5, "art": 0.25},
        "accuracy": {"photo": 0.5, "art": 0.75},
        "domains": {"photo": "photo", "art": "art"},
        "test_samples": {"photo": 4, "art": 8},
        "dropped": {},
    }
    return RunResult(**{**values, **changes})


def test_what_can_be_resumed_is_not_over_whatever_else_failed() -> None:
    failed, broken, finished = (result("failed"), result("interrupted"), result("finished"))
    assert summary_of([failed, broken]).status == "interrupted"
    assert summary_of([failed, finished]).status == "failed"
    assert summary_of([failed, finished], complete=False).status == "interrupted"
    assert summary_of([finished, finished]).status == "finished"


def test_a_summary_has_each_target_and_the_means() -> None:
    one = result(target="art", generalization=0.75, mean=0.5)
    two = result(target="photo", generalization=0.25, mean=0.75, best_round=None)
    both = summary_of([one, two])
    assert both.accuracy == {"art": 0.75, "photo": 0.25}
    assert both.best_round == {"art": 1, "photo": None}
    assert (both.generalization, both.mean) == (0.5, 0.625)
    assert summary_of([one, result(generalization=None)]).generalization is None


@pytest.mark.parametrize("each", [result(), result(target=None), summary_of([result(), result()])])
def test_a_result_is_read_as_it_was_written(each: RunResult | TargetsResult) -> None:
    content = json.loads(json.dumps(each.to_json()))
    assert content["version"] == 2
    assert read_result(content) == each


def test_a_result_without_a_version_and_with_fields_of_others_is_read() -> None:
    content = result().to_json()
    del content["version"]
    again = read_result({**content, "colour": "blue"})
    assert again is not None
    assert again.mean == 0.5


def test_what_is_not_a_number_is_null() -> None:
    content = result(mean=math.nan, accuracy={"photo": math.inf}).to_json()
    assert content["mean"] is None
    assert content["accuracy"] == {"photo": None}


def test_a_result_of_a_later_version_is_refused_and_a_damaged_one_is_none() -> None:
    with pytest.raises(FedclipError, match=r"has format version 3, and this fedclip reads up to 2"):
        read_result({**result().to_json(), "version": 3})
    assert read_result({"status": "finished"}) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", "0.5"),
        ("mean", math.nan),
        ("pooled", math.inf),
        ("rounds", 10**400),
        ("rounds", None),
        ("target", {}),
        ("status", ["finished"]),
        ("domains", ["art"]),
        ("domains", None),
        ("accuracy", {"art": []}),
        ("dropped", {"art": "all"}),
        ("metrics", {"art": 0.5}),
        ("metrics", {"art": {"auc": "high"}}),
        ("model", "alexnet"),
    ],
)
def test_a_result_with_a_value_of_another_kind_is_none(field: str, value: Any) -> None:
    content = result().to_json()
    assert read_result(content) is not None
    assert read_result({**content, field: value}) is None


@pytest.mark.parametrize("value", ["art", [1], None])
def test_targets_that_are_no_names_make_no_result(value: Any) -> None:
    content = summary_of([result()]).to_json()
    assert read_result(content) is not None
    assert read_result({**content, "targets": value}) is None
