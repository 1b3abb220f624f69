"""The model card of an adapter: what it is, what it was trained on, and how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...cache.common.files import replacing
from ..runs.results import RunResult

# The card's file; the hub shows what has this name.
CARD = "README.md"

# The first line of the text below the metadata, by which our own cards are known.
MARK = "<!-- made by fedclip -->"

# Quantile of the normal distribution for intervals of 95 %.
_Z = 1.959964

_UNKNOWN = "unknown"


def wilson(share: float, number: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % for a share of `number` samples (Wilson 1927)."""
    spread = _Z**2 / number
    centre = (share + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(share * (1 - share) / number + spread / (4 * number)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def model_card(
    facts: Mapping[str, Any],
    result: RunResult | None,
    title: str,
    licence: str | None = None,
    snippet: str = "",
    samples: str = "images",
) -> str:
    """Write the card: Markdown with Hugging Face's block of metadata.

    Args:
        facts: Those of the classifier.
        result: What the run came to, if that is known.
        title: The adapter's name.
        licence: An identifier of the hub's, such as ``mit``; None to leave it to be filled in.
        snippet: Python code that uses it.
        samples: What it classifies, ``images`` or ``texts``.
    """
    sample = samples.removesuffix("s")
    return "\n".join(
        [
            "---",
            _metadata(facts, result, title, licence, sample),
            "---",
            MARK,
            "",
            f"# {title}",
            "",
            _introduction(facts, sample),
            *_use(snippet),
            *_data(facts, result, sample),
            *_results(facts, result, sample),
            *_method(facts),
            *_limits(facts, licence, sample),
        ]
    )


def write_card(folder: Path, card: str) -> bool:
    """Write a card as a folder's README.md, unless the folder has one of somebody else.

    Returns:
        Whether it was written.
    """
    path = folder / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return False
    with replacing(path) as temporary:
        temporary.write_text(card, encoding="utf-8")
    return True


def _metadata(
    facts: Mapping[str, Any],
    result: RunResult | None,
    title: str,
    licence: str | None,
    sample: str,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    about = facts["encoder"]["about"]
    model = str(about.get("model", ""))
    measured = []
    if result is not None:
        measured = [
            EvalResult(
                task_type=f"{sample}-classification",
                dataset_type=facts["dataset"],
                dataset_name=f"{facts['dataset']} ({client})",
                dataset_config=client,
                dataset_split="test",
                metric_type="accuracy",
                metric_value=round(accuracy, 6),
            )
            for client, accuracy in _accuracies(facts, result).items()
            if accuracy is not None
        ]
    card = ModelCardData(
        license=licence or _UNKNOWN,
        library_name="fedclip",
        pipeline_tag=f"{sample}-classification",
        tags=["federated-learning", "adapter", *(["clip"] if _is_clip(facts) else [])],
        base_model=model.removeprefix("hf-hub:") if model.startswith("hf-hub:") else None,
        metrics=["accuracy"],
        model_name=title if measured else None,
        eval_results=measured or None,
    )
    return card.to_yaml().strip()


def _accuracies(facts: Mapping[str, Any], result: RunResult) -> Mapping[str, float | None]:
    """Return the accuracies of the adapter in the file: everybody's, or a client's own."""
    client = facts.get("client")
    if client is None:
        return result.accuracy
    return {client: (result.personal or {}).get(client)}


def _encoder(facts: Mapping[str, Any]) -> str:
    about = facts["encoder"]["about"]
    return f"{about.get('model', _UNKNOWN)} ({about.get('pretrained', _UNKNOWN)})"


def _is_clip(facts: Mapping[str, Any]) -> bool:
    return bool(facts["encoder"]["shared"].get("library") == "open_clip")


def _introduction(facts: Mapping[str, Any], sample: str) -> str:
    own = f" It is the client {facts['client']}'s own." if facts.get("client") else ""
    classes = facts["class_names"]
    return (
        f"An adapter over the frozen {sample} encoder {_encoder(facts)} that classifies {sample}s "
        f"into {len(classes)} classes: {', '.join(classes)}. It was trained by federated learning "
        f"as in [FedCLIP](https://arxiv.org/abs/2302.13485), with fedclip {__version__}.{own}"
    )


def _use(snippet: str) -> list[str]:
    return ["", "## Use", "", "```python", snippet.strip(), "```"] if snippet else []


def _data(facts: Mapping[str, Any], result: RunResult | None, sample: str) -> list[str]:
    split = facts["split"]
    target = f" The domain {split['target']} was left out of training." if split["target"] else ""
    lines = [
        *("", "## Data", ""),
        f"The dataset {facts['dataset']}, by domain; 60 % of a client's {sample}s were trained on, "
        f"20 % chose the round, 20 % are tested.{target}",
        *("", f"| domain | {sample}s |", "|---|---:|"),
        *(f"| {_cell(name)} | {rows} |" for name, rows in split.get("rows", {}).items()),
    ]
    if result is not None and split["partition"] is not None:
        lines += ["", f"Domains were split among {len(result.accuracy)} clients."]
    return lines


def _results(facts: Mapping[str, Any], result: RunResult | None, sample: str) -> list[str]:
    if result is None:
        return []
    lines = [
        *("", "## Results", ""),
        f"Accuracy in % on each client's test {sample}s, with Wilson's interval of 95 %.",
        *("", f"| client | test {sample}s | zero-shot | adapted | interval |"),
        "|---|---:|---:|---:|---:|",
    ]
    for client, accuracy in _accuracies(facts, result).items():
        number, before = result.test_samples[client], result.zero_shot.get(client)
        if accuracy is None:
            continue
        low, high = wilson(accuracy, number)
        zero_shot = "-" if before is None else f"{100 * before:.2f}"
        left_out = " (left out)" if client == result.target else ""
        lines.append(
            f"| {_cell(client)}{left_out} | {number} | {zero_shot} | {100 * accuracy:.2f} | "
            f"{100 * low:.2f} to {100 * high:.2f} |"
        )
    return lines


def _method(facts: Mapping[str, Any]) -> list[str]:
    rows = {
        "encoder": _encoder(facts),
        "SHA-256 of its weights": facts["encoder"]["shared"].get("weights_sha256", _UNKNOWN),
        "class vectors": facts.get("class_vectors", "text"),
        "prompts": facts["prompts"],
        "features": "raw" if facts["feature_norm"] is None else f"norm {facts['feature_norm']:g}",
        **{name.replace("_", " "): value for name, value in sorted(facts["settings"].items())},
    }
    return [
        *("", "## Method and settings", "", "| setting | value |", "|---|---|"),
        *(
            f"| {_cell(name)} | {_cell(_shown(value))} |"
            for name, value in rows.items()
            if value is not None and value != []
        ),
    ]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _limits(facts: Mapping[str, Any], licence: str | None, sample: str) -> list[str]:
    return [
        *("", "## Limits", ""),
        f"- It knows {len(facts['class_names'])} classes and gives one of them for any {sample}.",
        "- It works with the features of this one encoder; others mean something else.",
        f"- The results are of {sample}s like the clients'; elsewhere they may be worse.",
        "- Whatever the encoder learned from its own training data, biases too, is still there.",
        *("", "## Licence", ""),
        f"- Adapter: {licence or 'unknown; fill in, also as `license` above'}",
        "- Encoder: that of its weights; fill in",
        f"- Data: that of its {sample}s; fill in",
        "",
    ]


def _cell(text: object) -> str:
    return " ".join(str(text).replace("|", "\\|").split())
