"""Python code that runs an exported adapter, in about ten lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RUN_ONNX = """session = onnxruntime.InferenceSession({file!r})
probabilities, zero_shot = session.run(None, {{{name!r}: {name}}})
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(classes[probabilities[0].argmax()], probabilities[0].max())"""

_RUN_TORCH = """extra = {{"fedclip.json": ""}}
program = torch.export.load({file!r}, extra_files=extra).module()
probabilities, zero_shot = program(torch.from_numpy({name}))
best = int(probabilities[0].argmax())
print(json.loads(extra["fedclip.json"])["classes"][best], float(probabilities[0, best]))"""

_CROPPED = """image = Image.open("photo.jpg").convert("RGB")
scale = {size} / min(image.size)
image = image.resize([max({size}, int(side * scale)) for side in image.size], Image.{how})
left, top = (round((side - {size}) / 2) for side in image.size)
image = image.crop((left, top, left + {size}, top + {size}))"""

_SQUASHED = """image = Image.open("photo.jpg").convert("RGB")
image = image.resize(({width}, {height}), Image.{how})"""

_PIXELS = "pixels = np.array(image).transpose(2, 0, 1)[None]"

_FEATURES = """features = np.load("features.npy")  # (images, {width}) float32, raw"""


def snippet(
    to: str,
    file: Path | str,
    width: int,
    preprocessing: Mapping[str, Any] | None = None,
) -> str:
    """Return the code that classifies one image, or features.

    Args:
        to: ``onnx``, ``torch`` or ``safetensors``.
        file: What was exported.
        width: Width of the features.
        preprocessing: How images become pixels; None for a program that takes features.
    """
    if to == "safetensors":
        return (
            "import fedclip\n\n"
            f"classify = fedclip.load_classifier({str(file)!r})\n"
            'print(classify("photo.jpg")[0])'
        )
    lines = ["import json", "", "import numpy as np"]
    lines.append("import onnxruntime" if to == "onnx" else "import torch")
    if preprocessing is None:
        lines += ["", _FEATURES.format(width=width)]
    else:
        lines += ["from PIL import Image", "", _image(preprocessing), _PIXELS]
    run = _RUN_ONNX if to == "onnx" else _RUN_TORCH
    name = "features" if preprocessing is None else "pixels"
    return "\n".join([*lines, run.format(file=str(file), name=name)])


def _image(preprocessing: Mapping[str, Any]) -> str:
    height, width = preprocessing["size"]
    how = "BILINEAR" if preprocessing["interpolation"] == "bilinear" else "BICUBIC"
    if preprocessing["resize"] == "shortest" and height == width:
        return _CROPPED.format(size=height, how=how)
    return _SQUASHED.format(width=width, height=height, how=how)
