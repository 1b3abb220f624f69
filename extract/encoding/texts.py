"""Text features by class and template: those that caches hold, and the missing ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...cache import FeatureCache
from ...cache.key import text_key
from ..encoders.openclip import Encoder
from ..encoders.prompts import prompt


class Texts:
    """Text features by class and template, and which of them are wanted.

    Args:
        encoder: What makes the missing ones.
        class_names: The classes wanted, in order.
    """

    def __init__(self, encoder: Encoder, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        self.templates: tuple[str, ...] = ()
        self._encoder = encoder
        self._vectors: dict[tuple[str, str], npt.NDArray[np.float32]] = {}

    def take_over(self, cache: FeatureCache) -> None:
        """Take what a cache holds if it is of the same text encoder; its templates stay wanted."""
        self.want(cache.templates)
        if text_key(cache.encoder) != text_key(self._encoder.facts):
            return
        for row, class_name in enumerate(cache.class_names):
            for column, template in enumerate(cache.templates):
                self._vectors[class_name, template] = cache.text_features[row, column]

    def want(self, templates: Sequence[str]) -> None:
        """Want these templates too, behind those wanted before."""
        self.templates = tuple(dict.fromkeys([*self.templates, *templates]))

    def encode_missing(self) -> int:
        """Encode the prompts not known yet, and return how many these were."""
        missing = [
            (class_name, template)
            for class_name in self.class_names
            for template in self.templates
            if (class_name, template) not in self._vectors
        ]
        if missing:
            prompts = [prompt(template, class_name) for class_name, template in missing]
            self._vectors.update(zip(missing, self._encoder.encode_texts(prompts), strict=True))
        return len(missing)

    def alike(self) -> list[tuple[str, str, str]]:
        """Find the templates with which two classes have the same vector: each with the first two.

        An encoder reads so many tokens of a prompt and no more, so where a long template has the
        class at its end the prompts become one.
        """
        found = []
        for template in self.templates:
            classes: dict[bytes, str] = {}
            for class_name in self.class_names:
                other = classes.setdefault(
                    self._vectors[class_name, template].tobytes(), class_name
                )
                if other != class_name:
                    found.append((template, other, class_name))
                    break
        return found

    def features(self) -> npt.NDArray[np.float32]:
        """Stack the wanted vectors: (C, P, D) float32."""
        return np.stack(
            [
                np.stack([self._vectors[class_name, template] for template in self.templates])
                for class_name in self.class_names
            ]
        )
