"""How a folder of sentence-transformers encodes texts, besides its network.

Its `modules.json` lists what is applied in turn: the network, a pooling of its tokens, and
possibly a normalization or other layers. What fedclip does not do itself is refused, so that a
vector is never another one than the library would return.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...cache import FedclipError
from ...cache.common.errors import first_line
from ...cache.common.fields import listed
from .spec import POOLINGS

MODULES_FILE = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"

# Where the longest text stands, by the family that the folder's author started from.
SENTENCE_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# The parts that follow the network; a final normalization is left out, as caches are raw.
_POOLING, _NORMALIZE = "Pooling", "Normalize"


@dataclass(frozen=True)
class Sentences:
    """How texts are encoded.

    Attributes:
        pooling: ``mean`` or ``cls``.
        longest: The longest text in tokens; None if the folder does not say.
        lower: Whether texts are turned to lower case first.
    """

    pooling: str = POOLINGS[0]
    longest: int | None = None
    lower: bool = False


def read_sentences(folder: Path, pooling: str | None = None) -> Sentences:
    """Read how a folder encodes texts; by the mean of their tokens unless it says otherwise.

    Args:
        folder: A folder that transformers or sentence-transformers has saved.
        pooling: The pooling to use in place of the folder's; what follows the network is not
            looked at then.

    Raises:
        FedclipError: the folder encodes in a way that fedclip does not.
    """
    if not (folder / MODULES_FILE).is_file():
        return Sentences(pooling or POOLINGS[0])
    network, *parts = _parts(folder)
    if network != ("Transformer", ""):
        raise FedclipError(
            f"{folder}: begins with {network[0]} in {network[1] or 'the folder itself'!r}, not "
            "with a network in the folder itself; pass a folder that transformers has saved"
        )
    if pooling is None:
        _check_prompt(folder)
        pooling = _pooling(folder, parts)
    found = next((folder / each for each in SENTENCE_FILES if (folder / each).is_file()), None)
    limits = read_json(found) if found else {}
    longest = limits.get("max_seq_length")
    return Sentences(
        pooling,
        longest if isinstance(longest, int) else None,
        lower=limits.get("do_lower_case") is True,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FedclipError: the file is missing or contains something else.
    """
    value = _parse_json(path)
    if not isinstance(value, dict):
        raise FedclipError(f"{path}: is not a JSON object; get it again")
    return value


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedclipError(
            f"{path.parent}: has no {path.name}; pass a folder that transformers has saved"
        ) from None
    except (ValueError, RecursionError) as error:
        raise FedclipError(f"{path}: is not JSON ({first_line(error)}); get it again") from None


def _parts(folder: Path) -> list[tuple[str, str]]:
    """List the parts in order: the name of each one's class, and its folder below `folder`."""
    parts = _parse_json(folder / MODULES_FILE)
    if (
        not isinstance(parts, list)
        or not parts
        or not all(isinstance(each, dict) for each in parts)
    ):
        raise FedclipError(f"{folder / MODULES_FILE}: is not a list of parts; get it again")
    found = [
        (str(each.get("type", "")).rpartition(".")[2], str(each.get("path", ""))) for each in parts
    ]
    for _, path in found:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise FedclipError(f"{folder / MODULES_FILE}: names {path!r}, outside of the folder")
    return found


def _pooling(folder: Path, parts: list[tuple[str, str]]) -> str:
    """Return how the folder pools, if nothing but a normalization follows."""
    for name, _ in parts:
        if name not in (_POOLING, _NORMALIZE):
            raise FedclipError(
                f"{folder}: has a part {name} after the network, which fedclip does not apply; "
                "pass --pooling to encode without it"
            )
    names = [name for name, _ in parts]
    if names not in ([_POOLING], [_POOLING, _NORMALIZE]):
        raise FedclipError(
            f"{folder}: has {listed(names, 'and') if names else 'nothing'} after the network, not "
            f"one {_POOLING}; pass --pooling {' or '.join(POOLINGS)}"
        )
    file = folder / parts[0][1] / "config.json"
    asked = _modes(read_json(file))
    if len(asked) != 1 or not asked <= {*POOLINGS}:
        raise FedclipError(
            f"{file}: pools by {listed(sorted(asked), 'and')}; pass --pooling "
            f"{' or '.join(POOLINGS)}"
        )
    return asked.pop()


def _modes(config: dict[str, Any]) -> set[str]:
    """Return the poolings that a config names, in the library's newer or older spelling."""
    named = config.get("pooling_mode")
    if named is not None:
        return {str(each) for each in (named if isinstance(named, list) else [named])}
    flags = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    }
    return flags or {POOLINGS[0]}


def _check_prompt(folder: Path) -> None:
    """Refuse a folder that puts a prompt before every text."""
    if not (folder / PROMPTS_FILE).is_file():
        return
    config = read_json(folder / PROMPTS_FILE)
    prompts, name = config.get("prompts"), config.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if prompt:
        raise FedclipError(
            f"{folder}: puts the prompt {prompt!r} before every text, which fedclip does not; pass "
            "--pooling to encode without it"
        )
