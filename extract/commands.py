"""The commands of stage one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..cache.common.console import print_table
from ..cache.common.options import CacheDir

if TYPE_CHECKING:
    from .request import Extraction

# Skipped images that are named one by one.
SKIPPED_SHOWN = 10

DataDir = Annotated[
    Path,
    typer.Option("--data-dir", envvar="FEDCLIP_DATA_DIR", help="Where data sets are looked for."),
]


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
            max=10**18,
            help="Images that the encoder sees at once. By default 64 on a CPU, 256 on a GPU, and "
            "what the cache was begun with.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images beside the encoder; 0 for threads that decode "
            "between its batches. By default 0 where the encoder runs on a CPU, else one for "
            "every core but one.",
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
    from ..cache.common.errors import FedclipError
    from ..cache.common.progress import no_progress, show_progress
    from .encoders.prompts import (
        DEFAULT_TEMPLATE,
        check_templates,
        parse_class_names,
        templates_of,
    )
    from .encoders.spec import EncoderName, default_model
    from .encoding.distributed import Ranks
    from .pipeline import extract_share
    from .request import Request, TableOptions

    if dataset is None and listed is None:
        raise typer.BadParameter("Missing option '--dataset' (or '--manifest').")
    table = TableOptions(image_column, label_column, domain_column, split, revision)
    for option, value in {"--name": name, "--client": client, **table.options}.items():
        if value == "":  # of a shell's variable that is not set, say
            raise FedclipError(f"{option} '': is empty; give a name, or leave {option} out")
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
        table=table,
        offline=offline,
    )
    ranks = Ranks.launched()
    with show_progress() if ranks.leads else nullcontext(no_progress) as progress:
        extraction = extract_share(request, ranks, progress)
    if extraction is not None:  # of several ranks the first prints it
        _print_extraction(extraction)


def _print_extraction(extraction: Extraction) -> None:
    print_table(
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
    elif extraction.written:
        print("encoded    nothing: the files are written anew with vectors that were known")
    else:
        print("encoded    nothing: the cache is up to date")


def datasets(data_dir: DataDir = Path("data")) -> None:
    """List the known data sets: clients, classes, images, source, licence, what is here."""
    from .datasets.find import place_of
    from .datasets.registry import KNOWN

    print_table(
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
