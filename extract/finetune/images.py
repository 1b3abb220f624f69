"""The images from which a cache's rows were encoded, for models that train on pixels."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from ...cache import FeatureCache, FedclipError
from ...cache.common.text import nfc
from ...cache.schema import content_digest
from ..datasets.base import ImageDataset, Source
from ..encoding.loader import describe

# Decoded images of a dataset are kept in memory if they fit into this number of bytes.
KEPT_BYTES = 4 << 30

# An image file's bytes to (3, H, W) uint8.
DecodeBytes = Callable[[bytes], Tensor]


class Images:
    """The images from which a client's rows were encoded, decoded by threads on demand.

    Args:
        sources: The image of each row.
        cache: The client's cache, whose digests identify the images.
        decode: Function from an image file's bytes to (3, H, W) uint8 pixels.
        shape: 3, H, W.
        threads: Threads that decode the images.
        device: Device that the pixels are moved to.
        keep: Whether decoded images are kept in memory.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        cache: FeatureCache,
        decode: DecodeBytes,
        shape: tuple[int, int, int],
        threads: ThreadPoolExecutor,
        device: torch.device,
        *,
        keep: bool,
    ) -> None:
        self._sources = sources
        self._cache = cache
        self._decode = decode
        self._threads = threads
        self._device = device
        # The system allocates the memory of a row when it is first written.
        self._kept = torch.empty(len(sources) if keep else 0, *shape, dtype=torch.uint8)
        self._known = torch.zeros(len(self._kept), dtype=torch.bool)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return (b, 3, H, W) uint8 pixels, on the device, for (b,) row indices.

        Raises:
            FedclipError: an image is missing, has changed or cannot be decoded.
        """
        rows = rows.cpu()
        if not len(self._kept):
            return torch.stack(self._read(rows.tolist())).to(self._device)
        missing = torch.unique(rows[~self._known[rows]])
        if len(missing):
            self._kept[missing] = torch.stack(self._read(missing.tolist()))
            self._known[missing] = True
        return self._kept[rows].to(self._device)

    def _read(self, rows: Sequence[int]) -> list[Tensor]:
        return list(self._threads.map(self._read_one, rows))

    def _read_one(self, row: int) -> Tensor:
        name = f"{self._cache.client}: {self._cache.ids[row]}"
        try:
            content = self._sources[row].read()
            if content_digest(content) == self._cache.digests[row].tobytes():
                return self._decode(content)
        except Exception as error:  # broken files raise errors of many types
            raise FedclipError(
                f"{name}: {describe(error, b'?')}; fix it and extract again"
            ) from None
        raise FedclipError(
            f"{name}: differs from the image that was encoded; extract again, so that full models "
            "and adapters train on the same images"
        )


def find_images(
    dataset: ImageDataset,
    caches: Sequence[FeatureCache],
    decode: DecodeBytes,
    size: tuple[int, int],
    device: torch.device,
) -> Mapping[str, Images]:
    """Find the images from which the rows of `caches` were encoded in `dataset`, by client.

    Paths come from the dataset, never from a cache.

    Raises:
        FedclipError: the dataset lacks an image that a cache has.
    """
    height, width = size
    rows = sum(len(cache.ids) for cache in caches)
    keep = rows * 3 * height * width <= KEPT_BYTES
    threads = ThreadPoolExecutor()
    sources = {
        client.name: {image.id: image.source for image in client.images}
        for client in dataset.clients
    }
    lent = {}
    for cache in caches:
        here = sources.get(cache.client, {})
        for image in cache.ids:
            if nfc(image) not in here:
                raise FedclipError(
                    f"{dataset.root}: lacks {image}, which is in the cache; restore it or extract "
                    "again"
                )
        lent[cache.client] = Images(
            [here[nfc(image)] for image in cache.ids],
            cache,
            decode,
            (3, height, width),
            threads,
            device,
            keep=keep,
        )
    return lent
