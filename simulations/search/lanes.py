"""Worker processes, one fit each at a time. A process that dies takes its own fit with it and no other."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from simulations.engine import no_signals, start_worker
from simulations.search.fit import Fit, Job, Outcome, Trainer

_trainer: Trainer | None = None
_KILLED = "its worker process was killed twice, perhaps for want of memory; use fewer --workers, or smaller values"


def _work(job: Job) -> Outcome:
    global _trainer
    _trainer = _trainer or Trainer()
    return _trainer.fit(job)


class Lanes:
    """As many processes as there are workers; each is a pool of one, so that a killed one leaves the others alone."""

    def __init__(self, workers: int, threads: int, log: Path) -> None:
        self._threads, self._log = threads, log
        self._pools: list[ProcessPoolExecutor | None] = [None] * workers
        self._running: dict[Future[Outcome], tuple[int, Job]] = {}
        self._died: set[tuple[int, int]] = set()

    @property
    def free(self) -> bool:
        return len(self._running) < len(self._pools)

    @property
    def jobs(self) -> set[tuple[int, int]]:
        """Trial and fold of what is in work."""
        return {(job.trial, job.fold) for _, job in self._running.values()}

    def start(self, job: Job) -> None:
        """Hand ``job`` to a free worker."""
        busy = {lane for lane, _ in self._running.values()}
        self._start(next(lane for lane in range(len(self._pools)) if lane not in busy), job)

    def _start(self, lane: int, job: Job) -> None:
        pool = self._pools[lane]
        if pool is None:
            context = multiprocessing.get_context("spawn")
            pool = self._pools[lane] = ProcessPoolExecutor(1, context, start_worker, (self._threads, self._log))
        try:
            with no_signals():
                self._running[pool.submit(_work, job)] = lane, job
        except BrokenProcessPool:  # it died while it had nothing to do
            self._pools[lane] = None
            self._start(lane, job)

    def finished(self) -> list[Outcome]:
        """Wait until a fit is over. One whose process died is tried once more, then it has failed."""
        done, _ = wait(self._running, return_when=FIRST_COMPLETED)
        outcomes = []
        for future in done:
            lane, job = self._running.pop(future)
            try:
                outcomes.append(future.result())
            except BrokenProcessPool:
                pool, self._pools[lane] = self._pools[lane], None
                if pool is not None:
                    pool.shutdown(wait=False)
                if (job.trial, job.fold) in self._died:
                    outcomes.append(Outcome(Fit(job.trial, job.fold, "failed", _KILLED)))
                else:
                    self._died.add((job.trial, job.fold))
                    self._start(lane, job)
        return outcomes

    def close(self) -> None:
        """End the workers; a fit in work is abandoned."""
        for pool in self._pools:
            if pool is None:
                continue
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(5)
