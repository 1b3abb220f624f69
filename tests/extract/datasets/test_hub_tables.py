"""Tables of images on the hub: which rows they are, whose, and what is refused."""

import errno
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedclip.cache import FedclipError
from fedclip.cache.common import limits
from fedclip.cache.common.progress import Progress, no_progress
from fedclip.extract import hub as hub_module
from fedclip.extract.datasets.base import ImageDataset
from fedclip.extract.datasets.find import find_dataset
from fedclip.extract.datasets.hub_tables import LocatedTable
from fedclip.extract.datasets.parquet import RowFile, RowSource
from fedclip.extract.encoders.spec import EncoderName
from fedclip.extract.encoding.loader import describe
from fedclip.extract.options import TableOptions
from fedclip.extract.request import Request

Table = Callable[..., bytes]
Hub = Any  # the class of this name beside this file

pytestmark = pytest.mark.usefixtures("at_hub")


class Counts:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, task: str, done: int, total: int, unit: str, detail: str = "") -> None:
        assert unit in ("kB", "MB"), detail
        self.seen.append((task, done, total))


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def picture(seed: int, size: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def rows(
    domains: Sequence[Any] = ("art", "photo"), labels: Sequence[Any] = (0, 1), **more: Any
) -> list[dict[str, Any]]:
    return [
        {"image": picture(10 * d + n), "domain": domain, "label": label, **more}
        for d, domain in enumerate(domains)
        for n, label in enumerate(labels)
    ]


NAMES = {"label": ("cat", "dog")}


def ask(place: Path, dataset: str, counts: Progress = no_progress, **options: Any) -> ImageDataset:
    table = TableOptions(
        **{name: options.pop(name) for name in TableOptions.__annotations__ if name in options}
    )
    request = Request(
        dataset=dataset,
        encoder=EncoderName.of("ViT-B-32", None, "fp32"),
        templates=("a {}",),
        data_dir=place / "data",
        cache_dir=place / "caches",
        table=table,
        **options,
    )
    with hub_module.offline(request.offline):
        found = find_dataset(request, counts)
        return found.open(counts) if isinstance(found, LocatedTable) else found


def refusal(place: Path, dataset: str, **options: Any) -> str:
    with pytest.raises(FedclipError) as error:
        ask(place, dataset, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def labels(dataset: ImageDataset) -> dict[str, list[str]]:
    return {
        client.name: [dataset.class_names[image.label] for image in client.images]
        for client in dataset.clients
    }


def test_each_domain_is_a_client_and_each_row_the_image_that_it_holds(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    made = rows(("Photo", "Pencil Sketch"), (1, 0, 1))
    repo = hub.repo("owner/Pets", {"train.parquet": image_table(made, NAMES, group=4)})
    dataset = ask(tmp_path, "hf:owner/Pets")
    assert (dataset.name, dataset.root) == ("pets", "hf:owner/Pets")
    assert dataset.class_names == ("cat", "dog")
    assert labels(dataset) == {
        "pencil_sketch": ["dog", "cat", "dog"],
        "photo": ["dog", "cat", "dog"],
    }
    sketch, photo = dataset.clients
    assert [image.id for image in photo.images] == [f"train/{n:08d}" for n in range(3)]
    assert [image.id for image in sketch.images] == [f"train/{n:08d}" for n in range(3, 6)]
    images = [image.source.read() for client in (photo, sketch) for image in client.images]
    assert images == [row["image"] for row in made]
    assert dataset.hub is not None
    assert dataset.hub["commit"] == repo.branches["main"]


def test_known_domains_become_the_clients_that_their_folders_would(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    table = image_table(rows(("Art", "Clipart", "Product", "Real World")), NAMES)
    hub.repo("flwrlabs/office-home", {"data/train-00000-of-00001.parquet": table})
    dataset = ask(tmp_path, "office-home")
    assert [client.name for client in dataset.clients] == [
        "art",
        "clipart",
        "product",
        "real_world",
    ]
    assert "office-home: art has 2 images here, but 2427 as published" in dataset.warnings


def test_domainnet_is_all_its_splits_and_its_domains_may_be_numbers_with_names(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    names = {"label": ("zebra", "axe"), "domain": domains}
    files = {
        f"data/{split}-00000-of-00001.parquet": image_table(rows(range(6)), names)
        for split in ("train", "test")
    }
    hub.repo("wltjr1007/DomainNet", files)
    dataset = ask(tmp_path, "domainnet")
    assert [client.name for client in dataset.clients] == list(domains)
    assert dataset.class_names == ("axe", "zebra")
    assert [image.id for image in dataset.clients[0].images] == [
        "test/00000000",
        "test/00000001",
        "train/00000000",
        "train/00000001",
    ]


def test_reviews_of_amazon_are_a_client_per_category_and_their_stars_are_the_classes(
    hub: Hub, tmp_path: Path
) -> None:
    reviews = pa.table(
        {
            "text": ["good", "bad", "a good film", "bad again"],
            "rating": [5.0, 1.0, 5.0, 1.0],
            "category": [24, 24, 33, 24],
        }
    )
    buffer = BytesIO()
    pq.write_table(reviews, buffer)
    files = {
        f"data/{split}-00000-of-00001.parquet": buffer.getvalue() for split in ("train", "test")
    }
    hub.repo("canrager/amazon_reviews_mcauley_1and5", files)
    dataset = ask(tmp_path, "amazon-reviews")
    assert dataset.samples == "texts"
    assert dataset.class_names == ("negative", "positive")
    # No review of films has one star: the classes are those that the dataset has.
    assert labels(dataset) == {
        "books": ["positive", "negative", "negative"] * 2,
        "movies_and_tv": ["positive"] * 2,
    }
    assert dataset.warnings == ()
    books, _ = (client.images for client in dataset.clients)
    assert {image.source.read() for image in books} == {b"good", b"bad", b"bad again"}
    told = refusal(tmp_path, "amazon-reviews", label="category", domain="rating")
    assert "its column 'category' contains numbers without names" in told


def test_domains_that_are_numbers_without_names_are_called_by_them(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    hub.repo("owner/pets", {"train.parquet": image_table(rows((0, 1)), NAMES)})
    assert list(labels(ask(tmp_path, "hf:owner/pets"))) == ["0", "1"]


CARD = """---
dataset_info:
  features:
  - name: picture
    dtype: image
  - name: kind
    dtype:
      class_label:
        names:
          '0': dog
          '1': cat
configs:
- config_name: other
  data_files: other/*.parquet
- config_name: default
  data_files:
  - split: all
    path:
    - "tables/*.parquet"
---
"""


def test_columns_split_and_names_are_as_the_user_and_the_card_say(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    table = image_table(rows(labels=(0, 1), style="x"), NAMES, metadata=False)
    buffer = BytesIO()
    renamed = pq.read_table(BytesIO(table)).rename_columns(["picture", "style", "kind", "domain"])
    pq.write_table(renamed, buffer)
    files = {"README.md": CARD.encode(), "tables/b.parquet": buffer.getvalue()}
    hub.repo("owner/pets", {**files, "other/a.parquet": b"not looked at"})
    with pytest.raises(FedclipError, match=r"unknown split 'train'; choose all"):
        ask(tmp_path, "hf:owner/pets")
    dataset = ask(
        tmp_path, "hf:owner/pets", image="picture", label="kind", domain="style", split="all"
    )
    assert labels(dataset) == {"art": ["dog", "cat"], "photo": ["dog", "cat"]}


def test_names_in_a_table_are_composed_and_in_any_script(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    made = rows(("U\u0308bung", "\u00dcbung", "Real World (old)"), ("caf\u00e9", "cafe\u0301"))
    hub.repo("owner/words", {"a.parquet": image_table(made)})
    dataset = ask(tmp_path, "hf:owner/words", class_names=("caf\u00e9",))
    assert dataset.class_names == ("caf\u00e9",)
    sizes = {client.name: len(client.images) for client in dataset.clients}
    assert sizes == {"\u00fcbung": 4, "Real World (old)": 2}


def test_numbers_that_a_table_has_as_floats_are_integers(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    made = rows((0.0, 1.0), (0.0, 1.0))
    hub.repo("owner/floats", {"a.parquet": image_table(made, metadata=False)})
    dataset = ask(tmp_path, "hf:owner/floats", class_names=("cat", "dog"))
    assert labels(dataset) == {"0": ["cat", "dog"], "1": ["cat", "dog"]}
    assert "numbers without names" in refusal(tmp_path, "hf:owner/floats")


def test_words_as_labels_need_no_names_and_a_number_s_name_may_be_given(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    hub.repo("owner/words", {"a.parquet": image_table(rows(labels=("dog", "cat")))})
    assert ask(tmp_path, "hf:owner/words").class_names == ("cat", "dog")
    hub.repo("owner/numbers", {"a.parquet": image_table(rows())})
    assert "numbers without names" in refusal(tmp_path, "hf:owner/numbers")
    dataset = ask(tmp_path, "hf:owner/numbers", class_names=("dog", "cat", "fish"))
    assert dataset.class_names == ("dog", "cat", "fish")
    assert labels(dataset) == {"art": ["dog", "cat"], "photo": ["dog", "cat"]}


def test_without_domains_all_rows_are_one_named_client(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    made = [{"image": row["image"], "label": row["label"]} for row in rows()]
    hub.repo("owner/scans", {"a.parquet": image_table(made, NAMES)})
    message = refusal(tmp_path, "hf:owner/scans")
    assert "unknown column 'domain' (it has image, label); " in message
    assert "--domain-column, or set --client" in message
    dataset = ask(tmp_path, "hf:owner/scans", client="Hospital A")
    assert [(client.name, len(client.images)) for client in dataset.clients] == [("hospital_a", 4)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image": "picture"}, "unknown column 'picture' (it has image, domain, label); "),
        ({"label": "class"}, "unknown column 'class' (it has image, domain, label); "),
        ({"domain": "style"}, "unknown column 'style' (it has image, domain, label); "),
        (
            {"label": "image"},
            "its column 'image' contains the images; choose another --label-column",
        ),
        ({"image": "domain"}, "its column 'domain' contains string, not images "),
        ({"split": "test"}, "unknown split 'test'; choose train"),
        ({"revision": "v9"}, "at v9: no such revision; "),
        ({"class_names": ("cat",)}, "art has images of 'dog', but --class-names has only cat"),
    ],
)
def test_what_is_not_in_a_table_is_refused_with_what_there_is(
    hub: Hub, image_table: Table, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    hub.repo("owner/pets", {"train.parquet": image_table(rows(), NAMES)})
    message = refusal(tmp_path, "hf:owner/pets", **options)
    assert message.startswith("hf:owner/pets")
    assert expected in message


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (rows(labels=(0, -1)), "has -1 in its column 'label'"),
        (rows(labels=(0, None)), "has None in its column 'label'"),
        (rows(labels=(0, 2)), "has 2 in its column 'label'"),
        (rows(("Art", "art")), "two of its domains, Art, art, would become one client"),
        (rows(("-",)), "domain '-' has no letter, digit or symbol"),
    ],
)
def test_rows_without_a_class_or_a_client_of_their_own_are_refused(
    hub: Hub,
    image_table: Table,
    tmp_path: Path,
    made: Sequence[Mapping[str, Any]],
    expected: str,
) -> None:
    hub.repo("owner/pets", {"train.parquet": image_table(made, NAMES)})
    assert expected in refusal(tmp_path, "hf:owner/pets")


@pytest.mark.parametrize("dataset", ["hf:", "hf:pets", "hf:a/b/c", "hf:../..", "hf:a/b?c"])
def test_what_is_no_repository_s_name_is_refused_without_asking(
    hub: Hub, tmp_path: Path, dataset: str
) -> None:
    assert "OWNER/NAME" in refusal(tmp_path, dataset)
    assert hub.requests == []


def test_what_the_client_of_the_hub_finds_is_what_was_downloaded(
    hub: Hub, image_table: Table, tmp_path: Path, at_hub: Path
) -> None:
    from huggingface_hub import snapshot_download

    table = image_table(rows(), NAMES)
    repo = hub.repo("owner/pets", {"train.parquet": table})
    ask(tmp_path, "hf:owner/pets")
    found = snapshot_download(
        "owner/pets", repo_type="dataset", local_files_only=True, cache_dir=at_hub
    )
    assert Path(found).name == repo.branches["main"]
    assert (Path(found) / "train.parquet").read_bytes() == table


def test_a_repository_that_is_missing_or_gated_is_one_line_with_what_to_do(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    message = refusal(tmp_path, "hf:owner/pets")
    assert message.startswith(f"hf:owner/pets: no such dataset on {hub.url}, or it is ")
    hub.repo("owner/pets", {"train.parquet": image_table(rows(), NAMES)}).gated = True
    message = refusal(tmp_path, "hf:owner/pets")
    assert f"is gated; accept its terms on {hub.url}/datasets/owner/pets, then log in" in message


def test_a_repository_without_tables_is_refused_and_its_converted_branch_is_read(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    repo = hub.repo("owner/pets", {"photo/cat/1.png": picture(1)})
    assert "--revision refs/convert/parquet" in refusal(tmp_path, "hf:owner/pets")
    table = image_table(rows(), NAMES)
    repo.push({"default/train/0000.parquet": table}, "refs/convert/parquet")
    dataset = ask(tmp_path, "hf:owner/pets", revision="refs/convert/parquet")
    assert [client.name for client in dataset.clients] == ["art", "photo"]


def test_what_is_below_the_data_folder_is_taken_and_the_hub_is_not_asked(
    hub: Hub, tmp_path: Path
) -> None:
    for domain in ("Art", "Clipart", "Product", "RealWorld"):
        place = tmp_path / "data" / domain / "Bike"
        place.mkdir(parents=True)
        (place / "1.png").write_bytes(picture(1))
    dataset = ask(tmp_path, "office-home")
    assert dataset.root == tmp_path / "data"
    assert hub.requests == []
    message = refusal(tmp_path, "office-home", revision="main")
    assert message.startswith("--revision: only applies to datasets on the hub")


def test_offline_takes_what_was_downloaded_and_asks_nothing(
    hub: Hub, image_table: Table, tmp_path: Path, at_hub: Path
) -> None:
    message = refusal(tmp_path, "pacs", offline=True)
    assert "'hf download flwrlabs/pacs --repo-type dataset'" in message
    assert f"copy the folder datasets--flwrlabs--pacs from its HF_HOME/hub to {at_hub}" in message
    assert message.endswith("; or set --data-dir to a folder with pacs")
    half = image_table(rows(), NAMES)
    files = {f"data/train-0000{n}-of-00002.parquet": half for n in range(2)}
    hub.repo("flwrlabs/pacs", {"README.md": b"---\nlicense: unknown\n---\n", **files})
    online = ask(tmp_path, "pacs")
    hub.requests.clear()
    assert ask(tmp_path, "pacs", offline=True) == online
    assert hub.requests == []
    next(at_hub.rglob("snapshots/*/data/train-00001*")).unlink()
    message = refusal(tmp_path, "pacs", offline=True)
    assert "has only 1 of the split's 2 files here; run 'hf download flwrlabs/pacs " in message


def test_a_download_that_broke_leaves_the_commit_before_it_for_work_offline(
    hub: Hub, image_table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    card = {"README.md": b"---\nlicense: mit\n---\n"}
    repo = hub.repo("owner/pets", {**card, "train.parquet": image_table(rows(), NAMES)})
    before = ask(tmp_path, "hf:owner/pets")
    repo.push({"README.md": b"new", "train.parquet": image_table(rows(("zoo",)), NAMES)})
    hub.drops = [0] * 12
    assert "; run again; complete files are kept" in refusal(tmp_path, "hf:owner/pets")
    assert ask(tmp_path, "hf:owner/pets", offline=True) == before


def test_a_file_that_arrived_and_was_not_yet_in_its_snapshot_is_linked(
    hub: Hub, image_table: Table, tmp_path: Path, at_hub: Path
) -> None:
    hub.repo("owner/pets", {"train.parquet": image_table(rows(), NAMES)})
    dataset = ask(tmp_path, "hf:owner/pets")
    next(at_hub.rglob("snapshots/*/train.parquet")).unlink()
    hub.requests.clear()
    assert ask(tmp_path, "hf:owner/pets") == dataset
    assert hub.large_gets() == []


def test_where_the_hub_does_not_answer_what_is_here_is_taken_with_a_warning(
    hub: Hub,
    image_table: Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    repo = hub.repo("owner/pets", {"train.parquet": image_table(rows(), NAMES)})
    online = ask(tmp_path, "hf:owner/pets")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert ask(tmp_path, "hf:owner/pets") == online
    (warning,) = logged(caplog, logging.WARNING)
    assert f"using commit {repo.branches['main'][:8]}, which is on this machine" in warning
    message = refusal(tmp_path, "hf:owner/others")
    assert "cannot be downloaded from http://127.0.0.1:9" in message
    assert "run 'hf download owner/others --repo-type dataset'" in message


def test_a_later_commit_brings_only_the_files_that_are_new(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    old = image_table(rows(), NAMES)
    repo = hub.repo("owner/pets", {"train-a.parquet": old})
    first = ask(tmp_path, "hf:owner/pets")
    repo.push({"train-a.parquet": old, "train-b.parquet": image_table(rows(("zoo",)), NAMES)})
    hub.requests.clear()
    second = ask(tmp_path, "hf:owner/pets")
    assert len(hub.large_gets()) == 1
    assert [client.name for client in second.clients] == ["art", "photo", "zoo"]
    assert [[image.source.stamp() for image in client.images] for client in second.clients[:2]] == [
        [image.source.stamp() for image in client.images] for client in first.clients
    ]
    first_commit = first.hub and first.hub["commit"]
    assert ask(tmp_path, "hf:owner/pets", revision=first_commit).clients == first.clients


# The client hands on what it gets 10 MiB at a time.
PIECE = 10 * 1024 * 1024


@pytest.fixture
def large(hub: Hub, image_table: Table) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, 12_000_000, dtype=np.uint8).tobytes()
    made = [{"image": noise, "domain": "art", "label": 0}]
    table = image_table(made, NAMES)
    hub.repo("owner/pets", {"train.parquet": table})
    return table


def test_a_dropped_connection_is_taken_up_where_it_broke(
    hub: Hub, large: bytes, tmp_path: Path, at_hub: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedclip")
    hub.drops = [PIECE + 5]
    counts = Counts()
    ask(tmp_path, "hf:owner/pets", counts)
    assert [get.begin for get in hub.large_gets()] == [0, PIECE]
    assert next(at_hub.rglob("snapshots/*/train.parquet")).read_bytes() == large
    (note,) = logged(caplog, logging.INFO)
    assert note == f"download   hf:owner/pets: 1 file, {len(large) / 1e6:.1f} MB"
    assert counts.seen[-1] == ("hf:owner/pets", len(large) // 10**6, len(large) // 10**6)


def test_files_that_arrived_before_a_download_failed_are_kept(
    hub: Hub,
    image_table: Table,
    tmp_path: Path,
    at_hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    files = [image_table(rows((domain,)), NAMES) for domain in ("art", "photo")]
    names = [f"train-0000{number}-of-00002.parquet" for number in range(2)]
    hub.repo("owner/pets", dict(zip(names, files, strict=True)))
    hub.drops = [len(files[0]), *[0] * 12]
    message = refusal(tmp_path, "hf:owner/pets")
    assert "cannot be downloaded from" in message
    assert message.endswith("; run again; complete files are kept")
    hub.drops = []
    hub.requests.clear()
    caplog.set_level(logging.INFO, "fedclip")
    ask(tmp_path, "hf:owner/pets")
    assert [get.begin for get in hub.large_gets()] == [0]
    (note,) = logged(caplog, logging.INFO)
    assert note == f"download   hf:owner/pets: 1 file, {len(files[1]) / 1e3:.1f} kB"
    for name, content in zip(names, files, strict=True):
        assert next(at_hub.rglob(f"snapshots/*/{name}")).read_bytes() == content


def test_a_file_that_arrives_damaged_is_not_taken(
    hub: Hub, image_table: Table, tmp_path: Path, at_hub: Path
) -> None:
    hub.repo("owner/pets", {"train.parquet": image_table(rows(), NAMES)})
    hub.damage = True
    message = refusal(tmp_path, "hf:owner/pets")
    assert "train.parquet arrived damaged and was deleted; run again" in message
    assert not list(at_hub.rglob("*.incomplete"))
    hub.damage = False
    assert len(ask(tmp_path, "hf:owner/pets").clients) == 2


def test_a_disk_without_room_is_noticed_before_and_a_full_one_during_the_download(
    hub: Hub, large: bytes, tmp_path: Path, at_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
        patched.setattr(shutil, "disk_usage", lambda _: usage)
        message = refusal(tmp_path, "hf:owner/pets")
        assert f"needs {len(large) / 1e6:.1f} MB here, but only 1.0 MB are free" in message
        assert hub.large_gets() == []

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.file_download.http_get", full)
        message = refusal(tmp_path, "hf:owner/pets")
        assert message.startswith(f"{at_hub}/datasets--owner--pets: the disk is full; ")
    assert len(ask(tmp_path, "hf:owner/pets").clients) == 1


def test_a_hash_from_the_hub_is_no_path(
    hub: Hub, image_table: Table, tmp_path: Path, at_hub: Path
) -> None:
    repo = hub.repo("owner/pets", {"train.parquet": image_table(rows(), NAMES)})
    repo.commits["../../out"] = repo.commits[repo.branches["main"]]
    repo.branches["main"] = "../../out"
    assert "answered '../../out' in place of a hash" in refusal(tmp_path, "hf:owner/pets")
    assert not at_hub.exists()


def test_a_file_s_name_from_the_hub_does_not_leave_its_folder(
    hub: Hub, image_table: Table, tmp_path: Path, at_hub: Path
) -> None:
    hub.repo("owner/pets", {"../../../train.parquet": image_table(rows(), NAMES)})
    message = refusal(tmp_path, "hf:owner/pets")
    assert "lists '../../../train.parquet', which is outside the repository" in message
    assert not at_hub.exists()


def test_a_table_that_is_none_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.repo("owner/pets", {"train.parquet": b"PAR1 and words" * 200})
    assert "is not a Parquet file, or is damaged" in refusal(tmp_path, "hf:owner/pets")


@pytest.mark.parametrize(
    "metadata",
    [
        "configs: 5",
        "configs: [5, {config_name: default}]",
        "configs: [{data_files: 5}]",
        "configs: [{data_files: [5, {split: all, path: null}]}]",
        "configs: [{data_files: {path: 5}}]",
        "dataset_info: 5",
        "dataset_info: [5, {features: null}]",
        "dataset_info: {features: 5}",
        "dataset_info: {features: [5, {name: [1], dtype: {class_label: {names: {'0': a}}}}]}",
    ],
)
def test_a_card_that_makes_no_sense_is_passed_over(
    hub: Hub, image_table: Table, tmp_path: Path, metadata: str
) -> None:
    card = f"---\n{metadata}\n---\n".encode()
    hub.repo("owner/pets", {"README.md": card, "train.parquet": image_table(rows(), NAMES)})
    assert list(labels(ask(tmp_path, "hf:owner/pets"))) == ["art", "photo"]


def test_metadata_too_deep_to_parse_is_passed_over(hub: Hub, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows(labels=("dog",)))
    buffer = BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": "[" * 100_000}), buffer)
    hub.repo("owner/pets", {"train.parquet": buffer.getvalue()})
    assert list(labels(ask(tmp_path, "hf:owner/pets"))) == ["art", "photo"]


def damaged(table: bytes, column: int) -> bytes:
    """Overwrite the beginning of a column's first page."""
    place = pq.ParquetFile(BytesIO(table)).metadata.row_group(0).column(column).data_page_offset
    return table[:place] + b"\xff" * 16 + table[place + 16 :]


def test_a_row_group_that_is_damaged_is_said_to_be(
    hub: Hub, image_table: Table, tmp_path: Path
) -> None:
    table = damaged(image_table(rows(("art",), ["dog"] * 9)), column=0)
    hub.repo("owner/pets", {"train.parquet": table})
    images = ask(tmp_path, "hf:owner/pets").clients[0].images
    with pytest.raises(
        OSError, match=r"train.parquet: is not a Parquet file, or is damaged"
    ) as error:
        images[0].source.read()
    assert describe(error.value, b"").startswith("cannot be read: train.parquet: is not a Parquet")
    assert images[-1].source.read() == picture(8)  # of the group after it


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (pa.array([b"d\xffg"] * 2).view(pa.string()), "'utf-8' codec can't decode"),
        (pa.array(["a", "b"]), "damaged ("),
    ],
)
def test_labels_that_cannot_be_read_are_refused(
    hub: Hub, tmp_path: Path, label: pa.Array, problem: str
) -> None:
    buffer = BytesIO()
    columns = {"image": [b"x", b"y"], "domain": ["a", "a"], "label": label}
    pq.write_table(pa.table(columns), buffer, use_dictionary=False)
    table = buffer.getvalue()
    hub.repo(
        "owner/pets",
        {"train.parquet": damaged(table, column=2) if problem == "damaged (" else table},
    )
    message = refusal(tmp_path, "hf:owner/pets")
    assert "train.parquet: is not a Parquet file, or is damaged" in message
    assert problem in message


def bomb(column: str, bytes_in_it: int) -> bytes:
    """Write a Parquet file of two images whose `column` shrinks to nothing."""
    columns = {"image": b"x", "domain": b"a", "label": b"a", column: bytes(bytes_in_it)}
    buffer = BytesIO()
    table = pa.table({name: [value] * 2 for name, value in columns.items()})
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)
    return buffer.getvalue()


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_row_group_that_would_fill_the_memory_is_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    monkeypatch.setattr(limits, "_ALWAYS_FINE", 1 << 20)
    hub.repo("owner/pets", {"train.parquet": bomb(column, 1 << 20)})
    message = refusal(tmp_path, "hf:owner/pets")
    assert "train.parquet: a row group would unpack" in message
    assert "to 2.1 MB; if that is intended, save it without compression" in message


@pytest.mark.long
def test_a_row_group_over_two_gibibytes_is_read(tmp_path: Path) -> None:
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    path = tmp_path / "train.parquet"
    size, count = 64 << 20, 33
    chunks = [
        pa.array([{"bytes": bytes(size) + bytes([row]), "path": None}], image)
        for row in range(count)
    ]
    table = pa.table({"image": pa.chunked_array(chunks)})
    del chunks
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=count)
    del table
    file = RowFile(path, "version", "train")
    for row in (0, count - 1):
        assert RowSource(file, "image", 0, row).read() == bytes(size) + bytes([row])


def test_a_row_group_is_read_once_for_all_threads(
    image_table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(image_table(rows(("art",), range(64)), group=64))
    opened: list[Path] = []
    open_file = pq.ParquetFile

    def counting(source: Path, **options: Any) -> Any:
        opened.append(source)
        return open_file(source, **options)

    monkeypatch.setattr(pq, "ParquetFile", counting)
    sources = [RowSource(RowFile(path, "v", "train"), "image", 0, row) for row in range(64)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(RowSource.read, sources)) == [picture(n) for n in range(64)]
    assert opened == [path]
