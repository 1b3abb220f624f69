"""The Flower app of a site: it answers five kinds of messages about the client's file.

The same app is driven by `fedclip join`, by Flower's SuperNode and by its simulation. The node's
configuration names the file, ``cache``, and if they are wanted ``device``, ``engine``,
``allow-class-means`` and ``state-dir``. What the site keeps lies in Flower's context, and in that
folder, so that it survives a restart.
"""

import json
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from safetensors.torch import load

from ...cache import FeatureCache, FedclipError, read_cache
from ...cache.common.device import resolve_device
from ...cache.common.errors import first_line
from ...cache.common.files import check_name, file_name, replacing
from ..data.federation import class_texts
from ..models.classifier import CLASS_TEXTS
from ..runs.experiment import facts_of
from ..runs.folder import ADAPTER, PERSONAL, RunFolder
from ..training.engine import AUTO
from ..training.tasks import Parameters
from .messages import DESCRIBE, END, INITIAL, PARAMETERS, SUMS, Order, means_of, pack, unpack
from .site import Memory, Site, settings_of

logger = logging.getLogger(__name__)

Answering = Callable[[Message, Context], Message]

# Names of the records that the context keeps.
_FACTS, _TENSORS, _SENT = "memory", "tensors", "class-sums"

# Sites that a process keeps: one, but for a simulation with several in a process.
_SITES_KEPT = 16


def describe(message: Message, context: Context) -> Message:
    """Describe the site."""
    site = _site(message, context)
    return Message(site.facts().to_record(), reply_to=message)


def sums(message: Message, context: Context) -> Message:
    """Send the sum and the number of the site's training features of each class.

    They are sent again as often as they are asked for, but no others: the difference of two sums,
    such as those of two seeds, may be a single feature.
    """
    site = _site(message, context)
    sent = site.class_sums()
    known = context.state.get(_SENT)
    if isinstance(known, ConfigRecord) and known["digest"] != sent.digest:
        raise FedclipError(
            "has sent other class sums before, and the difference of two may reveal single "
            "samples; to send these too, join with another --state-dir"
        )
    context.state[_SENT] = ConfigRecord({"digest": sent.digest})
    _save(context)
    logger.info("%s", site.revealed(sent))
    return Message(sent.to_record(), reply_to=message)


def initial(message: Message, context: Context) -> Message:
    """Send the parameters that training starts from, which depend on no sample of this site."""
    site = _site(message, context)
    site.take(means_of(message.content, site.text))
    return Message(RecordDict({PARAMETERS: pack(site.run.initial, {})}), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Do a round."""
    site = _site(message, context)
    order = Order.of_record(message.content, site.like, site.text)
    memory = recall(context.state, order.run, site.device)
    answer = site.answer(order, memory)
    remember(context.state, order.run, memory)
    _save(context)
    return Message(answer.to_record(), reply_to=message)


def end(message: Message, context: Context) -> Message:
    """Take the result of a run that is over, or note why this site cannot take part."""
    config = message.content["config"]
    run, best, reason = str(config["run"]), int(config["best"]), str(config["reason"])
    if reason:
        logger.warning("%s", reason)
        return Message(RecordDict(), reply_to=message)
    restore(context)
    memory = recall(context.state, run)
    if best and memory.candidate[0] == best:
        memory.best = memory.candidate
        remember(context.state, run, memory)
        _save(context)
    if memory.best[0]:
        client = opened(str(context.node_config["cache"])).client
        own = {f"{client}/{name}": tensor for name, tensor in memory.best[1].items()}
        _write(message, context, PERSONAL, own, memory)
    if PARAMETERS in message.content:
        shared, _ = unpack(message.content, _site(message, context).run.initial, {})
        _write(message, context, ADAPTER, shared, memory)
    return Message(RecordDict(), reply_to=message)


def make_app(wrap: Callable[[Answering], Answering] = lambda function: function) -> ClientApp:
    """Make the Flower app.

    Args:
        wrap: Changes each function that answers a kind of message.
    """
    made = ClientApp()
    for kind, function in ((DESCRIBE, describe), (SUMS, sums), (INITIAL, initial), (END, end)):
        made.query(kind.partition(".")[2])(wrap(function))
    made.train()(wrap(train))
    return made


app = make_app()


def recall(state: RecordDict, run: str, device: torch.device | None = None) -> Memory:
    """Read a run's memory from a context; an empty one if the context is of another run."""
    memory, facts = Memory(), state.get(_FACTS)
    if not isinstance(facts, ConfigRecord) or facts.get("run") != run:
        return memory
    rounds = json.loads(str(facts["rounds"]))
    memory.states = {int(number): {part: {} for part in parts} for number, parts in rounds.items()}
    own: dict[str, dict[str, torch.Tensor]] = {"candidate": {}, "best": {}, "means": {}}
    for key, tensor in load(state[_TENSORS]["safetensors"].data).items():
        _, kind, *place, name = key.split("/")
        if kind == "states":
            number, part = place
            held: Any = memory.states[int(number)][part]
            held[name] = tensor.to(device)
        else:
            own[kind][name] = tensor.to(device)
    memory.candidate = int(facts["candidate"]), own["candidate"]
    memory.best = int(facts["best"]), own["best"]
    memory.means = own["means"].get("means")
    return memory


def remember(state: RecordDict, run: str, memory: Memory) -> None:
    """Write a run's memory to a context, in place of whatever it has."""
    rounds = {number: [*parts] for number, parts in memory.states.items()}
    facts = {
        "run": run,
        "rounds": json.dumps(rounds),
        "candidate": memory.candidate[0],
        "best": memory.best[0],
    }
    parts: dict[str, Parameters] = {
        f"states/{number}/{part}": parameters
        for number, kept in memory.states.items()
        for part, parameters in kept.items()
    }
    parts |= {"candidate": memory.candidate[1], "best": memory.best[1]}
    if memory.means is not None:
        parts["means"] = {"means": memory.means}
    # Whole, before anything is replaced.
    state.update({_FACTS: ConfigRecord(facts), _TENSORS: pack({}, parts)})


def restore(context: Context) -> None:
    """Read what the site kept before a restart into an empty context.

    Raises:
        FedclipError: the file is damaged.
    """
    path = _state_file(context)
    if path is None or context.state or not path.is_file():
        return
    try:
        state = recorddict_from_proto(ProtoRecordDict.FromString(path.read_bytes()))
        if not state:
            raise ValueError("it is empty")
        if _FACTS in state:
            recall(state, str(state[_FACTS]["run"]))
    except Exception as error:
        raise FedclipError(
            f"{path}: is damaged ({first_line(error)}); remove it, and this site begins without "
            "what it kept"
        ) from None
    context.state.update(state)


def _save(context: Context) -> None:
    path = _state_file(context)
    if path is None:
        return
    content = recorddict_to_proto(context.state).SerializeToString()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.chmod(0o600)
        temporary.write_bytes(content)


def _write(
    message: Message, context: Context, name: str, parameters: Parameters, memory: Memory
) -> None:
    """Write the site's own model, or that of all, of the best round."""
    path, config = _state_file(context), message.content["config"]
    if path is None:
        return
    cache = opened(str(context.node_config["cache"]))
    settings = settings_of(str(config["settings"]))
    folder = path.with_name(f"{path.stem}-{check_name(str(config['run']), 'run')}")
    folder.mkdir(parents=True, exist_ok=True)
    vectors = memory.means
    if vectors is None:
        vectors = torch.from_numpy(class_texts(cache, settings.prompts))
    own = name == PERSONAL
    facts = facts_of(
        cache,
        settings,
        settings.model,
        target=None if own else str(config["target"]) or None,
        rows={cache.client: len(cache.labels)},
        contents={cache.client: cache.content},
    )
    RunFolder(folder).write_parameters(name, {**parameters, CLASS_TEXTS: vectors}, facts)
    what = "this site's own model" if own else "the adapter of all sites"
    logger.info("%s is %s", what, folder / name)


def _state_file(context: Context) -> Path | None:
    """Where the site keeps what it must remember after a restart; None if nowhere."""
    folder = context.node_config.get("state-dir")
    if not folder:
        return None
    client = opened(str(context.node_config["cache"])).client
    return Path(str(folder)) / f"{file_name(client)}.state"


def _site(message: Message, context: Context) -> Site:
    node = context.node_config
    if not node.get("cache"):
        raise FedclipError("the node's configuration has no cache; pass cache=FILE")
    restore(context)
    return site_of(
        str(node["cache"]),
        str(message.content["config"]["settings"]),
        str(message.content["config"]["target"]),
        device=str(node.get("device", "cpu")),
        engine=str(node.get("engine", AUTO)),
        allow_class_means=node.get("allow-class-means") is True,
    )


@lru_cache(_SITES_KEPT)
def site_of(
    path: str, settings: str, target: str, *, device: str, engine: str, allow_class_means: bool
) -> Site:
    """Make a site, or return it if it was made before."""
    cache = opened(path)
    return Site(
        cache,
        settings_of(settings),
        target=cache.client == target,
        device=resolve_device(device),
        engine=engine,
        allow_class_means=allow_class_means,
    )


@lru_cache(_SITES_KEPT)
def opened(path: str) -> FeatureCache:
    """Read a client's file, which is never written."""
    return read_cache(Path(path))
