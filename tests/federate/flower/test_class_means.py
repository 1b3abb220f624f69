"""Class means between sites: one exchange of sums and counts, which a site has to allow."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedclip.cache import FeatureCache, FedclipError, write_cache
from fedclip.federate.settings import Settings

pytest.importorskip("flwr", reason="flwr is not installed: CONTRIBUTING.md")
from safetensors.torch import load, load_file

from fedclip.federate.flower.messages import CLASS_SUMS, ClassSums, SiteFacts, pack
from fedclip.federate.flower.record import MEANS_FILE, Record
from fedclip.federate.flower.server_app import Driver
from fedclip.federate.flower.site import Site

pytestmark = pytest.mark.flower

MakeFeatures = Callable[..., FeatureCache]
DOCS = Path(__file__).resolve().parents[3] / "docs"

# Classes of each site, none of which has all.
LABELS = {"a": [0] * 20 + [1] * 20, "b": [1] * 25 + [2] * 25, "c": [0] * 30 + [2] * 30}


@pytest.fixture
def caches(make_features: MakeFeatures) -> list[FeatureCache]:
    return [
        make_features(client, len(labels), labels=np.array(labels, np.int32))
        for client, labels in LABELS.items()
    ]


def means_of(place: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the class means that the server sent in rounds, with the client."""
    return [
        (client, load(record["class_means"]["safetensors"].data)["parameters/means"])
        for client, record in place.sent("train")
        if "class_means" in record
    ]


@pytest.fixture
def willing(tmp_path: Path, server_in_process: Any) -> Callable[[Sequence[FeatureCache]], Any]:
    """Give a function that makes a server with sites that allow class means."""
    return lambda caches: server_in_process(tmp_path, caches, **{"allow-class-means": True})


@pytest.fixture
def place(willing: Any, caches: list[FeatureCache]) -> Any:
    return willing(caches)


@pytest.mark.parametrize(
    ("kind", "strategy", "target"),
    [
        ("means", "fedavg", ""),
        ("means", "scaffold", "b"),
        ("head", "fedavg", "b"),
        ("head", "fedrep", ""),
    ],
)
def test_sites_train_with_the_vectors_of_the_simulation(
    kind: str,
    strategy: str,
    target: str,
    willing: Any,
    make_features: MakeFeatures,
    simulated: Any,
    distance: Any,
) -> None:
    caches = [make_features(client, rows) for client, rows in {"a": 40, "b": 50, "c": 60}.items()]
    place = willing(caches)
    plan = place.plan(class_vectors=kind, target=target, strategy=strategy)
    record, result = place.drive(plan)
    run = simulated(caches, plan.settings, target=target or None)
    best = run.state.server.best
    for _, means in means_of(place):
        torch.testing.assert_close(means, run.federation.text, rtol=0, atol=1e-6)
    assert result.accuracy == best.round.test
    assert result.personal == best.round.personal
    assert set(result.zero_shot.values()) == {None}
    assert result.trainable_parameters == run.trainable_parameters
    saved = load_file(record.path / "adapter.safetensors")
    vectors = saved.pop("@class_texts")
    torch.testing.assert_close(vectors, run.federation.text, rtol=0, atol=1e-6)
    assert distance(saved, best.parameters) <= 1e-5


def test_each_site_is_asked_for_sums_once_and_gets_the_means_once(
    place: Any, caches: list[FeatureCache], simulated: Any
) -> None:
    plan = place.plan(class_vectors="means")
    record, result = place.drive(plan)
    assert result.status == "finished"
    assert sorted(client for client, _ in place.sent("query.sums")) == ["a", "b", "c"]
    assert sorted(client for client, _ in means_of(place)) == ["a", "b", "c"]
    run = simulated(caches, plan.settings)
    for _, means in means_of(place):  # of sites that lack a class each
        torch.testing.assert_close(means, run.federation.text, rtol=0, atol=1e-6)
    assert result.accuracy == run.state.server.best.round.test
    assert not (record.path / MEANS_FILE).exists()


def test_a_cache_without_class_texts_is_trained_with_means_by_default(
    willing: Any, make_features: MakeFeatures, simulated: Any
) -> None:
    caches = [
        make_features(client, 40, templates=(), logit_scale=1.0) for client in ("a", "b", "c")
    ]
    place = willing(caches)
    plan = place.plan()
    _, result = place.drive(plan)
    assert result.accuracy == simulated(caches, plan.settings).state.server.best.round.test


def test_class_texts_ask_for_no_sums(place: Any) -> None:
    place.drive(place.plan())
    assert not place.sent("query.sums")
    assert not means_of(place)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_server_that_is_resumed_keeps_the_means(
    strategy: str, place: Any, caches: list[FeatureCache], simulated: Any
) -> None:
    def stop(task: str, done: int, *_: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    plan = place.plan(class_vectors="means", strategy=strategy, rounds=5)
    record, _ = place.drive(plan, stop)
    kept = load_file(record.path / MEANS_FILE)["means"]
    again = Record.resume(record.path)
    result = Driver(place.grid, again, authenticated=True).drive()
    again.close()
    assert len(place.sent("query.sums")) == 3
    assert sorted(client for client, _ in means_of(place)) == ["a", "a", "b", "b", "c", "c"]
    assert all(torch.equal(means, kept) for _, means in means_of(place))
    best = simulated(caches, plan.settings).state.server.best
    assert (result.status, result.rounds) == ("finished", 5)
    assert result.accuracy == best.round.test


def test_damaged_means_are_refused_by_name(place: Any) -> None:
    def stop(task: str, done: int, *_: Any) -> None:
        raise KeyboardInterrupt

    record, _ = place.drive(place.plan(class_vectors="means"), stop)
    path = record.path / MEANS_FILE
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FedclipError, match=rf"{MEANS_FILE}: is damaged \("):
        Record.resume(record.path)


def test_a_site_that_comes_late_trains_with_the_means_that_training_began_with(
    place: Any,
) -> None:
    place.grid.online = {100, 101}

    def change(task: str, done: int, *_: Any) -> None:
        if done == 1:
            place.grid.online = {100, 101, 102}

    record, result = place.drive(place.plan(class_vectors="means", expected=2, rounds=6), change)
    assert result.status == "finished"
    assert [client for client, _ in place.sent("query.sums")] == ["a", "b"]
    means = means_of(place)
    assert [client for client, _ in means] == ["a", "b", "c"]
    assert all(torch.equal(each, means[0][1]) for _, each in means)
    last = json.loads((record.path / "sites.jsonl").read_text().splitlines()[-1])
    assert last["took_part"] == ["a", "b", "c"]


def test_a_site_that_was_restarted_and_lost_what_it_kept_gets_the_means_again(
    place: Any,
) -> None:
    def change(task: str, done: int, *_: Any) -> None:
        if done == 2:
            place.grid.contexts[101].state.clear()

    record, result = place.drive(place.plan(class_vectors="means", rounds=5), change)
    lines = [json.loads(line) for line in (record.path / "sites.jsonl").read_text().splitlines()]
    assert result.status == "finished"
    assert [line["took_part"] for line in lines][2:] == [[*"abc"], ["a", "c"], [*"abc"]]
    assert lines[3]["left_out"] == {"b": "has not received the class means yet"}
    assert [client for client, _ in means_of(place)].count("b") == 2


def test_a_site_that_does_not_allow_class_means_is_turned_away_and_sends_none(
    place: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedclip")
    place.grid.contexts[102].node_config["allow-class-means"] = False
    record, _ = place.drive(place.plan(class_vectors="head", expected=2))
    assert [*record.members] == ["a", "b"]
    (line,) = [each for each in caplog.messages if each.startswith("turned a site away")]
    reason = (
        "cannot take part: --class-vectors head: needs the sum and the number of this site's "
        "training features of each class, which it sends only if it was started with "
        "--allow-class-means"
    )
    assert line == f"turned a site away: {reason}"
    (told,) = [record for client, record in place.sent("query.end") if client == "c"][:1]
    assert told["config"]["reason"] == f"the server turned this site away: {reason}"
    assert not [client for client, _ in place.sent("query.sums answer") if client == "c"]


def test_a_target_sends_no_sums_and_needs_not_allow_them(place: Any) -> None:
    place.grid.contexts[101].node_config["allow-class-means"] = False
    labels = {"a", "c"}
    _, result = place.drive(place.plan(class_vectors="means", target="b"))
    assert result.target == "b"
    assert {client for client, _ in place.sent("query.sums")} == labels


def test_a_class_that_no_site_has_ends_the_run_with_a_line_on_both_sides(
    willing: Any, caches: list[FeatureCache]
) -> None:
    place = willing(caches[:1])
    with pytest.raises(FedclipError) as error:
        place.drive(place.plan(class_vectors="means", expected=1))
    assert str(error.value) == (
        "--class-vectors: no client has a training sample of fish, so none has a mean; choose "
        "another --target, or remove the class"
    )
    ((client, told),) = place.sent("query.end")
    assert (client, told["config"]["reason"]) == ("a", f"no training: {error.value}")


def test_a_site_says_which_samples_its_sums_reveal(make_features: MakeFeatures) -> None:
    cache = make_features("a", 40)
    settings = Settings.preset("paper", {"class_vectors": "means"})
    row = int(Site(cache, settings, allow_class_means=True).client.train.rows[0])
    labels = np.arange(40, dtype=np.int32) % 2
    labels[row] = 2
    site = Site(replace(cache, labels=labels), settings, allow_class_means=True)
    sent = site.class_sums()
    feature = cache.image_features[row]
    np.testing.assert_allclose(sent.sums[2], feature / np.linalg.norm(feature), rtol=1e-6)
    assert site.revealed(sent) == (
        "a: sends the sum and the number of its training features of 3 classes; of 'fish' it has "
        "one sample, whose normalized feature is sent"
    )


def test_a_site_sends_one_set_of_sums_however_often_it_is_asked(
    tmp_path: Path,
    willing: Any,
    caches: list[FeatureCache],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "fedclip")
    place = willing(caches)
    place.drive(place.plan(class_vectors="means", rounds=1))
    again = Record(tmp_path / "runs" / "again", place.plan(class_vectors="head", rounds=2))
    again.begin(overwrite=False)
    Driver(place.grid, again, authenticated=True).drive()
    again.close()
    assert len(place.sent("query.sums answer")) == 6
    plan = replace(place.plan(class_vectors="means", rounds=1, seed=1), timeout=0.1)
    other = Record(tmp_path / "runs" / "other", plan)
    other.begin(overwrite=False)

    def interrupt(driver: Driver, awaited: set[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Driver, "_wait_for", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Driver(place.grid, other, authenticated=True).drive()
    other.close()
    assert len(place.sent("query.sums answer")) == 6
    assert (
        "class means: nothing from a: has sent other class sums before, and the difference of two "
        "may reveal single samples; to send these too, join with another --state-dir"
    ) in caplog.messages


@pytest.mark.parametrize(("kind", "target"), [("text", ""), ("means", "a")])
def test_sums_are_not_sent_for_a_run_that_needs_none_of_the_site(
    kind: str, target: str, place: Any
) -> None:
    from flwr.app import ConfigRecord, Message, RecordDict

    settings = json.dumps(place.plan(class_vectors=kind).settings.to_json())
    config = ConfigRecord({"format": 1, "settings": settings, "target": target})
    message = Message(RecordDict({"config": config}), 100, "query.sums")
    (number,) = place.grid.push_messages([message])
    (reply,) = place.grid.pull_messages([number])
    assert reply.error.reason == "sends class sums only for class means that it has a part in"


def sums_of(**changes: Any) -> Callable[[Any], Any]:
    def change(record: Any) -> Any:
        tensors = load(record[CLASS_SUMS]["safetensors"].data)
        sums = {name.partition("/")[2]: tensor for name, tensor in tensors.items()}
        for name, function in changes.items():
            sums[name] = function(sums[name])
        record[CLASS_SUMS] = pack(sums, {})
        return record

    return change


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (
            sums_of(sums=lambda each: each * 1000),
            "its sums by class are not those of normalized features",
        ),
        (
            sums_of(sums=lambda each: each * float("nan")),
            "its sums by class are not those of normalized features",
        ),
        (
            sums_of(counts=lambda each: each * 2),
            "its counts by class are not those of its training samples",
        ),
        (
            sums_of(counts=lambda each: torch.tensor([-1, 25, 0])),
            "its counts by class are not those of its training samples",
        ),
        (
            sums_of(sums=lambda each: each[:2]),
            "parameters/sums: has shape (2, 8) and dtype torch.float64, but (3, 8) and "
            "torch.float64 are expected",
        ),
        (
            lambda record: record.pop(CLASS_SUMS) and record,
            "the message has no class sums",
        ),
    ],
)
def test_sums_that_cannot_be_are_refused(
    wrong: Callable[[Any], Any], reason: str, place: Any
) -> None:
    place.drive(place.plan(class_vectors="means", rounds=1))
    answers = [dict(place.sent(f"query.{kind} answer"))["a"] for kind in ("describe", "sums")]
    facts, record = SiteFacts.of_record(answers[0]), answers[1]
    assert ClassSums.of_record(record, facts).counts.sum() == facts.train
    with pytest.raises(FedclipError) as error:
        ClassSums.of_record(wrong(record), facts)
    assert str(error.value) == reason


def test_what_leaves_a_site_is_listed_and_only_sums_have_the_size_of_features(
    willing: Any, make_features: MakeFeatures
) -> None:
    width = 256
    caches = [make_features(client, 60, width=width) for client in ("a", "b", "c")]
    place = willing(caches)
    place.drive(place.plan(class_vectors="means", rounds=2))
    page = (DOCS / "federate-across-sites.md").read_text()
    table = page.partition("## What leaves a site")[2].partition("\n## ")[0]
    listed = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    largest = {
        "parameters.safetensors": 2 * (width * width + width) * 4 + 4096,
        "class_sums.safetensors": 3 * (width + 1) * 8 + 4096,
    }
    sent = set()
    for kind, _, record in place.grid.wire:
        if not kind.endswith("answer"):
            continue
        for part, content in record.items():
            for name, value in content.items():
                sent.add(field := f"{part}.{name}")
                size = len(value.data) if hasattr(value, "data") else len(str(value).encode())
                assert size < largest.get(field, 4 * width)
                assert (field == "class_sums.safetensors") <= (kind == "query.sums answer")
    assert sent == listed


def test_a_dry_run_shows_class_sums_if_they_are_allowed(
    tmp_path: Path, make_features: MakeFeatures
) -> None:
    from fedclip.federate.flower.preview import preview

    with_texts, without = tmp_path / "a.h5", tmp_path / "b.h5"
    write_cache(make_features("a", 40), with_texts)
    write_cache(make_features("b", 40, templates=(), logit_scale=1.0), without)
    rows = {
        (path, allowed): {
            field: (kind, size)
            for kind, field, _, size in preview(path, "cpu", allow_class_means=allowed)
        }
        for path, allowed in [(with_texts, False), (with_texts, True), (without, True)]
    }
    assert "class_sums.safetensors" not in rows[with_texts, False]
    for path in (with_texts, without):
        kind, size = rows[path, True]["class_sums.safetensors"]
        assert kind == "class means, once if asked"
        assert size > 3 * (8 + 1) * 8
    with pytest.raises(FedclipError, match="only if it was started with --allow-class-means"):
        preview(without, "cpu", allow_class_means=False)


def test_sites_that_allow_it_train_a_head_and_one_that_does_not_is_refused(
    caches: list[FeatureCache], loopback: Any, simulated: Any, distance: Any
) -> None:
    place = loopback(caches)
    place.keys("a", "b")
    server = place.serve(
        *("--clients-expected", 2, "--min-clients", 2, "--rounds", 3, "--class-vectors", "head"),
        *("--lr", 0.01, "--weight-decay", 0, "--name", "run"),
    )
    unwilling = place.join("b", name="unwilling")
    assert unwilling.wait() == 2, unwilling.output
    reason = (
        "the server turned this site away: cannot take part: b: --class-vectors head: needs the "
        "sum and the number of this site's training features of each class, which it sends only "
        "if it was started with --allow-class-means"
    )
    assert f"error: {place.server_address}: {reason}" in " ".join(unwilling.output.split())
    sites = [place.join(client, "--allow-class-means") for client in ("a", "b")]
    assert server.wait() == 0, server.output
    assert [site.wait() for site in sites] == [0, 0], sites[0].output
    for client, site in zip("ab", sites, strict=True):
        shown = " ".join(site.output.split())
        assert "reveals to a server that asks" in shown
        assert f"{client}: sends the sum and the number of its training features" in shown
    changes = {"rounds": 3, "lr": 0.01, "weight_decay": 0.0, "class_vectors": "head"}
    best = simulated(caches[:2], Settings.preset("paper", changes)).state.server.best
    trained = place.adapter()
    assert trained.pop("@class_texts").shape == (3, 8)
    assert distance(trained, best.parameters) <= 1e-5
    assert place.result()["accuracy"] == best.round.test
