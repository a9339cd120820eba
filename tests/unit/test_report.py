"""The report says what the results say, to every reader, and nothing in them can become markup."""

from __future__ import annotations

import csv
import functools
import html
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import RunError
from common.html import Banner, Cell, Column, Page, Paragraph, Section, Table, clean, render
from server.report import charts, write_metrics_csv, write_report
from server.report.intervals import Interval
from server.report.results import parse
from server.report.several import grouped
from server.report.several import page as report_page
from server.report.verdict import statements
from server.report.words import duration, number, signed, size, verdict
from tests.unit import fake_results
from tests.unit.page_laws import Outline, assert_sound


def written(folder: Path, *results: dict[str, Any]) -> str:
    write_report(results, folder)
    return (folder / "report.html").read_text(encoding="utf-8")


SHAPES: dict[str, Any] = {
    "one": lambda: [fake_results.results()],
    "real": lambda: [fake_results.results(synthetic=False, refuse=False, arms=("federated", "pooled"))],
    "federated only": lambda: [fake_results.results(arms=("federated",))],
    "local only": lambda: [{**fake_results.results(arms=("local",)), "unreadable": []}],
    "one site": lambda: [fake_results.results(sites=1)],
    "multiclass": lambda: [fake_results.multiclass()],
    "repeats": lambda: [fake_results.results(repeat=i, seed=7 + i, arms=("federated", "local")) for i in range(2)],
    "comparison": lambda: [
        fake_results.multiclass(),
        fake_results.results(arms=("federated",), strategy="fedadam", sites=6, synthetic=False),
    ],
}


@functools.cache
def rendered(shape: str) -> str:
    """The page of a shape, without the disk; drawn once for all tests that only read it."""
    return render(report_page([parse(raw) for raw in SHAPES[shape]()]))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_results_gives_a_sound_page(shape: str) -> None:
    assert_sound(rendered(shape))
    assert len(rendered(shape)) < 1_500_000


def test_the_page_says_what_the_results_say() -> None:
    raw = fake_results.results()
    text = Outline(rendered("one")).text
    assert "Synthetic data" in text
    for name, arm in raw["arms"].items():
        assert f"{arm['test']['auc']['value']:.3f}" in text, name
    for gap in raw["differences"]:
        if gap["on"] == "all" and gap["metric"] == "auc":
            assert signed(gap["value"]) in text
    one = next(iter(raw["arms"]["federated"]["calibration"].values()))
    assert f"temperature of {one['scaled']['temperature']:.2f}" in text
    assert f"{one['brier']:.3f}" in text
    assert raw["study_hash"] in text
    assert "the update's norm 812.4 is above 10 times the median 1.9" in text
    assert "images/0412.png" in text
    assert "alpha: 0.5" in text  # the study file
    assert "2.15.0+cpu" in text
    headings = ["Did federating pay off?", "Hospital by hospital", "All metrics", "Differences between the arms"]
    headings += [
        "ROC and learning curves",
        "Are scores probabilities?",
        "Confusion matrices",
        "Who holds what",
        "Refused replies",
        "Unreadable images",
    ]
    places = [text.rindex(heading) for heading in headings]
    assert places == sorted(places)


def test_the_page_says_what_sources_say_of_themselves(tmp_path: Path) -> None:
    raw = fake_results.results() | {"notes": ["mri: 40 images of <30> patients"]}
    assert "mri: 40 images of <30> patients." in Outline(written(tmp_path, raw)).text


def test_synthetic_and_real_cannot_be_mistaken() -> None:
    banner = re.compile(r'<div class="banner (\w+)"')
    kinds = {}
    for shape in ("one", "real", "comparison"):
        found = banner.search(rendered(shape))
        assert found is not None
        kinds[shape] = found[1]
    assert kinds == {"one": "synthetic", "real": "real", "comparison": "mixed"}


def test_no_failures_no_section_of_failures() -> None:
    assert "Refused replies" not in Outline(rendered("real")).text
    assert "Unreadable images" not in Outline(rendered("local only")).text


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)></title></style></svg><svg onload=alert(1)>',
    "--><b>&lt;b&gt; &amp; ${7*7} {{ 7*7 }} {% raw %} $x^{$ \\frac \\u0000",
    "=\ud800 \x00 \x1b[31m \u202egnp.exe 肺炎 صدر 🫁",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(text: str, tmp_path: Path) -> None:
    raw = fake_results.results(sites=4)
    old_classes, site = raw["classes"], "site-2"

    def swap(node: Any) -> Any:
        if isinstance(node, dict):
            return {_name(key): swap(value) for key, value in node.items()}
        return [swap(value) for value in node] if isinstance(node, list) else _name(node)

    def _name(value: Any) -> Any:
        if value == old_classes[1] or value == site:
            return f"{text} {value}"
        if value == f"local:{site}":
            return f"local:{text} {site}"
        return value

    as_json: dict[str, Any] = swap(raw)
    as_json["study"] = {**raw["study"], "name": text, "description": text}
    as_json |= {"source": text, "engine": text, "device": text, "study_hash": text}
    as_json["environment"] = {text: text}
    as_json["unreadable"] = [{"file": text, "reason": text * 200}]
    as_json["phases"][0]["name"] = text
    as_json["arms"]["federated"]["history"][0]["sites"]["site-1"]["status"] = f"refused: {text}"
    as_json["sites"]["site-1"] |= {"origin": text, "device": text}
    page = written(tmp_path, as_json)
    outline = assert_sound(page)
    assert re.findall("[\x00\x1b\u202e]", page) == []
    assert " ".join(clean(text).split()) in outline.text
    write_metrics_csv([as_json], tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+@\t" and cell]


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path, *SHAPES["repeats"]()) == rendered("repeats")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_undefined_metric_is_a_dash_that_says_why(tmp_path: Path) -> None:
    raw = fake_results.results()
    raw["arms"]["federated"]["test"]["auc"] = {"value": None, "low": None, "high": None}
    raw["arms"]["pooled"]["test"]["auc"] = {"value": float("nan"), "low": None, "high": None}
    page = written(tmp_path, raw)
    reason = "undefined: it needs test patients with and without the finding"
    assert page.count(f'<abbr title="{reason}">—</abbr>') >= 2
    assert "nan" not in Outline(page).text.lower().split()


def test_a_thousand_hospitals_fit_a_page(tmp_path: Path) -> None:
    raw = fake_results.results(sites=1000, rounds=3)
    page = written(tmp_path, raw)
    outline = assert_sound(page)
    assert len(page) < 1_000_000
    gains = {d["b"]: d["value"] for d in raw["differences"] if d["on"] == "all" and d["metric"] == "auc" and d["value"]}
    del gains["pooled"]
    for site in (min(gains, key=lambda name: gains[name]), max(gains, key=lambda name: gains[name])):
        assert site.removeprefix("local:") in outline.texts
    assert "1 000 hospitals" in outline.text
    assert sum(text.startswith("site-") for text in outline.texts) < 400


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "cannot tell"), (0.0, 0.1, "cannot tell"),
     (None, None, "cannot tell")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval_on_one_side(low: float | None, high: float | None, said: str) -> None:
    assert verdict(Interval(0.05, low, high)) == said


def with_gains(intervals: list[tuple[float, float, float]]) -> dict[str, Any]:
    raw = fake_results.results(sites=len(intervals))
    raw["differences"] = [
        {"a": "federated", "b": f"local:site-{i + 1}", "metric": "auc", "on": "all", "value": v, "low": lo, "high": hi}
        for i, (v, lo, hi) in enumerate(intervals)
    ]
    raw["differences"].append(
        {"a": "federated", "b": "pooled", "metric": "auc", "on": "all", "value": -0.03, "low": -0.04, "high": -0.02}
    )
    return raw


BETTER, WORSE, UNCLEAR = (0.1, 0.05, 0.15), (-0.1, -0.15, -0.05), (0.01, -0.05, 0.07)


@pytest.mark.parametrize(
    ("gains", "headline", "tone"),
    [
        ([BETTER, BETTER], "Federating pays off for all 2 hospitals.", "good"),
        ([BETTER], "Federating pays off for the one hospital.", "good"),
        ([WORSE, WORSE], "Federating makes things worse for all 2 hospitals.", "bad"),
        ([UNCLEAR, UNCLEAR], "These data cannot tell whether federating pays off for any hospital.", "unsure"),
        ([BETTER, UNCLEAR], "Federating pays off for 1 of 2 hospitals; for 1 these data cannot tell.", "good"),
        ([WORSE, UNCLEAR], "Federating makes things worse for 1 of 2 hospitals; for 1 these data cannot tell.", "bad"),
        ([BETTER, WORSE], "Federating pays off for 1 of 2 hospitals and makes things worse for 1.", "bad"),
    ],
)
def test_the_headline_counts_hospitals(gains: list[tuple[float, float, float]], headline: str, tone: str) -> None:
    alone, pooled = statements(parse(with_gains(gains)))
    assert (alone.text, alone.tone) == (headline, tone)
    assert pooled.text == "Against pooling all images in one place, federating costs 0.030 of AUC."
    assert "95% interval −0.040 to −0.020" in pooled.detail


def test_runs_that_differ_in_repeat_alone_are_repeats() -> None:
    def groups(*raws: dict[str, Any]) -> list[int]:
        return [len(group) for group in grouped([parse(raw) for raw in raws])]

    first, second = fake_results.results(), fake_results.results(repeat=1)
    assert groups(first, second) == [2]
    assert groups(first, fake_results.results(seed=8)) == [2]
    assert groups(first, first) == [1, 1]
    assert groups(first, second, fake_results.results(strategy="krum")) == [2, 1]
    assert groups(first, {**second, "engine": "ray"}) == [1, 1]


def test_repeats_show_mean_and_spread(tmp_path: Path) -> None:
    raws = [fake_results.results(repeat=i, seed=7, arms=("federated", "local")) for i in range(3)]
    for value, raw in zip((0.90, 0.92, 0.97), raws, strict=True):
        raw["arms"]["federated"]["test"]["auc"] = {"value": value, "low": value - 0.02, "high": value + 0.02}
    text = assert_sound(written(tmp_path, *raws)).text
    assert "0.930 ± 0.036 0.900 to 0.970" in text
    assert "Repeat 3, seed 7" in text
    assert "Federated − alone by hospital" in text


def test_a_comparison_names_what_differs_and_warns(tmp_path: Path) -> None:
    text = Outline(rendered("comparison")).text
    assert "These runs were not tested on the same patients." in text
    assert "federation.strategy.name fedavg fedadam" in text
    assert "partition.sites 5 6" in text
    runs = [fake_results.results(arms=("federated",), strategy=name) for name in ("fedavg", "krum")]
    same = Outline(written(tmp_path, *runs)).text
    assert "not tested on the same patients" not in same


def test_metrics_csv_holds_every_metric_exactly(tmp_path: Path) -> None:
    raw = fake_results.results()
    write_metrics_csv([raw], tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(r["arm"], r["trained_by"], r["tested_on"], r["class"], r["metric"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    for arm in ("federated", "local", "pooled"):
        trained = "each alone" if arm == "local" else "all"
        for metric, interval in raw["arms"][arm]["test"].items():
            assert float(found[arm, trained, "all", "", metric]) == interval["value"]
    alone = raw["arms"]["local"]["sites"]["site-3"]
    assert float(found["local", "site-3", "site-3", "", "accuracy"]) == alone["test"]["accuracy"]["value"]
    assert float(found["local", "site-3", "all", "", "auc"]) == alone["all_test"]["auc"]["value"]
    gap = next(d for d in raw["differences"] if d["b"] == "local:site-3" and d["on"] == "all")
    assert float(found["federated - local:site-3", "", "all", "", gap["metric"]]) == gap["value"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "format 2"),
        ({"study_hash": ...}, "'study_hash' is missing"),
        ({"synthetic": "no"}, "true or false"),
        ({"arms": {"federated": {"test": {"auc": {"value": "<b>"}}}}}, "number"),
        ({"arms": []}, "damaged"),
        ({"arms": {"federated": {"calibration": {"pneumonia": {}}}}}, "'groups' is missing"),
        ({"sites": {"site-1": {}}}, "'images' is missing"),
    ],
)
def test_damaged_results_are_refused_and_the_old_report_stays(change: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    raw = {key: value for key, value in {**fake_results.results(), **change}.items() if value is not ...}
    with pytest.raises(RunError, match=says) as caught:
        write_report([raw], tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "report.html").read_text() == "old"


def test_nothing_to_report_and_nowhere_to_write_are_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no results"):
        write_report([], tmp_path)
    with pytest.raises(RunError, match="cannot write"):
        write_report([fake_results.multiclass()], tmp_path / "missing")


def test_numbers_in_words() -> None:
    assert [number(None), number(-0.5), signed(0.02), signed(-0.02), signed(-0.0001)] == [
        "—", "−0.500", "+0.020", "−0.020", "0.000",
    ]  # fmt: skip
    assert [size(999), size(1_320_000), size(79_200_000_000)] == ["999 B", "1.32 MB", "79.2 GB"]
    assert [duration(4.14), duration(131.9), duration(7260)] == ["4.1 s", "2 min 12 s", "2 h 01 min"]


def test_a_table_checks_itself_and_a_page_escapes() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Table("t", [Column("a"), Column("b")], [[Cell("x")]])
    with pytest.raises(ValueError, match="anchor"):
        Section('x" onload="', "h", [])
    table = Table("a<b", [Column("<i>", group='"g"')], [[Cell("<u>", title='"', small="&")]])
    sections = [Section("part", "<h>", [table, Paragraph("<p>")])]
    page = render(Page("<t>", "<s>", Banner("plain", "<b>", "<c>"), sections, "<f>"))
    outline = assert_sound(page)
    assert not {"t", "s", "c", "f", "h", "i", "u"} & {tag for tag, _ in outline.elements}


# --- what a browser makes of it ------------------------------------------------------------------

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
)  # fmt: skip


def browse(folder: Path, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    chromium = shutil.which("chromium")
    assert chromium is not None, "Chromium is missing: apt-get install chromium"
    profile = folder / "profile"
    command = [chromium, *QUIET, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)


@pytest.mark.browser
def test_a_browser_shows_it_without_a_complaint(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "report.html").write_text(rendered("one"), encoding="utf-8")
    shot = tmp_path / "shot.png"
    done = browse(tmp_path, tmp_path / "report.html", f"--screenshot={shot}", "--window-size=1280,1400")
    assert "Refused to" not in done.stderr
    assert "violates" not in done.stderr
    with Image.open(shot) as image:
        picture = image.convert("RGB")
        assert picture.size == (1280, 1400)
        top = picture.crop((0, 0, 1280, 60)).resize((1, 1)).getpixel((0, 0))
        colours = picture.getcolors(maxcolors=1 << 20)
    assert isinstance(top, tuple)
    assert top[0] > 220 > 180 > top[2]  # the amber of synthetic data
    assert colours is not None
    assert len(colours) > 50


@pytest.mark.browser
def test_it_fits_a_telephone_and_a_desk(tmp_path: Path) -> None:
    """The page itself never scrolls sideways; wide tables do so inside themselves."""
    page = html.escape(rendered("one"), quote=True)
    frames = "".join(f'<iframe style="width: {w}px; height: 800px" srcdoc="{page}"></iframe>' for w in (400, 1280))
    script = """
      const out = [];
      for (const frame of document.querySelectorAll("iframe")) {
        const root = frame.contentDocument.documentElement;
        const cards = [...root.querySelectorAll("figure")].map(card => Math.round(card.getBoundingClientRect().width));
        out.push([root.clientWidth, root.scrollWidth, Math.min(...cards), cards.length].join(","));
      }
      document.body.innerHTML = "";
      document.body.textContent = "WIDTHS " + out.join(";");
    """
    harness = tmp_path / "harness.html"
    harness.write_text(f"<!doctype html><body>{frames}<script>onload = () => {{ {script} }}</script>", encoding="utf-8")
    found = re.search(r"WIDTHS ([\d,;]+)", browse(tmp_path, harness, "--dump-dom").stdout)
    assert found is not None
    for measured in found[1].split(";"):
        client, scroll, narrowest, drawings = map(int, measured.split(","))
        assert scroll <= client
        assert narrowest > 300
        assert drawings == 7


def test_a_curve_of_one_point_without_false_lesions_is_drawn() -> None:
    one = SimpleNamespace(false_lesions=(0.0,), lesions_found=(0.5,))
    with charts.drawing():
        assert "Lesions found" in charts.svg(charts.froc({"federated": ("Federated", one)}), "froc")
