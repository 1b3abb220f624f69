"""The commands of `fedclip cache`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from .common.console import complain, print_table
from .common.options import CacheDir

app = typer.Typer(help="List, show, compare, verify, remove and import caches of features.")

CacheName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A cache as 'fedclip cache ls' names it, or its data set."),
]


@app.command("ls")
def cache_ls(cache_dir: CacheDir = Path("caches")) -> None:
    """List the caches."""
    from rich.filesize import decimal

    from . import FedclipError, find_caches, load_cache

    rows: list[tuple[object, ...]] = []
    damaged = []
    for folder in find_caches(cache_dir):
        made = f"{datetime.fromtimestamp(folder.made):%Y-%m-%d %H:%M}"
        try:
            clients = load_cache(folder)
        except FedclipError as error:
            damaged.append(error)
            rows.append((folder.name, len(folder.files), "-", "-", "-", "-", made, "damaged"))
            continue
        first = clients[0]
        rows.append(
            (
                folder.name,
                len(clients),
                sum(len(cache.labels) for cache in clients),
                first.embed_dim,
                len(first.class_names),
                len(first.templates),
                made,
                decimal(folder.bytes),
            )
        )
    if rows:
        headings = (
            "name",
            "clients",
            "rows",
            "width",
            "classes",
            "templates",
            "made",
            "size",
        )
        print_table(headings, rows)
    else:
        print(f"there is no cache below {cache_dir}")
    if damaged:
        raise damaged[0]


@app.command("show")
def cache_show(name: CacheName, cache_dir: CacheDir = Path("caches")) -> None:
    """Show what a cache holds and what made it."""
    from . import load_cache, resolve_cache

    folder = resolve_cache(cache_dir, name)
    clients = load_cache(folder)
    first = clients[0]
    manifest = folder.read_manifest()
    facts = {
        "cache": folder.name,
        "folder": folder.path,
        "data set": first.dataset,
        "from": _origin(manifest),
        "image key": first.key,
        "text key": first.text_key,
        "logit scale": f"{first.logit_scale:g}",
        "features": f"{first.embed_dim} wide, {'unit norm' if first.normalized else 'raw'}",
        "templates": ", ".join(map(repr, first.templates)),
        "classes": ", ".join(first.class_names),
        **{f"encoder {fact}": value for fact, value in sorted(first.encoder.items())},
    }
    width = max(map(len, facts))
    for fact, value in facts.items():
        print(f"{fact:<{width}}  {value}")
    entries = manifest.get("clients", {})
    print_table(
        ("client", "rows", "skipped"),
        [
            (c.client, len(c.labels), len(entries.get(c.client, {}).get("skipped", ())))
            for c in clients
        ],
    )


def _origin(manifest: dict[str, Any]) -> str:
    """Say where a cache's images were: a folder, or a repository at its commit."""
    root = manifest.get("root") or manifest.get("imported", {}).get("file", "unknown")
    hubs = [entry.get("hub") for entry in manifest.get("clients", {}).values()]
    commits = sorted({str(hub.get("commit")) for hub in hubs if isinstance(hub, dict)})
    return f"{root} at {', '.join(commits)}" if commits else str(root)


@app.command("diff")
def cache_diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A cache.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another cache.")],
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Say in which facts two caches differ: what shapes their vectors, and what they hold."""
    from . import load_cache, resolve_cache
    from .store import cache_differences

    folders = [resolve_cache(cache_dir, name) for name in (one, other)]
    differences = cache_differences(*(load_cache(folder) for folder in folders))
    for fact, (first, second) in differences.items():
        print(f"{fact}\n  {folders[0].name}: {first}\n  {folders[1].name}: {second}")
    if not differences:
        print("they hold the same clients, classes and templates, and their features compare")


@app.command("verify")
def cache_verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A cache; by default all of them."),
    ] = None,
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Check every byte and every value of a cache, or of all."""
    from . import find_caches, resolve_cache, verify_cache

    folders = [resolve_cache(cache_dir, name)] if name is not None else find_caches(cache_dir)
    code = 0 if folders else complain(f"there is no cache below {cache_dir} to verify")
    for folder in folders:
        wrong = verify_cache(folder)
        for error in wrong:
            code = complain(str(error))
        if not wrong:
            print(f"{folder.name}: {len(folder.files)} files are whole")
    raise typer.Exit(code)


@app.command("rm")
def cache_rm(name: CacheName, cache_dir: CacheDir = Path("caches")) -> None:
    """Delete a cache, or what an extraction left that did not end."""
    from rich.filesize import decimal

    from . import remove_cache, resolve_cache

    folder = resolve_cache(cache_dir, name, begun=True)
    size = folder.bytes
    remove_cache(folder)
    print(f"removed {folder.name} ({decimal(size)})")


@app.command("import")
def cache_import(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="The archive.")],
    name: Annotated[str, typer.Option(help="What to call the cache.")],
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Make a cache of features that another program extracted.

    FILE.npz holds the arrays image_features (N, D), labels (N,) and text_features (C, D),
    and may hold class_names (C,), logit_scale (100 without it) and domain (N,), which makes
    a client of each domain.
    """
    from . import import_npz

    imported = import_npz(file, cache_dir, name)
    first = imported.clients[0]
    print_table(
        ("client", "rows"),
        [(cache.client, len(cache.labels)) for cache in imported.clients],
    )
    print(
        f"cache      {imported.folder.name}: {sum(len(c.labels) for c in imported.clients)} rows "
        f"of {first.embed_dim} features ({'unit norm' if first.normalized else 'raw'}), "
        f"{len(first.class_names)} classes, logit scale {first.logit_scale:g}"
    )
    if imported.ignored:
        print(f"ignored    {', '.join(imported.ignored)} (arrays of no use here)")
