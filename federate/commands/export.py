"""Stage two's half of `fedclip export` and `push`: the files, and the model card beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any, ClassVar

from ... import __version__
from ...cache import FedclipError
from ...cache.common.fields import flag, option

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models.classifier import Classifier
    from ..runs.results import RunResult

# How a file of each format of an export ends.
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}


@dataclass(frozen=True)
class LicenceOptions:
    """What the model card says."""

    PANEL: ClassVar[str] = "Model card"

    license: str | None = option(
        None,
        metavar="NAME",
        shown="to be filled in",
        help="Licence of the adapter, as the Hugging Face hub names it, such as mit.",
    )


@dataclass(frozen=True)
class ExportOptions(LicenceOptions):
    """What is exported, and how."""

    PANEL: ClassVar[str] = "Export"

    to: str = option(
        "onnx",
        choices=tuple(SUFFIXES),
        help="Format: onnx, torch (a torch.export program, .pt2), or safetensors, which fedclip "
        "reads.",
    )
    with_encoder: bool = option(
        False, help="Include the image encoder: from pixels to probabilities in one file."
    )
    fp16: bool = option(
        False, help="Let the encoder compute in float16, and print the difference it makes."
    )
    sample: tuple[Path, ...] = option(
        (),
        metavar="IMAGE",
        shown="noise",
        help="Image to compare the exported program with PyTorch on; may be repeated.",
    )
    out: Path | None = option(
        None,
        metavar="FILE",
        shown="export/adapter and the suffix of the format",
        help="File to write; its model card goes beside it.",
    )

    def __post_init__(self) -> None:
        suffix = SUFFIXES[self.to]
        if self.to == "safetensors" and self.with_encoder:
            raise FedclipError("--with-encoder: needs --to onnx or torch")
        for name in ("fp16", "sample"):
            if getattr(self, name) and not self.with_encoder:
                raise FedclipError(f"{flag(name)}: needs --with-encoder")
        if self.file.is_dir() or self.file.suffix != suffix:
            raise FedclipError(f"--out {self.file}: must be a file that ends in {suffix}")

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.out or Path("export") / f"adapter{SUFFIXES[self.to]}"


def write_export(
    options: ExportOptions,
    classifier: Classifier,
    result: RunResult | None,
    samples: str,
    encoder: nn.Module | None = None,
    pixels: Mapping[str, Tensor] | None = None,
    preprocessing: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a classifier and its model card, and print what was written and how to run it.

    Args:
        options: What is exported, and how.
        classifier: The trained adapter.
        result: What its run came to, if that is known.
        samples: What it classifies, ``images`` or ``texts``.
        encoder: The image encoder, from pixels to features; None to leave it out.
        pixels: (N, 3, H, W) uint8 samples to compare with PyTorch on, by input of the encoder.
        preprocessing: How images become pixels, by input of the encoder.
    """
    from rich.filesize import decimal

    from ...cache.common.text import printable
    from ..models.export import export_program
    from ..report.card import CARD, model_card, write_card
    from ..report.snippets import snippet

    out, facts = options.file, classifier.facts
    shown, beside = printable(str(out)), printable(str(out.parent / CARD))
    if options.to == "safetensors":
        classifier.save(out)
        print(f"wrote      {shown}: {decimal(out.stat().st_size)}")
    else:
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
            classifier, options.to, out, metadata, encoder, pixels, half=options.fp16
        )
        opset = f", opset {written.opset}" if written.opset else ""
        print(f"wrote      {shown}: {decimal(written.bytes)}{opset}")
        print(
            f"checked    {written.checked} inputs: probabilities differ by up to "
            f"{written.difference:.1e} from PyTorch{' in float32' if options.fp16 else ''}"
        )
    width = classifier.texts.shape[1]
    code = snippet(options.to, out.name, width, preprocessing, samples)
    card = model_card(facts, result, out.stem, options.license, code, samples)
    if write_card(out.parent, card):
        print(f"card       {beside}")
    else:
        print(f"card       not written: {beside} is somebody else's")
    print(f"\n{snippet(options.to, out, width, preprocessing, samples)}")


def save_for_hub(
    folder: Path,
    repository: str,
    classifier: Classifier,
    samples: str,
    run: Path,
    licence: str | None,
) -> None:
    """Write the files that a repository of an adapter has.

    Args:
        folder: Where to write them.
        repository: Its name, ``OWNER/NAME``.
        classifier: The trained adapter.
        samples: What it classifies, ``images`` or ``texts``.
        run: The run's folder, or a file that was exported from it.
        licence: Of the adapter, as the hub names it.
    """
    from ...cache.common.files import write_json
    from ..report.card import model_card, write_card
    from ..report.snippets import snippet
    from ..runs.catalog import HUB_CONFIG, RESULT, ROUNDS, config_for_hub
    from ..runs.folder import ADAPTER
    from ..runs.saved import result_of_saved

    classifier.save(folder / ADAPTER)
    result, config = result_of_saved(run), config_for_hub(run)
    for name, content in ((RESULT, result and result.to_json()), (HUB_CONFIG, config)):
        if content is not None:
            write_json(folder / name, content)
    if (run / ROUNDS).is_file():
        copyfile(run / ROUNDS, folder / ROUNDS)
    code = snippet("safetensors", f"hf:{repository}", classifier.texts.shape[1], samples=samples)
    title = repository.partition("/")[2]
    write_card(folder, model_card(classifier.facts, result, title, licence, code, samples))
