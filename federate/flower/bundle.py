"""The app bundle (FAB) of this package: it names our app, and has no code in it.

By default Flower ships an app's code to every site in such a bundle. Ours only says that the app is
the one in the installed package, and a site compares its hash with that of its own before it does
anything: any other bundle is refused unread. `flwr run` makes the same bundle of the folder `APP`.
"""

import hashlib
import io
import zipfile
from functools import lru_cache
from pathlib import Path

# The app's folder; Flower ignores links. The version in it is the bundle's, not the package's.
APP = Path(__file__).resolve().parent / "app"

_FILE, _MANIFEST = "pyproject.toml", ".info/CONTENT"

# What Flower writes as every file's date.
_DATE = (2024, 10, 1, 0, 0, 0)


@lru_cache(1)
def bundle() -> bytes:
    """Build the bundle: the same bytes everywhere, as it is not compressed and has no dates."""
    project = (APP / _FILE).read_bytes()
    digest = hashlib.sha256(project).hexdigest()
    manifest = f"{_FILE},{digest},{8 * len(project)}"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, data in ((_FILE, project), (_MANIFEST, manifest.encode())):
            info = zipfile.ZipInfo(name, _DATE)
            info.create_system = 3
            file.writestr(info, data)
    return content.getvalue()


def bundle_hash() -> str:
    """Return the SHA-256 of the bundle, 64 hex digits, by which Flower names it."""
    return hashlib.sha256(bundle()).hexdigest()
