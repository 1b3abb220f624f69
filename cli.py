"""The ``fedclip`` command: the commands of both stages, and those that need both.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from . import ImageClassifier, __version__, fetch_run, find_run, load_classifier
from .cache.commands import app as cache_app
from .cache.common.console import FAILED, INTERRUPTED, Output, complain, show_table
from .cache.common.fields import Option, listed, option, options_of, suggest
from .cache.common.options import (
    Also,
    CacheOptions,
    Chosen,
    Command,
    DeviceOptions,
    FormatOptions,
    Group,
    flag,
    given,
    with_options,
)
from .cache.common.streams import has_reader, open_streams
from .cache.common.text import counted, inflected
from .extract.commands import datasets, extract
from .extract.options import (
    DataOptions,
    EncodingOptions,
    ModelOptions,
    RecordedOptions,
    check_architecture,
)
from .federate.commands.ablate import ablate
from .federate.commands.federate import adapters, carry_out, federate, strategies
from .federate.commands.flower import join, keys, serve
from .federate.commands.options import (
    SUFFIXES,
    ExportOptions,
    LicenceOptions,
    PredictionOptions,
    PresetOptions,
    RunOptions,
    RunsDir,
    SavedOptions,
    SaveOptions,
    TargetOptions,
    all_settings,
    resumed,
    settings_of,
)
from .federate.commands.runs import compare, ls, report, rm, show
from .federate.data.partition import PARTITIONS
from .federate.runs.find import choose_targets
from .federate.settings import Methods, Settings
from .federate.strategies import STRATEGIES

if TYPE_CHECKING:
    import torch

    from .cache import CacheFolder, FeatureCache
    from .extract.datasets.inputs import Image
    from .extract.encoders.spec import EncoderName
    from .federate.models.base import Model
    from .federate.models.full import FullModel
    from .federate.report.predictions import Scored

# Settings that have no effect on a full model, or that its command sets itself.
_NOT_OF_FULL_MODELS = frozenset({"adapter", "feature_norm", "prompts", "partition"})

# What a full model can be federated with.
FULL_STRATEGIES = ("fedavg", "fedprox")

# What to do about errors of the system, by their number.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "; free some space and run this again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "; check its permissions"),
    errno.EFBIG: "; raise the limit on the size of files (ulimit -f) and run this again",
    errno.EROFS: "; choose a place that can be written",
}

# The base class of typer's usage errors; newer versions of typer bring their own click.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="fedclip",
    cls=Group,
    help="Federated learning over cached CLIP features: encode every image once, then train and "
    "federate small adapters on the cache.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(cache_app, name="cache")
for command in (
    *(extract, datasets, federate, ablate, adapters, strategies),
    *(serve, join, keys),
    *(ls, show, rm, compare, report),
):
    app.command(cls=Command)(command)


@dataclass(frozen=True)
class WeightsOptions:
    """What an AlexNet starts from."""

    PANEL: ClassVar[str] = "Model"

    alexnet_weights: str = option(
        "imagenet",
        choices=("imagenet", "random"),
        closed=False,
        metavar="imagenet|random|FILE",
        help="What AlexNet starts from: torchvision's ImageNet weights, which are downloaded, "
        "random ones, or a state_dict in a file.",
    )


@dataclass(frozen=True)
class BackboneOptions(WeightsOptions):
    """The full model, and the images that it is trained on."""

    dataset: str | None = option(
        None, panel="Dataset", metavar="DATASET", help="A dataset, as extract takes it."
    )
    backbone: str = option(
        "clip",
        choices=("clip", "alexnet"),
        help="What is trained, every parameter of it: clip with CLIP's loss, or alexnet, a "
        "classifier, with cross-entropy.",
    )
    template: str | None = option(
        None,
        flags=("--prompt",),
        metavar="TEMPLATE",
        shown="a picture of a {}",
        help="Template of the class prompts.",
    )
    keep_model: bool = option(
        False, panel="Output", help="Write the parameters of the best round into the run."
    )


@dataclass(frozen=True)
class CostOptions(DeviceOptions):
    """What is measured."""

    PANEL: ClassVar[str] = "Measurement"

    model: str = option(
        "ViT-B-32", metavar="MODEL", help="An open_clip architecture, or local-dir:FOLDER."
    )
    adapter: str = option(
        "attention", metavar="ADAPTER", help="What is trained; 'fedclip adapters' lists them."
    )
    classes: int = option(65, least=2, most=100_000, help="Number of classes.")
    samples: int = option(
        1000, least=2, most=10_000_000, help="Samples in the local epoch that is timed."
    )
    rounds: int = option(200, least=1, help="Rounds of a training.")
    clients: int = option(3, least=1, help="Clients that train in a round.")

    def __post_init__(self) -> None:
        check_architecture(self.model)


@dataclass(frozen=True)
class TableOptions(WeightsOptions):
    """Which rows of a paper's table to fill, and how."""

    PANEL: ClassVar[str] = "Table"

    methods: str | None = option(
        None,
        metavar="NAME,NAME",
        shown="all",
        help="Rows: alexnet-fedavg, alexnet-fedprox, clip-fedavg, clip-fedprox, zero-shot, "
        "fedclip.",
    )
    seeds: int = option(3, least=1, help="Number of seeds, starting at --seed.")
    seed: int = option(0, least=0, help="First seed.")
    rounds: int = option(200, least=1, help="Rounds of federation.")
    mu: float | None = option(None, least=0, help="FedProx's pull to the server's parameters.")


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    open_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        code = complain(_explain(error) or "")
    sys.exit(code)


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
        return f"{where}{error.strerror or error}{_REMEDIES.get(error.errno or 0, '')}"
    if isinstance(error, _USAGE_ERROR):
        command = error.ctx.command_path if error.ctx else "fedclip"
        return f"{_usage(error)} (see {command} --help)"
    return None


def _usage(error: Any) -> str:
    """Word an error of typer's as ours are: what, and what is wrong with it."""
    name = getattr(error, "option_name", None)
    if name and hasattr(error, "possibilities"):
        return f"unknown option {name}{suggest(name, error.possibilities or ())}"
    if name:
        return f"{name}: {error.message.removeprefix(f'Option {name!r} ').rstrip('.')}"
    if hasattr(error, "param_type") and error.param:
        return f"{error.param.get_error_hint().strip(chr(39))}: is missing"
    return str(error.format_message().removeprefix("Invalid value: "))


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    context.obj = fetch_run  # for commands of stage two, which has no access to the hub
    if version:
        print(f"fedclip {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _baseline_settings(arguments: Sequence[str]) -> list[Option]:
    """List the settings that shape a full model's run: federate's, with less of a choice."""
    known = {name for strategy in FULL_STRATEGIES for name in options_of(STRATEGIES.get(strategy))}
    for partition in PARTITIONS.classes().values():
        known |= options_of(partition).keys()
    kept = {*known, *options_of(Settings), *options_of(Methods)} - _NOT_OF_FULL_MODELS
    return [
        replace(each, choices=FULL_STRATEGIES, closed=True, parse=_full_strategy)
        if each.name == "strategy"
        else each
        for each in all_settings(arguments)
        if each.name in kept
    ]


def _full_strategy(name: str) -> str:
    if name in {*STRATEGIES} - {*FULL_STRATEGIES}:
        raise ValueError(f"works with adapters only; full models take {listed(FULL_STRATEGIES)}")
    return name


@app.command(cls=Command)
@with_options(
    examples=[
        "fedclip baseline --dataset pacs --strategy fedprox --rounds 50",
        "fedclip baseline --dataset pacs --backbone alexnet",
    ]
)
def baseline(
    context: typer.Context,
    images: DataOptions,
    encoder_options: ModelOptions,
    backbone: BackboneOptions,
    data: TargetOptions,
    chosen: Annotated[Chosen[PresetOptions], Also(_baseline_settings)],
    compute: DeviceOptions,
    run: RunOptions,
    caches: CacheOptions,
    form: FormatOptions,
) -> None:
    """Train and federate a full model on the images: what FedCLIP is measured against.

    Clients, splits, seeds, records and table are those of federate over the dataset's cache,
    which is extracted first if it is missing.
    """
    from .extract.encoders.prompts import DEFAULT_TEMPLATE

    def make_model(
        origin: Mapping[str, Any],
        clients: Sequence[FeatureCache],
        settings: Settings,
        device: torch.device,
    ) -> FullModel:
        return _full_model(origin, clients, settings, device, kept=backbone.keep_model)

    if run.resume is not None:
        experiment = resumed(context, run.resume, run.runs_dir, caches.cache_dir, make_model)
    elif backbone.dataset is None:
        raise typer.BadParameter("--dataset: is missing")
    else:
        from .cache.common.device import resolve_device
        from .extract.finetune.source import Origin, check_backbone
        from .federate.runs.experiment import Experiment

        if backbone.backbone != "alexnet" and "alexnet_weights" in given(context):
            raise typer.BadParameter(
                f"--alexnet-weights {backbone.alexnet_weights}: needs --backbone alexnet"
            )
        template = backbone.template or DEFAULT_TEMPLATE
        settings = settings_of({**chosen, **_fixed(backbone.backbone, template, chosen)})
        check_backbone(backbone.backbone, backbone.alexnet_weights)
        encoder, folder, clients = _extracted(
            backbone.dataset, template, images, encoder_options, compute, caches
        )
        origin = Origin.of(
            backbone.backbone, backbone.alexnet_weights, encoder, backbone.dataset, folder
        ).to_json()
        device = resolve_device(compute.device)
        experiment = Experiment(
            cache=folder,
            clients=clients,
            settings=settings,
            model=make_model(origin, clients, settings, device),
            preset=str(chosen.get("preset", "paper")),
            targets=choose_targets(clients, data.target),
            device=device,
            runs_dir=run.runs_dir,
            name=run.name,
            overwrite=run.overwrite,
        )
    output = Output(form.format)
    output.note(f"cache      {experiment.cache.name}")
    experiment = replace(experiment, loggers=run.loggers)
    carry_out(experiment, output, resume=run.resume is not None, save_every=run.save_every)


@app.command(cls=Command)
@with_options(examples=["fedclip cost", "fedclip cost --model ViT-L-14 --adapter linear"])
def cost(measured: CostOptions, form: FormatOptions) -> None:
    """Count what an adapter and the full model cost, and time both on this machine.

    The architecture is the real one with random weights, so nothing is downloaded.
    """
    import torch

    from .cache.common.device import resolve_device
    from .cache.common.progress import show_progress
    from .extract.encoders.openclip import load_encoder
    from .extract.encoders.prompts import DEFAULT_TEMPLATE, prompt
    from .extract.encoders.spec import RANDOM, EncoderName
    from .extract.finetune.backbones import clip_backbone
    from .federate.models.full import FullClip, FullModel
    from .federate.report.terminal import cost_table
    from .federate.runs.cost import ClientCost, drawn_cache, multiply_adds

    model, classes, samples = measured.model, measured.classes, measured.samples
    settings = settings_of({"adapter": measured.adapter, "strategy": "local"})
    if not settings.adapter.sends:
        raise typer.BadParameter(
            f"--adapter {measured.adapter}: has nothing to train or send; choose one that does"
        )
    where = resolve_device(measured.device)
    output = Output(form.format)
    output.note(f"model      {model} with random weights; counting, then timing on {where}")
    encoder = load_encoder(EncoderName.of(model, RANDOM), torch.device("cpu"))
    backbone = clip_backbone(encoder)
    image = encoder.blank[None]
    encoding = multiply_adds(lambda: encoder.launch(image).numpy())
    width = encoder.launch(image).numpy().shape[1]
    pixels = torch.randint(256, (settings.batch_size, *encoder.blank.shape), dtype=torch.uint8)
    prompts = [prompt(DEFAULT_TEMPLATE, f"class {index}") for index in range(classes)]
    full = FullModel(
        facts=backbone.facts,
        origin={},
        network=lambda seed: FullClip(backbone.network(seed), backbone.mean, backbone.std),
        images=lambda cache: pixels.to(where),
        tokens=encoder.tokenizer(prompts).to(where),
        zero_shot=False,
    )
    cache = drawn_cache(width, classes, settings.batch_size)
    models: tuple[Model, ...] = (settings.adapter, full)
    with show_progress() as progress:
        progress("counting", 0, len(models), "models")
        client = [ClientCost(cache, settings, samples, where, each) for each in models]
        counts = []
        for each, named in zip(client, models, strict=True):
            counts.append(each.count())
            progress("counting", len(counts), len(models), "models", named.title)
    if counts[0].parameters:
        times = counts[1].parameters / counts[0].parameters
        output.note(f"counted    {counts[1].parameters:,} / {counts[0].parameters:,} = {times:.0f}")
    with show_progress() as progress:
        progress("timing", 0, len(models), "models")
        costs = []
        for each, count, named in zip(client, counts, models, strict=True):
            costs.append(each.time(count))
            progress("timing", len(costs), len(models), "models", named.title)
    small, large = costs
    messages = measured.rounds * measured.clients * 2
    output.table(cost_table(small, large, encoding, samples, messages))
    output.note(
        f"training   {counted(measured.rounds, 'round')} of {counted(measured.clients, 'client')}, "
        f"both ways; minibatches of {settings.batch_size}, {classes} classes, timed on {where}"
    )
    if (model, measured.adapter) == ("ViT-B-32", "attention"):
        output.note("paper      1.5e8 / 5.3e5 = 283, rounded before the division (Lu et al. 2023)")


@app.command(cls=Command)
@with_options(
    examples=["fedclip paper pacs", "fedclip paper pacs --methods zero-shot,fedclip --seeds 5"]
)
def paper(
    context: typer.Context,
    images: DataOptions,
    encoder_options: ModelOptions,
    table: TableOptions,
    compute: DeviceOptions,
    save: SaveOptions,
    caches: CacheOptions,
    form: FormatOptions,
    dataset: Annotated[str, typer.Argument(metavar="pacs|vlcs|office-home", help="The table.")],
) -> None:
    """Fill one of the paper's tables: its methods and settings, every domain left out in turn.

    Missing features are extracted first. Runs are those of federate and baseline: a finished
    one is not repeated, and a killed or interrupted one is resumed.
    """
    from .cache import FedclipError
    from .extract.datasets.find import find_dataset
    from .extract.request import DatasetRequest
    from .federate.report.paper import METHODS, PUBLISHED, choose_methods, paper_table

    if dataset not in PUBLISHED:
        raise FedclipError(f"the paper has no table {dataset!r}{suggest(dataset, PUBLISHED)}")
    rows = choose_methods(table.methods)
    useful = {
        "mu": any(METHODS[row].strategy == "fedprox" for row in rows),
        "alexnet_weights": any(METHODS[row].backbone == "alexnet" for row in rows),
    }
    for name in sorted(given(context) & {name for name, used in useful.items() if not used}):
        raise typer.BadParameter(f"{flag(name)}: has no effect on the methods that are chosen")
    find_dataset(DatasetRequest(dataset=dataset, data_dir=images.data_dir))

    from .cache.common.device import resolve_device
    from .cache.common.progress import show_progress
    from .extract.encoders.prompts import DEFAULT_TEMPLATE
    from .extract.finetune.source import Origin, check_backbone
    from .federate.runs.experiment import Experiment
    from .federate.runs.results import RunResult
    from .federate.runs.runner import run_experiment

    for backbone in filter(None, {METHODS[row].backbone for row in rows}):
        check_backbone(backbone, table.alexnet_weights)
    encoder, folder, clients = _extracted(
        dataset, DEFAULT_TEMPLATE, images, encoder_options, compute, caches
    )
    device = resolve_device(compute.device)
    output = Output(form.format)
    results: dict[str, list[list[RunResult]]] = {row: [] for row in rows}
    for row, seed in product(rows, range(table.seed, table.seed + table.seeds)):
        method = METHODS[row]
        values: dict[str, Any] = {
            "rounds": table.rounds if row != "zero-shot" else 1,
            "seed": seed,
            "strategy": method.strategy,
            "adapter": method.adapter,
            "prompts": (DEFAULT_TEMPLATE,),
        }
        if method.strategy == "fedprox" and table.mu is not None:
            values["mu"] = table.mu
        if method.backbone is not None:
            values |= _fixed(method.backbone, DEFAULT_TEMPLATE, {})
        settings = settings_of(values)
        model: Model = settings.adapter
        if method.backbone is not None:
            origin = Origin.of(method.backbone, table.alexnet_weights, encoder, dataset, folder)
            model = _full_model(origin.to_json(), clients, settings, device)
        experiment = Experiment(
            cache=folder,
            clients=clients,
            settings=settings,
            model=model,
            preset="paper",
            targets=choose_targets(clients, "all"),
            device=device,
            runs_dir=save.runs_dir,
            loggers=save.loggers,
        )
        output.note(f"run        {method.name}, seed {seed}: {experiment.folder}")
        with show_progress() as progress:
            outcome = run_experiment(experiment, progress, resume=True, save_every=save.save_every)
        if outcome.interrupted:
            raise typer.Exit(INTERRUPTED)
        results[row].append(outcome.results)
    output.table(paper_table(dataset, results, f"{table.alexnet_weights} weights"))
    count = sum(len(client.labels) for client in clients)
    output.note(
        f"ours       {' '.join(encoder.shown)}, {counted(table.rounds, 'round')}, "
        f"{counted(table.seeds, 'seed')} from {table.seed} on, {count:,} "
        f"{inflected(count, 'image')}; the paper's are ViT-B/32's of 200 rounds"
    )
    if any(each.status == "failed" for runs in results.values() for done in runs for each in done):
        complain("training diverged (NaN or Inf) in some of the runs")
        raise typer.Exit(FAILED)


@app.command(cls=Command)
@with_options(
    examples=[
        "fedclip predict --run scans photo.jpg --top-k 3",
        "fedclip predict --run demo-e294e424-seed0 --target sketch data/demo",
        "fedclip predict --run hf:OWNER/NAME - < paths.txt",
    ]
)
def predict(
    context: typer.Context,
    saved: SavedOptions,
    runs: RunsDir,
    shown: PredictionOptions,
    recorded: RecordedOptions,
    encoding: EncodingOptions,
    data: DataOptions,
    caches: CacheOptions,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IMAGE|FOLDER|LIST|-",
            help="Images, folders, .csv, .tsv or .parquet lists with a column path, datasets as "
            "extract takes them, or - for paths on standard input. An adapter of texts takes .txt "
            "files, lists with a column text, and texts on standard input, one a line.",
        ),
    ] = None,
) -> None:
    """Classify images, or texts, with a trained adapter, zero-shot beside it.

    Images in folders named like classes, or with a label in a list, are counted too: the accuracy
    comes last, on all of them and on those that the run was tested on. Images that cannot be read
    are reported and skipped, and the exit code is then 1.
    """
    if bool(images) == (shown.cache is not None):
        context.fail("Pass images, or --cache, but not both.")

    from .cache.common.progress import no_progress, show_progress
    from .extract.datasets.inputs import STDIN, find_images, read_lines
    from .extract.datasets.registry import noun
    from .federate.commands.options import load
    from .federate.report.predictions import (
        DomainTallies,
        accuracy_table,
        make_writer,
        predictions,
        score_cache,
    )

    use = _classifier(context, saved, runs, recorded, caches, encoding.device)
    out, tallies, skipped = sys.stdout, DomainTallies(use.classifier), 0
    sample = noun(use.samples)
    # Rows on a terminal show the progress, and bars would be drawn over them.
    with show_progress() as bars:
        progress = no_progress if out.isatty() else bars
        batches: Iterator[tuple[Scored, Sequence[tuple[Image, str]]]]
        if shown.cache is not None:
            batches = (
                (scored, ())
                for scored in score_cache(use.classifier, load(shown.cache, caches.cache_dir)[1])
            )
        else:
            found = (
                read_lines(use.samples)
                if images == [STDIN]
                else find_images(
                    images or (), use.class_names, data.data_dir, progress, use.samples
                )
            )
            batches = use.stream(found, encoding.batch_size, encoding.workers, progress)
        first = [*islice(batches, 1)]  # before a line is printed, as the encoder is loaded for it
        write = make_writer(shown.format, out, use.class_names, sample)
        for scored, bad in chain(first, batches):
            for each in predictions(scored, use.class_names, shown.top_k):
                write(each)
            out.flush()
            tallies.add(scored)
            for image, reason in bad:
                complain(f"{image.where}: {reason}; skipped")
            skipped += len(bad)
            if not has_reader(out):
                break
    table = accuracy_table(tallies, use.samples)
    if table is not None:
        from rich.console import Console

        # Standard output has rows only if it is for programs.
        show_table(table, Console(stderr=shown.format != "table"))
    if skipped:
        complain(f"{counted(skipped, sample)} could not be read")
        raise typer.Exit(FAILED)


@app.command(cls=Command)
@with_options(
    examples=[
        "fedclip export --run scans --with-encoder --out scans/model.onnx",
        "fedclip export --run scans --to safetensors --out scans.safetensors",
    ]
)
def export(
    context: typer.Context,
    saved: SavedOptions,
    runs: RunsDir,
    options: ExportOptions,
    recorded: RecordedOptions,
    caches: CacheOptions,
) -> None:
    """Export a trained adapter for other programs, with a model card beside it.

    The file has the class texts and the names of the classes in it. What it computes is compared
    with PyTorch before it is written.
    """
    from rich.filesize import decimal

    from .federate.models.export import SAMPLES, export_program
    from .federate.report.card import model_card, write_card
    from .federate.report.snippets import snippet
    from .federate.runs.saved import result_of_saved

    if options.to == "safetensors" and options.with_encoder:
        raise typer.BadParameter("--with-encoder: needs --to onnx or torch")
    for name in ("fp16", "sample"):
        if getattr(options, name) and not options.with_encoder:
            raise typer.BadParameter(f"{flag(name)}: needs --with-encoder")
    out = options.file
    if out.is_dir() or out.suffix != SUFFIXES[options.to]:
        raise typer.BadParameter(f"--out {out}: must be a file that ends in {SUFFIXES[options.to]}")
    use = _classifier(context, saved, runs, recorded, caches, "cpu")
    classifier = use.classifier
    side = None
    if options.with_encoder:
        from .extract.finetune.image_side import image_side

        side = image_side(use.encoder)
    preprocessing = side.preprocessing if side else None
    if options.to == "safetensors":
        classifier.save(out)
        print(f"wrote      {out}: {decimal(out.stat().st_size)}")
    else:
        facts = classifier.facts
        metadata = {
            "classes": facts["class_names"],
            "prompts": facts["prompts"],
            "encoder": facts["encoder"]["about"],
            "key": facts["key"],
            "preprocessing": preprocessing or "features of this encoder, raw",
            "license": options.license or "unknown",
            "fedclip": __version__,
        }
        written = export_program(
            classifier,
            options.to,
            out,
            metadata,
            side.samples(options.sample, SAMPLES) if side else None,
            (side.network, side.mean, side.std) if side else None,
            half=options.fp16,
        )
        opset = f", opset {written.opset}" if written.opset else ""
        print(f"wrote      {out}: {decimal(written.bytes)}{opset}")
        print(
            f"checked    {written.checked} inputs: probabilities differ by up to "
            f"{written.difference:.1e} from PyTorch{' in float32' if options.fp16 else ''}"
        )
    width = classifier.texts.shape[1]
    result = result_of_saved(find_run(saved.run, runs.runs_dir, saved.target))
    code = snippet(options.to, out.name, width, preprocessing)
    card = model_card(classifier.facts, result, out.stem, options.license, code)
    if write_card(out.parent, card):
        print(f"card       {out.parent / 'README.md'}")
    else:
        print(f"card       not written: {out.parent / 'README.md'} is somebody else's")
    print(f"\n{snippet(options.to, out, width, preprocessing)}")


@app.command(cls=Command)
@with_options(examples=["fedclip push --run scans OWNER/NAME --private --license mit"])
def push(
    context: typer.Context,
    saved: SavedOptions,
    runs: RunsDir,
    licence: LicenceOptions,
    recorded: RecordedOptions,
    caches: CacheOptions,
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new one private.")] = False,
) -> None:
    """Upload an adapter, its result and a model card to the Hugging Face hub.

    'fedclip predict --run hf:OWNER/NAME' then works on any machine. Names of domains and classes,
    numbers of images, settings and accuracies are uploaded; images, features, predictions by image
    and paths are not.
    """
    from shutil import copyfile
    from tempfile import TemporaryDirectory

    from .cache.common.files import write_json
    from .extract.hub import upload
    from .federate.report.card import model_card, write_card
    from .federate.report.snippets import snippet
    from .federate.runs.catalog import HUB_CONFIG, RESULT, ROUNDS, config_for_hub
    from .federate.runs.saved import ADAPTER, result_of_saved

    use = _classifier(context, saved, runs, recorded, caches, "cpu")
    path = find_run(saved.run, runs.runs_dir, saved.target)
    result, config = result_of_saved(path), config_for_hub(path)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        use.classifier.save(folder / ADAPTER)
        if result is not None:
            write_json(folder / RESULT, result.to_json())
        if config is not None:
            write_json(folder / HUB_CONFIG, config)
        if (path / ROUNDS).is_file():
            copyfile(path / ROUNDS, folder / ROUNDS)
        title = repository.partition("/")[2]
        code = snippet("safetensors", f"hf:{repository}", use.classifier.texts.shape[1])
        card = model_card(use.classifier.facts, result, title, licence.license, code)
        write_card(folder, card)
        print("uploaded  ", upload(repository, folder, private=private))
    print(f"use        fedclip predict --run hf:{repository} IMAGE")


@app.command(cls=Command)
@with_options(examples=["fedclip doctor"])
def doctor(images: DataOptions, runs: RunsDir, caches: CacheOptions) -> None:
    """Show what this machine has: versions, devices, folders, the hub, and what is missing."""
    from rich.filesize import decimal

    from .cache import find_caches
    from .cache.common.files import folder_size
    from .cache.common.machine import devices, library_versions, missing_extras
    from .extract.hub import hub_folder, reach

    lines = [("fedclip", __version__), *library_versions().items()]
    lines += [("device", each) for each in devices()]
    folders: dict[str, tuple[Path, str, Sequence[object]]] = {
        "data": (images.data_dir, "datasets", [*images.data_dir.glob("[!.]*/")]),
        "caches": (caches.cache_dir, "caches", find_caches(caches.cache_dir)),
        "runs": (runs.runs_dir, "runs", [*runs.runs_dir.glob("*/config.json")]),
        "hub's files": (hub_folder(), "repositories", [*hub_folder().glob("*--*/")]),
    }
    for name, (place, what, found) in folders.items():
        there = f"{len(found)} {what}, {decimal(folder_size(place))}"
        lines.append((name, f"{place.absolute()}: {there if place.is_dir() else 'not there yet'}"))
    lines.append(("hub", reach()))
    missing = missing_extras()
    lines += [("missing", each) for each in missing.values()] or [("missing", "nothing")]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


def _classifier(
    context: typer.Context,
    saved: SavedOptions,
    runs: RunsDir,
    recorded: RecordedOptions,
    caches: CacheOptions,
    device: str,
) -> ImageClassifier:
    """Load the adapter that a command's options name."""
    return load_classifier(
        saved.run,
        target=saved.target,
        client=saved.client,
        runs_dir=runs.runs_dir,
        cache_dir=caches.cache_dir if "cache_dir" in given(context) else None,
        model=recorded.model,
        pretrained=recorded.pretrained,
        device=device,
    )


@app.command(cls=Command)
@with_options(examples=["fedclip demo"])
def demo(images: DataOptions, runs: RunsDir, caches: CacheOptions) -> None:
    """See it work in a minute: a drawn dataset, a tiny CLIP, no download.

    Runs two ordinary commands one after the other, and shows them.
    """
    # The learning rate and the decay were chosen on other draws of the dataset: docs/demo.md.
    settings = ["--rounds", "40", "--lr", "3e-4", "--weight-decay", "0", "--overwrite"]
    data_dir, runs_dir = str(images.data_dir), str(runs.runs_dir)
    cached = ["--cache-dir", str(caches.cache_dir)]
    commands = (
        ["extract", "--dataset", "demo", "--data-dir", data_dir, *cached],
        ["federate", *settings, "--runs-dir", runs_dir, *cached],
    )
    for command in commands:
        print(f"\n$ fedclip {shlex.join(command)}", flush=True)
        code = app(args=command, prog_name="fedclip", standalone_mode=False)
        if code:
            raise typer.Exit(code)


def _extracted(
    dataset: str,
    template: str,
    images: DataOptions,
    encoder_options: ModelOptions,
    compute: DeviceOptions,
    caches: CacheOptions,
) -> tuple[EncoderName, CacheFolder, list[FeatureCache]]:
    """Bring the cache of a dataset up to date, and load it."""
    from .cache import load_cache
    from .cache.common.progress import show_progress
    from .extract.encoders.prompts import check_templates
    from .extract.encoders.spec import EncoderName, default_model
    from .extract.pipeline import extract as extract_features
    from .extract.request import Request

    model = encoder_options.model or default_model(dataset)
    encoder = EncoderName.of(model, encoder_options.pretrained)
    request = Request(
        dataset=dataset,
        encoder=encoder,
        templates=check_templates([template]),
        data_dir=images.data_dir,
        cache_dir=caches.cache_dir,
        device=compute.device,
    )
    with show_progress() as progress:
        folder = extract_features(request, progress).folder
    return encoder, folder, load_cache(folder)


def _fixed(backbone: str, template: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in which a full model leaves no choice."""
    fixed: dict[str, Any] = {"adapter": "none", "prompts": (template,)}
    if backbone == "alexnet":
        if chosen.get("loss") == "clip":
            raise typer.BadParameter("--loss clip: needs texts, and alexnet has no text side")
        fixed["loss"] = "class"
    return fixed


def _full_model(
    origin: Mapping[str, Any],
    clients: Sequence[FeatureCache],
    settings: Settings,
    device: torch.device,
    *,
    kept: bool = False,
) -> FullModel:
    """Make a full model from the network and images that stage one loads."""
    from .cache.common.progress import show_progress
    from .extract.finetune.source import CLIP, Origin, load_materials
    from .federate.models.full import Classifier, FullClip, FullModel

    with show_progress() as progress:
        materials = load_materials(Origin(**origin), clients, settings.prompts[0], device, progress)
    backbone = materials.backbone
    is_clip = origin["backbone"] == CLIP
    wrapper = FullClip if is_clip else Classifier
    return FullModel(
        facts=backbone.facts,
        origin=origin,
        network=lambda seed: wrapper(backbone.network(seed), backbone.mean, backbone.std),
        images=lambda cache: materials.images[cache.client],
        tokens=materials.tokens,
        zero_shot=is_clip,
        kept=kept,
    )
