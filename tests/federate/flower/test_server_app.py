"""The server's loop over sites in this process: faults, agreement, what is sent."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedclip.cache import EncoderFacts, FeatureCache, FedclipError
from fedclip.federate.settings import Settings

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fedclip.federate.flower.messages import pack
from fedclip.federate.flower.record import Record
from fedclip.federate.flower.server_app import Driver

pytestmark = pytest.mark.flower

MakeFeatures = Callable[..., FeatureCache]
SITES = {"a": 40, "b": 50, "c": 60}
DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def caches(make_features: MakeFeatures) -> list[FeatureCache]:
    return [make_features(client, rows) for client, rows in SITES.items()]


@pytest.fixture
def place(tmp_path: Path, server_in_process: Any, caches: list[FeatureCache]) -> Any:
    return server_in_process(tmp_path, caches)


def lines(record: Record, name: str = "sites.jsonl") -> list[Any]:
    import json

    return [json.loads(line) for line in (record.path / name).read_text().splitlines()]


@pytest.mark.parametrize(
    "strategy", ["fedavg", "fedprox", "fedadam", "scaffold", "ditto", "fedrep", "local"]
)
def test_every_strategy_trains_what_the_simulation_trains(
    strategy: str, place: Any, caches: list[FeatureCache], simulated: Any, distance: Any
) -> None:
    plan = place.plan(strategy=strategy, participation=2, eval_every=2, rounds=5)
    record, result = place.drive(plan)
    run = simulated(caches, plan.settings)
    best = run.state.server.best
    assert (result.rounds, result.best_round) == (5, best.round.number)
    assert result.accuracy == best.round.test
    assert result.validation == best.round.validation
    assert result.personal == best.round.personal
    assert result.zero_shot == run.state.zero_shot
    if plan.settings.strategy.shared:
        from safetensors.torch import load_file

        assert distance(load_file(record.path / "adapter.safetensors"), best.parameters) <= 1e-5


def test_a_target_is_tested_and_does_not_train(
    place: Any, caches: list[FeatureCache], simulated: Any
) -> None:
    _, result = place.drive(place.plan(target="b"))
    run = simulated(caches, place.plan().settings, target="b")
    best = run.state.server.best.round
    assert result.target == "b"
    assert result.accuracy == best.test
    assert result.generalization == best.test["b"]
    assert [*result.validation] == ["a", "c"]


def test_centralized_is_refused_with_the_reason() -> None:
    from fedclip.federate.flower.site import check_deployable

    with pytest.raises(FedclipError, match=r"^--strategy centralized: trains on all samples"):
        check_deployable(Settings.preset("paper", {"strategy": "centralized"}))
    with pytest.raises(FedclipError, match=r"^--clients: splits a domain into"):
        check_deployable(Settings.preset("paper", {"clients": 3}))


def renamed(record: Any) -> Any:
    record["parameters"] = pack({"other": torch.zeros(1)}, {})
    return record


def reshaped(record: Any) -> Any:
    width = 8
    wrong = {
        name: torch.zeros(shape)
        for name, shape in {
            "attention.0.weight": (width, width + 1),
            "attention.0.bias": (width,),
            "attention.2.weight": (width, width),
            "attention.2.bias": (width,),
        }.items()
    }
    record["parameters"] = pack(wrong, {})
    return record


def not_a_number(record: Any) -> Any:
    from safetensors.torch import load

    tensors = load(record["parameters"]["safetensors"].data)
    bad = {name.partition("/")[2]: tensor * math.nan for name, tensor in tensors.items()}
    record["parameters"] = pack(bad, {})
    return record


def with_config(**changes: Any) -> Callable[[Any], Any]:
    def change(record: Any) -> Any:
        record["config"] = ConfigRecord({**record["config"], **changes})
        return record

    return change


def with_about(about: str) -> Callable[[Any], Any]:
    return with_config(encoder=f'{{"shared": {{}}, "image": {{}}, "text": {{}}, "about": {about}}}')


def with_metrics(**changes: Any) -> Callable[[Any], Any]:
    def change(record: Any) -> Any:
        record["metrics"] = MetricRecord({**record["metrics"], **changes})
        return record

    return change


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (not_a_number, "diverged (NaN or Inf)"),
        (with_metrics(loss=math.inf), "diverged (NaN or Inf)"),
        (with_config(finite=False), "diverged (NaN or Inf)"),
        (renamed, "answered wrongly: parameters/attention.0.bias: is missing"),
        (
            reshaped,
            "answered wrongly: parameters/attention.0.weight: has shape (8, 9) and dtype "
            "torch.float32, but (8, 8) and torch.float32 are expected",
        ),
        (with_config(number=1), "answered wrongly: round 1 in place of round 2"),
        (with_config(samples=10**6), "answered wrongly: reports 1000000 training samples"),
        (
            with_config(format=2),
            "answered wrongly: the message has format 2, but this fedclip has 1; install the same "
            "version on server and sites",
        ),
        (with_metrics(test=1.5), "answered wrongly: test: is 1.5, which is no accuracy"),
        (with_metrics(test=math.nan), "answered wrongly: its test accuracy is NaN"),
        (with_metrics(seconds=math.inf), "answered wrongly: seconds: is inf, which is no duration"),
        (lambda record: None, "did not answer within 0.5 s"),
    ],
)
def test_an_invalid_answer_is_left_out_of_its_round_and_named(
    wrong: Callable[[Any], Any], reason: str, place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedclip")
    place.grid.tamper["b"] = lambda number, record: wrong(record) if number == 2 else record
    record, result = place.drive(place.plan(timeout=0.5))
    assert result.status == "finished"
    assert [each for each in caplog.messages if each.startswith("round ")] == [
        f"round 2: left out b: {reason}",
        "round 3: b takes part again",
    ]
    assert [line["took_part"] for line in lines(record)] == [[*"abc"], ["a", "c"], [*"abc"]]
    assert [line["left_out"] for line in lines(record)] == [{}, {"b": reason}, {}]


def test_progress_names_the_sites_that_a_round_waits_for(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedclip.federate.flower.server_app.LOOK", 0.01)
    place.grid.tamper["b"] = lambda number, record: record if number != 2 else None
    shown = []
    place.drive(place.plan(timeout=0.2), progress=lambda *call: shown.append(call))
    # The first round is over when it has been evaluated, with the answers of the second.
    assert ("federation", 0, 3, "rounds", "waiting for b") in shown
    assert {call[1] for call in shown if "waiting" in call[-1]} == {0}


def without_parameters(record: Any) -> Any:
    del record["parameters"]
    return record


def unreadable(record: Any) -> Any:
    content = b"\x80\x04K\x01."
    array = Array(dtype="uint8", shape=(len(content),), stype="safetensors", data=content)
    record["parameters"] = ArrayRecord({"safetensors": array})
    return record


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (without_parameters, "a: the message has no parameters"),
        (unreadable, "a: the parameters cannot be read"),
        (not_a_number, "a: its initial parameters are not finite numbers"),
        (renamed, "a: its initial parameters are 1 numbers in place of 144"),
    ],
)
def test_another_site_is_asked_if_the_first_sends_no_valid_initial_parameters(
    wrong: Callable[[Any], Any], reason: str, place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    place.grid.initial["a"] = wrong
    record, result = place.drive(place.plan())
    assert result.status == "finished"
    assert [line["took_part"] for line in lines(record)] == [[*"abc"]] * 3
    assert reason in caplog.text


def test_a_run_in_which_everyone_diverges_fails_as_a_simulated_one(place: Any) -> None:
    place.grid.tamper |= {client: lambda _, record: not_a_number(record) for client in SITES}
    _, result = place.drive(place.plan())
    assert (result.status, result.rounds) == ("failed", 1)


def test_a_round_waits_for_enough_updates_and_says_for_whom(
    place: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "fedclip")
    monkeypatch.setattr("fedclip.federate.flower.server_app.LOOK", 0.01)
    tries: list[int] = []

    def twice(number: int, record: Any) -> Any:
        tries.append(number)
        return renamed(record) if tries.count(2) < 3 and number == 2 else record

    place.grid.tamper |= {"b": twice, "c": lambda number, record: record if number != 2 else None}
    record, result = place.drive(place.plan(timeout=0.2, minimum=2))
    assert result.status == "finished"
    assert tries == [1, 2, 2, 2, 3, 4]
    wrong = "answered wrongly: parameters/attention.0.bias: is missing"
    assert (
        f"round 2: 1 of 2 needed answers, waiting for b ({wrong}), c (did not answer within 0.2 s)"
        in caplog.messages
    )
    second = lines(record)[1]
    assert (second["took_part"], [*second["left_out"]]) == (["a", "b"], ["c"])


def test_a_run_that_a_site_joined_late_is_resumed(place: Any) -> None:
    place.grid.online = {100, 101}

    def change(task: str, done: int, *_: Any) -> None:
        place.grid.online = {100, 101, 102}
        if done == 2:
            raise KeyboardInterrupt

    record, result = place.drive(place.plan(expected=2, rounds=5), change)
    assert (result.status, [*record.members]) == ("interrupted", ["a", "b", "c"])
    again = Record.resume(record.path)
    assert Driver(place.grid, again, authenticated=True).drive().rounds == 5
    again.close()
    assert [line["round"] for line in lines(record)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (with_config(target=True), "c: is not the target, but says so"),
        (with_metrics(zero_shot=7.5), "zero_shot: is 7.5, which is no accuracy"),
        (with_metrics(zero_shot=math.inf), "zero_shot: is inf, which is no accuracy"),
        (
            with_about('{"model": "\\ud800"}'),
            "its encoder is described badly ('utf-8' codec can't encode character '\\ud800' in ",
        ),
        (
            with_about('{"parameters": "many"}'),
            "its encoder is described badly (parameters is not a number)",
        ),
    ],
)
def test_a_site_that_describes_itself_wrongly_is_turned_away(
    wrong: Callable[[Any], Any], reason: str, place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    place.grid.facts["c"] = wrong
    record, result = place.drive(place.plan(expected=2))
    assert result.status == "finished"
    assert [*record.members] == ["a", "b"]
    line = next(each for each in caplog.messages if "turned" in each)
    assert line.startswith(f"turned a site away: {reason}")


def test_a_key_stands_for_one_site(place: Any, caplog: pytest.LogCaptureFixture) -> None:
    place.grid.facts["c"] = with_config(client="b")
    place.grid.keys[102] = place.grid.keys[100]
    record, result = place.drive(place.plan(expected=2))
    assert result.status == "finished"
    assert [*record.members] == ["a", "b"]
    assert caplog.messages[0] == (
        "turned a site away: b: its key is that of a; each site needs a key of its own"
    )


def test_a_site_that_comes_back_with_other_rows_is_turned_away(
    place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def change(task: str, done: int, *_: Any) -> None:
        if done == 1:
            place.grid.facts["b"] = with_config(validation=10**9)
            place.grid.activated[101] = "again"

    record, result = place.drive(place.plan(rounds=4), change)
    assert result.status == "finished"
    rows = record.members["b"].facts.rows
    assert caplog.messages[0] == (
        f"turned a site away: b: came back with {(rows[0], 10**9, rows[2])} training, validation "
        f"and test samples, but had {rows}"
    )


def test_a_site_that_does_not_describe_itself_holds_nobody_up(
    place: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedclip.federate.flower.server_app.DESCRIBE_SECONDS", 0.0)
    pull = place.grid.pull_messages
    silent = {"3"}  # the question to the third site
    monkeypatch.setattr(
        place.grid, "pull_messages", lambda ids: pull([each for each in ids if each not in silent])
    )
    record, result = place.drive(place.plan(expected=2))
    assert result.status == "finished"
    assert [line["took_part"] for line in lines(record)] == [["a", "b"]] * 3
    assert caplog.messages[0] == "turned a site away: cannot take part: did not describe itself"


def test_sites_may_come_late_and_leave(place: Any, caplog: pytest.LogCaptureFixture) -> None:
    place.grid.online = {100, 101}

    def change(task: str, done: int, *_: Any) -> None:
        if done == 1:
            place.grid.online = {100, 101, 102}
        if done == 3:
            place.grid.online = {100, 102}

    record, result = place.drive(place.plan(expected=2, rounds=6), change)
    assert result.status == "finished"
    assert [line["took_part"] for line in lines(record)] == [
        ["a", "b"],
        ["a", "b"],
        ["a", "b", "c"],
        ["a", "b", "c"],
        ["a", "c"],
        ["a", "c"],
    ]
    assert lines(record)[-1]["left_out"] == {"b": "is not connected"}
    assert [each for each in caplog.messages if "left out" in each] == [
        "round 5: left out b: is not connected"
    ]
    assert [*record.members] == ["a", "b", "c"]
    assert [*result.accuracy] == lines(record)[result.best_round - 1]["evaluated"]
    assert result.mean is not None


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "ditto"])
def test_an_interrupted_run_is_resumed_as_if_nothing_had_been(
    strategy: str, place: Any, caches: list[FeatureCache], simulated: Any
) -> None:
    def stop(task: str, done: int, *_: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    plan = place.plan(strategy=strategy, rounds=5)
    record, result = place.drive(plan, stop)
    assert (result.status, result.rounds) == ("interrupted", 2)
    again = Record.resume(record.path)
    result = Driver(place.grid, again, authenticated=True).drive()
    again.close()
    run = simulated(caches, plan.settings)
    assert (result.status, result.rounds) == ("finished", 5)
    assert result.accuracy == run.state.server.best.round.test
    assert [line["round"] for line in lines(record)] == [1, 2, 3, 4, 5]
    losses = [line["train_loss"] for line in lines(record, "rounds.jsonl")]
    assert len(losses) == 5
    with pytest.raises(FedclipError, match=r"is finished; a site that missed the end can use"):
        Record.resume(record.path)


def test_flwr_run_takes_the_words_of_serve(
    place: Any,
    caches: list[FeatureCache],
    simulated: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import json

    from fedclip.federate.flower.flwr_run import app

    def run(words: str) -> None:
        app(place.grid, Context(1, 0, {}, RecordDict(), {"options": words, "insecure": True}))

    monkeypatch.chdir(place.folder)
    for words, reason in {
        "--round 3": r"^unknown option --round; did you mean --rounds or --round-timeout\?$",
        "--rounds none": "^--rounds none: ",
        "--strategy centralized": "^--strategy centralized: trains on all samples",
    }.items():
        with pytest.raises(FedclipError, match=reason):
            run(words)
    run("--clients-expected 3 --rounds 3 --lr 0.01 --weight-decay 0 --name run")
    best = simulated(caches, place.plan().settings).state.server.best.round
    result = json.loads((place.folder / "runs" / "run" / "result.json").read_text())
    assert result["accuracy"] == best.test
    shown = capsys.readouterr()
    assert "accuracy in %" in shown.out
    assert "INSECURE" in shown.err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"classes": ("cat", "dog", "bird")},
            "differs in class_names (only a has 'fish', only c has 'bird')",
        ),
        (
            {"templates": ("a photo of a {}",)},
            "differs in templates (only a has 'a picture of a {}', only c has 'a photo of a {}')",
        ),
        (
            {"encoder": EncoderFacts(shared={"library": "other"})},
            "has features of another encoder than a (the facts that differ: library)",
        ),
        ({"rows": 4}, "c: has 4 rows, too few to split"),
    ],
)
def test_a_site_that_differs_is_turned_away_with_a_reason_on_both_sides(
    changes: Any,
    reason: str,
    tmp_path: Path,
    server_in_process: Any,
    make_features: MakeFeatures,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fedclip")
    values = {"rows": 60, **changes}
    caches = [make_features("a", 40), make_features("b", 50), make_features("c", **values)]
    place = server_in_process(tmp_path, caches)
    record, _ = place.drive(place.plan(expected=2))
    assert [*record.members] == ["a", "b"]
    (line,) = [each for each in caplog.messages if each.startswith("turned a site away")]
    assert reason in line
    told = [content for *to, content in place.grid.wire if to == ["query.end", "c"]]
    assert reason in told[0]["config"]["reason"]


def test_what_a_site_sends_is_what_the_docs_list(place: Any, caches: list[FeatureCache]) -> None:
    place.drive(place.plan(strategy="ditto"))
    sent = {
        f"{part}.{name}"
        for kind, _, record in place.grid.wire
        if kind.endswith("answer")
        for part, content in record.items()
        for name in content
    }
    page = (DOCS / "federate-across-sites.md").read_text()
    table = page.partition("## What leaves a site")[2].partition("\n## ")[0]
    listed = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert sent == listed - {"class_sums.safetensors"}  # only of runs with class means
    features = min(cache.image_features.nbytes for cache in caches)
    adapter = 2 * (8 * 8 + 8) * 4
    for kind, _, record in place.grid.wire:
        if kind.endswith("answer"):
            for content in record.values():
                for value in content.values():
                    size = len(value.data) if hasattr(value, "data") else len(str(value).encode())
                    assert size < adapter + 4096
                    assert size < max(features, adapter + 4096)


def test_a_site_refuses_methods_that_are_not_part_of_fedclip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedclip.federate.flower.site import settings_of

    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("open('executed', 'w')\n")
    for name in ("theirs:Strategy", "os:system"):
        with pytest.raises(FedclipError, match="runs only what the fedclip installed here"):
            settings_of(f'{{"strategy": "{name}"}}')
    assert not (tmp_path / "executed").exists()
