"""A run's settings as people read them."""

from ..runs.experiment import Experiment
from ..settings import STRATEGY_OPTIONS, Settings
from .terminal import describe_model


def describe_settings(experiment: Experiment) -> list[str]:
    """Say which settings are in force."""
    settings, first = experiment.settings, experiment.clients[0]
    rows = sum(len(cache.labels) for cache in experiment.clients)
    domains = ", ".join(cache.client for cache in experiment.clients)
    dealt = (
        f", dealt to {settings.clients} clients each by Dirichlet({settings.alpha:g})"
        if settings.clients
        else ""
    )
    if settings.strategy == "centralized":
        dealt += ", their training samples brought together"
    prompts = " + ".join(map(repr, settings.prompts or first.templates[:1]))
    if settings.data_fraction < 1:
        dealt += f", {100 * settings.data_fraction:g} % of their training parts"
    norm = "raw" if settings.feature_norm is None else f"of norm {settings.feature_norm:g}"
    inputs = f"features {norm}" if experiment.whole is None else "images"
    lines = [
        f"domains    {domains}: {rows} rows of {first.embed_dim} features, "
        + f"{len(first.class_names)} classes{dealt}",
        f"settings   preset {experiment.preset}: lr {settings.lr:g}, "
        + f"weight decay {settings.weight_decay:g}, loss {settings.loss}, "
        + f"batch size {settings.batch_size}, local epochs {settings.local_epochs}, "
        + f"weighting {settings.weighting}, {_trained(experiment)}, "
        + f"strategy {_strategy(settings)}, optimizer {settings.optimizer}",
        f"           {_rounds(settings)}, {inputs}, prompt {prompts}, "
        + f"seed {settings.seed}, device {experiment.device}",
    ]
    if first.normalized and settings.feature_norm is None and experiment.whole is None:
        lines.append(
            "           (these features have norm 1, and the paper's adapter takes raw ones: "
            "try --feature-norm 10)"
        )
    return lines


def _trained(experiment: Experiment) -> str:
    """Say what is trained: an adapter, or a whole model."""
    settings = experiment.settings
    if experiment.whole is None:
        ratio = "" if settings.ratio is None else f" of ratio {settings.ratio:g}"
        return f"adapter {settings.adapter}{ratio}"

    return f"all of {describe_model(experiment.whole.facts)}"


def _strategy(settings: Settings) -> str:
    own = [
        f"{name.replace('_', ' ')} {settings.option(name):g}"
        for name, owners in STRATEGY_OPTIONS.items()
        if settings.strategy in owners
    ]
    return settings.strategy + (f" of {', '.join(own)}" if own else "")


def _rounds(settings: Settings) -> str:
    """Say how many rounds, and who trains and when is evaluated unless it is all and always."""
    said = f"{settings.rounds} rounds"
    if isinstance(settings.participation, int):
        said += f" of {settings.participation} clients"
    elif settings.participation < 1:
        said += f" of {100 * settings.participation:g} % of the clients"
    return said + (f", evaluated every {settings.eval_every}" if settings.eval_every > 1 else "")
