"""The ``fedclip`` command: the commands of both stages, and those that need both.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__
from .cache.commands import app as cache_app
from .cache.common.console import FAILED, INTERRUPTED, complain, show_table
from .cache.common.fields import suggest
from .cache.common.options import (
    CacheDir,
    Command,
    Group,
    flag,
    given,
    with_options,
    with_options_of,
)
from .extract.commands import datasets, extract
from .extract.options import DataOptions, ModelOptions
from .federate.commands.ablate import ablate
from .federate.commands.federate import (
    RunsDir,
    adapters,
    carry_out,
    federate,
    resumed,
    settings_of,
)

if TYPE_CHECKING:
    import torch

    from .cache import CacheFolder, FeatureCache
    from .extract.encoders.spec import EncoderName
    from .federate.models.full import WholeModel
    from .federate.settings import Settings

# Options of federate that shape a whole model's run too.
BASELINE_SETTINGS = (
    *("rounds", "clients", "alpha", "preset", "participation", "eval_every", "data_fraction"),
    *("local_epochs", "batch_size", "mu", "optimizer", "lr", "weight_decay", "weighting"),
    *("loss", "seed"),
)

# What a whole model can be federated by.
WHOLE_STRATEGIES = ("fedavg", "fedprox")

# Errors of a disk that is full, or of a user's quota that is.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

# The base class of typer's usage errors; newer versions of typer bring their own click.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="fedclip",
    cls=Group,
    help="Federate a CLIP by its features: encode every image once, then train and federate "
    "small adapters over the cache.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.add_typer(cache_app, name="cache")
for command in (extract, datasets, federate, ablate, adapters):
    app.command(cls=Command)(command)

AlexnetWeights = Annotated[
    str,
    typer.Option(
        help="What AlexNet begins from: imagenet, torchvision's weights, which are downloaded; "
        "random; or a file of a state_dict."
    ),
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
        return complain(message)
    if code == INTERRUPTED:
        print("interrupted; what was finished is kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> str | None:
    """Put an error that the user can fix into one line; None for a bug."""
    from .cache import FedclipError

    if isinstance(error, FedclipError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        remedy = "; free some space and run this again" if error.errno in _FULL else ""
        return f"{where}{error.strerror or error}{remedy}"
    if isinstance(error, _USAGE_ERROR):
        command = error.ctx.command_path if error.ctx else "fedclip"
        message = error.format_message()
        if unknown := getattr(error, "option_name", None):
            known = getattr(error, "possibilities", None) or ()
            message = f"unknown option {unknown}{suggest(unknown, known)}"
        return f"{message} (see {command} --help)"
    return None


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"fedclip {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(cls=Command)
@with_options
@with_options_of(
    (federate, (*BASELINE_SETTINGS, "target", "device", "name", "overwrite")),
    (federate, ("resume", "save_every", "runs_dir", "cache_dir")),
)
def baseline(
    context: typer.Context,
    data: DataOptions,
    encoder_options: ModelOptions,
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
    from .extract.encoders.prompts import DEFAULT_TEMPLATE

    make_whole, resume = partial(_whole, keep=keep_model), options["resume"]
    if resume is not None:
        experiment = resumed(context, resume, options["runs_dir"], options["cache_dir"], make_whole)
    elif dataset is None:
        raise typer.BadParameter("--dataset is missing; say what to train on")
    else:
        from .cache.common.device import resolve_device
        from .extract.finetune.source import Origin, check_backbone
        from .federate.runs.experiment import Experiment, choose_targets

        if strategy not in WHOLE_STRATEGIES:
            raise typer.BadParameter(
                f"--strategy {strategy}: of whole models there is {' and '.join(WHOLE_STRATEGIES)}"
            )
        if backbone != "alexnet" and "alexnet_weights" in given(context):
            raise typer.BadParameter(
                f"--alexnet-weights {alexnet_weights} needs --backbone alexnet"
            )
        template = prompt or DEFAULT_TEMPLATE
        settings = settings_of(
            **{name: options[name] for name in BASELINE_SETTINGS if name != "loss"},
            **_whole_settings(backbone, template, options["loss"]),
            strategy=strategy,
        )
        check_backbone(backbone, alexnet_weights)
        encoder, folder, clients = _extracted(
            dataset, template, {**options, **vars(data), **vars(encoder_options)}
        )
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
    carry_out(experiment, resume=resume is not None, save_every=options["save_every"])


@app.command()
def cost(
    model: Annotated[
        str, typer.Option(help="An open_clip architecture, or local-dir:FOLDER.")
    ] = "ViT-B-32",
    adapter: Annotated[
        str, typer.Option(help="What is trained; 'fedclip adapters' lists them.")
    ] = "attention",
    classes: Annotated[int, typer.Option(min=2, max=100_000, help="Number of classes.")] = 65,
    samples: Annotated[
        int, typer.Option(min=2, max=10_000_000, help="Samples of the local epoch that is timed.")
    ] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a training.")] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Clients that train in a round.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Count what an adapter and the whole model cost, and time both on this machine.

    The architecture is the real one with random weights, so nothing is downloaded.
    """
    import torch

    from .cache.common.device import resolve_device
    from .cache.common.progress import open_report
    from .extract.encoders.openclip import load_encoder
    from .extract.encoders.prompts import DEFAULT_TEMPLATE, prompt
    from .extract.encoders.spec import RANDOM, EncoderName
    from .extract.finetune.backbones import clip_backbone
    from .federate.models.full import WholeClip, WholeModel
    from .federate.report.terminal import cost_table
    from .federate.runs.cost import drawn_cache, measure_cost, multiply_adds
    from .federate.settings import Settings

    if adapter == "cache-model":
        raise typer.BadParameter(
            "--adapter cache-model: nothing of it is trained or sent; choose one that is"
        )
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
    costs = []
    with open_report() as report:
        for what, each in (("the adapter", None), (f"the whole of {model}", whole)):
            report.note(f"counting and timing {what}; minibatches of {settings.batch_size}")
            costs.append(measure_cost(cache, settings, samples, where, each))
    small, large = costs
    show_table(cost_table(small, large, encoding, samples, rounds * clients * 2))
    print(
        f"training   {rounds} rounds of {clients} clients, both ways; minibatches of "
        f"{settings.batch_size}, {classes} classes, timed on {where}"
    )
    if small.parameters:
        times = large.parameters / small.parameters
        print(f"counted    {large.parameters:,} / {small.parameters:,} = {times:.0f}")
    if (model, adapter) == ("ViT-B-32", "attention"):
        print("paper      1.5e8 / 5.3e5 = 283, rounded before it was divided (Lu et al. 2023)")


@app.command(cls=Command)
@with_options
@with_options_of(
    (federate, ("mu", "device", "seed", "save_every", "runs_dir", "cache_dir")),
)
def paper(
    context: typer.Context,
    data: DataOptions,
    encoder_options: ModelOptions,
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
    from .cache.common.device import resolve_device
    from .cache.common.progress import open_report
    from .extract.encoders.prompts import DEFAULT_TEMPLATE
    from .extract.finetune.source import Origin, check_backbone
    from .federate.report.paper import METHODS, PUBLISHED, choose_methods, paper_table
    from .federate.runs.experiment import Experiment, choose_targets
    from .federate.runs.runner import Result, run_experiment

    if dataset not in PUBLISHED:
        raise FedclipError(f"the paper has no table {dataset!r}; give {', '.join(PUBLISHED)}")
    rows = choose_methods(methods)
    useful = {
        "mu": any(METHODS[row].strategy == "fedprox" for row in rows),
        "alexnet_weights": any(METHODS[row].backbone == "alexnet" for row in rows),
    }
    for name in sorted(given(context) & {name for name, used in useful.items() if not used}):
        raise typer.BadParameter(f"{flag(name)} is for methods that --methods leaves out")
    for backbone in filter(None, {METHODS[row].backbone for row in rows}):
        check_backbone(backbone, alexnet_weights)
    encoder, folder, clients = _extracted(
        dataset, DEFAULT_TEMPLATE, {**options, **vars(data), **vars(encoder_options)}
    )
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
        settings = settings_of(
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
            outcome = run_experiment(
                experiment, report, resume=True, save_every=options["save_every"]
            )
        if outcome.interrupted:
            raise typer.Exit(INTERRUPTED)
        results[row].append(outcome.results)
    show_table(paper_table(dataset, results, f"{alexnet_weights} weights"))
    images = sum(len(client.labels) for client in clients)
    print(
        f"ours       {' '.join(encoder.shown)}, {rounds} rounds, {seeds} seeds from "
        f"{options['seed']} on, {images:,} images; the paper's are ViT-B/32's of 200 rounds"
    )
    if any(r["status"] == "failed" for runs in results.values() for done in runs for r in done):
        complain("training left the finite numbers in some of the runs")
        raise typer.Exit(FAILED)


@app.command()
def demo(
    data_dir: Annotated[
        Path, typer.Option(envvar="FEDCLIP_DATA_DIR", help="Where the data set is drawn.")
    ] = Path("data"),
    runs_dir: RunsDir = Path("runs"),
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


def _extracted(
    dataset: str, template: str, options: Mapping[str, Any]
) -> tuple[EncoderName, CacheFolder, list[FeatureCache]]:
    """Bring the cache of a data set up to date, and load it."""
    from .cache import load_cache
    from .cache.common.progress import show_progress
    from .extract.encoders.prompts import check_templates
    from .extract.encoders.spec import EncoderName, default_model
    from .extract.pipeline import extract as extract_features
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
    with show_progress() as progress:
        folder = extract_features(request, progress).folder
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
    from .cache.common.progress import show_progress
    from .extract.finetune.source import CLIP, Origin, lend
    from .federate.models.full import Classifier, WholeClip, WholeModel

    with show_progress() as progress:
        loan = lend(Origin(**origin), clients, settings.prompts[0], device, progress)
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
