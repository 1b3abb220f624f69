"""The Flower app of a server that `flwr run` starts, on Flower's own SuperLink.

The run's configuration has `options`, words as `fedclip serve` takes them, and `insecure` for a
SuperLink that lets anyone join.
"""

import shlex

import typer
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ...cache import FedclipError
from ...cache.common.console import Output
from ...cache.common.options import call
from ...cache.common.progress import show_progress
from ..commands.flower import DIVERGED, ServeOptions, print_plan, print_result, record_of, shout
from ..commands.options import Given, NamedRun
from .record import Record
from .server_app import Driver

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Do a run.

    Raises:
        FedclipError: an option is invalid, or training diverged.
    """
    insecure, output = bool(context.run_config["insecure"]), Output("table")
    record = call(_begin, shlex.split(str(context.run_config["options"])))
    try:
        if insecure:
            shout()
        print_plan(record, output)
        with show_progress() as progress:
            driver = Driver(grid, record, authenticated=not insecure, progress=progress)
            result = driver.drive()
        print_result(result, record, output)
        if result.status == "failed":
            raise FedclipError(DIVERGED)
    finally:
        record.close()


def _begin(context: typer.Context, chosen: Given, sites: ServeOptions, run: NamedRun) -> Record:
    record = record_of(context, chosen, sites, run)
    if run.resume is None:
        record.begin(overwrite=run.overwrite)
    return record
