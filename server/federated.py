"""``results.json`` of a real federation's run: what its sites released, and who gave nothing.

The same shape as a simulation's, for the same report. What nobody there can know is null or not there: no image was
ever in one place, so there is no pooled arm, no hospital trained alone, and whether images are of patients is the
hospitals' word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.metrics import Summary
from common.study import Study
from server.results import Trained, head_json
from server.testing import Tested

ENGINE = "federation"
_SIGNS = ("without", "with")


@dataclass(frozen=True)
class Asked:
    """What the sites on the roster answered before the first round."""

    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Alias -> labelled images by split, of sites that take part; of a private study only whether there are any."""
    declined: Mapping[str, str] = field(default_factory=dict)
    """Alias -> code, of sites that do not."""
    federation: str = ""
    """Its name, where it has one."""

    def to_json(self) -> dict[str, Any]:
        """As a run keeps it: a site that comes back later in the run is not asked again."""
        return {"images": {site: dict(told) for site, told in self.images.items()}, "declined": dict(self.declined)}


def results_json(
    arm: Trained,
    arms: Mapping[str, Any],
    asked: Asked,
    tested: Tested,
    absent: Sequence[str],
    *,
    moved: int,
    testing_s: float,
) -> dict[str, Any]:
    """The result of a finished arm, with ``arms`` as they are told.

    ``absent``: sites whose training counts and whose test patients do not; ``moved``: bytes beside the rounds';
    ``testing_s``: seconds that testing took.
    """
    study, history = arm.work.study, arm.progress.history
    training_s = sum(record["wall_s"] for record in history)
    return {
        **head_json(study, 0),
        "synthetic": None,
        "source": f"federation {asked.federation}" if asked.federation else "a federation",
        "engine": ENGINE,
        "rounds": arm.progress.round,
        "bytes_sent": moved + sum(record["bytes"] for record in history),
        "sites": {site: _site(site, asked, tested, study) for site in sorted(arm.work.sites)},
        "arms": arms,
        "wall_s": round(training_s + testing_s, 3),
        "cpu_s": None,
        "phases": [
            {"name": "rounds", "wall_s": round(training_s, 3), "cpu_s": None},
            {"name": "testing", "wall_s": round(testing_s, 3), "cpu_s": None},
        ],
        "absent": list(absent),
        "declined": dict(sorted(asked.declined.items())),
        "trained": trained_by(history),
    }


def trained_by(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sites with a fit in the model, of at least one round: not whoever was refused or away in all of them."""
    return sorted({site for round_ in history for site, facts in round_["sites"].items() if facts["status"] == "ok"})


def _site(site: str, asked: Asked, tested: Tested, study: Study) -> dict[str, Any]:
    """One site's part, as it told it: images by split, test patients, and which classes it withheld of the test.

    Test images are those that were tested, whatever a site has.
    """
    told = {} if study.counts_kept else asked.images.get(site, {})
    images = {split: count for split, count in told.items() if count and split != "test"}
    found: dict[str, Any] = {"images": images, "patients": {}}
    summary = tested.sites.get(site)
    if summary is not None:
        found["images"]["test"] = summary.images
        found["patients"]["test"] = summary.patients
        found["withheld"] = list(_withheld(summary, study))
    return found


def _withheld(summary: Summary, study: Study) -> Iterator[list[str]]:
    for column, name in enumerate(study.scored_classes):
        for sign, word in enumerate(_SIGNS):
            if summary.withheld[column, sign]:
                yield [name, word]
