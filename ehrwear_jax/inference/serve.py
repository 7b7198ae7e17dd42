"""Serves a trained model over HTTP: patients' states that grow, on disk, and what the model says of them.

EHRWEAR_TOKEN=SECRET python -m ehrwear_jax.inference.serve BUNDLE --state_dir=DIR [--port=8080] [--host=127.0.0.1]
    [--token_file=FILE] [--mapping=FILE] [--rate=100] [--body_mb=8] [--in_memory=256] [--late_days=2]
    [--no_warm_up]

BUNDLE is a bundle, a run's folder or the name of a bundle that comes with the package. Requests are those of
service.py. It listens to this machine alone unless --host says otherwise; a proxy in front of it speaks TLS. Needs the
extra `serve`: pip install 'ehrwear_jax[serve]'.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ehrwear_jax.inference.trained_model import TrainedModel

TOKEN = "EHRWEAR_TOKEN"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code, 2 with one sentence where it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m ehrwear_jax.inference.serve", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("bundle", help="a bundle, a run, or the name of a bundle that comes with the package")
    parser.add_argument("--state_dir", type=Path, required=True, help="folder of the states, made if it is not there")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen to")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--token_file", type=Path, help=f"a token a line, any of which will do; else ${TOKEN}")
    parser.add_argument("--mapping", type=Path, help="table of code, target, factor, offset: your codes as the model's")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second of a token; twice as many at once")
    parser.add_argument("--body_mb", type=float, default=8.0, help="largest body")
    parser.add_argument("--in_memory", type=int, default=256, help="states that are kept ready")
    parser.add_argument("--late_days", type=float, default=2.0, help="how late signal may arrive")
    parser.add_argument("--no_warm_up", action="store_true", help="compile when the first patient is read")
    given = parser.parse_args(arguments)
    import sqlite3

    try:
        _run(given)
    except (ValueError, OSError, ImportError, sqlite3.Error) as error:
        print(f"ehrwear_jax.inference.serve: {error}", file=sys.stderr)
        return 2
    return 0


def _run(given):
    tokens = _tokens(given.token_file)
    try:
        import uvicorn

        from ehrwear_jax.inference import service
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'ehrwear_jax[serve]'") from None
    from ehrwear_jax.inference import trained_model
    from ehrwear_jax.inference.state_store import StateStore
    from ehrwear_jax.runtime import compile_cache

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    compile_cache.use()
    model = trained_model.load(given.bundle)
    store = StateStore(model, given.state_dir, given.mapping, given.in_memory, given.late_days)
    if not given.no_warm_up:
        warm_up(model, given.mapping)
    limits = service.Limits(round(given.body_mb * 2**20), rate=given.rate, burst=max(1, round(2 * given.rate)))
    application = service.Service(store, tokens, limits).application()
    print(f"{model!r}\n{len(store):,} patients in {given.state_dir}; http://{given.host}:{given.port}", flush=True)
    uvicorn.run(
        application,
        host=given.host,
        port=given.port,
        access_log=False,  # one of our own tells no more than it must
        log_level="warning",
        limit_concurrency=1024,
        timeout_keep_alive=5,
        server_header=False,
        ws="none",
    )


def _tokens(path):
    """The tokens of a file or of the environment; ValueError without one."""
    found = [os.environ.get(TOKEN, "")] if path is None else path.read_text().splitlines()
    tokens = [t.strip() for t in found if t.strip()]
    if not tokens:
        raise ValueError(f"there is no token: set ${TOKEN}, or write one into a file for --token_file")
    if weak := [t for t in tokens if len(t) < 16 or not t.isascii()]:
        raise ValueError(f"{len(weak)} of {len(tokens)} tokens are shorter than 16 characters, or not ASCII")
    return tokens


def warm_up(model: "TrainedModel", mapping: Path | None = None) -> None:
    """Compiles what reads of most records need, so that the first patient does not wait for it."""
    import polars as pl

    statistics = pl.read_parquet(model.folder / "code_statistics.parquet").filter(pl.col("alias").is_not_null())
    code, state, begin = statistics["code"][0], model.state(mapping=mapping), datetime(2000, 1, 1)
    for first, last in ((0, 1), (1, 20), (20, 120)):  # an event, some, many
        state.append([{"time": begin + timedelta(days=day), "code": code} for day in range(first, last)])
        for days in (200, 201):  # what was appended; and with nothing new
            state.read(begin + timedelta(days=days))


if __name__ == "__main__":
    sys.exit(main())
