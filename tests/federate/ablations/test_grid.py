"""What an ablation varies."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip.cache import FedclipError
from fedclip.federate.ablations.grid import Grid, make_grid, read_toml, split_set

OPTIONS = ("alpha", "clients", "loss", "lr", "prompt", "seed", "weight_decay")


def grid(
    file: dict[str, Any] | None = None,
    sets: dict[str, Any] | list[tuple[str, Any]] | None = None,
    given: dict[str, Any] | None = None,
) -> Grid:
    pairs = list(sets.items()) if isinstance(sets, dict) else sets or []
    return make_grid(file or {}, pairs, given or {}, OPTIONS, lambda name, value: value)


def test_lists_vary_in_a_product_whose_last_axis_varies_fastest() -> None:
    made = grid({"lr": [1, 2], "loss": ["clip", "class"], "clients": 5})
    assert made.fixed == {"clients": 5}
    assert made.names == ["lr", "loss"]
    assert list(made) == [
        {"lr": 1, "loss": "clip"},
        {"lr": 1, "loss": "class"},
        {"lr": 2, "loss": "clip"},
        {"lr": 2, "loss": "class"},
    ]


def test_lists_of_a_zip_table_go_in_step() -> None:
    file = {"alpha": [1, 2], "zip": {"lr": [3, 4], "weight-decay": [5, 6]}}
    made = grid(file)
    assert list(made) == [
        {"lr": 3, "weight_decay": 5, "alpha": 1},
        {"lr": 3, "weight_decay": 5, "alpha": 2},
        {"lr": 4, "weight_decay": 6, "alpha": 1},
        {"lr": 4, "weight_decay": 6, "alpha": 2},
    ]
    several = grid({"zip": [{"lr": [3, 4], "alpha": [5, 6]}, {"loss": ["clip", "class"]}]})
    assert several.count == len(list(several)) == 4


def test_seeds_count_from_the_seed_and_vary_fastest() -> None:
    expected = [{"lr": lr, "seed": seed} for lr in (1, 2) for seed in (3, 4)]
    assert list(grid({"seeds": 2, "seed": 3, "lr": [1, 2]})) == expected
    assert list(grid({"lr": [1, 2]}, {"seeds": [2]}, {"seed": 3})) == expected
    assert list(grid({"seeds": 9, "lr": [1, 2]}, {"seeds": ["2"]}, {"seed": 3})) == expected


def test_the_command_line_goes_before_the_file() -> None:
    file = {"lr": [1, 2], "clients": [3, 4], "alpha": 5}
    made = grid(file, {"lr": [6], "alpha": [7, 8]}, {"clients": 9})
    assert made.fixed == {"clients": 9}
    assert list(made) == [{"lr": 6, "alpha": 7}, {"lr": 6, "alpha": 8}]


def test_a_grid_without_lists_is_one_run() -> None:
    assert list(grid({"lr": 1})) == [{}]
    assert grid().count == 1


@given(lengths=st.lists(st.integers(1, 4), max_size=len(OPTIONS)))
def test_the_count_is_that_of_the_combinations_and_none_repeats(lengths: list[int]) -> None:
    file = {name: list(range(n)) for name, n in zip(OPTIONS, lengths, strict=False)}
    made = grid(file)
    combinations = [tuple(each.items()) for each in made]
    assert made.count == len(combinations) == len(set(combinations))


def test_a_huge_grid_is_counted_without_being_made() -> None:
    huge = grid({name: list(range(1000)) for name in OPTIONS})
    assert huge.count == 1000 ** len(OPTIONS)


@pytest.mark.parametrize(
    ("file", "sets", "given", "complaint"),
    [
        ({"lrr": [1]}, {}, {}, "lrr: is not an option that varies; did you mean lr?"),
        (
            {},
            {"weight-dcay": [1]},
            {},
            "weight-dcay: is not an option that varies; did you mean weight_decay?",
        ),
        ({}, {"colour": [1]}, {}, "colour: is not an option that varies; choose alpha, clients"),
        ({"zip": {"lrr": [1]}}, {}, {}, "lrr: is not an option that varies"),
        ({"lr": []}, {}, {}, "lr has an empty list"),
        ({}, {"lr": []}, {}, "lr has an empty list"),
        ({}, {"seeds": []}, {}, "seeds must be a number of seeds"),
        ({"zip": {"lr": [], "alpha": []}}, {}, {}, "lr has an empty list"),
        ({"zip": {"lr": [1, 2], "alpha": [1]}}, {}, {}, "a table of lists of one length"),
        ({"zip": {"lr": 1}}, {}, {}, "a table of lists of one length"),
        ({"zip": 3}, {}, {}, "a table of lists of one length"),
        ({}, {"lr": [1]}, {"lr": 2}, "lr is set twice"),
        ({"zip": {"lr": [1]}}, {"lr": [1]}, {}, "lr is set twice"),
        ({"zip": {"lr": [1]}, "lr": 2}, {}, {}, "lr is set twice"),
        ({"seed": [1, 2], "seeds": 2}, {}, {}, "seed is set twice"),
        ({}, [("lr", [1]), ("lr", [2])], {}, "lr is set twice"),
        ({}, [("weight-decay", [1]), ("weight_decay", [2])], {}, "weight_decay is set twice"),
        ({"weight-decay": 1, "weight_decay": [2]}, {}, {}, "weight_decay is set twice"),
        ({}, [("seeds", [2]), ("seeds", [3])], {}, "seeds is set twice"),
        ({"seeds": "many"}, {}, {}, "seeds must be a number of seeds"),
        ({"seeds": 0}, {}, {}, "seeds must be a number of seeds"),
        ({"seeds": [1, 2]}, {}, {}, "seeds must be a number of seeds"),
    ],
)
def test_invalid_grids_are_refused(
    file: dict[str, Any],
    sets: dict[str, Any] | list[tuple[str, Any]],
    given: dict[str, Any],
    complaint: str,
) -> None:
    with pytest.raises(FedclipError) as refusal:
        grid(file, sets, given)
    assert complaint in str(refusal.value)


def test_set_takes_a_name_and_values() -> None:
    assert split_set("lr=1e-5, 5e-5") == ("lr", ["1e-5", "5e-5"])
    assert split_set("prompt=a {}=b") == ("prompt", ["a {}=b"])
    assert split_set("lr=") == ("lr", [])
    with pytest.raises(FedclipError, match="--set 'lr': must be NAME=VALUE,VALUE"):
        split_set("lr")


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FedclipError, match=r"grid.toml: is neither a file nor a grid of the package"
    ):
        read_toml(tmp_path / "grid.toml")
    (tmp_path / "grid.toml").write_text("lr = [1,")
    with pytest.raises(FedclipError, match=r"grid.toml: is not valid TOML"):
        read_toml(tmp_path / "grid.toml")
