"""The layouts of a folder of samples: which of its folders are splits, domains and classes.

An image or text belongs to the class whose folder it is in, at any depth. Splits are folders such
as ``train`` and ``test``, above the domains or below each of them; together they are the whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize

from ...cache import FedclipError
from ...cache.common.fields import listed, suggest
from ...cache.common.text import counted, inflected
from .base import ClassImages, FileSource
from .books import Books
from .registry import noun
from .tree import NO_SAMPLE, Folder

SPLITS = frozenset(
    {
        *("train", "training", "val", "valid", "validation", "crossval", "dev", "test", "testing"),
        "full",
    }
)

# A copy of the other splits, as VLCS has it; used if none of the others exists.
_WHOLE = "full"

_UNLABELLED = "in no class folder"
_OTHER_SPLIT = "in another split"

# The most folders that an error or a warning names.
_NAMED = 4

ClassFolders = Mapping[str, Sequence[Folder]]


def is_split(name: str) -> bool:
    """Return whether a folder of this name can be a split."""
    return name.lower() in SPLITS


@dataclass(frozen=True)
class Layout:
    """A folder's images by domain and class, and the books of all its files.

    Attributes:
        domains: The images of each domain that has any.
        pattern: The layout, such as ``<domain>/<class>/<image>``, and the splits that were taken.
        books: What was ignored.
        warnings: What may be meant in another way, one line each.
    """

    domains: Sequence[tuple[str, ClassImages]]
    pattern: str
    books: Books
    warnings: tuple[str, ...]


def read_layout(
    root: Folder,
    *,
    client: str | None = None,
    splits: Sequence[str] = (),
    domain_of: Callable[[str], str] = str,
    class_of: Callable[[str], str] = str,
    required: Sequence[str] = (),
) -> Layout:
    """Assign each image below `root` to a domain and a class.

    Args:
        root: The folder.
        client: The only domain, for a folder without folders of domains.
        splits: The splits to take; by default all.
        domain_of: Returns a domain's name by its folder's.
        class_of: Returns a class's name by its folder's.
        required: Domains that must have images, in their order; by default, domains are sorted.

    Raises:
        FedclipError: no image is in such a layout, the folder may be laid out in several ways, a
            split is missing, or a domain would have no images.
    """
    choice = _SplitChoice(tuple(splits))
    above = choice.among(root, required=client is not None)
    parents = (
        {client: above or [root]} if client is not None else _by_name(above or [root], domain_of)
    )
    divided = 0
    for name, folders in parents.items() if client is None and not above else ():
        labelled = any(child.count for folder in folders for child in folder.folders.values())
        below = choice.among(folders[0], required=True) if labelled else []
        divided += bool(below)
        parents[name] = below or folders
    order = [name for name in required or sorted(parents) if name in parents]
    domains = [(name, _by_name(parents[name], class_of)) for name in order]
    filled = [(name, classes) for name, classes in domains if _count(classes)]
    domain = "" if client is not None else "<domain>/"
    split = "" if not divided else "<split>/" if divided == len(filled) else "[<split>/]"
    pattern = f"{'<split>/' if above else ''}{domain}{split}<class>/<{noun(root.kind)}>"
    _check_filled(root, domains, pattern, required, client)
    for name, folders in parents.items() if client is None and not required else ():
        _check_labelled(name, folders, pattern)
    taken = f", splits {listed(choice.taken, 'and')}" if choice.taken else ""
    return Layout(
        domains=[(name, _images(classes)) for name, classes in filled],
        pattern=pattern + taken,
        books=_books(root, [classes for _, classes in domains], choice.left),
        warnings=tuple(_doubts(root, filled, client)),
    )


@dataclass
class _SplitChoice:
    """Chooses the splits to take.

    Attributes:
        wanted: The splits to take; empty for all.
        taken: The names of those taken so far.
        left: Folders beside them, which are not taken.
    """

    wanted: tuple[str, ...]
    taken: list[str] = field(default_factory=list)
    left: list[Folder] = field(default_factory=list)

    def among(self, folder: Folder, *, required: bool) -> list[Folder]:
        """Return the splits in a folder that are to be taken; none if it is not divided into any.

        Args:
            folder: The folder.
            required: Whether the splits that the user wants must be here.
        """
        filled = {name: each for name, each in folder.folders.items() if each.count}
        found = self._wanted(folder, filled, required) if self.wanted else _splits(folder, filled)
        for name, each in found.items():
            if each.samples:
                raise FedclipError(
                    f"{each.path}/{each.samples[0]}: is in the split {name!r}, but in none of its "
                    "folders, so its class is unknown; move it into a class folder, or away"
                )
        if found:
            self.taken = sorted({*self.taken, *found})
            self.left += [each for name, each in filled.items() if name not in found]
        return [*found.values()]

    def _wanted(
        self, folder: Folder, filled: Mapping[str, Folder], required: bool
    ) -> dict[str, Folder]:
        found = {name: each for name, each in filled.items() if name.lower() in self.wanted}
        missing = sorted({*self.wanted} - {name.lower() for name in found})
        splits = [name for name in filled if is_split(name)]
        if missing and (found or required or splits == [*filled]):
            problem = (
                f"has no such split{suggest(missing[0], splits)}"
                if splits
                else "is not divided into splits; leave out --split"
            )
            raise FedclipError(f"--split {missing[0]}: {folder.path} {problem}")
        return found


def _splits(folder: Folder, filled: Mapping[str, Folder]) -> dict[str, Folder]:
    """Return the splits into which a folder is divided, if it is."""
    splits = {name: each for name, each in filled.items() if is_split(name)}
    others = [name for name in filled if name not in splits]
    if not any(child.count for split in splits.values() for child in split.folders.values()):
        return {}  # classes of these names, such as DomainNet's "train"
    if others and len(splits) > 1:
        raise FedclipError(
            f"{folder.path}: has the splits {listed([*splits], 'and')} beside "
            f"{_few(others)}; choose with --split {'+'.join(splits)}, or move the others away"
        )
    if others:
        return {}
    parts = {name: each for name, each in splits.items() if name.lower() != _WHOLE}
    return parts or splits


def _by_name(parents: Sequence[Folder], name_of: Callable[[str], str]) -> dict[str, list[Folder]]:
    """Group the folders in several splits by name, however their accents are written (NFC, NFD)."""
    groups: dict[str, list[Folder]] = {}
    for parent in parents:
        others = {normalize("NFC", name): name for name in groups}
        for folder_name, folder in parent.folders.items():
            name = name_of(folder_name)
            groups.setdefault(others.get(normalize("NFC", name), name), []).append(folder)
    return groups


def _count(classes: ClassFolders) -> int:
    return sum(folder.count for folders in classes.values() for folder in folders)


def _images(classes: ClassFolders) -> ClassImages:
    return {
        name: [
            (image_id, FileSource(Path(path)))
            for folder in folders
            for image_id, path in folder.sample_paths()
        ]
        for name, folders in classes.items()
    }


def _check_filled(
    root: Folder,
    domains: Sequence[tuple[str, ClassFolders]],
    pattern: str,
    required: Sequence[str],
    client: str | None,
) -> None:
    """Refuse domains without images, unless they are other folders beside the domains."""
    somewhere = {
        name
        for _, classes in domains
        for name, folders in classes.items()
        if any(folder.count for folder in folders)
    }
    if not somewhere:
        raise FedclipError(
            f"{root.path}: contains no {root.kind} laid out {pattern}{_elsewhere(root, client)}"
        )
    empty = [
        name
        for name, classes in domains
        if not _count(classes) and (name in required or somewhere & {*classes})
    ]
    empty += sorted({*required} - {name for name, _ in domains})
    if empty:
        raise FedclipError(
            f"{root.path}: {_few(empty)} would be empty, without {_article(root)} laid out "
            f"{pattern}; add the {root.kind}, or move the folder away"
        )


def _check_labelled(domain: str, folders: Sequence[Folder], pattern: str) -> None:
    """Refuse a domain all of whose images lie in it directly, since it would vanish."""
    loose = [each.id_of(name) for each in folders for name in each.samples]
    if loose and not any(child.count for each in folders for child in each.folders.values()):
        kind = folders[0].kind
        raise FedclipError(
            f"{folders[0].path}: the domain {domain!r} would be left out, as its "
            f"{counted(len(loose), noun(kind))}, such as {loose[0]}, "
            f"{'is' if len(loose) == 1 else 'are'} in no class folder ({pattern}); make class "
            "folders, or move this folder away"
        )


def _elsewhere(root: Folder, client: str | None) -> str:
    """Return the end of the error about a folder that has images in no class folder, or none."""
    image_id = next((image_id for image_id, _ in root.sample_paths()), None)
    if image_id is None:
        return "; check the folder"
    what = noun(root.kind)
    site = f", or set --client if it is one site's folder <class>/<{what}>" if not client else ""
    count = f"{root.count:,} {inflected(root.count, what)}"
    return f", but {count} elsewhere, such as {image_id}; choose another folder{site}"


def _books(root: Folder, domains: Sequence[ClassFolders], left: Sequence[Folder]) -> Books:
    """Account for every file below `root` that is not an image of a class."""
    classes = {folder.id for each in domains for folders in each.values() for folder in folders}
    others = {folder.id for folder in left}
    ignored: list[tuple[str, str]] = []
    aside: list[str] = []
    stack: list[tuple[Folder, str | None]] = [(root, _UNLABELLED)]
    while stack:
        folder, reason = stack.pop()
        if folder.id in others:
            reason = _OTHER_SPLIT
        elif folder.id in classes:
            reason = None
        ignored += folder.ignored
        aside += folder.aside
        if reason is not None:
            ignored += [(reason, folder.id_of(name)) for name in folder.samples]
        stack += [(child, reason) for child in folder.folders.values()]
    return Books.of(ignored, aside)


def _doubts(
    root: Folder, domains: Sequence[tuple[str, ClassFolders]], client: str | None
) -> Iterator[str]:
    """Warn of class folders that have files but no images, and of what may be classes itself."""
    imageless = [
        folder.id
        for _, classes in domains
        for folders in classes.values()
        for folder in folders
        if not folder.count
        and any(why == NO_SAMPLE[root.kind] for sub in folder for why, _ in sub.ignored)
    ]
    if imageless:
        verb = "contains" if len(imageless) == 1 else "contain"
        yield f"{root.path}: {_few(imageless)} {verb} no {noun(root.kind)}"
    for _, classes in domains:
        filled = {
            name: folders
            for name, folders in classes.items()
            if any(folder.count for folder in folders)
        }
        inside = {
            frozenset(name for name, child in folder.folders.items() if child.count)
            for folders in filled.values()
            for folder in folders
        }
        direct = any(folder.samples for folders in filled.values() for folder in folders)
        if not direct and len(inside) == 1 and len(names := inside.pop()) > 1:
            leave = ", or leave out --client" if client else ""
            verb = (
                "is taken for a class, and contains"
                if len(filled) == 1
                else ("are taken for classes, and all contain")
            )
            yield (
                f"{root.path}: {_few([*filled])} {verb} {_few(sorted(names))}; if these are the "
                f"classes, pass the folder above them as --dataset{leave}"
            )
            return


def _article(root: Folder) -> str:
    return "an image" if root.kind == "images" else "a text"


def _few(names: Sequence[str]) -> str:
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return listed(names, "and")
