"""What the server does with updates: one algorithm a file.

An algorithm is two functions over a state: ``init(parameters)`` makes the state before the
first round, ``apply(state, updates, settings)`` the one after a round (the manner of Ro et
al. 2021, "FedJAX", arXiv:2108.02117). A state is nothing but named parameters, so a run can
be saved after any round as it is.
"""

from collections.abc import Mapping

from ..local import Parameters

# What a strategy keeps between rounds, part by part: `SERVER`, which the clients start from
# and which is evaluated, and whatever else it needs, such as moments or a part a client.
State = Mapping[str, Parameters]

SERVER = "server"
