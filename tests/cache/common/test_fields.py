"""Settings as dataclass fields: types, parsing, checks, suggestions."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from fedclip.cache import FedclipError
from fedclip.cache.common.fields import (
    check_options,
    listed,
    merge_options,
    option,
    options_of,
    suggest,
)


def names() -> tuple[str, ...]:
    return ("fedavg", "fedprox")


def share_or_number(text: str) -> float | None:
    if text == "raw":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError("give raw or a number") from None


@dataclass(frozen=True)
class Settings:
    PANEL = "Training"

    rounds: int = option(50, least=1, help="Rounds of federation.")
    mu: float = option(1e-3, least=0, help="Pull.", source="Li et al. 2020, equation 2")
    beta: float = option(0.9, least=0, below=1, help="Decay.")
    fraction: float = option(1.0, above=0, most=1, help="Share.")
    participation: int | float = option(1.0, above=0, help="Clients.")
    norm: float | None = option(None, parse=share_or_number, help="Norm.", shown="raw")
    loss: Literal["clip", "class"] = option("clip", help="Loss.", panel="Loss")
    strategy: str = option("fedavg", choices=names, help="Strategy.")
    adapter: str = option("attention", choices=("attention",), closed=False, help="Adapter.")
    prompt: tuple[str, ...] = option((), help="Prompt.")
    runs_dir: Path | None = option(None, flags=("--runs", "--runs-dir"), help="Folder.")
    fast: bool = option(False, help="Fast.")
    betas: tuple[float, float] = (0.9, 0.98)

    def __post_init__(self) -> None:
        check_options(self)


def test_a_field_knows_its_name_type_and_facts() -> None:
    options = options_of(Settings)
    assert list(options)[:3] == ["rounds", "mu", "beta"]
    assert "betas" not in options
    facts = {
        name: (each.kinds, each.optional, each.multiple, each.flag, each.panel)
        for name, each in options.items()
    }
    assert facts["rounds"] == ((int,), False, False, "--rounds", "Training")
    assert facts["participation"] == ((int, float), False, False, "--participation", "Training")
    assert facts["norm"] == ((float,), True, False, "--norm", "Training")
    assert facts["loss"] == ((str,), False, False, "--loss", "Loss")
    assert facts["prompt"] == ((str,), False, True, "--prompt", "Training")
    assert facts["runs_dir"] == ((Path,), True, False, "--runs", "Training")
    assert facts["fast"] == ((bool,), False, False, "--fast", "Training")
    assert options["mu"].source == "Li et al. 2020, equation 2"
    assert options["loss"].names == ("clip", "class")
    assert options["strategy"].names == ("fedavg", "fedprox")


def test_a_default_is_shown_as_it_is_typed() -> None:
    shown = {name: each.shown_default for name, each in options_of(Settings).items()}
    assert shown["rounds"] == "50"
    assert shown["mu"] == "0.001"
    assert shown["norm"] == "raw"
    assert shown["prompt"] == shown["runs_dir"] == shown["fast"] == ""

    @dataclass
    class Other:
        lr: float = option(5e-5, help="Rate.")
        prompts: tuple[str, ...] = option(("a {}", "the {}"), help="Prompts.")
        count: int = option(0, help="Count.")

    assert [each.shown_default for each in options_of(Other).values()] == [
        "5e-5",
        "a {}, the {}",
        "0",
    ]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("rounds", "7", 7),
        ("mu", "1e-2", 0.01),
        ("mu", "0", 0.0),
        ("participation", "20", 20),
        ("participation", "0.5", 0.5),
        ("norm", "raw", None),
        ("norm", "10", 10.0),
        ("loss", "class", "class"),
        ("adapter", "my_module:Mine", "my_module:Mine"),
        ("prompt", "a {}", ("a {}",)),
        ("prompt", ["a {}", "the {}"], ("a {}", "the {}")),
        ("runs_dir", "here", Path("here")),
        ("fast", "Yes", True),
        ("fast", "false", False),
    ],
)
def test_a_text_is_parsed_by_the_type(name: str, text: str | list[str], value: Any) -> None:
    read = options_of(Settings)[name].read(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rounds", "many", "--rounds many: must be a whole number"),
        ("rounds", "1.5", "--rounds 1.5: must be a whole number"),
        ("rounds", "0", "--rounds 0: must be at least 1"),
        ("rounds", "", "--rounds '': is empty; pass a value or leave out --rounds"),
        ("mu", "-1", "--mu -1: must be at least 0"),
        ("mu", "a lot", "--mu 'a lot': must be a number"),
        ("mu", "nan", "--mu nan: must be a finite number"),
        ("mu", "1e999", "--mu 1e999: must be a finite number"),
        ("beta", "1", "--beta 1: must be at least 0 and below 1"),
        ("fraction", "0", "--fraction 0: must be above 0 and at most 1"),
        ("participation", "x", "--participation x: must be a whole number or a number"),
        ("norm", "x", "--norm x: give raw or a number"),
        ("norm", "inf", "--norm inf: must be a finite number"),
        ("loss", "clas", "--loss clas: unknown loss; did you mean class?"),
        ("strategy", "x", "--strategy x: unknown strategy; choose fedavg or fedprox"),
        ("runs_dir", "", "--runs '': is empty; pass a value or leave out --runs"),
        ("fast", "perhaps", "--fast perhaps: must be true or false"),
    ],
)
def test_a_text_that_is_no_value_is_one_line(name: str, text: str, message: str) -> None:
    with pytest.raises(FedclipError) as caught:
        options_of(Settings)[name].read(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"rounds": 1.0}, "--rounds 1.0: must be a whole number"),
        ({"rounds": True}, "--rounds True: must be a whole number"),
        ({"mu": math.inf}, "--mu inf: must be a finite number"),
        ({"mu": None}, "--mu None: must be a number"),
        ({"mu": "1"}, "--mu 1: must be a number"),
        ({"loss": "x"}, "--loss x: unknown loss; choose clip or class"),
        ({"prompt": ["a {}"]}, "--prompt '['\"'\"'a {}'\"'\"']': must be a tuple"),
        ({"prompt": (1,)}, "--prompt 1: must be text"),
        ({"runs_dir": "here"}, "--runs here: must be a path"),
        ({"fast": 1}, "--fast 1: must be true or false"),
    ],
)
def test_an_instance_with_an_invalid_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FedclipError) as caught:
        Settings(**values)
    assert str(caught.value) == message


def test_a_whole_number_is_a_number() -> None:
    assert Settings(mu=1, norm=None).mu == 1


def test_a_type_that_no_option_can_have_is_refused() -> None:
    @dataclass
    class Odd:
        table: dict[str, int] = option(None, help="A table.")

    with pytest.raises(TypeError, match=r"Odd.table: a setting cannot be of the type dict"):
        options_of(Odd)


@dataclass(frozen=True)
class FedAvgM:
    server_lr: float = option(1.0, above=0, help="Learning rate of the server.")
    momentum: float = option(0.9, least=0, below=1, help="Decay of the first moment.")


@dataclass(frozen=True)
class FedAdam(FedAvgM):
    server_lr: float = option(1e-2, least=0, help="Learning rate of the server.")
    tau: float = option(1e-3, above=0, help="Adaptivity.")


def test_options_of_one_name_are_merged_and_say_whose_default_is_which() -> None:
    merged = merge_options({"fedavgm": FedAvgM, "fedadam": FedAdam, "fedyogi": FedAdam})
    shown = {each.name: each.shown_default for each in merged}
    assert shown == {
        "server_lr": "fedavgm: 1.0; fedadam, fedyogi: 0.01",
        "momentum": "fedavgm, fedadam, fedyogi: 0.9",
        "tau": "fedadam, fedyogi: 0.001",
    }
    bounds = {each.name: each.bounds for each in merged}
    assert bounds == {"server_lr": "", "momentum": "at least 0 and below 1", "tau": "above 0"}


def test_a_merged_option_is_described_for_each_owner_where_they_differ() -> None:
    @dataclass(frozen=True)
    class TaskRes:
        server_lr: float = option(0.5, help="Scale of the residual.", source="Yu et al. 2023")

    (merged, _) = merge_options({"fedavgm": FedAvgM, "taskres": TaskRes})
    assert merged.help == ("fedavgm: Learning rate of the server. taskres: Scale of the residual.")
    assert merged.source == ""
    assert merged.shown_default == "fedavgm: 1.0; taskres: 0.5"


def test_options_of_one_name_and_two_types_are_not_merged() -> None:
    @dataclass
    class Other:
        server_lr: int = option(1, help="Another.")

    with pytest.raises(TypeError, match="--server-lr has several types: of fedavgm, other"):
        merge_options({"fedavgm": FedAvgM, "other": Other})


@pytest.mark.parametrize(
    ("word", "words", "hint"),
    [
        ("office_home", ["pacs", "office-home"], "; did you mean office-home?"),
        ("PACS", ["pacs", "vlcs"], "; did you mean pacs?"),
        ("vit-b-23", ["ViT-B-16", "ViT-B-32", "RN50"], "; did you mean ViT-B-16 or ViT-B-32?"),
        ("openai", ["openai80", "openai7"], "; did you mean openai80 or openai7?"),
        ("x", ["one"], "; choose one"),
        ("x", ["one", "two", "three"], "; choose one, two or three"),
        ("x", [f"name {number}" for number in range(13)], ""),
        ("x", [], ""),
    ],
)
def test_an_unknown_name_comes_with_similar_ones_or_with_all(
    word: str, words: list[str], hint: str
) -> None:
    assert suggest(word, words) == hint


def test_words_are_listed_as_english_does() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a or b"
    assert listed(["a", "b", "c"], "and") == "a, b and c"
