"""The ``fedclip`` command: reads options, calls what does the work, prints what came back.

What does the work is imported by the command that needs it, so that ``--help``
answers at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__

if TYPE_CHECKING:
    from rich.table import Table

    from .extract.request import Extraction
    from .federate.experiment import Experiment

BAD_INPUT = 2
INTERRUPTED = 130
SKIPPED_SHOWN = 10
PLAIN_WIDTH = 240

# Columns of a table that hold words, besides the first.
_WORDS = frozenset({"clients by name", "source", "licence", "here"})

# The base of typer's usage errors, whichever click it carries.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="fedclip",
    help="Federate a CLIP by its features: encode every image once, then train and federate "
    "small adapters over the cache.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="List, show, compare, verify, remove and import caches of features.")
app.add_typer(cache_app, name="cache")

CacheDir = Annotated[
    Path,
    typer.Option("--cache-dir", envvar="FEDCLIP_CACHE_DIR", help="Where caches are kept."),
]
DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="FEDCLIP_DATA_DIR", help="Where data sets are looked for."),
]
CacheName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="A cache as 'fedclip cache ls' names it, or its data set."),
]


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line on `arguments` and return its exit code."""
    try:
        code = app(args=list(arguments), prog_name="fedclip", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        return _complain(message)
    if code == INTERRUPTED:
        print("interrupted; what was finished is kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> str | None:
    """Say in a line what the user can mend; None for a fault of ours."""
    from .cache import FedclipError

    if isinstance(error, FedclipError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}"
    if isinstance(error, _USAGE_ERROR):
        context = error.ctx
        command = context.command_path if context else "fedclip"
        return f"{error.format_message()} (see {command} --help)"
    return None


def _complain(message: str) -> int:
    line = "".join(character if character.isprintable() else " " for character in message)
    print("error:", " ".join(line.split()), file=sys.stderr)
    return BAD_INPUT


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"fedclip {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def extract(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A known data set ('fedclip datasets' lists them), taken from below --data-dir, "
            "else from the Hugging Face hub; a folder laid out <domain>/<class>/<image>; or "
            "hf:OWNER/NAME. With --manifest, the folder that its paths are relative to.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDir = Path("data"),
    client: Annotated[
        str | None,
        typer.Option(
            help="Make the file of this one client: of a folder laid out <class>/<image>, or of "
            "all rows of a list or table.",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            help="A .csv or .parquet list of images with the columns path, label and, without "
            "--client, client.",
            show_default=False,
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            help="The classes in their order, A,B,C or @FILE with one a line, so that separate "
            "sites agree; some may have no images. By default all that have, sorted.",
            show_default=False,
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(help="The hub table's column of images (image).", show_default=False),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="The hub table's column of classes (label).", show_default=False),
    ] = None,
    domain_column: Annotated[
        str | None,
        typer.Option(
            help="The hub table's column of domains, each a client (domain).", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="The hub table's split, or several joined by + (train).", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="The hub repository's branch, tag or commit (main).", show_default=False),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline", help="Stay off the network: use what is here (also HF_HUB_OFFLINE=1)."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="An open_clip architecture, local-dir:FOLDER or hf-hub:OWNER/NAME. By default "
            "ViT-B-32, and for the demo the tiny CLIP that comes with it.",
            show_default=False,
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="A pretrained tag, a checkpoint file, or random. By default openai, or the "
            "weights beside the config of a local-dir: or hf-hub: model.",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A prompt with {} for the class name; may be given several times. "
            "By default 'a picture of a {}'.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images that the encoder sees at once.")
    ] = 64,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images, 0 for none. By default 1 where the encoder runs "
            "on a CPU, else one for every core but one.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[
        str, typer.Option(help="What the encoder computes in: fp32, fp16 or bf16.")
    ] = "fp32",
    name: Annotated[
        str | None,
        typer.Option(
            help="File the cache under this name instead of the data set's.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Encode everything again.")] = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Write nothing if there is an image that cannot be used."),
    ] = False,
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Encode every image of a data set once, and keep the features: one file per client."""
    from .cache.report import open_report
    from .extract.names import EncoderName, default_model
    from .extract.pipeline import extract as run_extraction
    from .extract.prompts import DEFAULT_TEMPLATE, check_templates, parse_class_names
    from .extract.request import Request, TableOptions

    if dataset is None and listed is None:
        raise typer.BadParameter("Missing option '--dataset' (or '--manifest').")
    request = Request(
        dataset=dataset,
        encoder=EncoderName.of(
            default_model(dataset) if model is None else model, pretrained, precision
        ),
        templates=check_templates(template or [DEFAULT_TEMPLATE]),
        data_dir=data_dir,
        cache_dir=cache_dir,
        name=name,
        batch_size=batch_size,
        workers=workers,
        device=device,
        force=force,
        strict=strict,
        listed=listed,
        client=client,
        class_names=parse_class_names(class_names),
        table=TableOptions(image_column, label_column, domain_column, split, revision),
        offline=offline,
    )
    with open_report() as report:
        extraction = run_extraction(request, report)
    _print_extraction(extraction)


def _print_extraction(extraction: Extraction) -> None:
    _print_table(
        ("client", "rows", "encoded now", "skipped"),
        [(c.client, c.rows, c.encoded, len(c.skipped)) for c in extraction.clients],
    )
    skipped = extraction.skipped
    for item in skipped[:SKIPPED_SHOWN]:
        print(f"skipped    {item.id}: {item.reason}")
    if len(skipped) > SKIPPED_SHOWN:
        print(f"           and {len(skipped) - SKIPPED_SHOWN} more, listed in manifest.json")
    rows = sum(client.rows for client in extraction.clients)
    print(
        f"cache      {extraction.folder.name}: {len(extraction.clients)} files, {rows} rows of "
        f"{extraction.embed_dim} features, {extraction.classes} classes, {len(skipped)} skipped"
    )
    if extraction.encoded or extraction.encoded_texts:
        rate = extraction.encoded / extraction.seconds
        print(
            f"encoded    {extraction.encoded} images and {extraction.encoded_texts} prompts in "
            f"{extraction.seconds:.1f} s ({rate:.1f} images/s)"
        )
    else:
        print("encoded    nothing: the cache is up to date")


@app.command()
def datasets(data_dir: DataDir = Path("data")) -> None:
    """List the known data sets: clients, classes, images, source, licence, what is here."""
    from .extract.find import place_of
    from .extract.known import KNOWN

    _print_table(
        ("data set", "clients by name", "classes", "images", "source", "licence", "here"),
        [
            (
                name,
                ", ".join(domain.client for domain in known.domains),
                known.classes,
                known.images,
                known.source,
                known.licence,
                place_of(name, data_dir) or "-",
            )
            for name, known in KNOWN.items()
        ],
    )
    print("or any folder <domain>/<class>/<image>, a --manifest, or hf:OWNER/NAME")


@app.command()
def federate(
    cache: Annotated[
        str | None,
        typer.Option(
            help="A cache as 'fedclip cache ls' names it, or its data set. By default the one "
            "extracted last.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federation.")] = 50,
    target: Annotated[
        str | None,
        typer.Option(
            help="The domain to leave out, all (each in turn), or none. By default all if the "
            "cache has two or more domains.",
            show_default=False,
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Deal the samples of every domain but the target to this many clients.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Concentration of the Dirichlet draw over classes that deals them (0.5).",
            show_default=False,
        ),
    ] = None,
    feature_norm: Annotated[
        str,
        typer.Option(help="raw, or the L2 norm that every image feature is rescaled to."),
    ] = "raw",
    preset: Annotated[
        str,
        typer.Option(
            help="paper: to the letter (clip loss, lr 5e-5, weight decay 0.2). tuned: what gains "
            "more on real features (class loss, lr 3e-4, no weight decay). The options below "
            "override either."
        ),
    ] = "paper",
    local_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs a client trains in a round (1).", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Samples in a minibatch (32).", show_default=False),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Adam's learning rate.", show_default=False)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Adam's L2 penalty.", show_default=False)
    ] = None,
    weighting: Annotated[
        str | None,
        typer.Option(
            help="How the server weighs clients: by their training samples, or uniform (samples).",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="clip: symmetric cross-entropy inside the minibatch. class: cross-entropy over "
            "all class texts.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A cached template for the class texts; several are averaged. By default the "
            "first one cached.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    name: Annotated[
        str | None,
        typer.Option(
            help="The run's name. By default made of the data set, the settings and the seed.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run.")] = False,
    runs_dir: Annotated[
        Path, typer.Option(envvar="FEDCLIP_RUNS_DIR", help="Where runs are kept.")
    ] = Path("runs"),
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Train and federate an attention adapter over a cache's features."""
    from .cache import latest_cache, load_cache, resolve_cache
    from .federate.settings import Settings

    if alpha is not None and clients is None:
        raise typer.BadParameter(f"--alpha {alpha} needs --clients, how many to deal to")
    settings = Settings.preset(
        preset,
        rounds=rounds,
        local_epochs=local_epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        weighting=weighting,
        loss=loss,
        feature_norm=_feature_norm(feature_norm),
        prompts=tuple(prompt or ()),
        clients=clients,
        alpha=alpha,
        seed=seed,
    )
    folder = latest_cache(cache_dir) if cache is None else resolve_cache(cache_dir, cache)
    loaded = load_cache(folder)

    from .cache.device import resolve_device
    from .cache.report import open_report
    from .federate.experiment import Experiment, choose_targets, run_experiment

    experiment = Experiment(
        cache=folder,
        clients=loaded,
        settings=settings,
        preset=preset,
        targets=choose_targets(loaded, target),
        device=resolve_device(device),
        runs_dir=runs_dir,
        name=name,
        overwrite=overwrite,
    )
    print(f"cache      {folder.name}{' (the one extracted last)' if cache is None else ''}")
    for line in _describe(experiment):
        print(line, flush=True)
    with open_report() as report:
        results = run_experiment(experiment, report)
    _print_results(results, experiment)
    statuses = {result["status"] for result in results}
    if "interrupted" in statuses:
        raise typer.Exit(INTERRUPTED)
    if "failed" in statuses:
        print("error: training left the finite numbers; lower --lr", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def demo(
    data_dir: Annotated[
        Path, typer.Option(envvar="FEDCLIP_DATA_DIR", help="Where the data set is drawn.")
    ] = Path("data"),
    runs_dir: Annotated[
        Path, typer.Option(envvar="FEDCLIP_RUNS_DIR", help="Where runs are kept.")
    ] = Path("runs"),
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """See it work in a minute: a drawn data set, a tiny CLIP, no download.

    Runs two ordinary commands one after the other, and shows them.
    """
    # The learning rate and the decay were chosen on other draws of the data set: docs/demo.md.
    settings = ["--rounds", "40", "--lr", "3e-4", "--weight-decay", "0", "--overwrite"]
    caches = ["--cache-dir", str(cache_dir)]
    commands = (
        ["extract", "--dataset", "demo", "--data-dir", str(data_dir), *caches],
        ["federate", *settings, "--runs-dir", str(runs_dir), *caches],
    )
    for command in commands:
        print(f"\n$ fedclip {shlex.join(command)}", flush=True)
        code = app(args=command, prog_name="fedclip", standalone_mode=False)
        if code:
            raise typer.Exit(code)


def _feature_norm(value: str) -> float | None:
    if value == "raw":
        return None
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"--feature-norm {value!r}: give raw or a number") from None


def _describe(experiment: Experiment) -> list[str]:
    """Say which settings are in force."""
    settings, first = experiment.settings, experiment.clients[0]
    rows = sum(len(cache.labels) for cache in experiment.clients)
    domains = ", ".join(cache.client for cache in experiment.clients)
    dealt = (
        f", dealt to {settings.clients} clients each by Dirichlet({settings.alpha:g})"
        if settings.clients
        else ""
    )
    prompts = " + ".join(map(repr, settings.prompts or first.templates[:1]))
    norm = "raw" if settings.feature_norm is None else f"of norm {settings.feature_norm:g}"
    lines = [
        f"domains    {domains}: {rows} rows of {first.embed_dim} features, "
        + f"{len(first.class_names)} classes{dealt}",
        f"settings   preset {experiment.preset}: lr {settings.lr:g}, "
        + f"weight decay {settings.weight_decay:g}, loss {settings.loss}, "
        + f"batch size {settings.batch_size}, local epochs {settings.local_epochs}, "
        + f"weighting {settings.weighting}",
        f"           {settings.rounds} rounds, features {norm}, prompt {prompts}, "
        + f"seed {settings.seed}, device {experiment.device}",
    ]
    if first.normalized and settings.feature_norm is None:
        lines.append(
            "           (these features have norm 1, and the paper's adapter takes raw ones: "
            "try --feature-norm 10)"
        )
    return lines


def _print_results(results: Sequence[dict[str, Any]], experiment: Experiment) -> None:
    from .federate.tables import cost_line, results_table

    _print(results_table(results))
    print(
        "cost      ",
        cost_line(results[0], experiment.clients[0].encoder.get("parameters")),
    )
    print("run       ", experiment.folder)


@cache_app.command("ls")
def cache_ls(cache_dir: CacheDir = Path("caches")) -> None:
    """List the caches."""
    from rich.filesize import decimal

    from .cache import FedclipError, find_caches, load_cache

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
        _print_table(headings, rows)
    else:
        print(f"there is no cache below {cache_dir}")
    if damaged:
        raise damaged[0]


@cache_app.command("show")
def cache_show(name: CacheName, cache_dir: CacheDir = Path("caches")) -> None:
    """Show what a cache holds and what made it."""
    from .cache import load_cache, resolve_cache

    folder = resolve_cache(cache_dir, name)
    clients = load_cache(folder)
    first = clients[0]
    manifest = folder.read_manifest()
    facts = {
        "cache": folder.name,
        "folder": folder.path,
        "data set": first.dataset,
        "from": _origin(manifest),
        "key": first.key,
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
    _print_table(
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


@cache_app.command("diff")
def cache_diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A cache.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another cache.")],
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Say in which facts two caches differ: what shapes their vectors, and what they hold."""
    from .cache import load_cache, resolve_cache
    from .cache.store import cache_differences

    folders = [resolve_cache(cache_dir, name) for name in (one, other)]
    differences = cache_differences(*(load_cache(folder) for folder in folders))
    for fact, (first, second) in differences.items():
        print(f"{fact}\n  {folders[0].name}: {first}\n  {folders[1].name}: {second}")
    if not differences:
        print("they hold the same clients, classes and templates, and their features compare")


@cache_app.command("verify")
def cache_verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A cache; by default all of them."),
    ] = None,
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Check every byte and every value of a cache, or of all."""
    from .cache import find_caches, resolve_cache, verify_cache

    folders = [resolve_cache(cache_dir, name)] if name is not None else find_caches(cache_dir)
    if not folders:
        print(f"there is no cache below {cache_dir}")
    code = 0
    for folder in folders:
        wrong = verify_cache(folder)
        for error in wrong:
            code = _complain(str(error))
        if not wrong:
            print(f"{folder.name}: {len(folder.files)} files are whole")
    raise typer.Exit(code)


@cache_app.command("rm")
def cache_rm(name: CacheName, cache_dir: CacheDir = Path("caches")) -> None:
    """Delete a cache."""
    from rich.filesize import decimal

    from .cache import remove_cache, resolve_cache

    folder = resolve_cache(cache_dir, name)
    size = folder.bytes
    remove_cache(folder)
    print(f"removed {folder.name} ({decimal(size)})")


@cache_app.command("import")
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
    from .cache import import_npz

    imported = import_npz(file, cache_dir, name)
    first = imported.clients[0]
    _print_table(
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


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column, heading in enumerate(headings):
        words = column == 0 or heading in _WORDS
        table.add_column(heading, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    _print(table)


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH  # a log has no width to fit
    console.print(table)
