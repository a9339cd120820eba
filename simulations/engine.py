"""Engines: the same ServerApp and ClientApp on one machine.

``InProcessGrid`` is Flower's Grid over the ClientApp in this process, or in a pool of
worker processes with one resident model each. A message runs when its reply is asked
for, so one reply at a time is held, however many sites there are.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import Directories, Resident, handle
from common.errors import RunError
from simulations.runfolder import site_log

logger = logging.getLogger("fedward.simulations")

_worker_resident: Resident | None = None
_worker_log = contextlib.ExitStack()


def quiet() -> None:
    """Silence Flower's own account of each round; ours says it in one line."""
    logging.getLogger("flwr").setLevel(logging.ERROR)


def pin_threads(threads: int) -> None:
    """Use ``threads`` torch threads in this process, and as many in the libraries below it."""
    import torch

    torch.set_num_threads(threads)


def start_worker(threads: int, log: Path | None) -> None:
    """What a worker process does first. Ctrl-C is its parent's to handle; it ends when its parent does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_log.enter_context(site_log(log))
    pin_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed, so nobody else will end us


@contextlib.contextmanager
def no_signals() -> Iterator[None]:
    """Processes started in this block never see Ctrl-C, not even while they import: a mask is inherited."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(message: Message, directory: Path) -> Message:
    global _worker_resident
    _worker_resident = _worker_resident or Resident()
    return handle(message, lambda: directory, _worker_resident)


class InProcessGrid(Grid):
    """Flower's Grid without SuperLink, SuperNodes or Ray. Node ``1000 + i`` plays ``directories[i]``."""

    def __init__(
        self,
        directories: Sequence[Path],
        *,
        workers: int = 1,
        threads: int = 1,
        log: Path | None = None,
        resident: Resident | None = None,
    ) -> None:
        """``resident``: somebody's caches, used here and left open; otherwise this grid has its own."""
        self._directories = dict(enumerate(directories, start=1000))
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._pending: dict[str, Message] = {}
        self._futures: dict[str, tuple[Future[Message], Message]] = {}
        self._resident, self._lent = resident or Resident(), resident is not None
        self._pool: ProcessPoolExecutor | None = None
        self._workers = workers
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, start_worker, (threads, log))
        else:
            pin_threads(threads)
        quiet()
        # Flower stamps messages with the task that this process is; a simulation is its own.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._run = Run.create_empty(1)

    @property
    def resident(self) -> Resident:
        """This process's caches, for work that is not a message (the paired bootstrap's scores)."""
        return self._resident

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._directories)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; their records are read, never written, so nothing is copied."""
        ids = []
        for message in messages:
            id_ = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = id_
            with self._lock:
                self._pending[id_] = message
            ids.append(id_)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The next reply among ``message_ids``; works on it first where there is no pool."""
        wanted = list(message_ids)
        if self._pool is None:
            for id_ in wanted:
                message = self._pending.pop(id_, None)
                if message is not None:
                    return [self._here(message)]
            return []
        return self._pull_from_pool(wanted)

    def _here(self, message: Message) -> Message:
        return handle(message, lambda: self._directories[message.metadata.dst_node_id], self._resident)

    def _pull_from_pool(self, wanted: Sequence[str]) -> list[Message]:
        assert self._pool is not None
        with self._lock:
            # Hand over as many as keep the workers busy, so that 1,000 sites do not mean 1,000 replies in memory.
            for id_ in wanted:
                if len(self._futures) >= 2 * self._workers:
                    break
                message = self._pending.pop(id_, None)
                if message is not None:
                    directory = self._directories[message.metadata.dst_node_id]
                    try:
                        with no_signals():
                            future = self._pool.submit(_work, message, directory)
                    except BrokenProcessPool:
                        raise _worker_died() from None
                    self._futures[id_] = (future, message)
            mine = {id_: self._futures[id_] for id_ in wanted if id_ in self._futures}
        if not mine:
            return []
        wait([future for future, _ in mine.values()], timeout=0.5, return_when=FIRST_COMPLETED)
        replies = []
        for id_, (future, message) in mine.items():
            if future.done():
                with self._lock:
                    del self._futures[id_]
                replies.append(_result(future, message))
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All replies; the engines' own loop folds them as they arrive instead."""
        ids = set(self.push_messages(messages))
        replies: list[Message] = []
        while ids:
            for reply in self.pull_messages(list(ids)):
                ids.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def forget(self, message_ids: Iterable[str]) -> None:
        """Drop what nobody will ask for any more: a round that ended at its deadline must not block the next."""
        with self._lock:
            for id_ in message_ids:
                self._pending.pop(id_, None)
                future, _ = self._futures.pop(id_, (None, None))
                if future is not None:
                    future.cancel()

    def close(self) -> None:
        """End the workers and close the sites; a message in work is abandoned."""
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(5)
        if not self._lent:
            self._resident.close()


def _worker_died() -> RunError:
    return RunError(
        "a worker process was killed, perhaps for want of memory; finished rounds are kept: continue with --resume, "
        "and with fewer --workers"
    )


def _result(future: Future[Message], message: Message) -> Message:
    try:
        return future.result()
    except BrokenProcessPool:
        raise _worker_died() from None
    except Exception as error:
        logger.exception("a worker failed")
        reason = type(error).__name__
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


Result = TypeVar("Result")


_NODES_S = 120.0


def _await_nodes(grid: Grid, count: int) -> None:
    """Flower starts the ServerApp beside its nodes and not after them: wait until all have registered."""
    ends = time.monotonic() + _NODES_S
    while len(list(grid.get_node_ids())) < count:
        if time.monotonic() > ends:
            raise RunError(f"Flower's Ray simulation did not start its {count} nodes; run with --engine inprocess")
        time.sleep(0.02)


def run_on_ray(directories: Sequence[Path], play: Callable[[Grid], Result], *, workers: int = 1) -> Result:
    """Run ``play(grid)`` as the main of a ServerApp in Flower's own Ray simulation.

    Raises what ``play`` raises. Ray starts one actor per worker, each with one CPU.
    """
    import io
    import warnings

    os.environ.setdefault("RAY_DISABLE_METRICS_COLLECTION", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from client.app import make_app

    outcome: list[Result] = []
    failure: list[BaseException] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            _await_nodes(grid, len(directories))
            outcome.append(play(grid))
        except BaseException as error:
            failure.append(error)

    backend: dict[str, dict[str, Any]] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {
            "num_cpus": workers,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "error",
        },
    }
    quiet()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        run_simulation(server, make_app(Directories(directories)), len(directories), backend_config=backend)
    if failure:
        raise failure[0]
    if not outcome:
        raise RunError(
            "Flower's Ray simulation ended without a result; run again with --engine inprocess to see the cause"
        )
    return outcome[0]
