"""The page of a reproduction: the answer, the paper's tables beside ours, what each stage is worth, what differs."""

from __future__ import annotations

from collections.abc import Sequence

from common.html import (
    Banner,
    Block,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Heading,
    Page,
    Paragraph,
    Section,
    Statement,
    Table,
)
from server.report.intervals import Interval
from server.report.page import study_text
from server.report.words import (
    arm_name,
    bounds,
    count,
    duration,
    in_sentence,
    level,
    listing,
    metric_name,
    number,
    plural,
    signed,
    verdict_cell,
)
from simulations.reproduce import own_tables
from simulations.reproduce.beside import Beside, Line, Measured
from simulations.reproduce.found import Found
from simulations.reproduce.stages import Worth

TEXT = False


def page_of(found: Found) -> Page:
    """The page; one file that needs no other."""
    paper = found.order.paper
    sections = [
        Section("answer", "The paper beside fedward", _answer(found)),
        Section("tables", "The paper's tables, and ours", [_table(found, one) for one in found.tables]),
        Section("stages", "What the system's stages are worth", _stages(found)),
        Section("confounding", "What the kind of image tells by itself", own_tables.confounding(found)),
        Section("comparisons", "Ours against ours", own_tables.comparisons(found)),
        Section("latency", "Time a case", own_tables.latency(found)),
        Section("differs", "What differs, and why", _differs(found)),
        Section("runs", "What was run", _runs(found)),
    ]
    version = next(iter(found.results.values()))[0].version
    return Page(
        f"Paper {paper.paper}: {paper.title}",
        f"{paper.authors}. {paper.published_in}.",
        _banner(found),
        [section for section in sections if section.blocks],
        f"Written by fedward {version}. Research software: not a medical device.",
    )


def _banner(found: Found) -> Banner:
    if found.synthetic:
        return Banner(
            "synthetic",
            "Synthetic data",
            "Computer-made images, no patient among them. These numbers show that the paper's system runs here; they "
            "are not the paper's result and say nothing about any disease.",
        )
    return Banner("real", "Real images", "Research result on public images; not for use on patients.")


def _answer(found: Found) -> list[Block]:
    paper = found.order.paper
    blocks: list[Block] = []
    lines = [line for table in found.tables for line in table.lines]
    known = [line for line in lines if line.measured is not None]
    if known:
        first = next((line for line in known if line.published.headline), known[0])
        told = f"{first.published.what}: the paper printed {_printed(first)}, here {_ours(first).text}"
        interval = own_tables.interval_text(first.measured)
        where = "on synthetic phantoms, which is not the paper's result" if found.synthetic else "on real images"
        blocks.append(
            Statement(
                f"{told}{f' ({interval})' if interval else ''} {where}.",
                f"Split by patient, trained federated. {len(known)} of the paper's {len(lines)} figures have one of "
                "ours beside them; for the others the table says why not. The two columns come from different "
                "protocols: what differs is listed below, and no figure here is a test of the paper's.",
                "unsure" if found.synthetic else "",
            )
        )
    blocks.append(Paragraph(paper.system))
    if found.confounded is not None:
        blocks.append(Paragraph(own_tables.confounding_sentence(found.confounded)))
    for worth in found.worths:
        if worth.differences:
            blocks.append(Paragraph(_worth_sentence(worth)))
    return blocks


def _worth_sentence(worth: Worth) -> str:
    first = worth.differences[0]
    interval = Interval(first.value, first.low, first.high)
    metric = in_sentence(worth.stage.metric)
    said = verdict_cell(interval).text.lstrip("▲▼● ")
    more = f"; {plural(len(worth.differences), 'seed')} in the table" if len(worth.differences) > 1 else ""
    return f"{worth.stage.title}: {signed(first.value)} {metric} ({bounds(interval, sign=True) or '—'}), {said}{more}."


def _table(found: Found, one: Beside) -> Table:
    """Paper and ours; each column's head says how its figures came about."""
    paper = found.order.paper
    rows = [
        [Cell(line.published.what, small=_place(line)), Cell(_printed(line)), _ours(line), Cell(_sure(line.measured))]
        for line in one.lines
    ]
    return Table(
        f"{one.printed.caption} ({one.printed.where})",
        [
            Column("Figure", numeric=TEXT),
            Column(f"Paper: {paper.theirs.data}; {paper.theirs.split}; {paper.theirs.trained}", numeric=TEXT),
            Column(f"fedward: {found.sources}; {paper.ours.split}; {paper.ours.trained}", numeric=TEXT),
            Column(
                f"How sure ours is: {level(_confidence(found))} interval by patient, range over seeds", numeric=TEXT
            ),
        ],
        rows,
        "Rates in [0, 1]. With several seeds ours is their mean, and the interval that of the first. Thresholds were "
        "chosen on validation images only, and the test images were read once.",
    )


def _sure(measured: Measured | None) -> str:
    seeds = own_tables.range_text(measured)
    return "; seeds ".join(filter(None, (own_tables.interval_text(measured), seeds))) or "—"


def _place(line: Line) -> str:
    ours = line.published.ours
    if ours is None:
        return ""
    label = f", {ours.label}" if ours.label else ""
    return f"ours: run {ours.run}, {arm_name(ours.arm).lower()}{label}"


def _printed(line: Line) -> str:
    unit = line.published.unit
    if unit == "ms":
        return f"{line.published.value:g} ms"
    return number(line.published.value, 4 if unit == "loss" else 3)


def _ours(line: Line) -> Cell:
    if line.measured is None:
        return Cell(f"— {line.reason}", tone="muted")
    unit = line.published.unit
    if unit == "ms":
        return Cell(f"{line.measured.value:.3g} ms")
    return Cell(number(line.measured.value, 4 if unit == "loss" else 3))


def _confidence(found: Found) -> float:
    return next(iter(found.results.values()))[0].confidence


def _stages(found: Found) -> list[Block]:
    if not found.worths:
        return []
    return [
        Paragraph(
            "Each stage by its ablation: the same study with it and without it, tested on the same patients; the "
            "difference is with minus without, by paired bootstrap over patients. Several stages are looked at, so one "
            "interval in twenty leaves out zero by chance."
        ),
        Table(
            f"With a stage and without it, {level(_confidence(found))} intervals",
            [
                Column("Stage", numeric=TEXT),
                Column("Metric, seed", numeric=TEXT),
                Column("Difference"),
                Column("Interval"),
                Column("With it is", numeric=TEXT),
            ],
            [row for worth in found.worths for row in _stage_rows(worth)],
        ),
        Facts([(worth.stage.title, worth.stage.why) for worth in found.worths], wide=True),
    ]


def _stage_rows(worth: Worth) -> list[list[Cell]]:
    stage, metric = worth.stage, metric_name(worth.stage.metric)
    title = Cell(stage.title, small=f"{stage.having} − {stage.lacking or 'the rule'}")
    if not worth.differences:
        return [[title, Cell(metric), Cell("—", tone="muted"), Cell("—", tone="muted"), Cell(worth.reason)]]
    rows = []
    for seed, one in enumerate(worth.differences, 1):
        interval = Interval(one.value, one.low, one.high)
        cells = [Cell(signed(one.value)), Cell(bounds(interval, sign=True) or "—"), verdict_cell(interval)]
        rows.append([title, Cell(f"{metric}, {seed}"), *cells])
    return rows


def _differs(found: Found) -> list[Block]:
    paper = found.order.paper
    blocks: list[Block] = [_numbered(paper.differs)]
    small = ["--quick: few runs, small images, few rounds"] if found.order.quick else []
    scaled = [] if found.synthetic or found.order.full else paper.scaled_down.told
    for title, texts in (
        ("Scaled down to what a CPU can do; --full leaves it as it is", (*scaled, *small)),
        ("What does not add up in the paper, copied as printed", paper.contradictions),
    ):
        if texts:
            blocks += [Heading(title), _numbered(texts)]
    if left := found.order.left_out:
        blocks += [Heading("Not run"), Facts(list(left.items()), wide=True)]
    return blocks


def _numbered(texts: Sequence[str]) -> Facts:
    return Facts([(f"{index}.", text) for index, text in enumerate(texts, 1)], wide=True)


def _runs(found: Found) -> list[Block]:
    rows, studies = [], list[Block]()
    for name, runs in found.results.items():
        first = runs[0]
        images = {
            split: sum(site.images.get(split, 0) for site in first.sites.values()) for split in ("train", "val", "test")
        }
        rows.append(
            [
                Cell(name, small=found.order.paper.runs[name].title),
                Cell(("synthetic: " if first.synthetic else "") + first.source),
                Cell(" / ".join(count(value) for value in images.values())),
                Cell(count(len(first.sites))),
                Cell(listing(arm_name(arm).lower() for arm in first.arms)),
                Cell(count(first.rounds)),
                Cell(duration(sum(run.cpu_s or 0.0 for run in runs))),
            ]
        )
        studies.append(Details(f"The study of {name}: {first.study_hash[:16]}", [Code(study_text(first))]))
    environment = next(iter(found.results.values()))[0].environment
    return [
        Code(found.command),
        Table(
            "The runs; each folder here holds its own report with every arm, hospital and curve",
            [
                Column("Run", numeric=TEXT),
                Column("Images", numeric=TEXT),
                Column("Train / val / test"),
                Column("Hospitals"),
                Column("Arms", numeric=TEXT),
                Column("Rounds"),
                Column("Processor time"),
            ],
            rows,
        ),
        Facts(list(environment.items())),
        *studies,
    ]
