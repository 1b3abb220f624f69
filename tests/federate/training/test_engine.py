"""The minibatches of a client's round."""

from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from fedclip.federate.training.settings import TrainingSettings
from fedclip.federate.training.tasks import draw_batches


def batches(
    samples: int, settings: TrainingSettings, number: int = 1, client: str = "a"
) -> list[list[int]]:
    return [batch.tolist() for batch in draw_batches(samples, settings, number, client)]


@given(
    samples=st.integers(2, 200),
    batch_size=st.integers(2, 64),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_an_epoch_visits_every_sample_once_but_for_a_last_one_alone(
    samples: int, batch_size: int, epochs: int, seed: int
) -> None:
    settings = TrainingSettings(batch_size=batch_size, local_epochs=epochs, seed=seed)
    drawn = batches(samples, settings)
    per_epoch = len(drawn) // epochs
    alone = samples % batch_size == 1
    for epoch in range(epochs):
        visited = list(chain(*drawn[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert len(visited) == len(set(visited)) == samples - alone
    assert all(2 <= len(batch) <= batch_size for batch in drawn)


def test_batches_depend_on_seed_round_and_client_alone() -> None:
    settings = TrainingSettings(batch_size=8)
    drawn = batches(50, settings)
    assert batches(50, settings) == drawn
    assert batches(50, TrainingSettings(batch_size=8, seed=1)) != drawn
    assert batches(50, settings, number=2) != drawn
    assert batches(50, settings, client="b") != drawn


def test_each_epoch_of_a_round_is_shuffled_again() -> None:
    drawn = batches(8, TrainingSettings(batch_size=8, local_epochs=2))
    assert sorted(drawn[0]) == sorted(drawn[1])
    assert drawn[0] != drawn[1]
