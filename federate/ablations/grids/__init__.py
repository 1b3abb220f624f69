"""Grids that come with the package, one a file, for `fedclip ablate NAME`."""

from pathlib import Path

_FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def grid_file(name: str) -> Path:
    """Return the file called `name`, or else the grid of the package of that name."""
    path = Path(name)
    return _FOLDER / f"{name}.toml" if name in NAMES and not path.is_file() else path
