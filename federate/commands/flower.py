"""The commands `fedclip serve`, `join` and `keys`: federation between sites, on Flower."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from ...cache import FedclipError
from ...cache.common.console import FAILED, INTERRUPTED, Output, complain
from ...cache.common.fields import option
from ...cache.common.files import check_name, check_writable
from ...cache.common.options import DeviceOptions, FormatOptions, flag, given, with_options
from ...cache.common.tables import Column, Table, thousands
from ...cache.common.text import counted
from .options import Given, NamedRun, settings_of

if TYPE_CHECKING:
    from ..flower.link import Link
    from ..flower.record import Record
    from ..runs.results import RunResult

PORT = 9092

# Longer values are cut in a table to be read.
WIDTH = 60

DIVERGED = "training diverged (NaN or Inf); try a lower --lr"

# Options that --resume leaves a choice in.
_WITH_RESUME = frozenset({"resume", "runs_dir", "host", "port", "tls_dir", "insecure"})


@dataclass(frozen=True)
class ServeOptions:
    """Who takes part, and for how long a round waits."""

    PANEL: ClassVar[str] = "Sites"

    clients_expected: int = option(
        2, least=1, most=10_000, help="Number of sites that training waits for."
    )
    min_clients: int = option(
        1, least=1, most=10_000, help="Number of updates without which a round is not ended."
    )
    round_timeout: float = option(
        600.0, above=0, most=1e6, help="Seconds that a round waits for a site's answer."
    )
    target: str | None = option(
        None,
        metavar="SITE",
        shown="none",
        help="Site that takes no part in training and is only tested, by its client's name.",
    )


@dataclass(frozen=True)
class ListenOptions:
    """Where the server listens, and how it proves who it is."""

    PANEL: ClassVar[str] = "Network"

    host: str = option("0.0.0.0", help="Address to listen on.")  # noqa: S104 - a server's purpose
    port: int = option(PORT, least=0, most=65535, help="The one TCP port, which sites connect to.")
    tls_dir: Path | None = option(
        None,
        metavar="FOLDER",
        help="Folder with server.crt, server.key, and the public keys of the sites in sites/.",
    )
    insecure: bool = option(
        False,
        help="Use plain text, and let anyone join; only on a loopback address, to try things out.",
    )


@dataclass(frozen=True)
class JoinOptions:
    """A site's file, and how it proves who it is."""

    PANEL: ClassVar[str] = "Site"

    cache: Path = option(metavar="FILE", help="The client's file, which stays here unchanged.")
    keys: Path | None = option(
        None, metavar="FOLDER", help="Folder with this site's private key (*.key) and ca.crt."
    )
    insecure: bool = option(
        False, help="Use plain text; only to a server on a loopback address, to try things out."
    )
    state_dir: Path = option(
        Path("joined"), envvar="FEDCLIP_STATE_DIR", help="Folder for what this site keeps."
    )
    allow_class_means: bool = option(
        False,
        help="Send a server that trains with --class-vectors means or head the sum and the number "
        "of this site's training features of each class, once. If a class has only one sample, the "
        "sum is that sample's feature. Without this option such a server is refused.",
    )
    dry_run: bool = option(False, help="Show what would be sent, with sizes, and join nothing.")


@with_options(
    examples=[
        "fedclip serve --clients-expected 3 --tls-dir keys/server --rounds 50",
        "fedclip serve --resume runs/sites-1f0b2c3d-seed0 --tls-dir keys/server",
    ]
)
def serve(
    context: typer.Context,
    chosen: Given,
    sites: ServeOptions,
    listen: ListenOptions,
    run: NamedRun,
    form: FormatOptions,
) -> None:
    """Federate across sites, each with its own cache: the server."""
    check_flower()

    from ..flower.keys import read_certificate, read_sites
    from ..flower.link import Link

    certificate, keys = None, None
    if listen.insecure:
        if listen.tls_dir is not None:
            raise typer.BadParameter("--insecure cannot be combined with --tls-dir; leave out one")
        _check_loopback(listen.host, "--host")
        shout()
    elif listen.tls_dir is None:
        raise typer.BadParameter(
            "needs --tls-dir with the server's certificate, which 'fedclip keys' makes (or "
            "--insecure, to try things out on this machine)"
        )
    else:
        certificate, keys = read_certificate(listen.tls_dir), read_sites(listen.tls_dir)

    record = record_of(context, chosen, sites, run)
    if keys is not None and len(keys) < record.plan.expected:
        raise FedclipError(
            f"--clients-expected {record.plan.expected}: {listen.tls_dir} has the keys of only "
            f"{counted(len(keys), 'site')}; put those of the others into its folder sites"
        )
    link = Link(listen.host, listen.port, certificate, keys)
    try:
        link.start()
        if run.resume is None:
            record.begin(overwrite=run.overwrite)
        _drive(record, link, Output(form.format), listen)
    finally:
        link.stop()
        record.close()


def record_of(context: typer.Context, chosen: Given, sites: ServeOptions, run: NamedRun) -> Record:
    """Plan a new run, of which nothing is written yet, or read one that is to be resumed.

    Raises:
        FedclipError: the settings make no sense across sites, or the run cannot be resumed.
    """
    from ..flower.record import Plan, Record
    from ..flower.site import check_deployable
    from ..runs.find import find_run

    if run.resume is not None:
        for name in sorted(given(context) - _WITH_RESUME):
            raise typer.BadParameter(
                f"{flag(name)} cannot be combined with --resume, which keeps the settings of "
                f"{run.resume}; leave out {flag(name)}"
            )
        return Record.resume(find_run(run.runs_dir, run.resume))
    settings = settings_of(chosen)
    check_deployable(settings)
    plan = Plan(
        settings,
        str(chosen.get("preset", "paper")),
        sites.clients_expected,
        sites.min_clients,
        sites.round_timeout,
        sites.target or "",
    )
    return Record(run.runs_dir / check_name(run.name or plan.name, "run"), plan)


def _drive(record: Record, link: Link, output: Output, listen: ListenOptions) -> None:
    from ...cache.common.progress import show_progress
    from ..flower.server_app import Driver

    _quiet()
    print_plan(record, output)
    secured = "PLAIN TEXT" if listen.insecure else "TLS"
    output.note(f"listening  {link.host}:{link.port}, {secured}")
    result: RunResult | None = None
    with show_progress() as progress, _stoppable():
        driver = Driver(
            link,
            record,
            authenticated=not listen.insecure,
            traffic=lambda: link.traffic,
            progress=progress,
        )
        with suppress(KeyboardInterrupt):
            result = driver.drive()
    if result is not None:
        print_result(result, record, output)
    if result is None or result.status == "interrupted":
        where = ["--host", listen.host, "--port", str(link.port)]
        where += ["--insecure"] if listen.insecure else ["--tls-dir", str(listen.tls_dir)]
        line = shlex.join(["fedclip", "serve", "--resume", str(record.path), *where])
        output.note(f"resume     {line}", whole=True)
        raise typer.Exit(INTERRUPTED)
    if result.status == "failed":
        complain(DIVERGED)
        raise typer.Exit(FAILED)


def print_plan(record: Record, output: Output) -> None:
    """Print what a server is to do."""
    settings = record.plan.settings
    output.note(f"run        {record.path}")
    output.note(
        f"settings   {settings.name_of('strategy')}, adapter {settings.name_of('adapter')}, "
        f"{settings.rounds} rounds, lr {settings.lr:g}, seed {settings.seed}"
    )


def print_result(result: RunResult, record: Record, output: Output) -> None:
    """Print what a run came to."""
    from ..report.terminal import cost_line, results_table

    output.table(results_table([result]))
    encoder = record.reference.encoder.get("parameters") if record.reference else None
    output.note(f"cost       {cost_line(result, encoder)}")
    output.note(f"run        {record.path}")


@with_options(
    examples=[
        "fedclip join server.example.org:9092 --cache a.h5 --keys keys/hospital-a",
        "fedclip join server.example.org:9092 --cache a.h5 --dry-run",
    ]
)
def join(
    server: Annotated[str, typer.Argument(metavar="SERVER", help="Address as host:port.")],
    site: JoinOptions,
    compute: DeviceOptions,
    form: FormatOptions,
) -> None:
    """Take part in a federation with one client's file, which never leaves this machine."""
    check_flower()
    host, port = _address(server)

    from ...cache.common.device import resolve_device
    from ...cache.common.progress import show_progress
    from ..flower.client_app import opened
    from ..flower.keys import read_credentials
    from ..flower.node import SiteNode

    if not site.cache.is_file():
        raise FedclipError(
            f"--cache {site.cache}: no such file; pass the .h5 file that fedclip extract wrote"
        )
    cache, output = opened(str(site.cache)), Output(form.format)
    if site.dry_run:
        _print_dry_run(site, compute.device, output)
        return
    credentials = None
    if site.insecure:
        if site.keys is not None:
            raise typer.BadParameter("--insecure cannot be combined with --keys; leave out one")
        _check_loopback(host, "SERVER")
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # plain text stays on this machine
        shout()
    elif site.keys is None:
        raise typer.BadParameter(
            "needs --keys with this site's private key and the server's ca.crt (or --insecure, "
            "to try things out on one machine)"
        )
    else:
        credentials = read_credentials(site.keys)
    resolve_device(compute.device)
    check_writable(site.state_dir, f"--state-dir {site.state_dir}")
    node = SiteNode(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        site.cache,
        credentials,
        site.state_dir,
        device=compute.device,
        allow_class_means=site.allow_class_means,
    )
    _quiet()
    output.note(
        f"client     {cache.client}, {len(cache.labels):,} rows, {len(cache.class_names)} classes"
    )
    if site.allow_class_means:
        output.note(
            "reveals    to a server that asks, the sum and the number of training features of each "
            "class; if a class has only one sample, the sum is that sample's feature"
        )
    with show_progress() as progress, _stoppable():
        node.progress = progress
        try:
            node.serve()
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    output.note("done       the run is over")


@dataclass(frozen=True)
class KeysOptions:
    """What to make."""

    PANEL: ClassVar[str] = "Keys"

    directory: Path = option(
        Path("keys"), flags=("--dir",), metavar="FOLDER", help="Folder for what is made."
    )
    hosts: tuple[str, ...] = option(
        (),
        flags=("--host",),
        metavar="NAME|IP",
        shown="no certificate",
        help="Name or IP address by which sites reach the server, for its certificate.",
    )
    sites: tuple[str, ...] = option(
        (), flags=("--site",), metavar="NAME", shown="none", help="Site to make a key pair for."
    )
    days: int = option(365, least=1, most=3650, help="Days that the certificate is valid for.")


@with_options(
    examples=[
        "fedclip keys --host server.example.org --site hospital-a --site hospital-b",
        "fedclip keys --site hospital-a --dir my-keys",
    ]
)
def keys(made: KeysOptions) -> None:
    """Make a certificate for the server and key pairs for sites; nothing is overwritten."""
    check_flower()
    if not made.hosts and not made.sites:
        raise typer.BadParameter("needs --host for a certificate, --site for a key pair, or both")
    for host in made.hosts:
        _check_host(host, f"--host {host}")

    import shutil

    from ..flower.keys import AUTHORITY, PUBLIC, SITES, make_server, make_site, refuse_existing

    server, sites = made.directory / "server", [*dict.fromkeys(made.sites)]
    for name in sites:
        if made.directory / name == server:
            raise FedclipError(f"--site {name}: is the server's folder; choose another name")
        for path in (made.directory / name, server / SITES / f"{name}{PUBLIC}"):
            refuse_existing(path)
    if made.hosts:
        for path in make_server(server, made.hosts, made.days):
            print(path)
    for name in sites:
        folder = made.directory / name
        for path in make_site(folder, name):
            print(path)
        if (server / AUTHORITY).is_file():
            print(shutil.copy(server / AUTHORITY, folder / AUTHORITY))
            (server / SITES).mkdir(exist_ok=True)
            print(shutil.copy(folder / f"{name}{PUBLIC}", server / SITES / f"{name}{PUBLIC}"))


def _print_dry_run(site: JoinOptions, device: str, output: Output) -> None:
    from ..flower.preview import preview

    rows = preview(site.cache, device, allow_class_means=site.allow_class_means)
    if output.for_people:
        rows = [
            (kind, name, value if len(value) <= WIDTH else f"{value[: WIDTH - 3]}...", size)
            for kind, name, value, size in rows
        ]
    output.note(f"With the default settings a site with {site.cache} sends this, and nothing else:")
    columns = [
        Column("message"),
        Column("field"),
        Column("value", wraps=True),
        Column("bytes", show=thousands),
    ]
    output.table(Table(columns, rows))
    if not site.allow_class_means:
        output.note(
            "A server that asks for class means (--class-vectors means or head) is refused; "
            "--allow-class-means would send them."
        )


def check_flower() -> None:
    """Check that Flower is installed, and keep it from calling home.

    Raises:
        FedclipError: it is not.
    """
    if find_spec("flwr") is None:
        raise FedclipError(
            "federation across sites needs Flower, which is not installed; pip install "
            "fedclip[flower]"
        )
    # Read when Flower is imported.
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"


def _check_loopback(host: str, what: str) -> None:
    """Refuse plain text to other machines."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise FedclipError(
            f"--insecure: sends everything in plain text and lets anyone join, so it works on "
            f"loopback addresses only, and {what} is {host}; pass 127.0.0.1, or use keys"
        )


def shout() -> None:
    """Warn of a connection without protection."""
    print(
        "warning: INSECURE: plain text, and anyone may join; for trying things out only",
        file=sys.stderr,
    )


def _address(server: str) -> tuple[str, int]:
    host, colon, port = server.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise FedclipError(f"SERVER {server}: is not an address; pass it as host:port")
    _check_host(host.strip("[]"), f"SERVER {server}")
    return host.strip("[]"), int(port)


def _check_host(host: str, what: str) -> None:
    """Refuse what is no name or IP address of a machine, such as a URL."""
    labels = host.removeprefix("*.").split(".")
    if all(re.fullmatch(r"[\w-]{1,63}", label, re.ASCII) for label in labels):
        return
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise FedclipError(
            f"{what}: {host} is not a name or an IP address of a machine; pass it as "
            "server.example.org or 10.0.0.1, without https://"
        ) from None


def _quiet() -> None:
    """Keep Flower's own log off the terminal, as it speaks of its own parts."""
    logging.getLogger("flwr").disabled = True
    logging.getLogger("httpx").setLevel(logging.WARNING)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM, which systemd and containers send, end the program as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
