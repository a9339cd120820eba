"""The report of one run: its sections, from the verdict to the study file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from common.html import Banner, Block, Code, Details, Facts, Page, Paragraph, Row, Section
from server.report import (
    answers,
    calibration,
    central,
    contrasts,
    explained,
    fairness,
    figures,
    listings,
    mistakes,
    outlines,
    own_models,
    pairs,
    privacy,
    readers,
    robustness,
    secure,
    tables,
    taking_part,
    verdict,
)
from server.report.results import ARMS, Difference, Run
from server.report.words import (
    ARM_MEANINGS,
    arm_name,
    count,
    duration,
    plural,
    size,
)

_IMAGES = {True: "computer-made", False: "real images", None: "the hospitals' own images"}


def one_run(run: Run) -> Page:
    """The page of a single run."""
    sections = sections_of(run)
    strategy = run.setting("federation", "strategy", "name") or "federated"
    subtitle = (
        f"{plural(len(run.sites), 'hospital')}, {plural(run.rounds, 'round')} of {strategy}; "
        f"seed {run.seed}; {run.source}"
    )
    return Page(run.name, subtitle, banner([run]), sections, footer([run]))


def banner(runs: Sequence[Run]) -> Banner:
    """Synthetic or real, impossible to miss."""
    sources = ", ".join(dict.fromkeys(run.source for run in runs))
    kinds = {run.synthetic for run in runs}
    if kinds == {True}:
        return Banner(
            "synthetic",
            "Synthetic data",
            f"Source: {sources}. Computer-made images, no patient among them. The numbers show that the method runs; "
            "they say nothing about any disease.",
        )
    if None in kinds and True not in kinds:
        return Banner(
            "real",
            "Hospitals' own images",
            f"Source: {sources}. The images never left the hospitals, whose word it is what they show. Research "
            "result; not for use on patients.",
        )
    if kinds == {False}:
        return Banner("real", "Real images", f"Source: {sources}. Research result; not for use on patients.")
    return Banner(
        "mixed",
        "Synthetic and real data",
        f"Sources: {sources}. Some of these images are computer-made.",
    )


def footer(runs: Sequence[Run]) -> str:
    versions = ", ".join(dict.fromkeys(run.version for run in runs))
    hashes = ", ".join(dict.fromkeys(run.study_hash[:16] for run in runs[:8]))
    return f"Written by fedward {versions}. Study {hashes}. Research software: not a medical device."


def sections_of(run: Run, drawn: bool = True, prefix: str = "") -> list[Section]:
    """All sections of one run; ``prefix`` keeps the figures' ids apart on a page of several runs."""
    sections = [
        Section("answers", "Three questions", answers.blocks(run)),
        Section("verdict", "The model in numbers" if run.at_hospitals else "Did federating pay off?", _verdict(run)),
        Section("taking-part", "Who took part", taking_part.blocks(run)),
        Section("outlines", "How well does it outline?", outlines.blocks(run, drawn, prefix)),
        Section("hospitals", "Hospital by hospital", _hospitals(run)),
        Section("own-models", "What each hospital would run", own_models.blocks(run)),
        Section("metrics", "All metrics", _metrics(run)),
        Section("differences", "Differences between the arms", _differences(run, drawn, prefix)),
        Section("pairs", "Are the models really different?", pairs.blocks(run)),
        Section("readers", "Against human readers", readers.blocks(run)),
        Section("curves", "ROC and learning curves", _curves(run, prefix) if drawn else []),
        Section("calibration", "Are scores probabilities?", calibration.blocks(run, drawn, prefix)),
        Section("groups", "For whom does it work?", fairness.blocks(run, drawn, prefix)),
        Section("mistakes", "What does it get wrong?", mistakes.blocks(run)),
        Section("robustness", "What if the images are worse?", robustness.blocks(run, drawn, prefix)),
        Section("confusion", "Confusion matrices", _confusion(run)),
        Section("explained", "What did it look at?", explained.blocks(run.explained, run.confidence)),
        Section("data", "Who holds what", _data(run, drawn, prefix)),
        Section("privacy", "What protects each patient", privacy.blocks(run)),
        Section("secure-aggregation", "What hides each hospital's update", secure.blocks(run)),
        Section("central-privacy", "What protects each hospital", central.blocks(run)),
        Section("failures", "Refused replies and failures", _failures(run)),
        Section("unreadable", "Unreadable images", [listings.unreadable(run)] if run.unreadable else []),
        Section("cost", "Time and traffic", _cost(run)),
        Section("provenance", "How to repeat it", _provenance(run)),
    ]
    return [section for section in sections if section.blocks]


def _verdict(run: Run) -> list[Block]:
    metric = contrasts.main_metric(run)
    said = [] if run.at_hospitals else verdict.statements(run)
    blocks: list[Block] = [*said, verdict.tiles(run)]
    if any(h.gain_everyone for h in contrasts.hospitals(run, metric)):
        blocks.append(tables.gains(run, metric))
    meaning = verdict.explanation(metric, judged=not run.at_hospitals)
    return [*blocks, *([Paragraph(meaning, "muted")] if meaning else [])]


def _hospitals(run: Run) -> list[Block]:
    if not any(arm.own for arm in run.arms.values()):
        return []
    metric = contrasts.main_metric(run)
    sides = "Left, the patients the hospital itself will see; right, whether its model holds for everyone else's. "
    local = run.arms.get("local")
    blocks: list[Block] = [
        Paragraph(
            f"{sides if local is not None and local.everyone else ''}"
            "Small hospitals have wide intervals: read them before the values."
        )
    ]
    many = len(run.sites) > contrasts.MANY_SITES
    if many:
        blocks.append(tables.spread(run, metric))
    blocks.append(tables.per_hospital(run, metric))
    others = [m for m in contrasts.metrics_of(run) if m != metric]
    if others:
        inner: list[Block] = [tables.spread(run, m) if many else tables.per_hospital(run, m) for m in others]
        blocks.append(Details("The same for every other metric", inner))
    return blocks


def _metrics(run: Run) -> list[Block]:
    blocks: list[Block] = [
        tables.overall(run),
        Facts([(arm_name(name), ARM_MEANINGS[name]) for name in run.arms if name in ARM_MEANINGS], wide=True),
    ]
    table = tables.per_class(run)
    if table is not None:
        blocks.append(Details("Each class by itself", [table]) if len(table.rows) > 3 * len(ARMS) else table)
    return blocks


def _differences(run: Run, drawn: bool, prefix: str) -> list[Block]:
    metric = contrasts.main_metric(run)
    chosen = [d for d in run.differences if d.metric == metric and d.interval.value is not None]
    if not chosen:
        return []
    everyone = _cut(run, metric, [d for d in chosen if d.on == "all"])
    own = _cut(run, metric, [d for d in chosen if d.on != "all"])
    blocks: list[Block] = [
        Paragraph(
            "Right of zero the federated model is better. A filled square means that the interval leaves out zero. "
            "Both models see the same test patients, so the comparison is paired."
        )
    ]
    if drawn:
        plots = [
            figures.forest(run, group, title, f"{prefix}forest-{name}")
            for name, group, title in (
                ("all", everyone, "On everyone's test patients"),
                ("own", own, "On each hospital's own test patients"),
            )
            if group
        ]
        blocks.append(Row(plots))
    blocks.append(Details("These differences as numbers", [tables.differences_table(run, [*everyone, *own])]))
    others = [d for d in run.differences if d.metric != metric and d.on == "all"]
    if others:
        blocks.append(
            Details("Differences in other metrics, everyone's patients", [tables.differences_table(run, others[:60])])
        )
    return blocks


def _cut(run: Run, metric: str, found: Sequence[Difference]) -> list[Difference]:
    """Pooled first, then the hospitals, of which only the ends when they are many."""
    by_site = {d.b.removeprefix("local:"): d for d in found if d.b.startswith("local:")}
    kept = contrasts.ends(run, metric, list(by_site))
    rest = [d for d in found if not d.b.startswith("local:")]
    return rest[: contrasts.MANY_SITES] + [by_site[site] for site in kept]


def _curves(run: Run, prefix: str) -> list[Block]:
    found = [*figures.roc(run, prefix), *figures.learning(run, prefix)]
    return [Row(found)] if found else []


def _confusion(run: Run) -> list[Block]:
    found = [table for arm in run.arms.values() for table in tables.confusion(arm.model, run.classes, arm.name)]
    if not found:
        return []
    lead = Paragraph(
        "Everyone's test images at the operating threshold chosen on validation. Rows are the truth, columns what the "
        "model said; the tint and the percentage are shares of the row."
    )
    if len(found) <= 4:
        return [lead, Row(found)]
    return [lead, Row(found[:2]), Details("The other confusion matrices", [Row(found[2:80])])]


def _data(run: Run, drawn: bool, prefix: str) -> list[Block]:
    names = list(run.sites)
    if not any(site.images for site in run.sites.values()):
        return [Paragraph("How many images a hospital has, it keeps to itself in a study with differential privacy.")]
    if len(names) > contrasts.MANY_SITES:
        ranked = sorted(names, key=lambda name: sum(run.sites[name].images.values()), reverse=True)
        names = ranked[: contrasts.ENDS] + ranked[-contrasts.ENDS :]
    table = listings.partition(run, names)
    blocks: list[Block] = [Row([figures.partition(run, names, prefix), table]) if drawn else table]
    if notes := _notes(run):
        blocks.append(Paragraph(notes, "muted"))
    return blocks + _heterogeneity(run)


def _notes(run: Run) -> str:
    notes = []
    if run.images_without_patient:
        notes.append(
            f"{plural(run.images_without_patient, 'image')} came without a patient's number; each counts as a patient "
            "of its own, so intervals may be too narrow."
        )
    if run.unlabelled:
        notes.append(f"{plural(run.unlabelled, 'image')} had no usable label and took no part.")
    notes += [f"{note}." for note in run.notes]
    return " ".join(notes)


def _heterogeneity(run: Run) -> list[Block]:
    found = run.heterogeneity
    if found is None:
        return []
    inner: list[Block] = [
        listings.pairs(values, list(run.sites), caption)
        for values, caption in (
            (found.label_js_pairs, "Label distance between every two hospitals"),
            (found.feature_shift_pairs, "Feature shift between every two hospitals"),
        )
        if 1 < len(values) <= contrasts.MANY_SITES
    ]
    return [listings.heterogeneity(found), *([Details("Between every two hospitals", inner)] if inner else [])]


def _failures(run: Run) -> list[Block]:
    if not run.refusals:
        return []
    sites = len({refusal.site for refusal in run.refusals})
    replies = plural(len(run.refusals), "reply").replace("replys", "replies")
    return [
        Paragraph(
            f"{replies} from {plural(sites, 'hospital')} did not count: refused before touching the model, or never "
            "sent. The rounds went on without them because the quorum was met."
        ),
        listings.refusals(run),
    ]


def _cost(run: Run) -> list[Block]:
    per_round = run.bytes_sent / max(run.rounds, 1)
    return [
        Row(
            [
                listings.phases(run),
                Facts(
                    [
                        ("Sent between server and hospitals", size(run.bytes_sent)),
                        ("Per round", size(round(per_round))),
                        ("Per hospital and round", size(round(per_round / max(len(run.sites), 1)))),
                        ("Clock", duration(run.wall_s)),
                        *([] if run.cpu_s is None else [("Processor time", duration(run.cpu_s))]),
                    ]
                ),
            ]
        )
    ]


def _provenance(run: Run) -> list[Block]:
    kept = "; ".join(
        f"{arm_name(arm.name)}: round {count(arm.model.kept_round)} of {count(arm.model.rounds)}"
        f"{', stopped early' if arm.model.stopped_early else ''}"
        for arm in run.arms.values()
        if arm.model.kept_round is not None
    )
    facts = [
        ("Study", run.name),
        ("Study hash", run.study_hash),
        ("Data", f"{run.source}; {_IMAGES[run.synthetic]}"),
        ("Seed, repeat", f"{run.seed}, {run.repeat + 1}"),
        *_machines(run),
        *([] if run.study.get("privacy") or run.study.get("central_privacy") else [("Differential privacy", "none")]),
        ("fedward", run.version),
        *([("Weights kept", kept)] if kept else []),
        *run.environment.items(),
    ]
    return [Facts(facts), Details("The study file", [Code(study_text(run))])]


def _machines(run: Run) -> list[tuple[str, str]]:
    if run.at_hospitals:
        return [("Trained by", "the hospitals, each on its own machine and its own images")]
    engine = f"{run.engine}, {plural(run.workers, 'worker')}, {plural(run.threads, 'thread')} each"
    return [("Engine", engine), ("Device", run.device)]


def study_text(run: Run) -> str:
    """The study as YAML, its keys in their own order."""
    import yaml

    plain = json.loads(json.dumps(run.study))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
