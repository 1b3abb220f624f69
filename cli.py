"""The ``fedclip`` command: reads options, calls what does the work, prints what came back.

What does the work is imported by the command that needs it, so that ``--help``
answers at once.
"""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .federate.grids import NAMES as GRIDS

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from .cache import CacheFolder, FeatureCache
    from .extract.names import EncoderName
    from .extract.request import Extraction
    from .federate.experiment import Experiment, MakeWhole
    from .federate.settings import Settings
    from .federate.whole import WholeModel

BAD_INPUT = 2
INTERRUPTED = 130
SKIPPED_SHOWN = 10
PLAIN_WIDTH = 240

# An ablation asks before it makes more runs than this.
MANY_RUNS = 1000

# Options of federate that do not shape a run, so that an ablation does not vary them.
SHARED_BY_RUNS = {"device", "engine", "save_every", "runs_dir", "cache_dir"}


# Options of federate that shape a whole model's run too.
BASELINE_SETTINGS = (
    *("rounds", "clients", "alpha", "preset", "participation", "eval_every", "data_fraction"),
    *("local_epochs", "batch_size", "mu", "optimizer", "lr", "weight_decay", "weighting"),
    *("loss", "seed"),
)

# What a whole model can be federated by.
WHOLE_STRATEGIES = ("fedavg", "fedprox")

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
    template_set: Annotated[
        str | None,
        typer.Option(
            help="Besides these, the prompts that CLIP was published with for ImageNet: openai7 "
            "or openai80.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images that the encoder sees at once. By default 64 on a CPU, 256 on a GPU, and "
            "what the cache was begun with.",
            show_default=False,
        ),
    ] = None,
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
    resizer: Annotated[
        str,
        typer.Option(
            help="What resizes images: pillow, as open_clip does, or torchvision, which takes half "
            "the time and rounds otherwise, by 2/255 as a rule."
        ),
    ] = "pillow",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the encoder with torch.compile, which pays on a GPU."
        ),
    ] = False,
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
    """Encode every image of a data set once, and keep the features: one file per client.

    'torchrun --nproc-per-node N -m fedclip extract ...' shares the work among N processes,
    a GPU each where there are some.
    """
    from .cache.report import open_report
    from .extract.names import EncoderName, default_model
    from .extract.pipeline import extract_share
    from .extract.prompts import DEFAULT_TEMPLATE, check_templates, parse_class_names, templates_of
    from .extract.ranks import Ranks
    from .extract.request import Request, TableOptions

    if dataset is None and listed is None:
        raise typer.BadParameter("Missing option '--dataset' (or '--manifest').")
    request = Request(
        dataset=dataset,
        encoder=EncoderName.of(
            default_model(dataset) if model is None else model,
            pretrained,
            precision,
            resizer,
            compiled=compiled,
        ),
        templates=check_templates(
            [*(template or [DEFAULT_TEMPLATE]), *templates_of(template_set)],
        ),
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
        extraction = extract_share(request, Ranks.launched(), report)
    if extraction is not None:  # the first of several ranks says it for all
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
        spent = (f"{activity} {seconds:.1f} s" for activity, seconds in extraction.spent.items())
        print(f"time       {', '.join(spent)}")
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
        words={"clients by name", "source", "licence", "here"},
    )
    print("or any folder <domain>/<class>/<image>, a --manifest, or hf:OWNER/NAME")


@app.command()
def federate(
    context: typer.Context,
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
    participation: Annotated[
        str | None,
        typer.Option(
            help="Clients that train in a round: a share such as 0.1, or a number such as 20 "
            "(1.0, all of them).",
            show_default=False,
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Validate every so many rounds, and at the last (1). With more than 1, test "
            "parts are evaluated only where validation is better than ever.",
            show_default=False,
        ),
    ] = None,
    data_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of its training part that each client trains on (1.0).",
            show_default=False,
        ),
    ] = None,
    local_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs a client trains in a round (1).", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Samples in a minibatch (32).", show_default=False),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="What is trained (attention, the paper's); 'fedclip adapters' lists them.",
            show_default=False,
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="How much of it the adapter residual blends in (0.2), or taskres (0.5) or "
            "cache-model (1.0) adds.",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="fedavg, fedprox, fedavgm, fedadam, fedyogi, scaffold (its clients use sgd), "
            "fedrep, ditto, local (nothing is shared) or centralized (all training samples in "
            "one place) (fedavg).",
            show_default=False,
        ),
    ] = None,
    mu: Annotated[
        float | None,
        typer.Option(help="fedprox's pull to the server's model (0.001).", show_default=False),
    ] = None,
    ditto_lambda: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            "--ditto-lambda",
            help="ditto's pull of a client's own model to the server's (1.0).",
            show_default=False,
        ),
    ] = None,
    server_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of fedavgm (1.0), fedadam and fedyogi (0.01).",
            show_default=False,
        ),
    ] = None,
    server_momentum: Annotated[
        float | None,
        typer.Option(
            help="Decay of the first moment of fedavgm, fedadam and fedyogi (0.9).",
            show_default=False,
        ),
    ] = None,
    server_beta2: Annotated[
        float | None,
        typer.Option(
            help="Decay of the second moment of fedadam and fedyogi (0.99).", show_default=False
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            help="How little fedadam and fedyogi adapt: added to the second moment's root (0.001).",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adam, or sgd without momentum (adam). A preset's lr and weight decay are "
            "adam's; sgd has 0.1 and 0 unless told.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The optimizer's learning rate.", show_default=False)
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(help="L2 penalty, added to the gradient.", show_default=False),
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
            help="A cached template for the class texts; several are averaged, or all. By default "
            "the first one cached.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="What trains the clients: plain, threads or batched, which give the same numbers "
            "but for rounding; auto takes the fastest on the device."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    name: Annotated[
        str | None,
        typer.Option(
            help="The run's name. By default made of the data set, the settings and the seed.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run that was killed or interrupted: its name or its folder. It "
            "keeps the settings that it was begun with.",
            show_default=False,
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Save every so many rounds. By default as often as takes 1 % of the time.",
            show_default=False,
        ),
    ] = None,
    runs_dir: Annotated[
        Path, typer.Option(envvar="FEDCLIP_RUNS_DIR", help="Where runs are kept.")
    ] = Path("runs"),
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Train and federate an adapter over a cache's features."""
    if resume is not None:
        experiment = _resumed(context, resume, runs_dir, cache_dir)
    else:
        settings = _settings(
            preset=preset,
            rounds=rounds,
            participation=participation,
            eval_every=eval_every,
            data_fraction=data_fraction,
            local_epochs=local_epochs,
            batch_size=batch_size,
            adapter=adapter,
            ratio=ratio,
            strategy=strategy,
            mu=mu,
            ditto_lambda=ditto_lambda,
            server_lr=server_lr,
            server_momentum=server_momentum,
            server_beta2=server_beta2,
            tau=tau,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            weighting=weighting,
            loss=loss,
            feature_norm=feature_norm,
            prompt=prompt,
            clients=clients,
            alpha=alpha,
            seed=seed,
        )
        folder, loaded = _load(cache, cache_dir)

        from .cache.device import resolve_device
        from .federate.experiment import Experiment, choose_targets

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
            engine=engine,
        )

    latest = cache is None and resume is None
    print(f"cache      {experiment.cache.name}{' (the one extracted last)' if latest else ''}")
    _carry_out(experiment, resume=resume is not None, save_every=save_every)


def _carry_out(experiment: Experiment, *, resume: bool, save_every: int | None) -> None:
    """Say what is done, do it, and say what came of it."""
    from .cache.report import open_report
    from .federate.recording import run_experiment

    for line in _describe(experiment):
        print(line, flush=True)
    with open_report() as report:
        results = run_experiment(experiment, report, resume=resume, save_every=save_every)
    _print_results(results, experiment)
    statuses = {result["status"] for result in results}
    if "interrupted" in statuses:
        raise typer.Exit(INTERRUPTED)
    if "failed" in statuses:
        print("error: training left the finite numbers; lower --lr", file=sys.stderr)
        raise typer.Exit(1)


def _options_but(command: Callable[..., None], but: Collection[str]) -> list[str]:
    return [name for name in inspect.signature(command).parameters if name not in but]


def _with_options_of(
    *lenders: tuple[Callable[..., None], Collection[str]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a command whose last parameter is `**options` take those named of others as well."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[:-1]
        lent = [
            inspect.signature(command, eval_str=True).parameters[name]
            for command, names in lenders
            for name in names
        ]
        together = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *lent)]
        function.__signature__ = inspect.Signature(together)  # type: ignore[attr-defined]
        function.__annotations__ = {each.name: each.annotation for each in together}
        return function

    return decorate


@app.command()
@_with_options_of((federate, _options_but(federate, ("context", "name", "overwrite", "resume"))))
def ablate(
    context: typer.Context,
    grid: Annotated[
        str | None,
        typer.Argument(
            metavar="GRID",
            help="Lists of values for options, by their names: a TOML file (docs/formats.md has "
            f"an example), or one that comes with the package: {', '.join(GRIDS)}.",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE,VALUE",
            help="Vary one of the options below over these values; may be given several times.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="So many seeds, from --seed on.", show_default=False),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Where a line a run goes. By default beside the runs, named by the data set and "
            "a hash of them.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help=f"Do not ask before more than {MANY_RUNS} runs.")
    ] = False,
    **options: Any,
) -> None:
    """Run federate over every combination of values, and compare.

    The runs are those of federate, side by side: a finished one is not repeated, and a killed
    ablation goes on where it was. An option below holds for all runs.
    """
    from .federate.grid import make_grid, read_toml, split_set
    from .federate.grids import grid_file

    can_vary = set(options) - SHARED_BY_RUNS
    sets: dict[str, Sequence[Any]] = dict(map(split_set, vary or ()))
    if seeds is not None:
        sets["seeds"] = [seeds]
    combinations = make_grid(
        read_toml(grid_file(grid)) if grid else {},
        sets,
        {name: options[name] for name in _given(context) & can_vary},
        can_vary,
        partial(_parse, context),
    )
    _confirm(combinations.count, yes)

    from .cache.device import resolve_device
    from .cache.report import open_report
    from .federate.ablate import Entry, failures, own_name, run_ablation, summarise, write_csv
    from .federate.experiment import Experiment, choose_targets
    from .federate.tables import ablation_table

    device = resolve_device(options["device"])
    load = functools.cache(lambda name: _load(name, options["cache_dir"]))
    entries: dict[Path, Entry] = {}
    for values in combinations:
        chosen = {**options, **combinations.fixed, **values}
        folder, loaded = load(chosen["cache"])
        experiment = Experiment(
            cache=folder,
            clients=loaded,
            settings=_settings(**{name: chosen[name] for name in can_vary - {"cache", "target"}}),
            preset=chosen["preset"],
            targets=choose_targets(loaded, chosen["target"]),
            device=device,
            runs_dir=options["runs_dir"],
            engine=options["engine"],
        )
        entries.setdefault(experiment.folder, Entry(values, experiment))
    runs = list(entries.values())
    caches = ", ".join(dict.fromkeys(entry.experiment.cache.name for entry in runs))
    latest = "cache" not in {*combinations.names, *combinations.fixed}
    print(f"cache      {caches}{' (the one extracted last)' if latest else ''}")
    print(f"ablation   {len(runs)} runs: {combinations.describe()}", flush=True)
    with open_report() as report:
        run_ablation(runs, report, options["save_every"])
    table = table or options["runs_dir"] / f"{own_name(runs)}.csv"
    write_csv(table, runs, combinations.names)
    _print(ablation_table(summarise(runs, combinations.names)))
    print("runs      ", table)
    for line in failures(runs):
        print("error:", line, file=sys.stderr)
    statuses = {entry.status for entry in runs}
    if statuses & {"interrupted", "not begun"}:
        raise typer.Exit(INTERRUPTED)
    if "failed" in statuses:
        raise typer.Exit(1)


AlexnetWeights = Annotated[
    str,
    typer.Option(
        help="What AlexNet begins from: imagenet, torchvision's weights, which are downloaded; "
        "random; or a file of a state_dict."
    ),
]


@app.command()
@_with_options_of(
    (extract, ("data_dir", "model", "pretrained")),
    (federate, (*BASELINE_SETTINGS, "target", "device", "name", "overwrite")),
    (federate, ("resume", "save_every", "runs_dir", "cache_dir")),
)
def baseline(
    context: typer.Context,
    dataset: Annotated[
        str | None,
        typer.Option(help="A data set, as extract takes it.", show_default=False),
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(
            help="What is trained, every parameter of it: clip, with CLIP's loss, or alexnet, a "
            "classifier, with cross-entropy."
        ),
    ] = "clip",
    strategy: Annotated[str, typer.Option(help="fedavg or fedprox.")] = "fedavg",
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The template of the class prompts. By default 'a picture of a {}'.",
            show_default=False,
        ),
    ] = None,
    alexnet_weights: AlexnetWeights = "imagenet",
    keep_model: Annotated[
        bool, typer.Option("--keep-model", help="Leave the best round's model in the run.")
    ] = False,
    **options: Any,
) -> None:
    """Train and federate a whole model on the images: what FedCLIP is measured against.

    Clients, splits, seeds, records and table are those of federate over the data set's cache,
    which is extracted first if it is not there.
    """
    from .extract.prompts import DEFAULT_TEMPLATE

    make_whole, resume = partial(_whole, keep=keep_model), options["resume"]
    if resume is not None:
        experiment = _resumed(
            context, resume, options["runs_dir"], options["cache_dir"], make_whole
        )
    elif dataset is None:
        raise typer.BadParameter("--dataset is missing; say what to train on")
    else:
        from .cache.device import resolve_device
        from .extract.lending import Origin
        from .federate.experiment import Experiment, choose_targets

        template = prompt or DEFAULT_TEMPLATE
        settings = _settings(
            **{name: options[name] for name in BASELINE_SETTINGS if name != "loss"},
            **_whole_settings(backbone, template, options["loss"]),
            strategy=strategy,
        )
        if strategy not in WHOLE_STRATEGIES:
            raise typer.BadParameter(
                f"--strategy {strategy} is for adapters; of whole models there is "
                f"{' and '.join(WHOLE_STRATEGIES)}"
            )
        encoder, folder, clients = _extracted(dataset, template, options)
        origin = Origin.of(backbone, alexnet_weights, encoder, dataset, folder).to_json()
        device = resolve_device(options["device"])
        experiment = Experiment(
            cache=folder,
            clients=clients,
            settings=settings,
            preset=options["preset"],
            targets=choose_targets(clients, options["target"]),
            device=device,
            runs_dir=options["runs_dir"],
            name=options["name"],
            overwrite=options["overwrite"],
            whole=make_whole(origin, clients, settings, device),
        )
    print(f"cache      {experiment.cache.name}")
    _carry_out(experiment, resume=resume is not None, save_every=options["save_every"])


@app.command()
def cost(
    model: Annotated[
        str, typer.Option(help="An open_clip architecture, or local-dir:FOLDER.")
    ] = "ViT-B-32",
    adapter: Annotated[
        str, typer.Option(help="What is trained; 'fedclip adapters' lists them.")
    ] = "attention",
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 65,
    samples: Annotated[
        int, typer.Option(min=2, help="Samples of the local epoch that is timed.")
    ] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a training.")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Clients that train in a round.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Count what an adapter and the whole model cost, and time both on this machine.

    The architecture is the real one with random weights, so nothing is downloaded.
    """
    import torch

    from .cache.device import resolve_device
    from .extract.backbones import clip_backbone
    from .extract.encoders import load_encoder
    from .extract.names import RANDOM, EncoderName
    from .extract.prompts import DEFAULT_TEMPLATE, prompt
    from .federate.cost import drawn_cache, measure_cost, multiply_adds
    from .federate.settings import Settings
    from .federate.tables import cost_table
    from .federate.whole import WholeClip, WholeModel

    where = resolve_device(device)
    settings = Settings.preset("paper", adapter=adapter)
    encoder = load_encoder(EncoderName.of(model, RANDOM), torch.device("cpu"))
    backbone = clip_backbone(encoder)
    image = torch.zeros(1, *encoder.pixel_shape)
    encoding = multiply_adds(lambda: encoder.encode_images(image))
    width = encoder.encode_images(image).shape[1]
    pixels = torch.randint(256, (settings.batch_size, *encoder.pixel_shape), dtype=torch.uint8)
    prompts = [prompt(DEFAULT_TEMPLATE, f"class {index}") for index in range(classes)]
    whole = WholeModel(
        facts=backbone.facts,
        origin={},
        make=lambda seed: WholeClip(backbone.network(seed), backbone.mean, backbone.std),
        inputs=lambda cache: pixels.to(where),
        text=encoder.tokenizer(prompts).to(where),
        zero_shot=False,
    )
    cache = drawn_cache(width, classes, settings.batch_size)
    small, large = (measure_cost(cache, settings, samples, where, each) for each in (None, whole))
    _print(cost_table(small, large, encoding, samples, rounds * clients * 2))
    print(
        f"training   {rounds} rounds of {clients} clients, both ways; minibatches of "
        f"{settings.batch_size}, {classes} classes, timed on {where}"
    )
    if small.parameters:
        times = large.parameters / small.parameters
        print(f"counted    {large.parameters:,} / {small.parameters:,} = {times:.0f}")
    if (model, adapter) == ("ViT-B-32", "attention"):
        print("paper      1.5e8 / 5.3e5 = 283, rounded before it was divided (Lu et al. 2023)")


@app.command()
@_with_options_of(
    (extract, ("data_dir", "model", "pretrained")),
    (federate, ("mu", "device", "seed", "save_every", "runs_dir", "cache_dir")),
)
def paper(
    dataset: Annotated[str, typer.Argument(metavar="pacs|vlcs|office-home", help="The table.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help="Rows, with commas: alexnet-fedavg, alexnet-fedprox, clip-fedavg, clip-fedprox, "
            "zero-shot, fedclip. By default all.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="So many seeds, from --seed on.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federation.")] = 200,
    alexnet_weights: AlexnetWeights = "imagenet",
    **options: Any,
) -> None:
    """Fill one of the paper's tables: its methods and settings, every domain left out in turn.

    What is missing of the features is extracted first. Runs are those of federate and
    baseline: a finished one is not repeated, and a killed or interrupted one goes on.
    """
    from .cache import FedclipError
    from .cache.device import resolve_device
    from .cache.report import open_report
    from .extract.backbones import alexnet_backbone
    from .extract.lending import Origin
    from .extract.prompts import DEFAULT_TEMPLATE
    from .federate.experiment import Experiment, choose_targets
    from .federate.paper import METHODS, PUBLISHED, choose_methods, paper_table
    from .federate.recording import Result, run_experiment

    if dataset not in PUBLISHED:
        raise FedclipError(f"the paper has no table {dataset!r}; give {', '.join(PUBLISHED)}")
    rows = choose_methods(methods)
    if any(METHODS[row].backbone == "alexnet" for row in rows):
        alexnet_backbone(alexnet_weights, 2)  # what is missing is said before hours of work
    encoder, folder, clients = _extracted(dataset, DEFAULT_TEMPLATE, options)
    device = resolve_device(options["device"])
    results: dict[str, list[list[Result]]] = {row: [] for row in rows}
    for row, seed in product(rows, range(options["seed"], options["seed"] + seeds)):
        method = METHODS[row]
        fixed: dict[str, Any] = {
            "adapter": method.adapter,
            "feature_norm": "raw",
            "prompt": [DEFAULT_TEMPLATE],
        }
        if method.backbone is not None:
            fixed = _whole_settings(method.backbone, DEFAULT_TEMPLATE)
        settings = _settings(
            preset="paper",
            rounds=rounds if row != "zero-shot" else 1,
            seed=seed,
            strategy=method.strategy,
            mu=options["mu"] if method.strategy == "fedprox" else None,
            participation=None,
            clients=None,
            alpha=None,
            **fixed,
        )
        whole = None
        if method.backbone is not None:
            origin = Origin.of(method.backbone, alexnet_weights, encoder, dataset, folder).to_json()
            whole = _whole(origin, clients, settings, device)
        experiment = Experiment(
            cache=folder,
            clients=clients,
            settings=settings,
            preset="paper",
            targets=choose_targets(clients, "all"),
            device=device,
            runs_dir=options["runs_dir"],
            whole=whole,
        )
        print(f"run        {method.name}, seed {seed}: {experiment.folder}", flush=True)
        with open_report() as report:
            done = run_experiment(experiment, report, resume=True, save_every=options["save_every"])
        if any(result["status"] == "interrupted" for result in done):
            raise typer.Exit(INTERRUPTED)
        results[row].append(done)
    _print(paper_table(dataset, results, f"{alexnet_weights} weights"))
    if any(r["status"] == "failed" for runs in results.values() for done in runs for r in done):
        print("error: training left the finite numbers in some of the runs", file=sys.stderr)
        raise typer.Exit(1)


def _confirm(runs: int, yes: bool) -> None:
    """Ask before a great many runs; where nobody can answer, refuse."""
    from .cache import FedclipError

    if runs <= MANY_RUNS or yes:
        return
    if not sys.stdin.isatty():
        raise FedclipError(f"this grid makes {runs:,} runs; give --yes to go on")
    typer.confirm(f"This grid makes {runs:,} runs. Go on?", abort=True)


def _parse(context: typer.Context, name: str, value: Any) -> Any:
    """Parse a value as the option of that name does; a list is one given several times."""
    option: Any = next(each for each in context.command.params if each.name == name)
    listed = value if isinstance(value, list) else [value]
    text = [str(each) for each in listed]
    return option.process_value(context, text if option.multiple else " ".join(text))


@app.command()
def adapters(
    embed_dim: Annotated[int, typer.Option(min=1, help="Width of the features.")] = 512,
    classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = 65,
) -> None:
    """List the adapters and their trainable parameters."""
    from .federate.adapters import describe_adapters

    rows = [(name, what, f"{size:,}") for name, size, what in describe_adapters(embed_dim, classes)]
    _print_table(("name", "what", "parameters"), rows, words={"what"})


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


def _load(cache: str | None, cache_dir: Path) -> tuple[CacheFolder, list[FeatureCache]]:
    """Load the cache that is named, or the one extracted last."""
    from .cache import latest_cache, load_cache, resolve_cache

    folder = latest_cache(cache_dir) if cache is None else resolve_cache(cache_dir, cache)
    return folder, load_cache(folder)


def _settings(
    *,
    preset: str,
    participation: str | None,
    feature_norm: str,
    prompt: Sequence[str] | None,
    clients: int | None,
    alpha: float | None,
    **others: Any,
) -> Settings:
    """Make settings of what the options say; `others` are settings as they are."""
    from .federate.settings import Settings

    if alpha is not None and clients is None:
        raise typer.BadParameter(f"--alpha {alpha} needs --clients, how many to deal to")
    return Settings.preset(
        preset,
        participation=_participation(participation),
        feature_norm=_feature_norm(feature_norm),
        prompts=tuple(prompt or ()),
        clients=clients,
        alpha=alpha,
        **others,
    )


def _resumed(
    context: typer.Context,
    run: str,
    runs_dir: Path,
    cache_dir: Path,
    make_whole: MakeWhole | None = None,
) -> Experiment:
    """Take up a run as it was begun, so no option may say otherwise."""
    from .federate.experiment import find_run, load_experiment

    given = _given(context)
    for name in sorted(given - {"resume", "save_every", "runs_dir", "cache_dir", "keep_model"}):
        option = f"--{name.replace('_', '-')}"
        raise typer.BadParameter(
            f"{option} cannot be given with --resume, which keeps the settings of {run}; "
            f"leave out {option}"
        )
    path = find_run(runs_dir, run)
    return load_experiment(path, cache_dir if "cache_dir" in given else None, make_whole)


def _extracted(
    dataset: str, template: str, options: Mapping[str, Any]
) -> tuple[EncoderName, CacheFolder, list[FeatureCache]]:
    """Bring the cache of a data set up to date, and load it."""
    from .cache import load_cache
    from .cache.report import open_report
    from .extract.names import EncoderName, default_model
    from .extract.pipeline import extract as extract_features
    from .extract.prompts import check_templates
    from .extract.request import Request

    encoder = EncoderName.of(options["model"] or default_model(dataset), options["pretrained"])
    request = Request(
        dataset=dataset,
        encoder=encoder,
        templates=check_templates([template]),
        data_dir=options["data_dir"],
        cache_dir=options["cache_dir"],
        device=options["device"],
    )
    with open_report() as report:
        folder = extract_features(request, report).folder
    return encoder, folder, load_cache(folder)


def _whole_settings(backbone: str, template: str, loss: str | None = None) -> dict[str, Any]:
    """Give the settings that a whole model leaves no choice in."""
    if backbone == "alexnet":
        if loss == "clip":
            raise typer.BadParameter("--loss clip needs texts, and alexnet has no text side")
        loss = "class"
    return {"adapter": "none", "feature_norm": "raw", "prompt": [template], "loss": loss}


def _whole(
    origin: Mapping[str, Any],
    clients: Sequence[FeatureCache],
    settings: Settings,
    device: torch.device,
    *,
    keep: bool = False,
) -> WholeModel:
    """Make a whole model for stage two of what stage one lends."""
    from .cache.report import open_report
    from .extract.lending import CLIP, Origin, lend
    from .federate.whole import Classifier, WholeClip, WholeModel

    with open_report() as report:
        loan = lend(Origin(**origin), clients, settings.prompts[0], device, report)
    backbone = loan.backbone
    is_clip = origin["backbone"] == CLIP
    wrapper = WholeClip if is_clip else Classifier
    return WholeModel(
        facts=backbone.facts,
        origin=origin,
        make=lambda seed: wrapper(backbone.network(seed), backbone.mean, backbone.std),
        inputs=lambda cache: loan.images[cache.client],
        text=loan.tokens,
        zero_shot=is_clip,
        keep=keep,
    )


def _given(context: typer.Context) -> set[str]:
    """Name the parameters that the command line gives."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def _feature_norm(value: str) -> float | None:
    if value == "raw":
        return None
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"--feature-norm {value!r}: give raw or a number") from None


def _participation(value: str | None) -> int | float | None:
    """Take digits for a number of clients, and what has a point or an exponent for a share."""
    for kind in (int, float):
        try:
            return None if value is None else kind(value)
        except ValueError:
            continue
    raise typer.BadParameter(
        f"--participation {value!r}: give a share such as 0.1 or a number such as 20"
    )


def _trained(experiment: Experiment) -> str:
    """Say what is trained: an adapter, or a whole model."""
    settings = experiment.settings
    if experiment.whole is None:
        ratio = "" if settings.ratio is None else f" of ratio {settings.ratio:g}"
        return f"adapter {settings.adapter}{ratio}"

    from .federate.tables import describe_model

    return f"all of {describe_model(experiment.whole.facts)}"


def _strategy(settings: Settings) -> str:
    from .federate.settings import STRATEGY_OPTIONS

    own = [
        f"{name.replace('_', ' ')} {settings.option(name):g}"
        for name, owners in STRATEGY_OPTIONS.items()
        if settings.strategy in owners
    ]
    return settings.strategy + (f" of {', '.join(own)}" if own else "")


def _rounds(settings: Settings) -> str:
    """Say how many rounds, and who trains and when is evaluated unless it is all and always."""
    said = f"{settings.rounds} rounds"
    if isinstance(settings.participation, int):
        said += f" of {settings.participation} clients"
    elif settings.participation < 1:
        said += f" of {100 * settings.participation:g} % of the clients"
    return said + (f", evaluated every {settings.eval_every}" if settings.eval_every > 1 else "")


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
    if settings.strategy == "centralized":
        dealt += ", their training samples brought together"
    prompts = " + ".join(map(repr, settings.prompts or first.templates[:1]))
    if settings.data_fraction < 1:
        dealt += f", {100 * settings.data_fraction:g} % of their training parts"
    norm = "raw" if settings.feature_norm is None else f"of norm {settings.feature_norm:g}"
    inputs = f"features {norm}" if experiment.whole is None else "images"
    lines = [
        f"domains    {domains}: {rows} rows of {first.embed_dim} features, "
        + f"{len(first.class_names)} classes{dealt}",
        f"settings   preset {experiment.preset}: lr {settings.lr:g}, "
        + f"weight decay {settings.weight_decay:g}, loss {settings.loss}, "
        + f"batch size {settings.batch_size}, local epochs {settings.local_epochs}, "
        + f"weighting {settings.weighting}, {_trained(experiment)}, "
        + f"strategy {_strategy(settings)}, optimizer {settings.optimizer}",
        f"           {_rounds(settings)}, {inputs}, prompt {prompts}, "
        + f"seed {settings.seed}, device {experiment.device}",
    ]
    if first.normalized and settings.feature_norm is None and experiment.whole is None:
        lines.append(
            "           (these features have norm 1, and the paper's adapter takes raw ones: "
            "try --feature-norm 10)"
        )
    return lines


def _print_results(results: Sequence[dict[str, Any]], experiment: Experiment) -> None:
    from .federate.tables import cost_line, results_table

    _print(results_table(results))
    whole = None if experiment.whole else experiment.clients[0].encoder.get("parameters")
    print("cost      ", cost_line(results[0], whole))
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


def _print_table(
    headings: Sequence[str], rows: Sequence[Sequence[object]], words: Collection[str] = ()
) -> None:
    """Print a table whose first column and those of `words` are words, and the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for column, heading in enumerate(headings):
        left = column == 0 or heading in words
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    _print(table)


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH  # a log has no width to fit
    console.print(table)
