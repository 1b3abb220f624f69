"""The app bundle (FAB) of this package: it names our app, and has no code in it.

By default Flower ships an app's code to every site in such a bundle. Ours only says that the app is
the one in the installed package, and a site compares its hash with that of its own before it does
anything: any other bundle is refused unread.
"""

import hashlib
import io
import zipfile
from functools import lru_cache

# What Flower requires to be in a bundle. The version is that of the bundle, not the package's.
_PROJECT = b"""\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedclip"
version = "1.0.0"
description = "Federated learning over cached CLIP features"
license = "MIT"
dependencies = []

[tool.flwr.app]
publisher = "fedclip"
fab-include = []

[tool.flwr.app.components]
serverapp = "fedclip.federate.flower.server_app:app"
clientapp = "fedclip.federate.flower.client_app:app"
"""

_FILE, _MANIFEST = "pyproject.toml", ".info/CONTENT"


@lru_cache(1)
def bundle() -> bytes:
    """Build the bundle: the same bytes everywhere, as it is not compressed and has no dates."""
    digest = hashlib.sha256(_PROJECT).hexdigest()
    manifest = f"{_FILE},{digest},{8 * len(_PROJECT)}"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        for name, data in ((_FILE, _PROJECT), (_MANIFEST, manifest.encode())):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            file.writestr(info, data)
    return content.getvalue()


def bundle_hash() -> str:
    """Return the SHA-256 of the bundle, 64 hex digits, by which Flower names it."""
    return hashlib.sha256(bundle()).hexdigest()
