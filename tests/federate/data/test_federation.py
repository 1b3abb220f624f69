"""Which rows a client has, and how it splits them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from fedclip.cache import FeatureCache, FedclipError
from fedclip.federate.data.federation import (
    Client,
    FeaturePool,
    build_federation,
    class_texts,
)
from fedclip.federate.data.partition import Dirichlet
from fedclip.federate.runs.find import choose_targets
from fedclip.federate.settings import Settings

MakeFeatures = Callable[..., FeatureCache]
CPU = torch.device("cpu")


def rows_of(client: Client, cache: FeatureCache) -> list[list[int]]:
    """Find the cache's rows that a client's train, validation and test parts hold."""
    position = {row.tobytes(): index for index, row in enumerate(cache.image_features)}
    return [
        [position[row.numpy().tobytes()] for row in part.features]
        for part in (client.train, client.validation, client.test)
    ]


@pytest.mark.parametrize(
    ("rows", "sizes"), [(5, (3, 1, 1)), (7, (4, 1, 2)), (20, (12, 4, 4)), (99, (59, 19, 21))]
)
def test_a_client_is_split_60_20_20_with_the_rest_to_test(
    make_features: MakeFeatures, rows: int, sizes: tuple[int, int, int]
) -> None:
    cache = make_features("photo", rows)
    client = build_federation([cache], Settings(), None, CPU).participants[0]
    assert (len(client.train), len(client.validation), len(client.test)) == sizes
    assert sorted(chain.from_iterable(rows_of(client, cache))) == list(range(rows))


def test_a_split_depends_on_seed_and_client_and_not_on_target_or_company(
    make_features: MakeFeatures,
) -> None:
    photo, sketch, art = (make_features(name, 30) for name in ("photo", "sketch", "art"))

    def split(caches: list[FeatureCache], target: str | None, seed: int = 0) -> list[list[int]]:
        federation = build_federation(caches, Settings(seed=seed), target, CPU)
        return rows_of(next(c for c in federation.participants if c.name == "photo"), photo)

    expected = split([photo], None)
    assert split([art, photo, sketch], "art") == expected
    assert split([art, photo, sketch], "sketch") == expected
    assert split([photo], None, seed=1) != expected


def test_a_split_depends_on_ids_and_not_on_the_order_of_rows(make_features: MakeFeatures) -> None:
    cache = make_features("photo", 30)
    order = np.random.default_rng(0).permutation(30)
    shuffled = replace(
        cache,
        image_features=cache.image_features[order],
        labels=cache.labels[order],
        ids=tuple(cache.ids[index] for index in order),
        digests=cache.digests[order],
    )
    one, two = (
        build_federation([each], Settings(), None, CPU).participants[0]
        for each in (cache, shuffled)
    )
    assert torch.equal(one.train.features, two.train.features)
    assert torch.equal(one.test.labels, two.test.labels)


def test_labels_stay_with_their_rows(make_features: MakeFeatures) -> None:
    cache = make_features("photo", 30)
    client = build_federation([cache], Settings(), None, CPU).participants[0]
    for part, rows in zip(
        (client.train, client.validation, client.test), rows_of(client, cache), strict=True
    ):
        assert part.labels.tolist() == cache.labels[rows].tolist()


def test_the_target_is_tested_whole_and_trains_nothing(make_features: MakeFeatures) -> None:
    caches = [make_features("photo", 30), make_features("sketch", 3)]
    federation = build_federation(caches, Settings(), "sketch", CPU)
    assert [client.name for client in federation.participants] == ["photo"]
    assert federation.target is not None
    assert len(federation.target.train) == len(federation.target.validation) == 0
    assert federation.target.test.features.numpy().tobytes() == caches[1].image_features.tobytes()


def test_clients_of_a_split_domain_are_numbered_and_small_ones_dropped_by_name(
    make_features: MakeFeatures,
) -> None:
    caches = [make_features("photo", 40), make_features("sketch", 40)]
    settings = Settings(partition=Dirichlet(12, 0.2), seed=1)
    federation = build_federation(caches, settings, "sketch", CPU)
    kept = {client.name: client for client in federation.participants}
    dropped = dict(federation.dropped)
    assert sorted([*kept, *dropped]) == [f"photo-{index:03d}" for index in range(12)]
    assert dropped
    assert all(rows < 5 for rows in dropped.values())
    sizes = {name: len(c.train) + len(c.validation) + len(c.test) for name, c in kept.items()}
    assert all(size >= 5 for size in sizes.values())
    assert sum(sizes.values()) + sum(dropped.values()) == 40
    assert {client.domain for client in kept.values()} == {"photo"}


def test_a_domain_too_small_to_split_is_named_with_its_size(make_features: MakeFeatures) -> None:
    with pytest.raises(FedclipError, match=r"^sketch: has 4 rows, too few to split"):
        build_federation([make_features("sketch", 4)], Settings(), None, CPU)


def test_an_unknown_target_is_refused_and_the_domains_are_listed(
    make_features: MakeFeatures,
) -> None:
    caches = [make_features("photo", 20), make_features("sketch", 20)]
    with pytest.raises(
        FedclipError, match=r"--target art: unknown domain; choose photo, sketch, all or none"
    ):
        choose_targets(caches, "art")


def test_a_target_with_the_name_of_a_client_of_a_split_domain_is_refused(
    make_features: MakeFeatures,
) -> None:
    caches = [make_features("photo", 40), make_features("photo-001", 40)]
    settings = Settings(partition=Dirichlet(2, 100.0))
    build_federation(caches, settings, "photo", CPU)
    with pytest.raises(
        FedclipError, match="--target photo-001: --clients makes a client of the same name"
    ):
        build_federation(caches, settings, "photo-001", CPU)


def test_leaving_out_the_only_domain_is_refused(make_features: MakeFeatures) -> None:
    with pytest.raises(FedclipError, match="no client is left to train"):
        build_federation([make_features("photo", 20)], Settings(), "photo", CPU)


def test_features_stay_raw_or_are_rescaled_to_a_norm(make_features: MakeFeatures) -> None:
    cache = make_features("photo", 20)
    raw = build_federation([cache], Settings(), None, CPU).participants[0]
    scaled = build_federation([cache], Settings(feature_norm=10.0), None, CPU).participants[0]
    norms = scaled.train.features.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 10.0))
    ratio = raw.train.features / scaled.train.features
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_all_federations_of_a_pool_view_one_tensor_a_domain(make_features: MakeFeatures) -> None:
    caches = [make_features("photo", 60), make_features("sketch", 40)]
    pool = FeaturePool(caches, None, CPU)
    owners = [cache.image_features.ctypes.data for cache in caches]
    for settings in (Settings(), Settings(partition=Dirichlet(4, 10.0), seed=3)):
        for target in (None, "photo", "sketch"):
            for client in pool.federation(settings, target).clients:
                for part in (client.train, client.validation, client.test):
                    pointer = part.domain.features.data_ptr()
                    assert pointer == owners[["photo", "sketch"].index(client.domain)]


def test_features_are_rescaled_in_place_only_where_that_is_allowed(
    make_features: MakeFeatures,
) -> None:
    one, two = make_features("photo", 20), make_features("photo", 20)
    kept = one.image_features.copy()
    copied = FeaturePool([one], 3.0, CPU).domains[0].features
    assert (one.image_features == kept).all()
    scaled = FeaturePool([two], 3.0, CPU, in_place=True).domains[0].features
    assert scaled.data_ptr() == two.image_features.ctypes.data
    assert torch.equal(scaled, copied)


def test_a_batch_is_the_rows_asked_for(make_features: MakeFeatures) -> None:
    train = build_federation([make_features("photo", 50)], Settings(), None, CPU).participants[0]
    which = torch.tensor([4, 0, 7])
    features, labels = train.train[which]
    assert torch.equal(features, train.train.features[which])
    assert torch.equal(labels, train.train.labels[which])


def test_a_zero_row_cannot_be_rescaled_and_is_named(make_features: MakeFeatures) -> None:
    cache = make_features("photo", 20)
    cache.image_features[7] = 0
    with pytest.raises(FedclipError, match=r"^photo: row 7 \(photo/0007.png\) is all zeros"):
        build_federation([cache], Settings(feature_norm=1.0), None, CPU)


def test_the_prompt_is_the_first_cached_one_the_named_one_or_a_mean_of_unit_vectors(
    make_features: MakeFeatures,
) -> None:
    cache = make_features(templates=("a {}", "the {}", "one {}"))
    texts = cache.text_features
    assert class_texts(cache, ()).tolist() == texts[:, 0].tolist()
    assert class_texts(cache, ["one {}"]).tolist() == texts[:, 2].tolist()
    unit = texts / np.linalg.norm(texts, axis=2, keepdims=True)
    ensemble = class_texts(cache, ["a {}", "one {}"])
    np.testing.assert_allclose(ensemble, (unit[:, 0] + unit[:, 2]) / 2, atol=1e-6)


def test_a_prompt_that_is_not_cached_is_refused_and_the_cached_ones_are_listed(
    make_features: MakeFeatures,
) -> None:
    with pytest.raises(
        FedclipError, match=r"'the \{\}': is not cached; choose 'a picture of a \{\}' or all"
    ):
        class_texts(make_features(), ["the {}"])
