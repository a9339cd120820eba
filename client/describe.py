"""A study in plain words, for the people of a hospital who decide about it and are no engineers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from client.describe_compared import compared_words
from client.describe_examined import examined_words
from client.describe_personal import fits_a_round, last_passes, personal_words
from client.describe_privacy import central_words, leaves_of_private, private_words
from client.describe_secure import masked_words
from client.judgement import Federation
from client.policy import POLICY_FILE, Objection, Policy
from common.errors import ModelError, PolicyError
from common.metrics.outlines import GRID
from common.study import MODELS, Study

_WIDTH = 100
_LABEL = 13
_QUESTIONS = {
    "binary": "tells {1} from {0}",
    "multiclass": "puts each image into one of {count} classes: {all}",
    "multilabel": "says for each of these whether an image shows it: {all}",
    "segmentation": "outlines in each image: {last}",
}


@dataclass(frozen=True)
class Model:
    """How large a study's model is."""

    parameters: int
    """Numbers that training changes."""
    megabytes: float
    """10^6 bytes of all that travels: parameters and the layers' running means."""
    frozen: int = 0
    """Numbers that come with the weights and that no training changes."""
    megabytes_back: float = 0.0
    """10^6 bytes of what a site sends back: all but what is frozen."""


def model_of(study: Study) -> Model:
    """The size of the study's model, which is built for it; without memory, where it is one of ours.

    Raises :class:`ModelError` for one that cannot be built here.
    """
    import torch

    from common.models import BUILDERS, build
    from common.weights import changing_names, trainable

    with torch.device("meta" if study.model.name in BUILDERS else "cpu"):
        model = build(study, 0)
    sizes = {name: tensor.numel() * tensor.element_size() / 1e6 for name, tensor in model.state_dict().items()}
    back = sum(sizes[name] for name in changing_names(model))
    trained = sum(parameter.numel() for parameter in trainable(model))
    whole = sum(parameter.numel() for parameter in model.parameters())
    return Model(trained, sum(sizes.values()), whole - trained, back)


def describe(
    study: Study,
    federation: Federation,
    policy: Policy | PolicyError,
    *,
    images: Mapping[str, int] | None = None,
    units: int | None = None,
    images_per_s: float | None = None,
    budget: str = "",
    unpaid: Sequence[Objection] = (),
) -> str:
    """What is asked, what it costs, what leaves, what that reveals, and who is in it; lines of at most 100 characters.

    ``images`` are this site's labelled ones per split, where they were counted, ``units`` its training patients (or
    images) that a private study protects; ``images_per_s`` is a measured rate of training here. ``budget`` says what
    the study would take of the site's, and ``unpaid`` why that does not pay for it.
    """
    parts = [
        ("Study", f"{study.name}, hash {study.hash}"),
        *_purpose(study),
        ("Question", _question(study)),
        ("Images", _images(study, images)),
        *_model(study, policy),
        ("Work", _work(study, images, images_per_s)),
        ("Leaves", _leaves(study)),
        ("Stays", "Images, labels, and whatever the vault knows of patients. An error leaves as a code without text."),
        ("Privacy", private_words(study, units) if study.privacy is not None else _no_privacy(study, policy)),
        *([("Budget", budget)] if budget else []),
        *([("Masked", masked_words(study, federation))] if study.federation.secure_aggregation is not None else []),
        *([("Central", central_words(study))] if study.central_privacy is not None else []),
        *([("Its own", personal_words(study))] if study.personalisation is not None else []),
        ("Coordinator", f"{federation.name}, key {federation.coordinator}. It sees what this site sends."),
        *(("" if number else "Sites", f"{alias}, key {key}") for number, (alias, key) in _sites(federation)),
        ("Expires", _expires(study, policy)),
        *_objections(study, policy, unpaid),
    ]
    return "\n".join(_lines(label, text) for label, text in parts)


def _purpose(study: Study) -> Iterator[tuple[str, str]]:
    said = study.governance
    for label, text in (
        ("About", study.description),
        ("Purpose", said.purpose),
        ("Ethics", said.ethics_reference),
        ("Contact", said.contact),
    ):
        yield label, text or "The study does not say."


def _question(study: Study) -> str:
    names = study.class_names
    words = _QUESTIONS[study.task].format(*names, count=len(names), all=", ".join(names), last=names[-1])
    if study.outlines and study.task != "segmentation":
        words += (
            ", from what it first outlines; it learns that from the masks of this site's images, where they have one"
        )
    return f"A model is trained that {words}."


def _images(study: Study, images: Mapping[str, int] | None) -> str:
    size = f"Each is brought to {study.image.size} × {study.image.size} pixels, "
    size += "grey." if study.image.channels == 1 else "in three channels."
    if study.image.sequences:
        size = f"{size[:-1]}: {', '.join(study.image.sequences)}."
    fold = study.data.fold
    if fold is not None:
        size += (
            f" Its training and validation patients are dealt to {fold.of} folds, class by class; those of fold "
            f"{fold.number} validate, the others train."
        )
    if images is None:
        return f"{size} How many of this site's it would use was not counted."
    counted = ", ".join(f"{images.get(split, 0)} {split}" for split in ("train", "val", "test"))
    return f"{size} It would use {sum(images.values())} of this site's: {counted}."


def _model(study: Study, policy: Policy | PolicyError) -> Iterator[tuple[str, str]]:
    if study.model.name not in MODELS and (isinstance(policy, PolicyError) or study.model.name not in policy.models):
        # Building it would run an installed package that this site's policy does not name.
        yield "Model", f"{study.model.name}, an installed one that {POLICY_FILE} does not allow; it was not built."
        return
    try:
        model = model_of(study)
    except ModelError as error:
        yield "Model", f"{study.model.name}; it cannot be built here: {error}"
        return
    rounds = study.federation.rounds
    if model.frozen:
        yield (
            "Model",
            f"{study.model.name} with {model.parameters:,} parameters that are trained and {model.frozen:,} that are "
            f"frozen: these came from elsewhere ({study.model.weights}), and nothing is learnt into them. "
            f"{_size(model.megabytes)} come in and {_size(model.megabytes_back)} go out in each of {rounds} rounds: "
            f"{_size(model.megabytes * rounds)} in, {_size(model.megabytes_back * rounds)} out. Tests need them again.",
        )
        return
    yield (
        "Model",
        f"{study.model.name} with {model.parameters:,} parameters. Its weights, {_size(model.megabytes)}, come in "
        f"and go out in each of {rounds} rounds: {_size(model.megabytes * rounds)} each way. Tests need them again.",
    )


def _work(study: Study, images: Mapping[str, int] | None, images_per_s: float | None) -> str:
    rounds, epochs, training = study.federation.rounds, study.training.epochs, study.training
    trained: int | None = None
    if epochs is not None:
        passes = f"{epochs} passes over the training images" if epochs > 1 else "one pass over the training images"
        each = epochs * rounds * fits_a_round(study) + last_passes(study)
        trained = None if images is None else images.get("train", 0) * each
    else:
        what = "images" if study.privacy is None else f"{study.privacy.unit}s on average"
        passes = f"{training.local_steps} steps of {training.batch_size} {what}"
        trained = (training.local_steps or 0) * training.batch_size * rounds * fits_a_round(study)
        trained += 0 if images is None else images.get("train", 0) * last_passes(study)
    text = f"{rounds} rounds with {passes} in each; fewer if the study stops early."
    if trained is None:
        return text
    text += f" Together {trained:,} images to train on, repeats counted"
    return f"{text}, some {_duration(trained / images_per_s)} here." if images_per_s else f"{text}."


def _leaves(study: Study) -> str:
    least = study.evaluation.min_cell
    every = study.federation.evaluate_every
    often = "after the last round" if every == 0 else "after every round" if every == 1 else f"every {every} rounds"
    cells = (
        f"No count of fewer than {least} patients leaves."
        if least > 1
        else "The study sets no smallest cell: a count may be of a single patient, and counts of a small group can be "
        "the scores of its members."
    )
    told = (
        f"Of the tests, {often}: counts of images and patients by class and by the model's score, sums of losses, and "
        f"sums over patients from which intervals are made. {_outlines(study)}{cells}{compared_words(study)}"
        f"{examined_words(study)}"
    )
    if study.counts_kept:
        return leaves_of_private(study, _trained(study)) + ("" if study.metrics_suppressed else told)
    counted = "how many images it was trained on, their mean loss"
    paced = study.personalisation is not None and study.personalisation.method == "scaffold"
    fit = f"{_trained(study)}, {counted}, {'the sum of its learning rates, ' if paced else ''}and how long it took"
    if study.federation.secure_aggregation is not None:
        fit = f"{_trained(study)}, {counted}: all of it masked"
    return f"How many labelled images there are per split. {_surveyed(study)}From each round {fit}. {told}"


def _outlines(study: Study) -> str:
    """What leaves of how a model outlines."""
    if not study.outlines:
        return ""
    curve = "" if study.evaluation.min_cell > 1 else ", and how many at each of the others"
    return (
        f"At each of {len(GRID)} thresholds sums of how the model's outlines overlap with the masks. Of the last test, "
        f"at one threshold, how many lesions were found, by size and by sixth of the image, and how many drawn in "
        f"vain{curve}; never where a lesion lies. "
    )


def _trained(study: Study) -> str:
    """What leaves of the model after a fit."""
    if study.norms_stay:
        return f"{_in_form(study)}, but not its norm layers"
    return _in_form(study)


def _in_form(study: Study) -> str:
    match study.federation.compression:
        case "fp16":
            return "how training here changed the model's weights, rounded to 16 bits each"
        case "int8":
            return (
                "how training here changed the model's weights, rounded to 8 bits each (what rounding left out stays "
                "here, encrypted, and is added to the next round's)"
            )
    return "the model's weights after training here"


def _surveyed(study: Study) -> str:
    """What leaves once, before round 1, and what all sites learn of it."""
    asked, least = study.surveyed, study.evaluation.min_cell
    if not asked:
        return ""
    told = {
        "classes": "how many images and patients of each class there are in each split",
        "pixels": "sum and sum of squares of all pixels of the training images, which are their mean brightness and "
        "contrast",
    }
    text = f"Once, before the first round, a survey: {'; '.join(told[name] for name in asked)}. "
    if least > 1 and "classes" in asked:
        text += f"A class of fewer than {least} patients is not counted, nor one from which its count would follow. "
    learnt = [
        *(["the mean and spread of pixels"] if study.image.normalise == "federated" else []),
        *(["weights that tell how frequent each class is"] if study.training.class_weighting == "federated" else []),
    ]
    if learnt:
        text += f"Every site is sent {' and '.join(learnt)} over all sites; of two sites, each learns the other's. "
    return text


def _no_privacy(study: Study, policy: Policy | PolicyError) -> str:
    if study.noised_by_sites:
        return (
            "Nothing is promised for one patient by herself. What hides this hospital as a whole, and her with it, is "
            "told under Central."
        )
    text = (
        "No noise is added here: there is no differential privacy, and so no formal bound on what weights or counts "
        "tell of a patient. Weights of a model can reveal whether somebody's image was trained on, and in bad cases "
        "what it looked like, above all of small groups and of many rounds."
    )
    if study.federation.secure_aggregation is None:
        text += " They are not hidden from the coordinator by secure aggregation."
    if isinstance(policy, Policy) and policy.minimum_privacy is not None:
        text += " This site's policy asks for more."
    return text


def _sites(federation: Federation) -> Iterator[tuple[int, tuple[str, str]]]:
    return enumerate(sorted(federation.sites.items()))


def _expires(study: Study, policy: Policy | PolicyError) -> str:
    last = study.governance.expires
    text = "The study names no last day." if last is None else f"The study's last day is {last}."
    if isinstance(policy, Policy):
        text += f" An approval ends after {policy.expires_days} days, and can be withdrawn at any time."
    return text


def _objections(study: Study, policy: Policy | PolicyError, unpaid: Sequence[Objection]) -> Iterator[tuple[str, str]]:
    if isinstance(policy, PolicyError):
        yield "Policy", str(policy)
        return
    found = [*policy.objections(study), *unpaid]
    for objection in found:
        yield "Objection", f"{objection.text}."
    if not found:
        yield "Policy", "Allows all of this."


def _size(megabytes: float) -> str:
    if megabytes < 1.0:
        return f"{megabytes * 1e3:.0f} kB"
    return f"{megabytes:,.1f} MB" if megabytes < 100.0 else f"{megabytes:,.0f} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _lines(label: str, text: str) -> str:
    """One part, wrapped beside its label. What a study says of itself is shown without control characters."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.fill(
        " ".join(plain.split()),
        _WIDTH,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_on_hyphens=False,
    )
