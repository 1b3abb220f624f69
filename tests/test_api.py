"""The Python API: a notebook from nothing to a chart, and what each function takes and gives."""

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from safetensors.torch import load_file

import fedclip
from fedclip.cache import load_cache
from fedclip.federate.server import Round
from fedclip.federate.simulation import Run

ROOT = Path(__file__).resolve().parents[1]

Demo = Any  # the class of this name in conftest.py
MakeCache = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_importing_fedclip_imports_nothing_heavy() -> None:
    code = (
        "import sys, fedclip; assert 'run_federation' in dir(fedclip);"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=1800
    )
    heavy = {"torch", "numpy", "h5py", "open_clip", "PIL", "pandas", "altair", "typer", "rich"}
    assert not {*done.stdout.split()} & heavy


def test_every_name_of_the_api_is_there() -> None:
    for name in fedclip.__all__:
        assert getattr(fedclip, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        fedclip.fly  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.slow
def test_the_notebook_goes_from_nothing_to_a_chart(tmp_path: Path) -> None:
    read: Any = nbformat.read
    notebook = read(ROOT / "docs" / "first-steps.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 10
    assert not any(cell.outputs for cell in cells)
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    pages = [
        "".join(each.get("data", {}).get("text/html", "") for each in c.outputs) for c in cells
    ]
    assert ["vegaEmbed" in page for page in pages] == [n in (5, 6, 9) for n in range(10)]
    shown = "".join(
        each.data.get("text/html", "")
        for cell in cells
        for each in cell.outputs
        if each.output_type == "display_data"
    )
    assert "<progress max=10 value=10>" in shown
    assert "target sketch 10/10 rounds" in shown
    assert "finished, mean accuracy" in cells[3].outputs[-1].data["text/plain"]


def test_a_cache_is_sliced_by_client_and_given_as_tensors_and_tables(
    make_cache: MakeCache,
) -> None:
    make_cache({"art": 12, "photo": 20, "sketch": 8})
    cache = fedclip.load_cache("tiny")
    assert cache.clients == ("art", "photo", "sketch")
    assert cache.class_names == ("cat", "dog", "fish")
    some = cache["photo", "art"]
    assert some.clients == ("art", "photo")
    tensors = some.tensors()
    assert tensors.features.shape == (32, 8)
    assert tensors.labels.dtype == torch.int64
    assert tensors.clients.tolist() == [0] * 12 + [1] * 20
    assert tensors.texts.shape == (3, 1, 8)
    assert np.array_equal(tensors.features[12:].numpy(), cache["photo"].image_features)
    table = some.to_pandas(features=True)
    assert table.shape == (32, 3 + 8)
    assert table["class"][13] == "dog"
    assert table["image"][12] == "photo/0000.png"
    with pytest.raises(fedclip.FedclipError, match="unknown client 'phto'; did you mean photo"):
        cache["phto"]


def test_what_holds_arrays_is_shown_in_a_line(make_cache: MakeCache) -> None:
    make_cache({"art": 12, "photo": 20})
    cache = fedclip.load_cache("tiny")
    assert repr(cache["art"]) == (
        "<features of tiny, client art: 12 rows of 8 features, 3 classes>"
    )
    assert repr(cache["art",]) == (
        "<cache tiny/drawn: 1 client (art), 12 rows of 8 features, 3 classes>"
    )
    assert repr(cache.tensors()) == (
        "<tensors on cpu: features (32, 8), labels (32,), clients (32,), texts (3, 1, 8)>"
    )
    runs: list[Run] = []
    options: dict[str, Any] = {"target": "photo", "rounds": 1}
    saved = fedclip.run_federation(
        cache, callbacks=[lambda run, _: runs.append(run)], name="one", **options
    )
    federation = runs[0].federation
    assert repr(federation.participants[0].train.domain) == "<domain art: 12 rows>"
    assert repr(federation.together.train) == "<7 rows of art>"
    assert "train=<7 rows of art>" in repr(federation)
    assert len(repr(federation)) < 400
    classifier = fedclip.load_classifier(saved)
    adapter = "<adapter attention for tiny: 8 features, 3 classes>"
    assert repr(classifier.classifier) == adapter
    assert repr(fedclip.run_ablation(cache, **options)) == "<ablation of 1 run over seed>"


def test_a_federation_calls_back_and_is_that_of_the_command(make_cache: MakeCache) -> None:
    caches = make_cache({"art": 30, "photo": 40})
    rounds: list[int] = []
    ended: list[bool] = []

    def on_round(run: Run, current: Round) -> None:
        rounds.append(current.number)
        assert run.number == current.number - 1

    class Ends(fedclip.Callback):
        def on_end(self, run: Run, *, interrupted: bool) -> None:
            ended.append(interrupted)

    run = fedclip.run_federation(
        "tiny", rounds=3, target="photo", lr=1e-3, callbacks=[on_round, Ends()], name="api"
    )
    assert rounds == [1, 2, 3]
    assert ended == [False]
    from fedclip.cli import run as command

    options = ["--rounds", "3", "--target", "photo", "--lr", "1e-3", "--name", "typed"]
    assert command(["federate", *options, "--cache-dir", str(caches)]) == 0
    typed = fedclip.load_run("typed")
    assert run.result.to_json() | {"seconds_per_round": 0} == (
        typed.result.to_json() | {"seconds_per_round": 0}
    )
    one, other = (each.folder / "adapter.safetensors" for each in (run, typed))
    assert one.read_bytes() == other.read_bytes()
    table = run.to_pandas()
    assert list(table["client"]) == ["art", "photo"]
    assert list(table["accuracy"]) == list(typed.results[0].accuracy.values())
    assert run.rounds_to_pandas().shape == (6, 6)
    written = run.folder / "rounds.jsonl"
    written.write_bytes(written.read_bytes()[:-20])  # as a killed process leaves it
    assert run.rounds_to_pandas().shape == (4, 6)
    assert run.plot().to_dict()
    assert run.plot("rounds").to_dict()

    again = fedclip.run_federation(
        "tiny", rounds=3, target="photo", lr=1e-3, callbacks=[on_round], name="api"
    )
    assert rounds == [1, 2, 3]  # a finished run is read
    assert again.status == "finished"
    with pytest.raises(fedclip.FedclipError, match="is a run with another setting"):
        fedclip.run_federation("tiny", rounds=4, target="photo", name="api")
    fedclip.run_federation(
        "tiny", rounds=1, target="photo", name="api", overwrite=True, callbacks=[on_round]
    )
    assert rounds == [1, 2, 3, 1]


def test_an_interrupted_federation_is_resumed(make_cache: MakeCache) -> None:
    make_cache({"art": 30, "photo": 40})

    def interrupt(run: Run, current: Round) -> None:
        if current.number == 2:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"rounds": 4, "target": "photo", "name": "one"}
    stopped = fedclip.run_federation("tiny", callbacks=[interrupt], **settings)
    assert stopped.status == "interrupted"
    rounds: list[int] = []
    done = fedclip.run_federation(
        "tiny", callbacks=[lambda run, current: rounds.append(current.number)], **settings
    )
    assert done.status == "finished"
    assert rounds == [2, 3, 4]
    whole = fedclip.run_federation("tiny", rounds=4, target="photo", name="whole")
    assert done.result.accuracy == whole.result.accuracy  # type: ignore[attr-defined]


def test_rescaling_leaves_the_features_of_a_cache_as_they_are(make_cache: MakeCache) -> None:
    make_cache({"photo": 40})
    cache = fedclip.load_cache("tiny")
    before = cache["photo"].image_features.copy()
    fedclip.run_federation(cache, rounds=1, feature_norm=3.0)
    assert np.array_equal(cache["photo"].image_features, before)


def test_an_ablation_has_a_row_for_each_run(make_cache: MakeCache) -> None:
    make_cache({"art": 30, "photo": 40})
    vary: dict[str, list[Any]] = {"lr": [1e-4, 1e-3], "adapter": ["attention", "linear"]}
    ablation = fedclip.run_ablation("tiny", vary, seeds=2, rounds=2, target="photo")
    table = ablation.to_pandas()
    assert len(table) == len(ablation.runs) == 8
    assert set(table["status"]) == {"finished"}
    assert set(zip(table["lr"], table["adapter"], table["seed"], strict=True)) == {
        (lr, adapter, seed)
        for lr in (1e-4, 1e-3)
        for adapter in ("attention", "linear")
        for seed in (0, 1)
    }
    first = ablation.runs[0].results[0]
    assert table["generalization"][0] == first.generalization
    assert ablation.plot("generalization").to_dict()
    with pytest.raises(fedclip.FedclipError, match="unknown figure 'fly'"):
        ablation.plot("fly")
    with pytest.raises(fedclip.FedclipError, match="vary lr: has no values"):
        fedclip.run_ablation("tiny", {"lr": []})
    with pytest.raises(fedclip.FedclipError, match="seeds 0: must be at least 1"):
        fedclip.run_ablation("tiny", vary, seeds=0)
    removed = ablation.runs[0]
    removed.folder.rename("elsewhere")
    with pytest.raises(fedclip.FedclipError, match="is no longer there; was it removed or"):
        removed.to_pandas()


def test_images_may_be_paths_pixels_or_bytes(demo: Demo) -> None:
    use = fedclip.load_classifier(demo.run / "sketch")
    path = next((demo.images / "photo").glob("*/000.png"))
    (expected,) = use(path)
    with pytest.raises(fedclip.FedclipError, match="top_k 0: must be at least 1"):
        use(path, top_k=0)
    picture = Image.open(path).convert("RGB")
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    for image in (str(path), picture, np.asarray(picture), buffer.getvalue(), [picture]):
        (found,) = use(image)
        assert (found.name, found.probability) == (expected.name, expected.probability)
    both = use([picture, path], top_k=3)
    assert len(both) == 6
    assert both.to_pandas()["rank"].tolist() == [1, 2, 3, 1, 2, 3]
    broken = use([picture, b"not an image"])
    assert len(broken) == 1
    assert broken.skipped == {"image 1": "is not an image that Pillow can read"}
    with pytest.raises(fedclip.FedclipError, match="image 0: is no image"):
        use([3])


def test_features_are_extracted_by_a_function(
    make_images: Callable[..., Path], tiny_clip: Path
) -> None:
    folder = make_images(images=3)
    (folder / "photo" / "cat" / "bad.png").touch()
    cache = fedclip.extract_features(folder, model=f"local-dir:{tiny_clip}", progress=False)
    assert cache.clients == ("photo", "sketch")
    (loaded, _) = load_cache(cache.folder)
    assert np.array_equal(loaded.image_features, cache["photo"].image_features)


def test_a_missing_extra_is_named(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache({"photo": 40})
    cache = fedclip.load_cache()
    run = fedclip.run_federation(cache, rounds=1)
    monkeypatch.setattr("fedclip.cache.common.extras.find_spec", lambda name: None)
    for extra, call in (
        ("tables", cache.to_pandas),
        ("tables", run.to_pandas),
        ("report", run.plot),
    ):
        with pytest.raises(fedclip.FedclipError, match=rf"run 'pip install fedclip\[{extra}\]'"):
            call()


def test_a_head_is_trained_with_the_adapter(make_cache: MakeCache) -> None:
    make_cache({"photo": 20, "sketch": 20})
    run = fedclip.run_federation("tiny", rounds=1, target="none", class_vectors="head")
    assert "head" in load_file(run.folder / "adapter.safetensors")


def test_flowers_simulation_is_refused_before_anything_is_written(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    make_cache({"photo": 20, "sketch": 20})
    with pytest.raises(fedclip.FedclipError, match=r"^--engine flower: is for fedclip"):
        fedclip.run_federation("tiny", engine="flower")
    assert not (tmp_path / "runs").exists()
