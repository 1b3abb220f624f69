"""The commands of stage one."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import typer

from ..cache.common.console import Output
from ..cache.common.options import FormatOptions, with_options
from ..cache.common.tables import Column, Table, thousands
from ..cache.common.text import counted
from .datasets.registry import noun
from .options import (
    DataOptions,
    DatasetOptions,
    EncoderOptions,
    EncodingOptions,
    OutputOptions,
    PromptOptions,
    TableOptions,
)

if TYPE_CHECKING:
    from .request import Extraction

# Number of skipped samples that are listed one by one.
SKIPPED_SHOWN = 10


@with_options(
    examples=[
        "fedclip extract --dataset demo",
        "fedclip extract --dataset pacs --template 'a picture of a {}'",
        "fedclip extract --dataset hf:flwrlabs/pacs --model RN50 --pretrained openai",
        "fedclip extract --dataset reviews.csv --model hf:bert-base-uncased",
    ]
)
def extract(
    context: typer.Context,
    data: DatasetOptions,
    table: TableOptions,
    encoder: EncoderOptions,
    prompts: PromptOptions,
    encoding: EncodingOptions,
    output: OutputOptions,
) -> None:
    """Encode every image or text of a dataset once and save the features, one file per client.

    'torchrun --nproc-per-node N -m fedclip extract ...' splits the work among N processes, with
    one GPU for each if the machine has several.
    """
    from ..cache.common.progress import no_progress, show_progress
    from .encoders.prompts import (
        check_templates,
        default_template,
        parse_class_names,
        templates_of,
    )
    from .encoders.registry import family_of
    from .encoders.spec import EncoderName, default_model
    from .encoding.distributed import Ranks
    from .pipeline import extract_share
    from .request import Request

    if data.dataset is None and data.listed is None:
        context.fail("--dataset: is missing; set it or --manifest")
    name = EncoderName.joined(
        encoder.model or (default_model(data.dataset),),
        encoder.pretrained,
        encoder.precision,
        encoder.resizer,
        compiled=encoder.compiled,
        pooling=encoder.pooling,
    )
    templates = prompts.template or (default_template(family_of(name).samples),)
    request = Request(
        dataset=data.dataset,
        encoder=name,
        templates=check_templates([*templates, *templates_of(prompts.template_set)]),
        data_dir=data.data_dir,
        cache_dir=output.cache_dir,
        name=output.name,
        batch_size=encoding.batch_size,
        workers=encoding.workers,
        device=encoding.device,
        force=output.force,
        strict=output.strict,
        listed=data.listed,
        client=data.client,
        class_names=parse_class_names(data.class_names),
        table=table,
        columns=data.column,
        offline=data.offline,
    )
    ranks = Ranks.launched()
    with show_progress() if ranks.leads else nullcontext(no_progress) as progress:
        extraction = extract_share(request, ranks, progress)
    if extraction is not None:  # only the first of several ranks prints it
        _print_extraction(extraction)


def _print_extraction(extraction: Extraction) -> None:
    columns = [Column(name) for name in ("client", "rows", "encoded now", "skipped")]
    counts = [(c.client, c.rows, c.encoded, len(c.skipped)) for c in extraction.clients]
    Output("table").table(Table(columns, counts))
    skipped = extraction.skipped
    for item in skipped[:SKIPPED_SHOWN]:
        print(f"skipped    {item.id}: {item.reason}")
    if len(skipped) > SKIPPED_SHOWN:
        print(f"           and {len(skipped) - SKIPPED_SHOWN} more, listed in manifest.json")
    rows = sum(client.rows for client in extraction.clients)
    print(
        f"cache      {extraction.folder.name}: {counted(len(extraction.clients), 'file')}, "
        f"{counted(rows, 'row')} of {counted(extraction.embed_dim, 'feature')}, "
        f"{counted(extraction.classes, 'class', 'classes')}, {len(skipped)} skipped"
    )
    if extraction.encoded or extraction.encoded_texts:
        rate = extraction.encoded / extraction.seconds
        print(
            f"encoded    {counted(extraction.encoded, noun(extraction.samples))} and "
            f"{counted(extraction.encoded_texts, 'prompt')} in "
            f"{extraction.seconds:.1f} s ({rate:.1f} {extraction.samples}/s)"
        )
        spent = (f"{activity} {seconds:.1f} s" for activity, seconds in extraction.spent.items())
        print(f"time       {', '.join(spent)}")
    elif extraction.written:
        print("encoded    nothing: the files were rewritten from vectors in the cache")
    else:
        print("encoded    nothing: the cache is up to date")
    print(extraction.books.balance(rows, [item.reason for item in skipped]))


@with_options(examples=["fedclip datasets", "fedclip datasets --data-dir /data"])
def datasets(data: DataOptions, form: FormatOptions) -> None:
    """List the known datasets: clients, classes, size, source, licence, path on this machine."""
    from .datasets.find import place_of
    from .datasets.registry import KNOWN

    columns = [
        Column("dataset"),
        Column("clients by name", key="clients", wraps=True),
        Column("classes"),
        Column("size", show=thousands),
        Column("of", key="samples"),
        Column("source", wraps=True),
        Column("licence", wraps=True),
        Column("here", wraps=True),
    ]
    rows = [
        (
            name,
            [domain.client for domain in known.domains],
            known.classes,
            known.size,
            known.samples,
            known.source,
            known.licence,
            place_of(name, data.data_dir),
        )
        for name, known in KNOWN.items()
    ]
    output = Output(form.format)
    output.table(Table(columns, rows))
    output.note(
        "also: any folder <domain>/<class>/<image or .txt file>, a --manifest, or hf:OWNER/NAME"
    )
