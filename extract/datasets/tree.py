"""The files below a folder, each looked at once: a sample, or ignored for a reason."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ...cache.common.text import check_utf8
from .formats import is_sample
from .registry import SampleKind

HIDDEN = "hidden"
NO_SAMPLE: Mapping[SampleKind, str] = {"images": "not an image", "texts": "not a .txt file"}
NO_FILE = "not a file"


@dataclass(eq=False)
class Folder:
    """A folder below a dataset's root.

    Attributes:
        path: Its path.
        id: Its path below the root; empty for the root itself.
        samples: The names of the images or texts in it.
        ignored: The reasons and ids of other files in it.
        folders: The folders in it that were looked into, by name.
        aside: The other folders in it, each with the reason.
        kind: What is looked for.
    """

    path: str
    id: str = ""
    samples: list[str] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)
    aside: list[str] = field(default_factory=list)
    kind: SampleKind = "images"

    def __iter__(self) -> Iterator["Folder"]:
        """Iterate over this folder and all below it."""
        stack = [self]
        while stack:
            folder = stack.pop()
            yield folder
            stack.extend(reversed(folder.folders.values()))

    @cached_property
    def count(self) -> int:
        """Number of samples in this folder and all below it."""
        return sum(len(folder.samples) for folder in self)

    def id_of(self, name: str) -> str:
        """Return the id of an entry of this folder: its path below the root."""
        return f"{self.id}/{name}" if self.id else name

    def sample_paths(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the path of each sample in this folder and all below it."""
        for folder in self:
            for name in folder.samples:
                yield folder.id_of(name), f"{folder.path}/{name}"


def scan(
    root: Path, enter: Callable[[str], bool] = lambda _: True, kind: SampleKind | None = None
) -> Folder:
    """Look at every file below a folder, and follow links.

    Only files whose suffix is not that of an image format are opened.

    Args:
        root: The folder.
        enter: Returns whether to look into the folder with this id. Hidden folders, and links to
            a folder above, are never looked into.
        kind: What to look for; by default images, or texts in a folder that has no image.

    Raises:
        FedclipError: a name is not UTF-8.
        OSError: a folder cannot be read.
    """
    if kind is None:
        found = scan(root, enter, "images")
        texts = any(is_sample(name, "texts") for folder in found for _, name in folder.ignored)
        return found if found.count or not texts else scan(root, enter, "texts")
    top = Folder(str(root), kind=kind)
    stack: list[tuple[Folder, tuple[str, ...]]] = [(top, (top.path,))]
    while stack:
        folder, above = stack.pop()
        with os.scandir(folder.path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                child = _look_at(entry, folder, above, enter)
                if child is not None:
                    folder.folders[entry.name] = child
                    stack.append((child, (*above, child.path)))
    return top


def _look_at(
    entry: os.DirEntry[str], folder: Folder, above: tuple[str, ...], enter: Callable[[str], bool]
) -> Folder | None:
    """Add an entry to its folder's books; return it if it is a folder to look into."""
    name = folder.id_of(entry.name)
    hidden = entry.name[0] == "."
    if _is_folder(entry):
        if not hidden and enter(name) and not _leads_up(entry, above):
            _check_name(entry)
            return Folder(f"{folder.path}/{entry.name}", name, kind=folder.kind)
        folder.aside.append(f"{_shown(name)}/")
    elif hidden:
        folder.ignored.append((HIDDEN, _shown(name)))
    elif not _is_file_or_lost(entry):
        folder.ignored.append((NO_FILE, _shown(name)))
    elif is_sample(entry.path, folder.kind):
        _check_name(entry)
        folder.samples.append(entry.name)
    else:
        folder.ignored.append((NO_SAMPLE[folder.kind], _shown(name)))
    return None


def _check_name(entry: os.DirEntry[str]) -> None:
    if not entry.name.isascii():
        check_utf8(entry.path)


def _shown(name: str) -> str:
    """Escape what is not UTF-8 in the name of a file that does not take part."""
    return name if name.isascii() else name.encode(errors="backslashreplace").decode()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _is_file_or_lost(entry: os.DirEntry[str]) -> bool:
    """Return whether this is a file or a broken link, which must be reported as skipped."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:
        return True


def _leads_up(entry: os.DirEntry[str], above: tuple[str, ...]) -> bool:
    """Return whether this is a link to one of the folders that it is in."""
    return entry.is_symlink() and any(os.path.samestat(entry.stat(), os.stat(p)) for p in above)  # noqa: PTH116
