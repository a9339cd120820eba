"""All that a reproduction found, as its page shows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.report.words import listing, plural
from simulations.reproduce.beside import Beside, Results
from simulations.reproduce.confounding import Confounding
from simulations.reproduce.latency import Latency
from simulations.reproduce.playing import Order
from simulations.reproduce.stages import Worth

SYNTHETIC = "SYNTHETIC phantoms: not the paper's result"


@dataclass(frozen=True)
class Found:
    """All that a reproduction found."""

    order: Order
    results: Results
    tables: Sequence[Beside]
    worths: Sequence[Worth]
    latencies: Sequence[Latency]
    confounded: Confounding | None
    command: str

    @property
    def synthetic(self) -> bool:
        """Whether a figure beside the paper's was measured on phantoms."""
        beside = {row.ours.run for printed in self.order.paper.published for row in printed.rows if row.ours}
        return any(run.synthetic for name in beside & set(self.results) for run in self.results[name])

    @property
    def sources(self) -> str:
        """What our figures were measured on, for the head of their column."""
        if self.synthetic:
            return SYNTHETIC
        runs = [runs[0] for runs in self.results.values() if not runs[0].synthetic]
        largest = max(runs, key=lambda run: sum(sum(site.images.values()) for site in run.sites.values()))
        images = sum(sum(site.images.values()) for site in largest.sites.values())
        return f"real images: {listing(dict.fromkeys(run.source for run in runs))} ({plural(images, 'image')})"
