"""The ``fedclip`` command: the commands of both stages, and those that need both.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import ImageClassifier, __version__, fetch_run, find_run, load_classifier
from .cache.commands import app as cache_app
from .cache.common.console import FAILED, INTERRUPTED, Output, complain, explain, show_table
from .cache.common.options import (
    CacheOptions,
    Command,
    DeviceOptions,
    FormatOptions,
    Group,
    given,
    with_options,
)
from .cache.common.streams import has_reader, open_streams
from .cache.common.text import counted
from .extract.commands import datasets, extract
from .extract.finetune.options import BackboneOptions, WeightsOptions
from .extract.options import (
    ArchitectureOptions,
    DataOptions,
    EncodingOptions,
    ModelOptions,
    RecordedOptions,
)
from .federate.commands.ablate import ablate
from .federate.commands.baseline import GivenToFull, full_settings
from .federate.commands.cost import CostOptions, print_costs
from .federate.commands.export import ExportOptions, LicenceOptions, save_for_hub, write_export
from .federate.commands.federate import adapters, carry_out, federate, strategies
from .federate.commands.flower import join, keys, serve
from .federate.commands.options import (
    PredictionOptions,
    RunOptions,
    RunsDir,
    SavedOptions,
    SaveOptions,
    TargetOptions,
    resumed,
)
from .federate.commands.paper import TableOptions, choose_rows, fill_table
from .federate.commands.runs import compare, ls, report, rm, show
from .federate.runs.find import choose_targets
from .federate.settings import Settings

if TYPE_CHECKING:
    import torch

    from .cache import FeatureCache
    from .cache.collection import Cache
    from .extract.datasets.inputs import Image
    from .extract.encoders.spec import EncoderName
    from .federate.models.base import Model
    from .federate.models.full import FullModel
    from .federate.report.predictions import Scored

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


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    open_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError as error:
        code = complain(explain(error) or "")
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line on `arguments` and return its exit code."""
    try:
        code = app(args=list(arguments), prog_name="fedclip", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        return complain(message)
    if code == INTERRUPTED:
        print("interrupted; what was finished is kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


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
    chosen: GivenToFull,
    compute: DeviceOptions,
    run: RunOptions,
    caches: CacheOptions,
    form: FormatOptions,
) -> None:
    """Train and federate a full model on the images: what FedCLIP is measured against.

    Clients, splits, seeds, records and table are those of federate over the dataset's cache,
    which is extracted first if it is missing.
    """

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
        settings = full_settings(backbone.backbone, backbone.template, chosen)
        check_backbone(backbone.backbone, backbone.alexnet_weights, encoder_options.model)
        encoder = encoder_options.encoder_of(backbone.dataset)
        cache = _extracted(backbone.dataset, backbone.template, images, encoder, compute, caches)
        clients, device = list(cache.values()), resolve_device(compute.device)
        origin = Origin.of(
            backbone.backbone, backbone.alexnet_weights, encoder, backbone.dataset, cache.folder
        ).to_json()
        experiment = Experiment(
            cache=cache.folder,
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
def cost(architecture: ArchitectureOptions, measured: CostOptions, form: FormatOptions) -> None:
    """Count what an adapter and the full model cost, and time both on this machine.

    The architecture is the real one with random weights, so nothing is downloaded.
    """
    settings, model = measured.settings, architecture.model

    import torch

    from .cache.common.device import resolve_device
    from .extract.encoders.openclip import load_encoder
    from .extract.encoders.prompts import DEFAULT_TEMPLATE, prompt
    from .extract.encoders.spec import RANDOM, EncoderName
    from .extract.finetune.backbones import clip_backbone
    from .federate.models.full import FullClip, FullModel
    from .federate.runs.cost import multiply_adds

    where = resolve_device(measured.device)
    output = Output(form.format)
    output.note(f"model      {model} with random weights; counting, then timing on {where}")
    encoder = load_encoder(EncoderName.of(model, RANDOM), torch.device("cpu"))
    backbone = clip_backbone(encoder)
    image = encoder.blank[None]
    encoding = multiply_adds(lambda: encoder.launch(image).numpy())
    width = encoder.launch(image).numpy().shape[1]
    pixels = torch.randint(256, (settings.batch_size, *encoder.blank.shape), dtype=torch.uint8)
    prompts = [prompt(DEFAULT_TEMPLATE, f"class {index}") for index in range(measured.classes)]
    full = FullModel(
        facts=backbone.facts,
        origin={},
        network=lambda seed: FullClip(backbone.network(seed), backbone.mean, backbone.std),
        images=lambda cache: pixels.to(where),
        tokens=encoder.tokenizer(prompts).to(where),
        zero_shot=False,
    )
    print_costs(measured, full, width, encoding, where, output)
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
    weights: WeightsOptions,
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
    rows = choose_rows(context, dataset, table)

    from .cache.common.device import resolve_device
    from .extract.datasets.find import find_dataset
    from .extract.encoders.prompts import DEFAULT_TEMPLATE
    from .extract.finetune.source import Origin, check_backbone
    from .extract.request import DatasetRequest
    from .federate.runs.experiment import Experiment

    find_dataset(DatasetRequest(dataset=dataset, data_dir=images.data_dir))
    for backbone in filter(None, {method.backbone for method in rows.values()}):
        check_backbone(backbone, weights.alexnet_weights, encoder_options.model)
    encoder = encoder_options.encoder_of(dataset)
    cache = _extracted(dataset, DEFAULT_TEMPLATE, images, encoder, compute, caches)
    clients, device = list(cache.values()), resolve_device(compute.device)

    def make_experiment(row: str, settings: Settings) -> Experiment:
        model: Model = settings.adapter
        backbone = rows[row].backbone
        if backbone is not None:
            origin = Origin.of(backbone, weights.alexnet_weights, encoder, dataset, cache.folder)
            model = _full_model(origin.to_json(), clients, settings, device)
        return Experiment(
            cache=cache.folder,
            clients=clients,
            settings=settings,
            model=model,
            preset="paper",
            targets=choose_targets(clients, "all"),
            device=device,
            runs_dir=save.runs_dir,
            loggers=save.loggers,
        )

    fill_table(
        dataset,
        [*rows],
        table,
        DEFAULT_TEMPLATE,
        weights.alexnet_weights,
        make_experiment,
        Output(form.format),
        save.save_every,
    )


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
                return  # and no accuracy of a part
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
    from .federate.runs.saved import result_of_saved

    use = _classifier(context, saved, runs, recorded, caches, "cpu")
    result = result_of_saved(find_run(saved.run, runs.runs_dir, saved.target))
    if not options.with_encoder:
        write_export(options, use.classifier, result, use.samples)
        return
    from .extract.encoders.pixels import pixel_encoder

    encoder = pixel_encoder(use.encoder)
    write_export(
        options,
        use.classifier,
        result,
        use.samples,
        encoder,
        encoder.samples(options.sample),
        encoder.preprocessing,
    )


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
    from tempfile import TemporaryDirectory

    from .extract.hub import upload

    use = _classifier(context, saved, runs, recorded, caches, "cpu")
    run = find_run(saved.run, runs.runs_dir, saved.target)
    with TemporaryDirectory() as folder:
        save_for_hub(Path(folder), repository, use.classifier, use.samples, run, licence.license)
        print("uploaded  ", upload(repository, Path(folder), private=private))
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
    folders = {
        "data": (images.data_dir, counted(len([*images.data_dir.glob("[!.]*/")]), "dataset")),
        "caches": (caches.cache_dir, counted(len(find_caches(caches.cache_dir)), "cache")),
        "runs": (runs.runs_dir, counted(len([*runs.runs_dir.glob("*/config.json")]), "run")),
        "hub's files": (
            hub_folder(),
            counted(len([*hub_folder().glob("*--*/")]), "repository", "repositories"),
        ),
    }
    for name, (place, found) in folders.items():
        there = f"{found}, {decimal(folder_size(place))}"
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
    encoder: EncoderName,
    compute: DeviceOptions,
    caches: CacheOptions,
) -> Cache:
    """Bring the cache of a dataset up to date, and load it."""
    from .extract.api import extract_features

    return extract_features(
        dataset,
        model=encoder.model,
        pretrained=encoder.pretrained,
        templates=[template],
        data_dir=images.data_dir,
        cache_dir=caches.cache_dir,
        device=compute.device,
    )


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
