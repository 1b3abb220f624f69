"""Text features by class and template: reuses those in caches, and encodes missing ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...cache import FeatureCache
from ...cache.key import text_key
from ..encoders.base import Encoder, TextEncoder
from ..encoders.prompts import prompt


class Texts:
    """Text features by class and template, and which of them a cache needs.

    For an encoder without a text side, requested templates are ignored.

    Args:
        encoder: Encodes the missing features.
        class_names: The classes in order.
    """

    def __init__(self, encoder: Encoder, class_names: tuple[str, ...]) -> None:
        self.class_names = class_names
        self.templates: tuple[str, ...] = ()
        self._encoder = encoder if isinstance(encoder, TextEncoder) else None
        self._vectors: dict[tuple[str, str], npt.NDArray[np.float32]] = {}

    def take_over(self, cache: FeatureCache) -> None:
        """Request a cache's templates, and reuse its features if its text encoder is the same."""
        self.want(cache.templates)
        if self._encoder is None or text_key(cache.encoder) != text_key(self._encoder.facts):
            return
        for row, class_name in enumerate(cache.class_names):
            for column, template in enumerate(cache.templates):
                self._vectors[class_name, template] = cache.text_features[row, column]

    def want(self, templates: Sequence[str]) -> None:
        """Request templates in addition to, and after, those requested before."""
        if self._encoder is None:
            return
        self.templates = tuple(dict.fromkeys([*self.templates, *templates]))

    def encode_missing(self) -> int:
        """Encode the missing prompts, and return their number."""
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
        """Find templates with the same vector for two classes; return each with the first two.

        An encoder reads a limited number of tokens, so a long template that ends with the class
        yields the same vector for every class.
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
        """Stack the requested vectors: (C, P, T) float32; (C, 0, 0) without templates."""
        if not self.templates:
            return np.empty((len(self.class_names), 0, 0), np.float32)
        return np.stack(
            [
                np.stack([self._vectors[class_name, template] for template in self.templates])
                for class_name in self.class_names
            ]
        )
