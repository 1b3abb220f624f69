"""Python code that runs an exported adapter, in about ten lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RUN_ONNX = """session = onnxruntime.InferenceSession({file!r})
probabilities = session.run(["probabilities"], {{{named}}})[0]
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(classes[probabilities[0].argmax()], probabilities[0].max())"""

_RUN_TORCH = """extra = {{"fedclip.json": ""}}
program = torch.export.load({file!r}, extra_files=extra).module()
probabilities = program({tensors})[0]
best = int(probabilities[0].argmax())
print(json.loads(extra["fedclip.json"])["classes"][best], float(probabilities[0, best]))"""

_OPEN = """image = Image.open("photo.jpg").convert("RGB")"""

# The longer side is rounded down, as torchvision does.
_SHORTER = """short = min(image.size)
image = image.resize([side * {height} // short for side in image.size], Image.{how})"""

_RATIO = """ratio = {pick}(image.width / {width}, image.height / {height})
image = image.resize([round(side / ratio) for side in image.size], Image.{how})"""

_SQUASHED = "image = image.resize(({width}, {height}), Image.{how})"

_CROPPED = """left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)
image = image.crop((left, top, left + {width}, top + {height}))"""

_FILLED = """sides = zip(({width}, {height}), image.size)
place = (-round((old - new) / 2) if old > new else (new - old) // 2 for new, old in sides)
filled = Image.new("RGB", ({width}, {height}), {fill})
filled.paste(image, tuple(place))"""

_PIXELS = "{name} = np.array({image}).transpose(2, 0, 1)[None]"

_FEATURES = """features = np.load("features.npy")  # (samples, {width}) float32, raw"""


def snippet(
    to: str,
    file: Path | str,
    width: int,
    preprocessing: Mapping[str, Mapping[str, Any]] | None = None,
    samples: str = "images",
) -> str:
    """Return the code that classifies one image or text, or features.

    Args:
        to: ``onnx``, ``torch`` or ``safetensors``.
        file: What was exported.
        width: Width of the features.
        preprocessing: How images become pixels, by input; None for a program that takes features.
        samples: What the adapter classifies, ``images`` or ``texts``.
    """
    if to == "safetensors":
        one = "photo.jpg" if samples == "images" else "what this text says"
        return (
            "import fedclip\n\n"
            f"classify = fedclip.load_classifier({str(file)!r})\n"
            f'print(classify("{one}")[0])'
        )
    lines = ["import json", "", "import numpy as np"]
    lines.append("import onnxruntime" if to == "onnx" else "import torch")
    if preprocessing is None:
        lines += ["", _FEATURES.format(width=width)]
    else:
        lines += ["from PIL import Image", ""]
        lines += [image_snippet(name, how) for name, how in preprocessing.items()]
    run, names = _RUN_ONNX if to == "onnx" else _RUN_TORCH, [*(preprocessing or ["features"])]
    named = ", ".join(f'"{name}": {name}' for name in names)
    tensors = ", ".join(f"torch.from_numpy({name})" for name in names)
    return "\n".join([*lines, run.format(file=str(file), named=named, tensors=tensors)])


def image_snippet(name: str, preprocessing: Mapping[str, Any]) -> str:
    """Return the code that makes pixels of an image, in a variable called `name`."""
    (height, width), (rows, columns) = preprocessing["size"], preprocessing["resized"]
    resize, image = preprocessing["resize"], "image"
    place = {"width": columns, "height": rows, "how": preprocessing["interpolation"].upper()}
    lines = [_OPEN]
    if resize == "squash":
        lines.append(_SQUASHED.format(**place))
    elif resize == "shortest" and rows == columns:
        lines.append(_SHORTER.format(**place))
    else:
        lines.append(_RATIO.format(**place, pick="min" if resize == "shortest" else "max"))
    if resize == "longest":
        fill = tuple(preprocessing["fill"])
        lines.append(_FILLED.format(width=width, height=height, fill=fill))
        image = "filled"
    elif resize == "shortest" or (rows, columns) != (height, width):
        lines.append(_CROPPED.format(width=width, height=height))
    return "\n".join([*lines, _PIXELS.format(name=name, image=image)])
