"""The ServerApp: one federated arm over whichever sites a Grid reaches.

The simulation plays several arms through the same :class:`server.rounds.Arm`; a real
federation has only this one, because nobody there can pool images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import QuorumError, StudyError
from common.files import write_atomically
from common.study import Study
from common.study_personal import PERSONALISED
from server.asking import Link
from server.comparing import Found, compare_as_asked
from server.desk import CHECKPOINT, RESULTS
from server.events import EventLog, JsonLines
from server.examining import examine
from server.federated import Asked, results_json
from server.personal import has_own_models, own_json, test_own_models
from server.presence import survey
from server.reporting import write_pages
from server.results import arm_json, finish, write_model
from server.rounds import Arm
from server.survey import take
from server.survey_page import PAGE, write_page
from server.testing import SiteGone, test_model
from server.work import Work, quorum_of


def federate(link: Link, study: Study, out: Path, *, base: Path) -> dict[str, Any]:
    """Train ``study`` over the Grid's sites, test it, and write model and result to ``out``.

    Goes on from ``out``'s checkpoint where there is one. Raises :class:`QuorumError` when too few sites take part.
    """
    nodes = len(list(link.grid.get_node_ids()))
    answered = survey(link, study)
    if len(answered) < quorum_of(study, nodes):
        raise QuorumError(
            f"{len(answered)} of {nodes} sites answered, the quorum asks for {quorum_of(study, nodes)}; "
            "the events say what each of the others answered: mend them, then start again"
        )
    found = {alias: node for alias, (node, images) in answered.items() if images.get("train")}
    told = {alias: images for alias, (_, images) in answered.items() if alias in found}
    return train(link, study, found, out, base, Asked(told))


def train(
    link: Link, study: Study, sites: Mapping[str, int], out: Path, base: Path, asked: Asked | None = None
) -> dict[str, Any]:
    """Train and test ``study`` over ``sites`` (alias -> node id), all of which have training images.

    ``unpaid`` in the result names sites whose privacy budgets ended the run before its last round.
    """
    work = survey_first(link, study, sites, out, base)
    arm = finish(work, Arm(link, work).run())
    # Who no longer answered in the last round does not take part in the test either, and that is told.
    last = arm.progress.history[-1]["sites"]
    proof = "status" if study.metrics_suppressed else "evaluation"
    present = {site: node for site, node in sites.items() if last[site].get(proof) == "ok"}
    if present != sites:
        away = sorted(set(sites) - set(present))
        link.events.emit("alert", kind="site-lost", sites=away, why="absent from the last round and from the test")
    began, moved = link.clock(), 0
    tested = examined = None
    compared = Found()
    while tested is None:
        try:
            own_round = work.own_round(arm.progress.facts["kept_round"])
            found = test_model(
                link, work, arm.weights, arm.thresholds, present, own=present, outline=arm.outline, personal=own_round
            )
            examined = examine(link, work, arm.weights, arm.thresholds, present, personal=own_round)
            compared = compare_as_asked(link, arm, found, present)
            tested = found
        except SiteGone as gone:
            if len(present) <= work.quorum:
                raise
            present = {site: node for site, node in present.items() if site != gone.site}
            link.events.emit("alert", kind="site-lost", sites=[gone.site], why="left before the end of the test")
    absent = sorted(set(sites) - set(present))
    own = {
        site: {"test": {m: i.to_dict() for m, i in summary.overall.items()}} for site, summary in tested.sites.items()
    }
    arms = {"federated": arm_json(arm, tested, examined) | {"sites": own}}
    if has_own_models(arm):
        models = test_own_models(link, arm, present)
        if models.gone:
            why = "left before its own model was tested"
            link.events.emit("alert", kind="site-lost", sites=list(models.gone), why=why)
        arms[PERSONALISED] = own_json(arm, models)
        moved += models.bytes
    moved += sum(more.bytes for more in (tested, examined, compared) if more)
    unpaid = arm.progress.facts.get("unpaid", [])
    took = link.clock() - began
    result = results_json(arm, arms, asked or Asked(), tested, absent, moved=moved, testing_s=took)
    result |= compared.json(study)
    result |= {"unpaid": unpaid} if unpaid else {}
    write_model(out, arm)
    write_atomically(out / RESULTS, json.dumps(result, indent=1).encode())
    if not unpaid:
        link.events.emit("finished", arm="federated", test=result["arms"]["federated"]["test"])
    return result


def survey_first(link: Link, study: Study, sites: Mapping[str, int], out: Path, base: Path) -> Work:
    """What there is to train, with the survey's numbers; where the study has one, ``out/survey.html`` shows it."""
    if not sites:
        raise QuorumError("no site has training images for this study; see its events for what each site answered")
    work = Work(study, "federated", 0, sites, checkpoint=out / CHECKPOINT, base=base)
    found = take(link, work)
    if found is None:
        return work
    write_page(found, out / PAGE)
    return replace(work, basis=found.basis)


def study_of(context: Context) -> tuple[Study, Path]:
    """The study that Flower's run configuration names, and the folder it lies in."""
    named = context.run_config.get("study")
    if not named:
        raise StudyError("the run configuration names no study; add --run-config 'study=\"PATH\"'")
    path = Path(str(named))
    return Study.load(path), path.parent


def run_folder(context: Context) -> Path:
    """Where a run that Flower starts keeps its files: ``run`` of its configuration, or one folder per run id."""
    named = context.run_config.get("run")
    return Path(str(named)) if named else Path.home() / ".fedward" / "runs" / str(context.run_id)


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Entry point under a SuperLink."""
    study, base = study_of(context)
    out = run_folder(context)
    out.mkdir(parents=True, exist_ok=True)
    lines = JsonLines.append_to(out / "events.jsonl")
    try:
        federate(Link(grid, EventLog(lines)), study, out, base=base)
        write_pages(out)
    finally:
        lines.close()
