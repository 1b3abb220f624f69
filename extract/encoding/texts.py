"""Text features by class and template: those that caches hold, and the missing ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...cache import FeatureCache
from ...cache.key import text_key
from ..encoders.base import Encoder, TextEncoder
from ..encoders.prompts import prompt


class Texts:
    """Text features by class and template, and which of them are wanted.

    Of an encoder without a text side no templates are wanted, whatever is asked for.

    Args:
        encoder: Encodes the missing ones.
        class_names: The classes wanted, in order.
    """

    def __init__(self, encoder: Encoder, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        self.templates: tuple[str, ...] = ()
        self._encoder = encoder if isinstance(encoder, TextEncoder) else None
        self._vectors: dict[tuple[str, str], npt.NDArray[np.float32]] = {}

    def take_over(self, cache: FeatureCache) -> None:
        """Take a cache's features if its text encoder is the same; its templates stay wanted."""
        self.want(cache.templates)
        if self._encoder is None or text_key(cache.encoder) != text_key(self._encoder.facts):
            return
        for row, class_name in enumerate(cache.class_names):
            for column, template in enumerate(cache.templates):
                self._vectors[class_name, template] = cache.text_features[row, column]

    def want(self, templates: Sequence[str]) -> None:
        """Want these templates too, after those wanted before."""
        if self._encoder is None:
            return
        self.templates = tuple(dict.fromkeys([*self.templates, *templates]))

    def encode_missing(self) -> int:
        """Encode the prompts not known yet, and return how many these were."""
        missing = [
            (class_name, template)
            for class_name in self.class_names
            for template in self.templates
            if (class_name, template) not in self._vectors
        ]
        if self._encoder is not None and missing:
            prompts = [prompt(template, class_name) for class_name, template in missing]
            self._vectors.update(zip(missing, self._encoder.encode_texts(prompts), strict=True))
        return len(missing)

    def alike(self) -> list[tuple[str, str, str]]:
        """Find the templates for which two classes have the same vector: each with the first two.

        An encoder reads only so many tokens of a prompt, so a long template with the class at
        its end gives the same prompt for every class.
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
        """Stack the wanted vectors: (C, P, T) float32; (C, 0, 0) without templates."""
        if not self.templates:
            return np.empty((len(self.class_names), 0, 0), np.float32)
        return np.stack(
            [
                np.stack([self._vectors[class_name, template] for template in self.templates])
                for class_name in self.class_names
            ]
        )
