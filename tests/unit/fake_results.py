"""Made-up ``results.json`` of every shape, with scores drawn so that curves and numbers agree."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.calibration import calibration_json
from common.metrics import Counts, Layout, Reference, choose_threshold
from common.metrics.paired import Models, Pair, compare
from common.randomness import generator
from common.study import Study
from server.comparisons import comparison_json, correct

QUALITY = {"federated": 2.4, "pooled": 2.5, "local": 1.3}


def auc(negative: np.ndarray, positive: np.ndarray) -> float | None:
    if not len(negative) or not len(positive):
        return None
    order = np.argsort(np.concatenate((negative, positive)), kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(1, len(order) + 1)
    n = len(positive)
    return float((ranks[len(negative) :].sum() - n * (n + 1) / 2) / (n * len(negative)))


def interval(value: float | None, images: int) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    half = 1.96 * (max(value * (1 - value), 0.004) / max(images, 4)) ** 0.5
    return {"value": value, "low": max(value - half, 0.0), "high": min(value + half, 1.0)}


def above(scores: np.ndarray, cuts: np.ndarray) -> list[float]:
    """The share of scores at or above each cut."""
    shares: list[float] = (1 - np.searchsorted(np.sort(scores), cuts, "left") / max(len(scores), 1)).tolist()
    return shares


class Model:
    """Scores of one model: how well it separates is ``quality``, in standard deviations."""

    def __init__(self, name: str, quality: float, seed: int) -> None:
        self.name, self.quality, self.seed = name, quality, seed

    def test(self, negatives: int, positives: int, where: str) -> dict[str, Any]:
        random = generator(self.seed, self.name, where)
        negative = random.normal(0.0, 1.0, negatives)
        positive = random.normal(self.quality, 1.0, positives)
        threshold = self.quality / 2
        tn, tp = int((negative < threshold).sum()), int((positive >= threshold).sum())
        fp, fn = negatives - tn, positives - tp
        sensitivity = tp / positives if positives else None
        specificity = tn / negatives if negatives else None
        both = sensitivity is not None and specificity is not None
        values = {
            "auc": auc(negative, positive),
            "accuracy": (tp + tn) / max(negatives + positives, 1),
            "balanced_accuracy": (sensitivity + specificity) / 2 if both else None,  # type: ignore[operator]
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": tp / (tp + fp) if tp + fp else None,
            "f1": 2 * tp / (2 * tp + fp + fn) if positives else None,
        }
        cuts = np.sort(np.concatenate((negative, positive)))[::-1][:: max((negatives + positives) // 400, 1)]
        roc = {"fpr": [0.0, *above(negative, cuts), 1.0], "tpr": [0.0, *above(positive, cuts), 1.0]}
        images = negatives + positives
        return {
            "metrics": {name: interval(value, images) for name, value in values.items()},
            "confusion": [[tn, fp], [fn, tp]],
            "roc": roc,
        }

    def calibration(self, negatives: int, positives: int, name: str) -> dict[str, Any]:
        """Of scores that are too sure of themselves."""
        random = generator(self.seed, self.name, "calibration")
        truth = np.arange(negatives + positives) >= negatives
        logits = 1.5 * (random.normal(0.0, 1.0, len(truth)) + self.quality * (truth - 0.5))
        scores, nothing = 1 / (1 + np.exp(-logits)), np.zeros(len(truth))
        targets, patients = truth[:, None].astype(float), np.arange(len(truth))
        counts = Counts.of(scores[:, None], targets, patients, nothing, Layout("binary", 1, 256))
        return calibration_json(counts, counts, [name])


def history(rounds: int, quality: float, seed: int, sites: list[str], refuse: bool) -> list[dict[str, Any]]:
    random = generator(seed, "history", f"{quality:.4f}")
    entries = []
    for number in range(1, rounds + 1):
        progress = 1 - np.exp(-number / (rounds / 4))
        replies: dict[str, Any] = {
            site: {"status": "ok", "loss": 0.5, "examples": 100, "seconds": 0.4} for site in sites
        }
        if refuse and number == 3 and len(sites) > 3:
            replies[sites[3]]["status"] = "refused: the update's norm 812.4 is above 10 times the median 1.9"
        if refuse and number == 4 and len(sites) > 1:
            replies[sites[1]] = {"status": "no answer", "loss": None, "examples": 0, "seconds": 0.0}
        entries.append(
            {
                "round": number,
                "train_loss": float(0.69 - 0.08 * quality * 2 * progress + random.normal(0, 0.008)),
                "val_loss": float(0.69 - 0.06 * quality * 2 * progress + random.normal(0, 0.012)),
                "val_auc": float(0.5 + 0.2 * quality * progress * 0.95 + random.normal(0, 0.006)),
                "wall_s": 1.2,
                "bytes": 1_320_000,
                "sites": replies,
            }
        )
    return entries


def deal(sites: int, seed: int) -> dict[str, tuple[int, int]]:
    """Training images (negative, positive) of each hospital, skewed."""
    random = generator(seed, "deal")
    dealt = {}
    for index in range(sites):
        total = int(40 + 620 * random.random() ** 2)
        share = float(random.beta(0.9, 0.9))
        dealt[f"site-{index + 1}"] = (int(total * (1 - share)), int(total * share))
    return dealt


def arm(
    name: str, study: Study, dealt: dict[str, tuple[int, int]], quality: float, rounds: int, seed: int, refuse: bool
) -> dict[str, Any]:
    negatives, positives = (min(sum(n[i] for n in dealt.values()) // 5, 600) for i in (0, 1))
    positive = study.class_names[1]
    everyone = Model(name, quality, seed).test(negatives, positives, "all")
    own = {
        site: {"test": Model(name, quality, seed).test(n // 5, p // 5, site)["metrics"]}
        for site, (n, p) in dealt.items()
    }
    return {
        "rounds": rounds,
        "kept_round": max(rounds - 2, 1),
        "stopped_early": False,
        "thresholds": {positive: 0.431},
        "test": everyone["metrics"],
        "per_class": {positive: everyone["metrics"]},
        "confusion": {positive: everyone["confusion"]},
        "roc": {positive: everyone["roc"]},
        "calibration": Model(name, quality, seed).calibration(negatives, positives, positive),
        "sites": own,
        "history": history(rounds, quality, seed, list(dealt), refuse),
    }


def local_arm(study: Study, dealt: dict[str, tuple[int, int]], rounds: int, seed: int) -> dict[str, Any]:
    negatives, positives = (min(sum(n[i] for n in dealt.values()) // 5, 600) for i in (0, 1))
    positive = study.class_names[1]
    sites: dict[str, Any] = {}
    for site, (n, p) in dealt.items():
        quality = 0.15 + 2.2 * min(1.0, 2.2 * min(n, p) / 300)
        model = Model(f"local {site}", quality, seed)
        everyone = model.test(negatives, positives, "all")
        sites[site] = {
            "test": model.test(n // 5, p // 5, "own")["metrics"],
            "all_test": everyone["metrics"],
            "thresholds": {positive: 0.5},
            "roc": {positive: everyone["roc"]},
            "rounds": rounds,
            "kept_round": rounds,
            "history": history(rounds, quality, seed, [site], False),
        }
    mean: dict[str, Any] = {}
    for metric in next(iter(sites.values()))["all_test"]:
        found = [s["all_test"][metric]["value"] for s in sites.values() if s["all_test"][metric]["value"] is not None]
        mean[metric] = interval(float(np.mean(found)) if found else None, 300)
    return {"test": mean, "sites": sites}


def differences(arms: dict[str, Any], dealt: dict[str, tuple[int, int]]) -> list[dict[str, Any]]:
    found = []

    def add(b: str, on: str, one: dict[str, Any], other: dict[str, Any], metric: str, images: int) -> None:
        a, c = one[metric]["value"], other[metric]["value"]
        if a is None or c is None:
            found.append(
                {"a": "federated", "b": b, "metric": metric, "on": on, "value": None, "low": None, "high": None}
            )
            return
        half = 0.55 / max(images, 8) ** 0.5
        gap = {"value": a - c, "low": a - c - half, "high": a - c + half}
        found.append({"a": "federated", "b": b, "metric": metric, "on": on, **gap})

    total = sum(sum(n) for n in dealt.values()) // 5
    for metric in ("auc", "accuracy"):
        if "pooled" in arms:
            add("pooled", "all", arms["federated"]["test"], arms["pooled"]["test"], metric, total * 8)
        for site, images in dealt.items() if "local" in arms else ():
            alone = arms["local"]["sites"][site]
            add(f"local:{site}", "all", arms["federated"]["test"], alone["all_test"], metric, total)
            own = arms["federated"]["sites"][site]["test"]
            add(f"local:{site}", site, own, alone["test"], metric, sum(images) // 5)
    return found


def comparisons(arms: dict[str, Any], dealt: dict[str, tuple[int, int]], study: Study) -> list[dict[str, Any]]:
    """From sums over drawn scores; of arms that :func:`differences` compares."""
    found = []
    others = [name for name in ("pooled",) if name in arms]
    others += [f"local:{site}" for site in dealt] if "local" in arms else []
    layout = Layout("binary", 1, 256)
    for number, name in enumerate(others):
        random = generator(number, name, "pairs")
        targets = (random.random((240, 1)) < 0.4).astype(float)
        shared, patients = random.normal(0, 1, (240, 1)), random.integers(170, size=240)
        both = [1 / (1 + np.exp(1 - quality * targets - shared - random.normal(0, 1, (240, 1)))) for quality in (3, 2)]
        counts = [Counts.of(scores, targets, patients, np.zeros(240), layout) for scores in both]
        references = [Reference(one, choose_threshold(one, study.evaluation.threshold)) for one in counts]
        pair = Pair.of(both[0], both[1], targets, patients, layout)
        joint = pair.joint((references[0].thresholds.position, references[1].thresholds.position))
        spread, areas = pair.spread((references[0], references[1]), joint)
        made = compare(joint, spread, Models((references[0], references[1]), areas))
        found.append(comparison_json(made, ("federated", name), "all", study))
    correct(found)
    return found


def results(
    *,
    sites: int = 5,
    seed: int = 7,
    repeat: int = 0,
    rounds: int = 12,
    synthetic: bool = True,
    arms: tuple[str, ...] = ("federated", "local", "pooled"),
    strategy: str = "fedavg",
    refuse: bool = True,
    same_hospitals: bool = False,
) -> dict[str, Any]:
    """One run's results as ``json.load`` gives them."""
    study = Study.model_validate(
        {
            "name": "pneumonia quick start",
            "description": "Pneumonia on chest radiographs.",
            "task": "binary",
            "classes": {"normal": ["normal"], "pneumonia": ["bacteria", "virus"]},
            "seed": seed,
            "federation": {"rounds": rounds, "strategy": {"name": strategy}},
            "partition": {"sites": sites, "alpha": 0.5},
        }
    )
    dealt = deal(sites, 7 if same_hospitals else seed)
    made: dict[str, Any] = {}
    for name in arms:
        if name == "local":
            made[name] = local_arm(study, dealt, rounds, seed)
        else:
            shift = generator(seed, name, strategy).normal(0, 0.04)
            made[name] = arm(name, study, dealt, QUALITY[name] + shift, rounds, seed, refuse and name == "federated")
    distances = generator(seed, "pairs").random((sites, sites)) * 0.6
    pairs = ((distances + distances.T) / 2 * (1 - np.eye(sites))).tolist() if sites <= 30 else None
    return {
        "format": 1,
        "fedward": "0.1.0",
        "study_hash": study.hash,
        "study": study.model_dump(mode="json"),
        "synthetic": synthetic,
        "source": "phantoms (synthetic)" if synthetic else "folder chest-xray-guangzhou",
        "seed": seed,
        "repeat": repeat,
        "engine": "inprocess",
        "workers": 2,
        "threads": 1,
        "device": "cpu",
        "rounds": rounds,
        "bytes_sent": 1_320_000 * sites * rounds,
        "wall_s": 74.2 + repeat,
        "cpu_s": 131.9,
        "phases": [
            {"name": "read and encrypt", "wall_s": 4.1, "cpu_s": 6.8},
            {"name": "train federated", "wall_s": 28.4, "cpu_s": 52.0},
            {"name": "train local", "wall_s": 20.2, "cpu_s": 38.9},
            {"name": "train pooled", "wall_s": 18.0, "cpu_s": 30.1},
            {"name": "evaluate", "wall_s": 2.9, "cpu_s": 3.4},
        ],
        "environment": {
            "python": "3.11.9", "torch": "2.15.0+cpu", "flwr": "1.41.0", "system": "Linux 6.1 x86_64",
            "processor": "2 cores", "lock": "sha256 1f0c9ab37d52",
        },
        "sites": {site: _site(n, p, index) for index, (site, (n, p)) in enumerate(dealt.items())},
        "images_without_patient": 3,
        "unlabelled": 2,
        "unreadable": [{"file": "images/0412.png", "reason": "not an image: the file ends after 112 bytes"}],
        "heterogeneity": {
            "label_js": 0.214, "label_js_iid": 0.006, "size_gini": 0.381,
            "feature_shift": 0.052, "feature_shift_iid": 0.031,
            "label_js_pairs": pairs, "feature_shift_pairs": pairs,
        },
        "classes": list(study.class_names),
        "task": "binary",
        "arms": made,
        "differences": differences(made, dealt) if "federated" in made else [],
        "comparisons": comparisons(made, dealt, study) if "federated" in made else [],
    }  # fmt: skip


def _site(negative: int, positive: int, index: int) -> dict[str, Any]:
    parts = {"train": 1.0, "val": 0.2, "test": 0.2}
    classes = {
        split: {"normal": int(negative * share), "pneumonia": int(positive * share)} for split, share in parts.items()
    }
    images = {split: sum(counts.values()) for split, counts in classes.items()}
    return {
        "images": images,
        "patients": {split: int(n / 1.3) + 1 for split, n in images.items()},
        "classes": classes,
        "origin": None,
        "device": f"gain {0.9 + 0.05 * (index % 5):.2f}, blur {0.2 * (index % 3):.1f}",
    }


def multiclass() -> dict[str, Any]:
    """Three classes with a full confusion matrix, and no arm but the federated."""
    raw = results(arms=("federated",), refuse=False)
    names = ["normal", "bacterial pneumonia", "viral pneumonia"]
    study = {**raw["study"], "task": "multiclass", "classes": {name: [name] for name in names}}
    model = raw["arms"]["federated"]
    curve = next(iter(model["roc"].values()))
    model |= {
        "thresholds": {},
        "confusion": {},
        "confusion_matrix": [[80, 3, 2], [4, 60, 11], [1, 14, 31]],
        "calibration": dict.fromkeys(names, next(iter(model["calibration"].values()))),
        "roc": dict.fromkeys(names, curve),
        "per_class": dict.fromkeys(names, model["test"]),
    }
    for index, site in enumerate(raw["sites"].values()):
        for split, images in site["images"].items():
            first = images * (index + 1) // 8
            site["classes"][split] = dict(
                zip(names, (first, (images - first) // 2, (images - first + 1) // 2), strict=True)
            )
    return {**raw, "task": "multiclass", "classes": names, "study": study}
