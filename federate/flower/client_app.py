"""The Flower app of a site: it answers five kinds of messages about the client's file.

The same app is driven by `fedclip join` and by Flower's simulation. The node's configuration names
the file, ``cache``, and if they are wanted ``device``, ``engine`` and ``allow-class-means``. What
the site keeps lies in Flower's context.
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
from safetensors.torch import load

from ...cache import FeatureCache, FedclipError, read_cache
from ...cache.common.device import resolve_device
from ..training.engine import AUTO
from ..training.tasks import Parameters
from .messages import DESCRIBE, END, INITIAL, PARAMETERS, SUMS, Order, means_of, pack
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
    return Message(answer.to_record(), reply_to=message)


def end(message: Message, context: Context) -> Message:
    """Take note that the run is over."""
    config = message.content["config"]
    run, best = str(config["run"]), int(config["best"])
    memory = recall(context.state, run)
    if best and memory.candidate[0] == best:
        memory.best = memory.candidate
        remember(context.state, run, memory)
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


def _site(message: Message, context: Context) -> Site:
    node = context.node_config
    if not node.get("cache"):
        raise FedclipError("the node's configuration has no cache; pass cache=FILE")
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
