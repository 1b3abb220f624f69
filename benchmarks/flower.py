"""Seconds per round of three ways to do the same training, and where they go.

The ways are the simulation in one process, Flower's simulation (a Ray process per client), and a
deployment on loopback: a server and three sites as processes, with TLS and keys. The work is that
of ``benchmarks/federate.py``: 3 clients x 72 steps of 32 x 512, FedAvg.

``UV_PROJECT_ENVIRONMENT=.venv-flower uv run --no-default-groups --group flower
benchmarks/flower.py`` prints the median round, without the first, of each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from fedclip.cache import EncoderFacts, FeatureCache, write_cache
from fedclip.cache.schema import content_digest

CLIENTS, ROWS, WIDTH, CLASSES = 3, 3840, 512, 65  # 60 % of the rows are for training


def make_cache(client: int) -> FeatureCache:
    """Draw a client's features around class texts that all clients share."""
    text = np.random.default_rng(0).normal(size=(CLASSES, 1, WIDTH)).astype(np.float32)
    random = np.random.default_rng(1 + client)
    labels = random.integers(0, CLASSES, ROWS).astype(np.int32)
    noise = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    images = 0.2 * text[labels, 0] + 0.4 * noise
    digests = [np.frombuffer(content_digest(row.tobytes()), np.uint8) for row in images]
    return FeatureCache(
        dataset="drawn",
        client=f"client-{client}",
        encoder=EncoderFacts(shared={"library": "drawn"}),
        logit_scale=100.0,
        normalized=False,
        image_features=images,
        labels=labels,
        ids=tuple(f"{index:05d}" for index in range(ROWS)),
        digests=np.stack(digests),
        class_names=tuple(f"class {index}" for index in range(CLASSES)),
        templates=("a picture of a {}",),
        text_features=text,
    )


def fedclip(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """Start a command."""
    command = [sys.executable, "-m", "fedclip", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)  # noqa: S603 - ours


def done(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command's end."""
    process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)


def deploy(folder: Path, rounds: int) -> None:
    """Train with a server and a process for each site."""
    names = [f"client-{client}" for client in range(CLIENTS)]
    sites = [word for name in names for word in ("--site", name)]
    done(fedclip(folder, "keys", "--host", "127.0.0.1", *sites))
    server = fedclip(
        folder,
        *("serve", "--host", "127.0.0.1", "--port", 0, "--tls-dir", "keys/server"),
        *("--clients-expected", CLIENTS, "--min-clients", CLIENTS),
        *("--rounds", rounds, "--name", "deployed"),
    )
    assert server.stdout is not None
    address = ""
    for line in server.stdout:
        if line.startswith(b"listening"):
            address = line.decode().split()[1].rstrip(",")
            break
    joined = [
        fedclip(
            folder,
            *("join", address, "--cache", f"caches/drawn/drawn/{name}.h5"),
            *("--keys", f"keys/{name}"),
        )
        for name in names
    ]
    for process in (server, *joined):
        done(process)


def lines(path: Path) -> list[dict[str, float]]:
    """Read the rounds but the first."""
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = folder / "caches" / "drawn" / "drawn"
        caches.mkdir(parents=True)
        for client in range(CLIENTS):
            cache = make_cache(client)
            write_cache(cache, caches / f"{cache.client}.h5")
        common = ("federate", "--target", "none", "--rounds", rounds)
        done(fedclip(folder, *common, "--name", "simulated"))
        done(fedclip(folder, *common, "--name", "flower", "--engine", "flower"))
        deploy(folder, rounds)
        for run in ("simulated", "flower", "deployed"):
            seconds = median(
                line["seconds"] for line in lines(folder / "runs" / run / "rounds.jsonl")
            )
            print(f"{run:10} {seconds:.3f} s per round")
            sites = folder / "runs" / run / "sites.jsonl"
            if sites.is_file():
                computing = median(line["computing"] for line in lines(sites))
                waiting = median(line["waiting"] for line in lines(sites))
                print(f"{'':10} {computing:.3f} s the slowest site computes")
                print(f"{'':10} {waiting - computing:.3f} s messages travel and are looked for")
                print(f"{'':10} {seconds - waiting:.3f} s the server aggregates and records")


if __name__ == "__main__":
    main()
