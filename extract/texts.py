"""Text features by class and template: those that caches hold, and the missing ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..cache import FeatureCache
from .encoders import Encoder
from .prompts import prompt


@dataclass
class Texts:
    """Text features by class and template, and which of them are wanted."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    vectors: dict[tuple[str, str], npt.NDArray[np.float32]]

    @classmethod
    def known(
        cls,
        caches: Sequence[FeatureCache],
        class_names: tuple[str, ...],
        wanted: Sequence[str],
    ) -> Texts:
        """Take over what caches hold; their templates stay, and stay first."""
        templates = [template for cache in caches for template in cache.templates]
        vectors = {
            (class_name, template): cache.text_features[row, column]
            for cache in caches
            for row, class_name in enumerate(cache.class_names)
            for column, template in enumerate(cache.templates)
        }
        return cls(class_names, tuple(dict.fromkeys([*templates, *wanted])), vectors)

    def encode_missing(self, encoder: Encoder, batch_size: int) -> int:
        """Encode the prompts not known yet, and return how many these were."""
        missing = [
            (class_name, template)
            for class_name in self.class_names
            for template in self.templates
            if (class_name, template) not in self.vectors
        ]
        if missing:
            prompts = [prompt(template, class_name) for class_name, template in missing]
            features = encoder.encode_texts(prompts, batch_size)
            self.vectors.update(zip(missing, features, strict=True))
        return len(missing)

    def features(self) -> npt.NDArray[np.float32]:
        """Stack the wanted vectors: (C, P, D) float32."""
        return np.stack(
            [
                np.stack([self.vectors[class_name, template] for template in self.templates])
                for class_name in self.class_names
            ]
        )
