"""Numbers and verdicts in words, the same everywhere in a report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from common.html import Cell, Tone
from server.report.intervals import Interval

Verdict = Literal["better", "worse", "cannot tell"]

METRICS = {
    "auc": "AUC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "dice": "Dice",
    "iou": "IoU",
    "lesions_found": "Lesions found",
    "false_lesions": "False lesions an image",
}
ARM_NAMES = {
    "federated": "Federated",
    "local": "Each alone",
    "pooled": "Pooled",
    "start": "Starting model",
    "last": "Last round's model",
    "model": "The model",
}
ARM_MEANINGS = {
    "federated": "one model trained by all hospitals together, images staying where they are",
    "local": "each hospital trains alone on its own images; the numbers are the mean over the hospitals",
    "pooled": "all images copied to one place, which is what federating avoids",
}
_UNDEFINED = {
    "auc": "undefined: it needs test patients with and without the finding",
    "sensitivity": "undefined: no test image has the finding",
    "balanced_accuracy": "undefined: it needs test patients of every class",
    "specificity": "undefined: every test image has the finding",
    "precision": "undefined: the model called no test image positive",
    "dice": "undefined: no test image has anything to outline",
    "iou": "undefined: no test image has anything to outline",
    "lesions_found": "undefined: no test image has a lesion, or too few patients have",
    "false_lesions": "undefined: there is no test image, or too few patients have false lesions",
    "f1": "undefined: no test image has the finding, or none was called positive",
}
HIDDEN = "small cells are hidden: the least and the most that it can be on these patients"
_TONES: dict[Verdict, Tone] = {"better": "good", "worse": "bad", "cannot tell": "unsure"}
_SIGNS: dict[Verdict, str] = {"better": "▲ better", "worse": "▼ worse", "cannot tell": "● cannot tell"}


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_", " "))


def in_sentence(metric: str) -> str:
    """The metric's name inside a sentence: ``AUC``, ``balanced accuracy``."""
    name = metric_name(metric)
    return name if name.isupper() or name in ("F1", "Dice", "IoU") else name[:1].lower() + name[1:]


def arm_name(arm: str) -> str:
    """``federated`` → ``Federated``, ``local:site-3`` → ``site-3 alone``."""
    site = arm.removeprefix("local:")
    return ARM_NAMES.get(arm, arm) if site == arm else f"{site} alone"


def ordered_metrics(present: Iterable[str]) -> list[str]:
    """The metrics in the order of :data:`METRICS`, others behind."""
    names = list(dict.fromkeys(present))
    return [name for name in METRICS if name in names] + [name for name in names if name not in METRICS]


def number(value: float | None, digits: int = 3) -> str:
    return "—" if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """With its sign, ``+0.021``; a value that rounds to nothing has none."""
    if value is None:
        return "—"
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0.0 else text.replace("-", "−")


def count(value: int) -> str:
    """1234567 → ``1 234 567``, with narrow no-break spaces."""
    return f"{value:,}".replace(",", "\u202f")


def plural(value: int, word: str) -> str:
    """``1 hospital``, ``3 hospitals``."""
    return f"{count(value)} {word}{'' if value == 1 else 's'}"


def size(value: int) -> str:
    """Bytes in decimal units (SI)."""
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(amount) < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def duration(seconds: float) -> str:
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def level(confidence: float) -> str:
    """0.95 → ``95%``."""
    return f"{confidence * 100:.4g}%"


def bounds(interval: Interval, *, sign: bool = False) -> str:
    """``0.941 to 0.973``; empty where the interval is undefined."""
    if interval.low is None or interval.high is None:
        return ""
    show = signed if sign else number
    return f"{show(interval.low)} to {show(interval.high)}"


def spoken(interval: Interval, digits: int = 3) -> str:
    """The value, or where small cells are hidden ``between 0.91 and 0.97``."""
    if not interval.hidden:
        return number(interval.value, digits)
    if interval.low == interval.high:
        return number(interval.low, digits)
    return f"between {number(interval.low, digits)} and {number(interval.high, digits)}"


def metric_cell(interval: Interval | None, metric: str, *, sign: bool = False, tone: Tone = "") -> Cell:
    """Value with its interval below; where undefined a dash that says why."""
    if interval is None:
        return Cell("—", title="not measured in this run", tone="muted")
    if interval.hidden:
        show = signed if sign else number
        same = interval.low == interval.high  # then it is known, and only how sure it is is not
        between = show(interval.low) if same else bounds(interval, sign=sign)
        return Cell(between, small="small cells hidden", title=HIDDEN, tone=tone)
    if interval.value is None:
        return Cell("—", title=_UNDEFINED.get(metric, "undefined on these patients"), tone="muted")
    value = signed(interval.value) if sign else number(interval.value)
    return Cell(value, small=bounds(interval, sign=sign), tone=tone)


def verdict(difference: Interval) -> Verdict:
    """What a difference with its interval allows to say: zero outside the interval, or no statement."""
    if difference.low is not None and difference.low > 0.0:
        return "better"
    if difference.high is not None and difference.high < 0.0:
        return "worse"
    return "cannot tell"


def verdict_cell(difference: Interval | None) -> Cell:
    if difference is None or difference.value is None:
        return Cell("—", title="not measured, or undefined on these patients", tone="muted")
    said = verdict(difference)
    return Cell(_SIGNS[said], tone=_TONES[said])


def verdict_tone(said: Verdict) -> Tone:
    return _TONES[said]


def listing(words: Iterable[str]) -> str:
    """``a, b and c``."""
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
