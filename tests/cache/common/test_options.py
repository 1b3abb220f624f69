"""Commands whose options are made from dataclasses: help, parsing, errors, completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, assert_type

import pytest
import typer

from fedclip.cache import FedclipError
from fedclip.cache.common.fields import Option, check_options, merge_options, option
from fedclip.cache.common.options import (
    Also,
    CacheOptions,
    Chosen,
    Command,
    Group,
    declared,
    given,
    with_options,
)


@dataclass(frozen=True)
class RunOptions:
    PANEL = "Run"

    name: str | None = option(None, help="The run's name.", shown="made of the settings")
    overwrite: bool = option(False, help="Replace a run.")
    keep: bool = option(True, help="Keep the model.")
    runs_dir: Path = option(Path("runs"), envvar="FEDCLIP_RUNS_DIR", help="Folder of the runs.")

    def __post_init__(self) -> None:
        check_options(self)
        if self.name == "bad":
            raise FedclipError("--name bad: choose another")


@dataclass(frozen=True)
class Settings:
    PANEL = "Training"

    rounds: int = option(50, least=1, help="Rounds of federation.")
    lr: float = option(5e-5, above=0, help="Learning rate.", shown="paper: 5e-5; tuned: 3e-4")
    loss: Literal["clip", "class"] = option("clip", help="Loss of [local] training.")
    strategy: str = option(
        "fedavg",
        choices=lambda: ("fedavg", "fedprox", "fedadam", "centralized"),
        help="What the server does.",
        source="McMahan et al. 2017",
    )
    prompt: tuple[str, ...] = option((), help="Template; may be repeated.")


@dataclass(frozen=True)
class FedProx:
    PANEL = "Strategy"

    mu: float = option(1e-3, least=0, help="Pull.")


@dataclass(frozen=True)
class Mine:
    PANEL = "Adapter"

    width: int = option(4, least=1, help="Width of mine.")


def method_options(arguments: Sequence[str]) -> list[Option]:
    """Give fedprox's options, and those of an adapter that the arguments name."""
    if "nowhere:Mine" in arguments:
        raise FedclipError("--adapter nowhere:Mine: cannot import nowhere")
    own = {"mine": Mine} if "my_module:Mine" in arguments else {}
    return merge_options({"fedprox": FedProx, **own})


Call = dict[str, Any]


def make_app(calls: list[Call]) -> typer.Typer:
    """Make an app of two commands that note what they were called with."""
    app = typer.Typer(
        cls=Group,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
    )

    @app.command(cls=Command)
    @with_options(examples=["fedclip train pacs --lr 0.1", "fedclip train pacs --set [a,b]"])
    def train(
        context: typer.Context,
        cache: Annotated[str, typer.Argument(help="A cache.")],
        run: RunOptions,
        chosen: Annotated[Chosen[Settings], Also(method_options)],
        adapter: Annotated[str, typer.Option(help="An adapter.")] = "attention",
    ) -> None:
        """Train an adapter over
        a cache.

        It takes
        a while.
        """
        assert_type(run.name, str | None)
        assert_type(run.runs_dir, Path)
        calls.append(
            {
                "cache": cache,
                "run": run,
                "chosen": chosen,
                "adapter": adapter,
                "given": given(context),
                "declared": list(declared(context)),
                "parsed": declared(context)["loss"].read("class"),
            }
        )

    @app.command(cls=Command)
    @with_options
    def short(settings: FedProx, caches: CacheOptions) -> None:
        """Take a few settings."""
        assert_type(settings.mu, float)
        calls.append({"settings": settings, "caches": caches})

    return app


@pytest.fixture
def calls() -> list[Call]:
    """Give the list of calls of commands."""
    return []


@pytest.fixture
def call(calls: list[Call], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Call]:
    """Give a function that runs the app and returns what its command was called with."""
    monkeypatch.delenv("FEDCLIP_RUNS_DIR", raising=False)
    app = make_app(calls)

    def run(*arguments: str) -> Call:
        app(args=list(arguments), prog_name="fedclip", standalone_mode=False)
        return calls[-1]

    return run


@pytest.fixture
def help_of(
    call: Callable[..., Call],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: list[Call],
) -> Callable[..., list[str]]:
    """Give a function that returns the lines of a help, without frames, at 80 columns."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)

    def help_lines(*arguments: str) -> list[str]:
        make_app(calls)(args=list(arguments), prog_name="fedclip", standalone_mode=False)
        lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert max(map(len, lines)) <= 80
        return [" ".join(line.strip("│").split()) for line in lines if line.strip("│ ")]

    return help_lines


def test_a_command_gets_instances_and_only_what_was_given(call: Callable[..., Call]) -> None:
    got = call("train", "pacs")
    assert got["run"] == RunOptions()
    assert got["chosen"] == {}
    assert got["given"] == {"cache"}
    got = call(
        *("train", "pacs", "--name", "mine", "--overwrite", "--no-keep", "--lr", "1e-4"),
        *("--prompt", "a {}", "--prompt", "the {}", "--rounds", "50", "--mu", "0"),
    )
    assert got["run"] == RunOptions(name="mine", overwrite=True, keep=False)
    assert got["chosen"] == {"lr": 1e-4, "prompt": ("a {}", "the {}"), "rounds": 50, "mu": 0.0}
    assert got["given"] == {"cache", "name", "overwrite", "keep", *got["chosen"]}
    assert got["parsed"] == "class"


def test_the_environment_sets_an_option_and_does_not_count_as_given(
    call: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDCLIP_RUNS_DIR", "elsewhere")
    got = call("train", "pacs")
    assert got["run"].runs_dir == Path("elsewhere")
    assert got["given"] == {"cache"}
    assert call("train", "pacs", "--runs-dir", "here")["run"].runs_dir == Path("here")


def test_commands_share_dataclasses_and_have_no_other_options(call: Callable[..., Call]) -> None:
    got = call("short", "--mu", "3", "--cache-dir", "there")
    assert got == {"settings": FedProx(mu=3.0), "caches": CacheOptions(Path("there"))}
    with pytest.raises(Exception, match="No such option"):
        call("short", "--lr", "1")


def test_every_option_is_declared_by_name(call: Callable[..., Call]) -> None:
    assert call("train", "pacs")["declared"] == [
        *("name", "overwrite", "keep", "runs_dir"),
        *("rounds", "lr", "loss", "strategy", "prompt", "mu"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0: must be at least 1"),
        (["--rounds", "x"], "--rounds x: must be a whole number"),
        (["--mu", "-1"], "--mu -1: must be at least 0"),
        (["--loss", "clas"], "--loss clas: unknown loss; did you mean class?"),
        (["--strategy", "fedpox"], "--strategy fedpox: unknown strategy; did you mean fedprox?"),
        (["--name", ""], "--name '': is empty; pass a value or leave out --name"),
        (["--name", "bad"], "--name bad: choose another"),
        (["--adapter", "nowhere:Mine"], "--adapter nowhere:Mine: cannot import nowhere"),
    ],
)
def test_bad_values_are_usage_errors_of_one_line(
    call: Callable[..., Call], arguments: list[str], message: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its class depends on typer's version
        call("train", "pacs", *arguments)
    error: Any = caught.value
    assert error.format_message() == message
    assert error.ctx.command_path == "fedclip train"


def test_an_argument_may_bring_options_of_its_own(call: Callable[..., Call]) -> None:
    got = call("train", "pacs", "--width", "8", "--adapter", "my_module:Mine")
    assert (got["chosen"], got["adapter"]) == ({"width": 8}, "my_module:Mine")
    with pytest.raises(Exception, match="No such option"):
        call("train", "pacs", "--width", "8")


def test_an_option_that_is_declared_twice_is_refused() -> None:
    app = typer.Typer()

    @app.command(cls=Command)
    @with_options
    def train(settings: Settings, chosen: Chosen[Settings]) -> None: ...

    with pytest.raises(Exception, match="--rounds is declared twice; rename one of"):
        app(args=[], standalone_mode=False)


def test_the_help_is_made_from_the_fields(help_of: Callable[..., list[str]]) -> None:
    lines = help_of("train", "-h")
    assert lines == help_of("train", "--help")
    assert lines[1:3] == ["Train an adapter over a cache.", "It takes a while."]
    for line in (
        "--name TEXT The run's name.",
        "[default: made of the settings]",
        "--overwrite Replace a run.",
        "--rounds INTEGER Rounds of federation. [default: 50]",
        "--lr NUMBER Learning rate.",
        "[default: paper: 5e-5; tuned: 3e-4]",
        "--loss clip|class Loss of [local] training. [default: clip]",
        "--prompt TEXT Template; may be repeated.",
        "--mu NUMBER Pull. [default: fedprox: 0.001]",
    ):
        assert line in lines
    text = " ".join(lines)
    assert "--keep --no-keep Keep the model. [default: keep]" in text
    assert "--runs-dir PATH Folder of the runs. [env var: FEDCLIP_RUNS_DIR] [default: runs]" in text
    assert (
        "--strategy NAME What the server does (McMahan et al. 2017). One of fedavg, fedprox, "
        "fedadam, centralized. [default: fedavg]" in text
    )
    panels = [line.strip("╭╮─ ") for line in lines if line.startswith("╭")]
    assert panels == ["Arguments", "Options", "Run", "Training", "Strategy"]


def test_the_help_ends_with_the_examples(help_of: Callable[..., list[str]]) -> None:
    assert help_of("train", "-h")[-3:] == [
        "Examples:",
        "fedclip train pacs --lr 0.1",
        "fedclip train pacs --set [a,b]",
    ]
    assert help_of("short", "-h")[-1].startswith("╰")


def test_the_help_shows_options_that_an_argument_brings(
    help_of: Callable[..., list[str]],
) -> None:
    own = "--width INTEGER Width of mine. [default: mine: 4]"
    assert own in help_of("train", "--adapter", "my_module:Mine", "--help")
    assert own not in help_of("train", "--help")


@pytest.fixture
def complete(
    calls: list[Call], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    """Give a function that completes a command line as bash asks for it."""

    def complete_line(line: str) -> list[str]:
        monkeypatch.setenv("_FEDCLIP_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        with pytest.raises(SystemExit) as caught:
            make_app(calls)(args=[], prog_name="fedclip")
        assert caught.value.code == 0
        return capsys.readouterr().out.split()

    return complete_line


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fedclip tr", ["train"]),
        ("fedclip train --r", ["--runs-dir", "--rounds"]),
        ("fedclip train --loss ", ["clip", "class"]),
        ("fedclip train --strategy fed", ["fedavg", "fedprox", "fedadam"]),
        ("fedclip train --rounds 3 --strategy c", ["centralized"]),
        ("fedclip train --wi", []),
        ("fedclip train --adapter my_module:Mine --wi", ["--width"]),
        ("fedclip train --adapter nowhere:Mine --ru", ["--runs-dir"]),
        ("fedclip short --m", ["--mu"]),
    ],
)
def test_the_shell_completes_commands_options_and_choices(
    complete: Callable[[str], list[str]], line: str, words: list[str]
) -> None:
    assert complete(line) == words
