"""The report of one run: its sections, from the verdict to the study file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from common.html import Banner, Block, Code, Details, Facts, Figure, Heading, Page, Paragraph, Row, Section
from server.report import charts, tables, verdict
from server.report.results import ARMS, Arm, Difference, Run
from server.report.words import (
    ARM_MEANINGS,
    arm_name,
    count,
    duration,
    in_sentence,
    level,
    number,
    plural,
    size,
)

FAINT_LIMIT = 10
"""More hospitals alone than this are not drawn one by one."""


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
            f"Computer-made images ({sources}), no patient among them. The numbers show that the method runs; "
            "they say nothing about any disease.",
        )
    if kinds == {False}:
        return Banner("real", "Real images", f"Source: {sources}. Research result; not for use on patients.")
    return Banner(
        "mixed", "Synthetic and real data", f"Some of these runs used computer-made images ({sources}); do not mix them."
    )


def footer(runs: Sequence[Run]) -> str:
    versions = ", ".join(dict.fromkeys(run.version for run in runs))
    hashes = ", ".join(dict.fromkeys(run.study_hash[:16] for run in runs[:8]))
    return f"Written by fedward {versions}. Study {hashes}. Research software: not a medical device."


def sections_of(run: Run, figures: bool = True, prefix: str = "") -> list[Section]:
    """All sections of one run; ``prefix`` keeps the figures' ids apart on a page of several runs."""
    sections = [
        Section("verdict", "Did federating pay off?", _verdict(run)),
        Section("hospitals", "Hospital by hospital", _hospitals(run)),
        Section("metrics", "All metrics", _metrics(run)),
        Section("differences", "Differences between the arms", _differences(run, figures, prefix)),
        Section("curves", "ROC and learning curves", _curves(run, prefix) if figures else []),
        Section("confusion", "Confusion matrices", _confusion(run)),
        Section("data", "Who holds what", _data(run, figures, prefix)),
        Section("failures", "Refused replies and failures", _failures(run)),
        Section("unreadable", "Unreadable images", [tables.unreadable(run)] if run.unreadable else []),
        Section("cost", "Time and traffic", _cost(run)),
        Section("provenance", "How to repeat it", _provenance(run)),
    ]
    return [section for section in sections if section.blocks]


def _verdict(run: Run) -> list[Block]:
    metric = verdict.main_metric(run)
    blocks: list[Block] = [*verdict.statements(run), verdict.tiles(run)]
    if any(h.gain_everyone for h in tables.hospitals(run, metric)):
        blocks.append(tables.gains(run, metric))
    blocks.append(Paragraph(verdict.explanation(metric), "muted"))
    return blocks


def _hospitals(run: Run) -> list[Block]:
    if not any(arm.own for arm in run.arms.values()):
        return []
    metric = verdict.main_metric(run)
    blocks: list[Block] = [
        Paragraph(
            "Left, the patients the hospital itself will see; right, whether its model holds for everyone else's. "
            "Small hospitals have wide intervals: read them before the values."
        )
    ]
    many = len(run.sites) > tables.MANY_SITES
    if many:
        blocks.append(tables.spread(run, metric))
    blocks.append(tables.per_hospital(run, metric))
    others = [m for m in tables.metrics_of(run) if m != metric]
    if others:
        inner: list[Block] = [tables.spread(run, m) if many else tables.per_hospital(run, m) for m in others]
        blocks.append(Details("The same for every other metric", inner))
    return blocks


def _metrics(run: Run) -> list[Block]:
    blocks: list[Block] = [
        tables.overall(run),
        Facts([(arm_name(name), ARM_MEANINGS[name]) for name in run.arms if name in ARM_MEANINGS]),
    ]
    table = tables.per_class(run)
    if table is not None:
        blocks.append(Details("Each class by itself", [table]) if len(table.rows) > 3 * len(ARMS) else table)
    return blocks


def _differences(run: Run, figures: bool, prefix: str) -> list[Block]:
    metric = verdict.main_metric(run)
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
    axis = f"Difference in {in_sentence(metric)} ({level(run.confidence)} interval)"
    drawn: list[Block] = []
    for name, group, title in (
        ("all", everyone, "On everyone's test patients"),
        ("own", own, "On each hospital's own test patients"),
    ):
        if figures and group:
            effects = [charts.Effect(_effect_label(d), d.interval, _effect_colour(d)) for d in group]
            drawn.append(
                Figure(
                    charts.svg(charts.forest(effects, title, axis), f"{prefix}forest-{name}"),
                    f"Forest plot. {title}: " + "; ".join(_effect_words(d) for d in group[:12]),
                    f"{title}: federated minus the arm named at the left.",
                )
            )
    if drawn:
        blocks.append(Row(drawn))
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
    kept = tables.ends(run, metric, list(by_site))
    rest = [d for d in found if not d.b.startswith("local:")]
    return rest[: tables.MANY_SITES] + [by_site[site] for site in kept]


def _effect_label(difference: Difference) -> str:
    other = difference.b.removeprefix("local:")
    if difference.b.startswith("local:"):
        return f"against {other} alone" if difference.on == "all" else other
    against = f"against {arm_name(difference.b).lower()}"
    return against if difference.on == "all" else f"{difference.on}, {against}"


def _effect_colour(difference: Difference) -> str:
    return charts.ARM_COLOURS.get("local" if difference.b.startswith("local:") else difference.b, charts.FEDERATED)


def _effect_words(difference: Difference) -> str:
    i = difference.interval
    return f"{_effect_label(difference)} {number(i.value)}, {number(i.low)} to {number(i.high)}"


def _curves(run: Run, prefix: str) -> list[Block]:
    drawn: list[Block] = []
    for index, name in enumerate(_roc_classes(run)[:8]):
        lines = _roc_lines(run, name)
        title = f"ROC: {name}"
        shown = "; ".join(
            f"{arm_name(arm.name)} AUC {number(interval.value)}"
            for arm in run.arms.values()
            if (interval := arm.model.per_class.get(name, arm.model.test).get("auc")) is not None
        )
        faint = any(line.faint for line in lines)
        drawn.append(
            Figure(
                charts.svg(charts.roc(lines, title), f"{prefix}roc-{index}"),
                f"ROC curves for {name}. {shown}",
                f"On everyone's test patients.{' Thin: each hospital alone.' if faint else ''} The diagonal is guessing.",
            )
        )
    histories = _histories(run)
    for key, title, what in (
        ("val_auc", "Validation AUC", "area under the ROC curve on validation images"),
        ("val_loss", "Validation loss", "loss on validation images"),
        ("train_loss", "Training loss", "mean loss on training images"),
    ):
        shown = [h for h in histories if any(getattr(e, key) is not None for e in h.entries)]  # type: ignore[assignment]
        if shown and not (key == "val_loss" and any(e.val_auc is not None for h in histories for e in h.entries)):
            drawn.append(
                Figure(
                    charts.svg(charts.learning(shown, key, title), f"{prefix}learning-{key}"),  # type: ignore[arg-type]
                    f"{title} by round for the arms {', '.join(arm_name(n) for n in run.arms)}: {what}.",
                    f"{title}: {what}. A ring marks the round whose weights were kept.",
                )
            )
    return [Row(drawn)] if drawn else []


def _roc_classes(run: Run) -> list[str]:
    names = {name for arm in run.arms.values() for name, curve in arm.model.roc.items() if curve.fpr}
    ordered = [name for name in run.classes if name in names] + sorted(names - set(run.classes))
    # Two classes mirror each other: the positive one tells all.
    return ordered[-1:] if run.task == "binary" else ordered


def _roc_lines(run: Run, name: str) -> list[charts.Line]:
    lines = [
        charts.Line(_with_auc(arm, name), arm.name, curve)
        for arm in run.arms.values()
        if (curve := arm.model.roc.get(name)) is not None
    ]
    local = run.arms.get("local")
    if local is not None and len(local.alone) <= FAINT_LIMIT:
        alone = [scores.roc[name] for scores in local.alone.values() if name in scores.roc]
        label = "" if any(line.arm == "local" for line in lines) else "Each hospital alone"
        lines += [charts.Line(label if not i else "", "local", curve, faint=True) for i, curve in enumerate(alone)]
    return lines


def _with_auc(arm: Arm, name: str) -> str:
    interval = arm.model.per_class.get(name, arm.model.test).get("auc")
    value = f" (AUC {number(interval.value)})" if interval is not None and interval.value is not None else ""
    return f"{arm_name(arm.name)}{value}"


def _histories(run: Run) -> list[charts.History]:
    found = [
        charts.History(arm_name(arm.name), arm.name, arm.model.history, arm.model.kept_round)
        for arm in run.arms.values()
        if arm.model.history
    ]
    local = run.arms.get("local")
    if local is not None and len(local.alone) <= FAINT_LIMIT:
        alone = [scores for scores in local.alone.values() if scores.history]
        label = "" if local.model.history else "Each hospital alone"
        found += [
            charts.History(label if not i else "", "local", scores.history, faint=True) for i, scores in enumerate(alone)
        ]
    return found


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


def _data(run: Run, figures: bool, prefix: str) -> list[Block]:
    names = list(run.sites)
    many = len(names) > tables.MANY_SITES
    if many:
        ranked = sorted(names, key=lambda name: sum(run.sites[name].images.values()))
        shown = ranked[-tables.ENDS :][::-1] + ranked[: tables.ENDS][::-1]
    else:
        shown = names
    blocks: list[Block] = []
    if figures:
        title = f"Images by class: the {tables.ENDS} largest and {tables.ENDS} smallest" if many else "Images by class"
        chosen = {name: run.sites[name] for name in shown}
        figure = Figure(
            charts.svg(charts.partition(chosen, run.classes, title), f"{prefix}partition"),
            f"Stacked bars of the images of each class at {plural(len(chosen), 'hospital')}, by split; "
            "the table beside it has the numbers.",
            "One group of bars per hospital: training, validation and test images, by class."
            + (" An image with several findings counts once for each." if run.task == "multilabel" else ""),
        )
        blocks.append(Row([figure, tables.partition(run, shown)]))
    else:
        blocks.append(tables.partition(run, shown))
    notes = _notes(run)
    if notes:
        blocks.append(Paragraph(notes, "muted"))
    return blocks + _heterogeneity(run)


def _notes(run: Run) -> str:
    notes = []
    if run.images_without_patient:
        notes.append(
            f"{plural(run.images_without_patient, 'image')} came without a patient's number; each counts as a patient of "
            "its own, so intervals may be too narrow."
        )
    if run.unlabelled:
        notes.append(f"{plural(run.unlabelled, 'image')} had no usable label and took no part.")
    return " ".join(notes)


def _heterogeneity(run: Run) -> list[Block]:
    found = run.heterogeneity
    if found is None:
        return []
    items = []
    if found.label_js is not None:
        items.append(
            (
                f"Labels: {number(found.label_js)}{_reference(found.label_js_iid)}",
                "Jensen–Shannon divergence between the hospitals' class shares: 0 when every hospital sees the same mix "
                "of findings, 1 when no two share one.",
            )
        )
    if found.size_gini is not None:
        items.append(
            (
                f"Sizes: {number(found.size_gini)}",
                "Gini coefficient of the numbers of training images: 0 when all hospitals are equally large, near 1 when "
                "one holds almost everything.",
            )
        )
    if found.feature_shift is not None:
        items.append(
            (
                f"Images: {number(found.feature_shift)}{_reference(found.feature_shift_iid)}",
                "Feature shift, a distance between the looks of the hospitals' images (brightness, contrast, sharpness): "
                "0 when one could not tell from an image where it was taken.",
            )
        )
    if not items:
        return []
    blocks: list[Block] = [Heading("How unlike the hospitals are"), Facts(items)]
    inner: list[Block] = [
        tables.pairs(values, list(run.sites), caption)
        for values, caption in (
            (found.label_js_pairs, "Label divergence between every two hospitals"),
            (found.feature_shift_pairs, "Feature shift between every two hospitals"),
        )
        if 1 < len(values) <= tables.MANY_SITES
    ]
    if inner:
        blocks.append(Details("Between every two hospitals", inner))
    return blocks


def _reference(iid: float | None) -> str:
    return f" (dealt at random it would be {number(iid)})" if iid is not None else ""


def _failures(run: Run) -> list[Block]:
    if not run.refusals:
        return []
    sites = len({refusal.site for refusal in run.refusals})
    replies = plural(len(run.refusals), "reply").replace("replys", "replies")
    return [
        Paragraph(
            f"{replies} from {plural(sites, 'hospital')} did not count: refused before touching the model, or never sent. "
            "The rounds went on without them because the quorum was met."
        ),
        tables.refusals(run),
    ]


def _cost(run: Run) -> list[Block]:
    per_round = run.bytes_sent / max(run.rounds, 1)
    return [
        Row(
            [
                tables.phases(run),
                Facts(
                    [
                        ("Sent by the federated arm", f"{size(run.bytes_sent)}, both ways"),
                        ("Per round", size(round(per_round))),
                        ("Per hospital and round", size(round(per_round / max(len(run.sites), 1)))),
                        ("Clock", duration(run.wall_s)),
                        ("Processor time", duration(run.cpu_s)),
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
        ("Data", f"{run.source} ({'synthetic' if run.synthetic else 'real'})"),
        ("Seed, repeat", f"{run.seed}, {run.repeat + 1}"),
        ("Engine", f"{run.engine}, {plural(run.workers, 'worker')}, {plural(run.threads, 'thread')} each"),
        ("Device", run.device),
        ("fedward", run.version),
        *([("Weights kept", kept)] if kept else []),
        *run.environment.items(),
    ]
    return [Facts(facts), Details("The study file", [Code(study_text(run))])]


def study_text(run: Run) -> str:
    """The study as YAML, its keys in their own order."""
    import yaml

    plain = json.loads(json.dumps(run.study))
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)


