"""Encoders of every family and texts from the hub: asked once, then never again."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

from fedclip.cache import FeatureCache, find_caches, load_cache
from fedclip.cli import run

transformers = pytest.importorskip("transformers")

Fedclip = Callable[..., subprocess.CompletedProcess[str]]
MakeImages = Callable[..., Path]
Hub = Any  # the class of this name beside this file

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "phone", "a")
TIMM = "test_vit.r160_in1k"  # a tag of timm's, whose weights are on the hub


def table(rows: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> bytes:
    """Write a table as the `datasets` library does, with the names of classes."""
    features = {
        column: {"names": [*values], "_type": "ClassLabel"} for column, values in names.items()
    }
    made = pa.table({name: [*values] for name, values in rows.items()})
    info = json.dumps({"info": {"features": features}})
    buffer = BytesIO()
    pq.write_table(made.replace_schema_metadata({"huggingface": info}), buffer)
    return buffer.getvalue()


REVIEWS = {
    "review": ["a good film", "a bad film", "", "a good phone", "bad", "good"],
    "stars": [1, 0, 0, 1, 0, 1],
    "product": ["films", "films", "films", "phones", "phones", "phones"],
}
OPTIONS = ("--text-column", "review", "--label-column", "stars", "--domain-column", "product")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """Save a tiny BERT with seeded weights as sentence-transformers would."""
    folder = tmp_path / "bert"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=8).save_pretrained(
        folder
    )
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    parts = [{"path": "", "type": "s.Transformer"}, {"path": "1_Pooling", "type": "s.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    return folder


def look_ups(hub: Hub, model: str) -> int:
    """Count how often the hub was asked for a model's commit."""
    return sum(each.path == f"/api/models/{model}/revision/main" for each in hub.requests)


def caches(place: Path) -> dict[str, FeatureCache]:
    (folder,) = find_caches(place / "caches")
    return {cache.client: cache for cache in load_cache(folder)}


@pytest.mark.slow
@pytest.mark.slow
def test_texts_and_their_encoder_come_from_the_hub_once_and_are_then_used_offline(
    machine: Fedclip, hub: Hub, bert: Path, tmp_path: Path, without_network: dict[str, str]
) -> None:
    content = table(REVIEWS, {"stars": ("negative", "positive")})
    hub.repo("owner/reviews", {"data/train-0.parquet": content})
    repo = hub.model("owner/bert", bert)
    command = ("extract", "--dataset", "hf:owner/reviews", *OPTIONS, "--model", "hf:owner/bert")
    first = machine(*command)
    assert first.returncode == 0, first.stderr
    assert "rows       6 seen: 5 taken, 1 skipped (1 is empty), 0 ignored" in first.stdout
    found = caches(tmp_path)
    assert [*found] == ["films", "phones"]
    assert found["films"].class_names == ("negative", "positive")
    assert found["films"].ids == ("train/00000000", "train/00000001")
    assert found["films"].encoder["pooling"] == "cls"
    assert found["films"].encoder["commit"] == repo.branches["main"]
    assert look_ups(hub, "owner/bert") == 1
    shown = machine("cache", "show", "reviews").stdout
    assert repo.branches["main"] in shown

    hub.requests.clear()
    again = machine(*command, "--offline", "--force", env=without_network)
    assert again.returncode == 0, again.stderr
    assert "encoded    5 texts and 2 prompts" in again.stdout
    assert hub.requests == []


NEWS = {"text": ["a film", "a phone", "good", "bad"], "label": [0, 1, 2, 3]}
GROUPS = {"text": ["a film", "a phone"], "label": [0, 1], "label_text": ["rec.film", "sci.phone"]}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["ag-news", "20newsgroups"])
def test_known_texts_are_taken_from_all_splits_at_the_hub(
    machine: Fedclip, hub: Hub, bert: Path, tmp_path: Path, dataset: str
) -> None:
    if dataset == "ag-news":
        content = table(NEWS, {"label": ("World", "Sports", "Business", "Sci/Tech")})
        files = {f"data/{split}-00000-of-00001.parquet": content for split in ("train", "test")}
        hub.repo("fancyzhx/ag_news", files)
        classes: tuple[str, ...] = ("Business", "Sci/Tech", "Sports", "World")
    else:
        content = table(GROUPS, {})
        repo = hub.repo("SetFit/20_newsgroups", {"train.jsonl": b"{}", "test.jsonl": b"{}"})
        files = {f"default/{split}/0000.parquet": content for split in ("train", "test")}
        repo.push(files, branch="refs/convert/parquet")
        classes = ("rec.film", "sci.phone")
    result = machine("extract", "--dataset", dataset, "--model", f"hf:{bert}")
    assert result.returncode == 0, result.stderr
    ((client, cache),) = caches(tmp_path).items()
    assert client == dataset.replace("-", "_")
    assert cache.class_names == classes
    assert {name.split("/")[0] for name in cache.ids} == {"train", "test"}
    assert len(cache.ids) == 2 * len(classes)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Save the weights of timm's smallest ViT, with its classification head."""
    folder = tmp_path / "vit"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model("test_vit")
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.usefixtures("at_hub")
@pytest.mark.parametrize("family", ["timm", "open_clip"])
def test_images_are_encoded_with_weights_of_the_hub_which_is_asked_once(
    hub: Hub,
    weights: Path,
    tiny_clip: Path,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    family: str,
) -> None:
    if family == "timm":
        model, repository, folder = f"timm:{TIMM}", f"timm/{TIMM}", weights
    else:
        model, repository, folder = "hf-hub:tiny/clip", "tiny/clip", tiny_clip
    repo = hub.model(repository, folder)
    command = ["extract", "--dataset", str(make_images(images=1)), "--model", model]
    command += ["--cache-dir", str(tmp_path / "caches"), "--device", "cpu", "--workers", "0"]
    assert run(command) == 0
    (cache, *_) = caches(tmp_path).values()
    assert cache.encoder["commit"] == repo.branches["main"]
    assert look_ups(hub, repository) == 1
    # A file's hash is asked for, then the file; nothing is asked for again to load it.
    asked = Counter(each.path for each in hub.requests if "/resolve/" in each.path)
    assert set(asked.values()) <= {1, 2}
    hub.requests.clear()
    assert run([*command, "--offline", "--force"]) == 0
    assert hub.requests == []
    capsys.readouterr()
    wrong = [*command[:4], model + "x", *command[5:]]
    assert run(wrong) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert ("did you mean timm:test_vit" if family == "timm" else "no such model on http") in error


@pytest.mark.usefixtures("at_hub")
def test_a_text_model_that_is_not_on_the_hub_is_one_line(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reviews.csv"
    file.write_text("text,label,domain\na good film,good,films\n")
    command = ["extract", "--dataset", str(file), "--cache-dir", str(tmp_path / "caches")]
    for model, reason in (
        ("hf:owner/bertt", f"no such model on {hub.url}, or it is private"),
        ("hf:no such name", "not a repository's name"),
        (f"hf:{tmp_path}/nowhere", "no such folder; check the path"),
    ):
        assert run([*command, "--model", model]) == 2
        assert reason in capsys.readouterr().err.splitlines()[-1]


class Dangerous:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path, str]]:
        return (Path.write_text, (Path("ran"), "code"))


@pytest.mark.usefixtures("at_hub")
@pytest.mark.parametrize("family", ["timm", "open_clip", "transformers"])
def test_code_in_the_weights_or_files_of_a_repository_is_neither_downloaded_nor_run(
    hub: Hub,
    bert: Path,
    tiny_clip: Path,
    make_images: MakeImages,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Dangerous()}, tmp_path / "evil.bin")
    evil = (tmp_path / "evil.bin").read_bytes()
    dataset = make_images(images=1)
    if family == "timm":
        model = f"timm:{TIMM}"
        hub.repo(f"timm/{TIMM}", {"pytorch_model.bin": evil}, kind="model")
    elif family == "open_clip":
        model = "hf-hub:owner/evil"
        config = (tiny_clip / "open_clip_config.json").read_bytes()
        files = {"open_clip_config.json": config, "open_clip_pytorch_model.bin": evil}
        hub.repo("owner/evil", files, kind="model")
    else:
        model = "hf:owner/evil"
        auto = {"AutoConfig": "own.Own", "AutoModel": "own.Own"}
        changed = {"model_type": "own", "auto_map": auto}
        before = json.loads((bert / "config.json").read_text())
        (bert / "config.json").write_text(json.dumps({**before, **changed}))
        (bert / "own.py").write_text("open('ran', 'w')")
        (bert / "pytorch_model.bin").write_bytes(evil)
        hub.model("owner/evil", bert)
        dataset = tmp_path / "reviews.csv"
        dataset.write_text("text,label,domain\na good film,good,films\n")
    command = ["extract", "--dataset", str(dataset), "--model", model, "--device", "cpu"]
    assert run([*command, "--cache-dir", str(tmp_path / "caches")]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "cannot be loaded" in errors[0]
    assert not (tmp_path / "ran").exists()
    assert not any("own.py" in each.path for each in hub.requests)


@pytest.mark.usefixtures("at_hub")
def test_a_text_model_that_has_only_a_pickle_is_refused(
    hub: Hub, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bert / "model.safetensors").rename(bert / "pytorch_model.bin")
    hub.model("owner/old", bert)
    file = tmp_path / "reviews.csv"
    file.write_text("text,label,domain\na good film,good,films\n")
    command = ["extract", "--dataset", str(file), "--cache-dir", str(tmp_path / "caches")]
    assert run([*command, "--model", "hf:owner/old"]) == 2
    assert "has no model.safetensors" in capsys.readouterr().err.splitlines()[-1]
    assert not any("pytorch_model.bin" in each.path for each in hub.large_gets())
