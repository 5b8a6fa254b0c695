"""Tasks on the machines of a Dask cluster.

The same function does them there that does them here, in processes beside Dask's own: a model that
takes too much, or crashes, ends one of those and not a worker of the cluster. Should a worker die
all the same, Dask gives its tasks to another one; a task on which two workers have died is not
given to a third.

A worker finds models where this machine does: the current directory and the folders of the models
must be shared, or the models be named by URLs.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from bnfold.errors import BnfoldError, SettingsError
from bnfold.fleet import pool
from bnfold.fleet.row import Json
from bnfold.version import __version__

if TYPE_CHECKING:
    from distributed import Client

_DEATHS = 2
_TIMEOUT = 30  # seconds until a scheduler counts as not there


def attempt(request: Json, key: Sequence[str], version: str) -> Json:
    """Do a task on a worker of the cluster, unless two have died of it.

    Nothing is done by another `version` of bnfold, which may find something else.
    """
    from distributed import get_client  # noqa: PLC0415

    if version != __version__:
        return pool.lost(f"a worker of the cluster has bnfold {__version__}, and here is {version}")
    client = get_client()
    attempts = int(client.get_metadata(list(key), default=0))
    if attempts >= _DEATHS:
        return killed()
    client.set_metadata(list(key), attempts + 1)
    answer = pool.perform(request)
    pool.release_soon()  # nobody here knows which task is the last one
    client.set_metadata(list(key), 0)  # should the result be lost with its worker, it was not that
    return answer


def killed() -> Json:
    """The answer of a task that is not tried again."""
    return pool.lost("two workers of the cluster died of it: it is not tried again")


def on_cluster(requests: Sequence[Json], scheduler: str) -> Generator[tuple[int, Json]]:
    """The number and the answer of each request, as they are done; see `pool.in_processes`.

    Raises:
        SettingsError: Dask is not installed, or there is no scheduler at this address.
    """
    client = _client(scheduler)
    run = f"bnfold-{uuid.uuid4().hex}"
    try:
        yield from _results(client, requests, run)
    finally:
        with contextlib.suppress(Exception):
            client.set_metadata([run], None)
        client.close()


def _results(client: Client, requests: Sequence[Json], run: str) -> Generator[tuple[int, Json]]:
    from distributed import as_completed  # noqa: PLC0415
    from distributed.scheduler import KilledWorker  # noqa: PLC0415

    keys = [[run, str(number)] for number in range(len(requests))]
    futures = client.map(
        *(attempt, requests, keys, [__version__] * len(requests)),
        key=[f"{run}-{number}" for number in range(len(requests))],
    )
    numbers = {future.key: number for number, future in enumerate(futures)}
    for future in as_completed(futures):
        number = numbers[future.key]
        problem = future.exception()
        if problem is None:
            yield number, future.result()
        elif isinstance(problem, KilledWorker):
            yield number, killed()
        else:
            text = " ".join(str(problem).split())[:300]
            yield number, pool.lost(f"{type(problem).__name__} on the cluster: {text}")
        future.release()


def _client(scheduler: str) -> Any:
    try:
        from distributed import Client  # noqa: PLC0415
    except ImportError:
        raise SettingsError(
            "--engine dask needs Dask: pip install 'bnfold[dask]' installs it"
        ) from None
    try:
        return Client(scheduler, timeout=_TIMEOUT)
    except (OSError, ValueError) as error:
        raise BnfoldError(
            f"no Dask scheduler at {scheduler}: {' '.join(str(error).split())[:200]}"
        ) from None
