"""The commands of stage two."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...cache.common.console import FAILED, INTERRUPTED, complain, print_table, show_table
from ...cache.common.options import CacheDir, flag, given

if TYPE_CHECKING:
    from ...cache import CacheFolder, FeatureCache
    from ..runs.experiment import Experiment, MakeWhole
    from ..settings import Settings

RunsDir = Annotated[
    Path, typer.Option("--runs-dir", envvar="FEDCLIP_RUNS_DIR", help="Where runs are kept.")
]


def federate(
    context: typer.Context,
    cache: Annotated[
        str | None,
        typer.Option(
            help="A cache as 'fedclip cache ls' names it, or its data set. By default the one "
            "extracted last.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federation.")] = 50,
    target: Annotated[
        str | None,
        typer.Option(
            help="The domain to leave out, all (each in turn), or none. By default all if the "
            "cache has two or more domains.",
            show_default=False,
        ),
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Deal the samples of every domain but the target to this many clients.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Concentration of the Dirichlet draw over classes that deals them (0.5).",
            show_default=False,
        ),
    ] = None,
    feature_norm: Annotated[
        str,
        typer.Option(help="raw, or the L2 norm that every image feature is rescaled to."),
    ] = "raw",
    preset: Annotated[
        str,
        typer.Option(
            help="paper: to the letter (clip loss, lr 5e-5, weight decay 0.2). tuned: what gains "
            "more on real features (class loss, lr 3e-4, no weight decay). The options below "
            "override either."
        ),
    ] = "paper",
    participation: Annotated[
        str | None,
        typer.Option(
            help="Clients that train in a round: a share such as 0.1, or a number such as 20 "
            "(1.0, all of them).",
            show_default=False,
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Validate every so many rounds, and at the last (1). With more than 1, test "
            "parts are evaluated only where validation is better than ever.",
            show_default=False,
        ),
    ] = None,
    data_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of its training part that each client trains on (1.0).",
            show_default=False,
        ),
    ] = None,
    local_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs a client trains in a round (1).", show_default=False),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=2, help="Samples in a minibatch (32).", show_default=False),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="What is trained (attention, the paper's); 'fedclip adapters' lists them.",
            show_default=False,
        ),
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            help="How much of it the adapter residual blends in (0.2), or taskres (0.5) or "
            "cache-model (1.0) adds.",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="fedavg, fedprox, fedavgm, fedadam, fedyogi, scaffold (its clients use sgd), "
            "fedrep, ditto, local (nothing is shared) or centralized (all training samples in "
            "one place) (fedavg).",
            show_default=False,
        ),
    ] = None,
    mu: Annotated[
        float | None,
        typer.Option(help="fedprox's pull to the server's model (0.001).", show_default=False),
    ] = None,
    ditto_lambda: Annotated[
        float | None,
        typer.Option(
            "--lambda",
            "--ditto-lambda",
            help="ditto's pull of a client's own model to the server's (1.0).",
            show_default=False,
        ),
    ] = None,
    server_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of fedavgm (1.0), fedadam and fedyogi (0.01).",
            show_default=False,
        ),
    ] = None,
    server_momentum: Annotated[
        float | None,
        typer.Option(
            help="Decay of the first moment of fedavgm, fedadam and fedyogi (0.9).",
            show_default=False,
        ),
    ] = None,
    server_beta2: Annotated[
        float | None,
        typer.Option(
            help="Decay of the second moment of fedadam and fedyogi (0.99).", show_default=False
        ),
    ] = None,
    tau: Annotated[
        float | None,
        typer.Option(
            help="How little fedadam and fedyogi adapt: added to the second moment's root (0.001).",
            show_default=False,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adam, or sgd without momentum (adam). A preset's lr and weight decay are "
            "adam's; sgd has 0.1 and 0 unless told.",
            show_default=False,
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="The optimizer's learning rate.", show_default=False)
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(help="L2 penalty, added to the gradient.", show_default=False),
    ] = None,
    weighting: Annotated[
        str | None,
        typer.Option(
            help="How the server weighs clients: by their training samples, or uniform (samples).",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="clip: symmetric cross-entropy inside the minibatch. class: cross-entropy over "
            "all class texts.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A cached template for the class texts; several are averaged, or all. By default "
            "the first one cached.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            help="What trains the clients: plain, threads or batched, which give the same numbers "
            "but for rounding; auto takes the fastest on the device."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of every draw.")] = 0,
    name: Annotated[
        str | None,
        typer.Option(
            help="The run's name. By default made of the data set, the settings and the seed.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Go on with a run that was killed or interrupted: its name or its folder. It "
            "keeps the settings that it was begun with.",
            show_default=False,
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Save every so many rounds. By default as often as takes 1 % of the time.",
            show_default=False,
        ),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    cache_dir: CacheDir = Path("caches"),
) -> None:
    """Train and federate an adapter over a cache's features."""
    if resume is not None:
        experiment = resumed(context, resume, runs_dir, cache_dir)
    else:
        settings = settings_of(
            preset=preset,
            rounds=rounds,
            participation=participation,
            eval_every=eval_every,
            data_fraction=data_fraction,
            local_epochs=local_epochs,
            batch_size=batch_size,
            adapter=adapter,
            ratio=ratio,
            strategy=strategy,
            mu=mu,
            ditto_lambda=ditto_lambda,
            server_lr=server_lr,
            server_momentum=server_momentum,
            server_beta2=server_beta2,
            tau=tau,
            optimizer=optimizer,
            lr=lr,
            weight_decay=weight_decay,
            weighting=weighting,
            loss=loss,
            feature_norm=feature_norm,
            prompt=prompt,
            clients=clients,
            alpha=alpha,
            seed=seed,
        )
        folder, loaded = load(cache, cache_dir)

        from ...cache.common.device import resolve_device
        from ..runs.experiment import Experiment, choose_targets

        experiment = Experiment(
            cache=folder,
            clients=loaded,
            settings=settings,
            preset=preset,
            targets=choose_targets(loaded, target),
            device=resolve_device(device),
            runs_dir=runs_dir,
            name=name,
            overwrite=overwrite,
            engine=engine,
        )

    latest = cache is None and resume is None
    print(f"cache      {experiment.cache.name}{' (the one extracted last)' if latest else ''}")
    carry_out(experiment, resume=resume is not None, save_every=save_every)


def carry_out(experiment: Experiment, *, resume: bool, save_every: int | None) -> None:
    """Say what is done, do it, and say what came of it."""
    from ...cache.common.progress import open_report
    from ..report.describe import describe_settings
    from ..runs.runner import run_experiment

    for line in describe_settings(experiment):
        print(line, flush=True)
    with open_report() as report:
        outcome = run_experiment(experiment, report, resume=resume, save_every=save_every)
    if outcome.results:
        _print_results(outcome.results, experiment)
    if outcome.interrupted:
        command = "federate" if experiment.whole is None else "baseline"
        print(f"rest       fedclip {command} --resume {shlex.quote(str(experiment.folder))}")
        raise typer.Exit(INTERRUPTED)
    if any(result["status"] == "failed" for result in outcome.results):
        complain("training left the finite numbers; lower --lr")
        raise typer.Exit(FAILED)


def adapters(
    embed_dim: Annotated[int, typer.Option(min=1, max=16384, help="Width of the features.")] = 512,
    classes: Annotated[int, typer.Option(min=1, max=100_000, help="Number of classes.")] = 65,
) -> None:
    """List the adapters and their trainable parameters."""
    from ..models.adapters import describe_adapters

    rows = [(name, what, f"{size:,}") for name, size, what in describe_adapters(embed_dim, classes)]
    print_table(("name", "what", "parameters"), rows, words={"what"})


def load(cache: str | None, cache_dir: Path) -> tuple[CacheFolder, list[FeatureCache]]:
    """Load the cache that is named, or the one extracted last."""
    from ...cache import latest_cache, load_cache, resolve_cache

    folder = latest_cache(cache_dir) if cache is None else resolve_cache(cache_dir, cache)
    return folder, load_cache(folder)


def settings_of(
    *,
    preset: str,
    participation: str | None,
    feature_norm: str,
    prompt: Sequence[str] | None,
    clients: int | None,
    alpha: float | None,
    **others: Any,
) -> Settings:
    """Make settings of what the options say; `others` are settings as they are."""
    from ..settings import Settings

    if alpha is not None and clients is None:
        raise typer.BadParameter(f"--alpha {alpha} needs --clients, how many to deal to")
    return Settings.preset(
        preset,
        participation=_participation(participation),
        feature_norm=_feature_norm(feature_norm),
        prompts=tuple(prompt or ()),
        clients=clients,
        alpha=alpha,
        **others,
    )


def resumed(
    context: typer.Context,
    run: str,
    runs_dir: Path,
    cache_dir: Path,
    make_whole: MakeWhole | None = None,
) -> Experiment:
    """Take up a run as it was begun, so no option may say otherwise."""
    from ..runs.experiment import find_run, load_experiment

    said = given(context)
    for name in sorted(said - {"resume", "save_every", "runs_dir", "cache_dir", "keep_model"}):
        option = flag(name)
        raise typer.BadParameter(
            f"{option} cannot be given with --resume, which keeps the settings of {run}; "
            f"leave out {option}"
        )
    path = find_run(runs_dir, run)
    return load_experiment(path, cache_dir if "cache_dir" in said else None, make_whole)


def _feature_norm(value: str) -> float | None:
    if value == "raw":
        return None
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"--feature-norm {value!r}: give raw or a number") from None


def _participation(value: str | None) -> int | float | None:
    """Take digits for a number of clients, and what has a point or an exponent for a share."""
    for kind in (int, float):
        try:
            return None if value is None else kind(value)
        except ValueError:
            continue
    raise typer.BadParameter(
        f"--participation {value!r}: give a share such as 0.1 or a number such as 20"
    )


def _print_results(results: Sequence[dict[str, Any]], experiment: Experiment) -> None:
    from ..report.terminal import cost_line, results_table

    show_table(results_table(results))
    whole = None if experiment.whole else experiment.clients[0].encoder.get("parameters")
    print("cost      ", cost_line(results[0], whole))
    print("run       ", experiment.folder)
