"""Where an image's bytes come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class Source(Protocol):
    """Gives an image's bytes; small and picklable, as worker processes read it."""

    def read(self) -> bytes:
        """Read the image as it is stored: an encoded image file's bytes.

        Raises:
            OSError: it cannot be read.
        """

    def stamp(self) -> str:
        """Say, without reading the image, what changes when the image does.

        Raises:
            OSError: it is no longer there.
        """


@dataclass(frozen=True)
class FileSource:
    """An image file."""

    path: Path

    def read(self) -> bytes:
        """Read the file."""
        return self.path.read_bytes()

    def stamp(self) -> str:
        """Give the file's size and times of change.

        The second time cannot be set, and tells of renamed and of newly readable files too.
        """
        stat = self.path.stat()
        return f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
