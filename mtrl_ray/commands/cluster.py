"""`mtrl cluster local`: several nodes on this machine, for as long as the command runs."""

import signal
import threading
from typing import Annotated, Any

import typer

from mtrl_ray.errors import ConfigurationError

app = typer.Typer(help="Clusters to try runs on.", no_args_is_help=True)


@app.callback()
def clusters() -> None:
    """Clusters to try runs on."""


@app.command()
def local(
    nodes: Annotated[int, typer.Option(min=1, help="Nodes from the start, the head among them.")] = 3,
    cpus: Annotated[int, typer.Option(min=1, help="Logical CPUs of each.")] = 1,
    autoscale: Annotated[
        int | None, typer.Option(metavar="MAX", help="Add nodes up to MAX while work waits, and let idle ones go.")
    ] = None,
    idle: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="After which an idle node is let go.")] = 60.0,
    port: Annotated[int | None, typer.Option(help="Of the cluster's address; by default a free one.")] = None,
) -> None:
    """Run a cluster of several nodes on this machine until Ctrl-C, under Ray's own autoscaler."""
    from mtrl_cluster.local import Shape, local_cluster

    most = nodes if autoscale is None else autoscale
    if most < nodes:
        raise ConfigurationError(f"--autoscale {most} is less than --nodes {nodes}; give at least as many")
    with local_cluster(Shape(nodes, most, cpus, idle), port) as running:
        grows = f", up to {most} when work waits" if most > nodes else ""
        typer.echo(f"{nodes} node(s) of {cpus} CPU(s){grows}, on this machine only, with a token")
        typer.echo(f"train on it:  mtrl train sales --address {running.address}")
        typer.echo(f"dashboard:    {running.dashboard}")
        typer.echo("Ctrl-C ends it")
        _wait()


def _wait() -> None:
    """Until a signal to stop."""
    stopped = threading.Event()

    def stop(number: int, frame: Any) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stopped.wait(1.0):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def register(root: typer.Typer) -> None:
    """Add the commands to `root`."""
    root.add_typer(app, name="cluster")
