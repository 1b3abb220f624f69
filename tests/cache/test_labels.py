"""Labels of a list: class names in any spelling, or numbers of classes."""

import pytest

from fedclip.cache import CacheError
from fedclip.cache.labels import name_labels


@pytest.mark.parametrize(
    ("labels", "class_names", "names", "understood"),
    [
        (["dog", "cat"], ["cat", "dog"], ["dog", "cat"], ""),
        (["cafe\u0301"], ["caf\u00e9"], ["caf\u00e9"], ""),
        (["Dog", "cat "], ["cat", "dog"], ["dog", "cat"], "class names in another spelling"),
        (["1", "0"], ["cat", "dog"], ["dog", "cat"], "class numbers from 0"),
        (["1.0", "0.0"], ["cat", "dog"], ["dog", "cat"], "class numbers from 0"),
        (["7", "3"], ["3", "7"], ["7", "3"], ""),
        (["fish", "cat"], ["cat", "dog"], ["fish", "cat"], ""),
        (["Dog", "dog"], [], ["Dog", "dog"], ""),
        (["3", "007"], [], ["3", "007"], ""),
        (["3.0", "7.0"], [], ["3", "7"], "integers"),
        (["3.5", "7.0"], [], ["3.5", "7.0"], ""),
    ],
)
def test_labels_are_what_they_plainly_are(
    labels: list[str], class_names: list[str], names: list[str], understood: str
) -> None:
    found, words = name_labels(labels, class_names)
    assert found == dict(zip(labels, names, strict=True))
    assert words.startswith(understood)
    assert bool(words) == bool(understood)


def test_another_spelling_is_said_label_by_label() -> None:
    _, words = name_labels(["Dog", "cat "], ["cat", "dog"])
    assert words == "class names in another spelling ('Dog' as 'dog', 'cat ' as 'cat')"


@pytest.mark.parametrize(
    ("labels", "end"),
    [
        (["1", "2"], "from 0; the labels seem to count from 1, so subtract 1 from each"),
        (["0", "2"], "nor the number of one, from 0"),
        (["-1", "1"], "nor the number of one, from 0"),
    ],
)
def test_a_number_that_no_class_has_is_refused(labels: list[str], end: str) -> None:
    with pytest.raises(CacheError) as caught:
        name_labels(labels, ["cat", "dog"])
    assert str(caught.value).endswith(end)
