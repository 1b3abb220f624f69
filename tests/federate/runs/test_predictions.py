"""The predictions of the best round: what is kept, and what a damaged file is told from."""

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclip.cache import FeatureCache, FedclipError
from fedclip.cli import run
from fedclip.federate.runs.predictions import (
    ADAPTED,
    PERSONAL,
    PREDICTIONS,
    ZERO_SHOT,
    read_predictions,
)

MakeCache = Callable[..., Path]
MakeFeatures = Callable[..., FeatureCache]

pytestmark = pytest.mark.usefixtures("empty_folder")

OPTIONS = ["--rounds", "3", "--preset", "tuned", "--lr", "1e-2", "--name", "one"]


def result(folder: str = "runs/one") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    return content


@pytest.mark.parametrize("strategy", ["fedavg", "ditto", "fedrep", "local", "centralized"])
def test_kept_predictions_have_the_accuracies_of_the_result(
    strategy: str, make_cache: MakeCache
) -> None:
    make_cache({"art": 60, "photo": 70, "sketch": 40})
    assert run(["federate", "--target", "sketch", "--strategy", strategy, *OPTIONS]) == 0
    predictions, recorded = read_predictions(Path("runs/one")), result()
    assert predictions.clients == ("art", "photo", "sketch")
    assert predictions.class_names == ("cat", "dog", "fish")
    for model, name in ((ADAPTED, "accuracy"), (ZERO_SHOT, "zero_shot"), (PERSONAL, "personal")):
        own = {client: tally.accuracy for client, tally in predictions.tallies(model).items()}
        expected = dict(recorded[name] or {})
        if (strategy, model) == ("local", ADAPTED):
            assert expected.pop("sketch")  # a mean over models, which predict no image together
        if (strategy, model) == ("local", PERSONAL):
            expected = {}  # the same as the adapted ones
        assert own == expected, model
    for client in predictions.clients:
        rows = predictions.client == predictions.clients.index(client)
        ids = [each.decode() for each in predictions.ids[rows]]
        assert len(ids) == len({*ids}) == recorded["test_samples"][client]
        assert all(each.startswith(f"{client}/") for each in ids)
        labels = [int(each[-8:-4]) % 3 for each in ids]
        assert labels == predictions.labels[rows].tolist()


def test_the_result_has_the_figures_of_each_client(make_cache: MakeCache) -> None:
    make_cache({"art": 60, "photo": 70})
    assert run(["federate", "--target", "photo", *OPTIONS]) == 0
    recorded, predictions = result(), read_predictions(Path("runs/one"))
    for name, model in (("metrics", ADAPTED), ("zero_shot_metrics", ZERO_SHOT)):
        tallies = predictions.tallies(model)
        assert recorded[name] == {client: each.figures() for client, each in tallies.items()}
    assert recorded["metrics"]["art"]["accuracy"] == recorded["accuracy"]["art"]
    assert recorded["metrics"]["art"]["auc"] is None
    assert recorded["personal_metrics"] is None


def test_every_evaluated_round_has_figures_that_the_best_one_has_in_the_result(
    make_cache: MakeCache,
) -> None:
    make_cache({"art": 60, "photo": 70})
    assert run(["federate", "--target", "photo", *OPTIONS]) == 0
    recorded = result()
    lines = [json.loads(line) for line in Path("runs/one/rounds.jsonl").read_text().splitlines()]
    best = lines[recorded["best_round"] - 1]
    for name in ("balanced_accuracy", "macro_f1"):
        assert best[name] == {
            client: pytest.approx(each[name]) for client, each in recorded["metrics"].items()
        }
        assert all(line[name].keys() == line["test"].keys() for line in lines)
    assert run(["federate", "--target", "photo", *OPTIONS, "--eval-every", "2", "--overwrite"]) == 0
    first = json.loads(Path("runs/one/rounds.jsonl").read_text().splitlines()[0])
    assert first["macro_f1"] is first["test"] is None


def test_two_classes_have_an_area_under_the_curve(
    make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    make_cache([make_features("scans", 60, classes=("well", "ill"))])
    assert run(["federate", *OPTIONS]) == 0
    assert 0 <= result()["metrics"]["scans"]["auc"] <= 1


def test_names_of_any_script_and_with_markup_come_back(
    make_cache: MakeCache, make_features: MakeFeatures
) -> None:
    classes = ("</script>", "кот", "x" * 200)
    ids = tuple(f"\u202e<b>{index}</b>\u2028.png" for index in range(30))
    make_cache([make_features("art", 30, classes=classes, ids=ids)])
    assert run(["federate", *OPTIONS]) == 0
    predictions = read_predictions(Path("runs/one"))
    assert predictions.class_names == classes
    assert {each.decode() for each in predictions.ids.tolist()} <= {*ids}


def test_the_same_run_has_the_same_bytes(make_cache: MakeCache) -> None:
    make_cache({"art": 60})
    assert run(["federate", *OPTIONS]) == 0
    first = (Path("runs/one") / PREDICTIONS).read_bytes()
    assert run(["federate", *OPTIONS, "--overwrite"]) == 0
    assert (Path("runs/one") / PREDICTIONS).read_bytes() == first


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    path = Path("runs/one") / PREDICTIONS
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(FedclipError) as error:
        read_predictions(path.parent)
    return str(error.value)


def encrypted(path: Path) -> None:
    """Set the mark of encryption in the headers of all members."""
    content = bytearray(path.read_bytes())
    for start, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        for found in re.finditer(re.escape(start), bytes(content)):
            content[found.start() + offset] |= 1
    path.write_bytes(content)


def endless(path: Path) -> None:
    """Let an array say that it has more numbers than any memory."""
    header = b"{'descr':'<i8','fortran_order':False,'shape':(1000000000000000,)}\n"
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.npy", start + header)


def test_a_damaged_file_is_refused_with_the_reason(make_cache: MakeCache) -> None:
    make_cache({"art": 60})
    assert run(["federate", *OPTIONS]) == 0
    path = Path("runs/one") / PREDICTIONS
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(FedclipError, match=r"predictions.npz: is damaged .*--overwrite"):
        read_predictions(path.parent)
    for change, reason in (
        (lambda a: a.update(version=np.int32(9)), "it has version 9, not 1"),
        (lambda a: a.update(version=np.float64("inf")), "cannot convert float infinity"),
        (lambda a: a.update(ids=np.array([{}])), "is damaged (Object arrays cannot be loaded"),
        (lambda a: a.pop("ids"), "ids"),
        (lambda a: a.update(labels=a["labels"] + 3), "labels is out of range"),
        (lambda a: a.update(client=a["client"] - 1), "client is out of range"),
        (lambda a: a.update(adapted_classes=a["adapted_classes"][:3]), "not an int32 per sample"),
        (lambda a: a.update(adapted_confidence=np.zeros(3)), "not a float32 per sample"),
        (lambda a: a.update(class_names=np.array([b"\xff", b"b", b"c"])), "codec"),
    ):
        path.write_bytes(whole)
        assert reason in damaged(change)
    for damage in (encrypted, endless):
        path.write_bytes(whole)
        damage(path)
        with pytest.raises(FedclipError, match=r"predictions.npz: is damaged .*--overwrite"):
            read_predictions(path.parent)
    path.unlink()
    with pytest.raises(FedclipError, match=r"runs/one: has no predictions.npz"):
        read_predictions(path.parent)


def test_objects_are_not_unpickled(make_cache: MakeCache) -> None:
    make_cache({"art": 60})
    assert run(["federate", *OPTIONS]) == 0
    reason = damaged(lambda a: a.update(ids=np.array([{}], dtype=object)))
    assert "allow_pickle=False" in reason
