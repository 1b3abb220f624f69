"""The commands of `fedclip cache`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from .common.console import Output, complain
from .common.options import CacheOptions, Command, FormatOptions, Group, with_options
from .common.tables import Cell, Column, Table
from .common.text import counted

app = typer.Typer(
    cls=Group, help="List, show, compare, verify, remove and import caches of features."
)


def complete_cache(ctx: typer.Context, incomplete: str) -> list[str]:
    """List the caches whose names start with `incomplete`, for shell completion."""
    from .store import find_caches

    cache_dir = Path(ctx.params.get("cache_dir") or CacheOptions().cache_dir)
    names = [folder.name for folder in find_caches(cache_dir, begun=True)]
    return [name for name in names if name.startswith(incomplete)]


CacheName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A cache: its name in 'fedclip cache ls', a prefix of that name, or its dataset.",
        autocompletion=complete_cache,
    ),
]


@app.command("ls", cls=Command)
@with_options(examples=["fedclip cache ls", "fedclip cache ls --format json"])
def cache_ls(caches: CacheOptions, form: FormatOptions) -> None:
    """List the caches."""
    from rich.filesize import decimal

    from . import FedclipError, find_caches, load_cache

    output = Output(form.format)
    rows: list[tuple[Cell, ...]] = []
    damaged = []
    for folder in find_caches(caches.cache_dir):
        size = folder.bytes
        made = datetime.fromtimestamp(folder.made)
        try:
            clients = load_cache(folder)
        except FedclipError as error:
            damaged.append(error)
            rows.append((folder.name, len(folder.files), *[None] * 4, made, size, "damaged"))
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
                size,
                "intact",
            )
        )
    if not rows:
        output.note(f"no caches in {caches.cache_dir}")
    if rows or form.format != "table":
        headings = ("name", "clients", "rows", "width", "classes", "templates", "made")
        columns = [
            *map(Column, headings),
            Column("size", show=decimal),
            Column("state", hidden=not damaged),
        ]
        output.table(Table(columns, rows))
    if damaged:
        raise damaged[0]


@app.command("show", cls=Command)
@with_options(examples=["fedclip cache show pacs", "fedclip cache show pacs/ViT-B-32-openai"])
def cache_show(name: CacheName, caches: CacheOptions) -> None:
    """Show what a cache contains and how it was made."""
    from . import load_cache, resolve_cache

    folder = resolve_cache(caches.cache_dir, name)
    clients = load_cache(folder)
    first = clients[0]
    manifest = folder.read_manifest()
    facts = {
        "cache": folder.name,
        "folder": folder.path,
        "dataset": first.dataset,
        "from": _origin(manifest),
        "image key": first.key,
        "text key": first.text_key,
        "logit scale": _scale(first.logit_scale),
        "features": f"{first.embed_dim} wide, {'unit norm' if first.normalized else 'raw'}",
        "templates": [repr(template) for template in first.templates],
        "classes": first.class_names,
        **{f"encoder {fact}": value for fact, value in sorted(first.encoder.items())},
    }
    output = Output("table")
    output.table(Table([Column("fact"), Column("value", wraps=True)], [*facts.items()]))
    output.note("")
    entries = manifest.get("clients", {})
    rows = [
        (c.client, len(c.labels), len(entries.get(c.client, {}).get("skipped", ())))
        for c in clients
    ]
    output.table(Table([Column("client"), Column("rows"), Column("skipped")], rows))


def _scale(logit_scale: float) -> str:
    from .schema import CLIP_SCALE, NO_SCALE

    if logit_scale == NO_SCALE:
        return f"none; similarities are multiplied by {CLIP_SCALE:g}, which is CLIP's"
    return f"{logit_scale:g}"


def _origin(manifest: dict[str, Any]) -> str:
    """Return where a cache's images were: a folder, or a repository at its commit."""
    root = manifest.get("root") or manifest.get("imported", {}).get("file", "unknown")
    hubs = [entry.get("hub") for entry in manifest.get("clients", {}).values()]
    commits = sorted({str(hub.get("commit")) for hub in hubs if isinstance(hub, dict)})
    return f"{root} at {', '.join(commits)}" if commits else str(root)


@app.command("diff", cls=Command)
@with_options(
    examples=[
        "fedclip cache diff pacs/ViT-B-32 pacs/RN50",
        "fedclip cache diff pacs/ViT-B-32-openai pacs/ViT-B-32-laion",
    ]
)
def cache_diff(
    one: Annotated[
        str, typer.Argument(metavar="A", help="A cache.", autocompletion=complete_cache)
    ],
    other: Annotated[
        str, typer.Argument(metavar="B", help="Another cache.", autocompletion=complete_cache)
    ],
    caches: CacheOptions,
    form: FormatOptions,
) -> None:
    """Compare two caches: how their features were made, and what they contain."""
    from . import load_cache, resolve_cache
    from .compatibility import cache_differences

    folders = [resolve_cache(caches.cache_dir, name) for name in (one, other)]
    differences = cache_differences(*(load_cache(folder) for folder in folders))
    output = Output(form.format)
    if not differences:
        output.note("same clients, classes and templates, and comparable features")
    if differences or form.format != "table":
        columns = [Column("what"), *(Column(folder.name, wraps=True) for folder in folders)]
        rows = [(what, *values) for what, values in differences.items()]
        output.table(Table(columns, rows))


@app.command("verify", cls=Command)
@with_options(examples=["fedclip cache verify", "fedclip cache verify pacs"])
def cache_verify(
    caches: CacheOptions,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A cache; all caches if omitted.",
            autocompletion=complete_cache,
        ),
    ] = None,
) -> None:
    """Check every byte and value of one cache, or of all caches."""
    from . import find_caches, resolve_cache, verify_cache

    place = caches.cache_dir
    folders = find_caches(place) if name is None else [resolve_cache(place, name)]
    code = 0 if folders else complain(f"no caches to verify in {place}")
    for folder in folders:
        wrong = verify_cache(folder)
        for error in wrong:
            code = complain(str(error))
        if not wrong:
            print(f"{folder.name}: {counted(len(folder.files), 'file is', 'files are')} intact")
    raise typer.Exit(code)


@app.command("rm", cls=Command)
@with_options(examples=["fedclip cache rm demo", "fedclip cache rm pacs/RN50"])
def cache_rm(name: CacheName, caches: CacheOptions) -> None:
    """Delete a cache, or the leftovers of an unfinished extraction."""
    from rich.filesize import decimal

    from . import remove_cache, resolve_cache

    folder = resolve_cache(caches.cache_dir, name, begun=True)
    size = folder.bytes
    remove_cache(folder)
    print(f"removed {folder.name} ({decimal(size)})")


@app.command("import", cls=Command)
@with_options(examples=["fedclip cache import features.npz --name caltech101"])
def cache_import(
    file: Annotated[Path, typer.Argument(metavar="FILE.npz", help="The archive.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the cache.")],
    caches: CacheOptions,
) -> None:
    """Make a cache from features that another program extracted.

    FILE.npz must contain the arrays image_features (N, D), labels and text_features (C, D), or
    (C, P, D) for several prompts. Labels are numbers of classes from 0, class names, or one-hot
    rows. It may also contain class_names (C,), templates (P,), logit_scale (100 by default) and
    domain (N,), which makes one client per domain.
    """
    from . import import_npz
    from .common.files import check_writable
    from .common.progress import show_progress

    check_writable(caches.cache_dir, f"--cache-dir {caches.cache_dir}")
    with show_progress():
        imported = import_npz(file, caches.cache_dir, name)
    first = imported.clients[0]
    output = Output("table")
    rows = [(cache.client, len(cache.labels)) for cache in imported.clients]
    output.table(Table([Column("client"), Column("rows")], rows))
    output.note(
        f"cache      {imported.folder.name}: {counted(sum(count for _, count in rows), 'row')} of "
        f"{counted(first.embed_dim, 'feature')} ({'unit norm' if first.normalized else 'raw'}), "
        f"{counted(len(first.class_names), 'class', 'classes')}, "
        f"logit scale {first.logit_scale:g}"
    )
    output.note(f"understood {imported.understood}")
    if imported.ignored:
        output.note(f"ignored    {', '.join(imported.ignored)} (unknown arrays)")
