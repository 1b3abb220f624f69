"""Methods by name: built in, from installed packages, and from a user's module."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedclip.cache import FedclipError
from fedclip.cli import run
from fedclip.federate.data.partition import PARTITIONS
from fedclip.federate.models.adapters import ADAPTERS, Attention, Residual
from fedclip.federate.models.losses import LOSSES
from fedclip.federate.registry import Registry
from fedclip.federate.settings import Settings
from fedclip.federate.strategies import STRATEGIES
from fedclip.federate.strategies.base import Strategy
from fedclip.federate.strategies.fedavg import FedAvg
from fedclip.federate.strategies.fedprox import FedProx

MakeCache = Callable[..., Path]
Refusal = Callable[..., str]

# A user's strategy: the server keeps a part of what it had.
SLOW = '''
from dataclasses import dataclass

from fedclip.cache.common.fields import option
from fedclip.federate.strategies.base import SERVER
from fedclip.federate.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Slow(FedAvg):
    """FedAvg that moves only a part of the way."""

    pace: float = option(0.5, above=0, most=1, help="Part of the way.", source="nobody")

    def aggregate(self, state, updates, cohort):
        mean = cohort.average(updates)
        return {
            SERVER: {
                name: (1 - self.pace) * tensor + self.pace * mean[name]
                for name, tensor in state[SERVER].items()
            }
        }


class Undecorated(FedAvg):
    """Forgot the decorator."""

    pace: float = option(0.5, help="Part of the way.")


class Plain(FedAvg):
    """Needs no decorator, as it declares nothing."""


number = 3
'''


@pytest.fixture
def user_module(empty_folder: Path) -> Iterator[str]:
    """Write a user's module into the working directory, and give its name."""
    Path("my_slow.py").write_text(SLOW)
    yield "my_slow"
    forget("my_slow")


def forget(module: str) -> None:
    """Let a module be imported again, as in another process."""
    sys.modules.pop(module, None)
    sys.path_importer_cache.clear()


def strategies() -> Registry[Strategy]:
    """Make a registry of the same strategies, which has not looked for entry points yet."""
    return Registry(
        "strategy",
        Strategy,  # type: ignore[type-abstract]
        "fedclip.federate.strategies",
        {"fedavg": "fedavg:FedAvg"},
        group="fedclip.strategies",
    )


def install(site: Path, points: str) -> None:
    """Write what pip leaves of a package that adds a strategy."""
    (site / "slow_strategies.py").write_text(SLOW)
    info = site / "slow_strategies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-strategies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fedclip.strategies]\n{points}")


def test_names_are_in_the_order_of_the_tables() -> None:
    assert [*STRATEGIES] == [
        *("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "scaffold", "fedrep", "ditto"),
        *("local", "centralized"),
    ]
    assert [*ADAPTERS] == [
        *("attention", "attention-text", "attention-both", "linear", "residual", "taskres"),
        *("scale", "linear-probe", "cache-model", "none"),
    ]
    assert ([*LOSSES], [*PARTITIONS]) == (["clip", "class"], ["dirichlet"])


def test_a_class_is_found_by_its_name_and_its_name_by_an_instance() -> None:
    assert STRATEGIES.get("fedprox") is FedProx
    assert STRATEGIES.name_of(FedProx(mu=0.5)) == "fedprox"
    registries: tuple[Registry[Any], ...] = (STRATEGIES, ADAPTERS, LOSSES)
    for registry in registries:
        for name, cls in registry.classes().items():
            assert registry.name_of(cls()) == name


def test_a_method_takes_its_own_options_and_leaves_the_others() -> None:
    assert STRATEGIES.make("fedprox", {"mu": 0.5, "ratio": 0.3}) == FedProx(mu=0.5)
    assert ADAPTERS.make("residual", {"mu": 0.5, "ratio": 0.3}) == Residual(ratio=0.3)
    assert ADAPTERS.make("attention", {"ratio": 0.3}) == Attention()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("fedporx", "unknown strategy 'fedporx'; did you mean fedprox?"),
        ("fedad", "unknown strategy 'fedad'; did you mean fedadam?"),
        (
            "gossip",
            "unknown strategy 'gossip'; choose fedavg, fedprox, fedavgm, fedadam, fedyogi, ",
        ),
        ("no_such_module:X", "--strategy no_such_module:X: cannot import no_such_module (ModuleNo"),
        ("math:Fed", "--strategy math:Fed: math has no class 'Fed'"),
        (
            "math:sqrt",
            "--strategy math:sqrt: is not a subclass of fedclip.federate.extend.Strategy; see docs",
        ),
        ("pathlib:Path", "--strategy pathlib:Path: is not a subclass of"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, complaint: str) -> None:
    with pytest.raises(FedclipError) as refusal:
        STRATEGIES.get(name)
    assert str(refusal.value).startswith(complaint)
    assert "\n" not in str(refusal.value)


def test_a_class_of_the_working_directory_is_found(user_module: str) -> None:
    cls = STRATEGIES.get(f"{user_module}:Slow")
    assert issubclass(cls, FedAvg)
    slow = STRATEGIES.make(f"{user_module}:Slow", {"pace": 0.25})
    assert slow == cls(pace=0.25)  # type: ignore[call-arg]
    assert STRATEGIES.name_of(slow) == "my_slow:Slow"
    assert STRATEGIES.get(f"{user_module}:Plain")() != FedAvg()
    assert sys.path[-1] == str(Path.cwd())
    with pytest.raises(FedclipError, match="--strategy my_slow:number: is not a subclass of"):
        STRATEGIES.get(f"{user_module}:number")


def test_options_without_the_decorator_are_refused(user_module: str) -> None:
    with pytest.raises(FedclipError) as refusal:
        STRATEGIES.get(f"{user_module}:Undecorated")
    assert str(refusal.value) == (
        "--strategy my_slow:Undecorated: declares options but is not a dataclass; put "
        "@dataclass(frozen=True) above the class"
    )


def test_an_error_of_a_users_class_is_one_line(empty_folder: Path, refusal: Refusal) -> None:
    source = SLOW + "\n    def __post_init__(self):\n        raise KeyError('pace')\n"
    (empty_folder / "my_broken.py").write_text(source.replace("number = 3", ""))
    line = refusal("federate", "--strategy", "my_broken:Plain")
    assert "--strategy my_broken:Plain: failed with KeyError: 'pace'" in line
    forget("my_broken")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def", "SyntaxError: "),
    ],
)
def test_a_module_that_cannot_be_imported_is_named_with_the_reason(
    empty_folder: Path, source: str, reason: str
) -> None:
    (empty_folder / "broken_one.py").write_text(source)
    with pytest.raises(FedclipError) as refusal:
        ADAPTERS.get("broken_one:Adapter")
    message = str(refusal.value)
    assert message.startswith("--adapter broken_one:Adapter: cannot import broken_one (")
    assert reason in message
    forget("broken_one")


def test_an_installed_package_adds_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = (
        "slow = slow_strategies:Slow\nfedavg = slow_strategies:Plain\ngone = no_such_module:X\n"
    )
    install(tmp_path, points)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = strategies()
    # A package cannot take the place of what is built in.
    assert [*registry] == ["fedavg", "slow", "gone"]
    assert registry.get("fedavg") is FedAvg
    assert registry.name_of(registry.make("slow", {"pace": 1.0})) == "slow"
    # One that cannot be imported is an error for those who want it, and for no one else.
    assert [*registry.classes()] == ["fedavg", "slow"]
    with pytest.raises(FedclipError, match="--strategy no_such_module:X: cannot import"):
        registry.get("gone")
    with pytest.raises(FedclipError, match="unknown strategy 'slo'; did you mean slow"):
        registry.get("slo")
    forget("slow_strategies")


def test_the_source_of_a_method_from_outside_is_hashed(user_module: str) -> None:
    assert STRATEGIES.source_hash("fedprox") is None
    before = STRATEGIES.source_hash(f"{user_module}:Slow")
    assert before is not None
    assert len(before) == 64
    Path("my_slow.py").write_text(SLOW + "# changed\n")
    forget(user_module)
    after = STRATEGIES.source_hash(f"{user_module}:Slow")
    assert after not in (None, before)
    assert STRATEGIES.source_hash("no_such_module:X") is None
    # It is hashed before it is imported, so that a changed source is not run first.
    assert user_module not in sys.modules


def test_the_source_is_part_of_the_settings_and_a_changed_one_is_refused(user_module: str) -> None:
    settings = Settings.preset("paper", strategy=f"{user_module}:Slow", pace=0.25)
    values = json.loads(json.dumps(settings.to_json()))
    assert (values["strategy"], values["pace"]) == ("my_slow:Slow", 0.25)
    assert values["strategy_source"] == STRATEGIES.source_hash(f"{user_module}:Slow")
    assert "adapter_source" not in values
    assert Settings.from_json(values) == settings
    with pytest.raises(FedclipError) as refusal:
        Settings.from_json({**values, "strategy_source": "0" * 64})
    assert str(refusal.value) == (
        "--strategy my_slow:Slow: its source is not the one that this run was started with; "
        "restore it, or start a new run"
    )


def test_a_run_with_a_users_strategy_is_recorded_named_and_resumed_by_its_source(
    user_module: str, make_cache: MakeCache, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    command = ["federate", "--strategy", f"{user_module}:Slow", "--pace", "0.25", "--rounds", "2"]
    assert run(command) == 0
    assert "strategy my_slow:Slow with pace 0.25" in capsys.readouterr().out
    (first,) = Path("runs").iterdir()
    settings = json.loads((first / "config.json").read_text())["settings"]
    assert (settings["pace"], len(settings["strategy_source"])) == (0.25, 64)
    assert "this run exists" in refusal(*command)
    assert run(["federate", "--resume", str(first)]) == 0

    # A changed source makes another run, and the old one is not taken for its result.
    Path("my_slow.py").write_text(SLOW + "# changed\n")
    forget(user_module)
    assert run(command) == 0
    assert len([*Path("runs").iterdir()]) == 2
    assert "its source is not the one that this run was started with" in refusal(
        "federate", "--resume", str(first)
    )
    (second,) = set(Path("runs").iterdir()) - {first}
    assert run(["ablate", *command[1:-2], "--set", "rounds=2"]) == 0
    assert "1 of 1 run is done already" in capsys.readouterr().err
    assert {path for path in Path("runs").iterdir() if path.is_dir()} == {first, second}


def test_the_options_of_a_users_method_are_in_the_help_and_can_be_varied(
    user_module: str, make_cache: MakeCache, refusal: Refusal, capsys: pytest.CaptureFixture[str]
) -> None:
    make_cache({"photo": 60})
    assert run(["federate", "--strategy", f"{user_module}:Slow", "--help"]) == 0
    assert "Part of the way (nobody)." in capsys.readouterr().out
    vary = ["--set", f"strategy={user_module}:Slow", "--set", "pace=0.5,1.0"]
    assert run(["ablate", *vary, "--rounds", "1"]) == 0
    assert "2 runs: strategy my_slow:Slow x pace 0.5, 1.0" in capsys.readouterr().out
    assert "--pace 2: must be above 0 and at most 1" in refusal(
        *("federate", "--strategy", f"{user_module}:Slow", "--pace", "2")
    )
    assert "unknown option --pace" in refusal("federate", "--pace", "0.5")
    assert "--strategy my_slow:Fast: my_slow has no class 'Fast'" in refusal(
        *("federate", "--strategy", f"{user_module}:Fast")
    )
