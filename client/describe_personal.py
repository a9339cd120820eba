"""What a study with ``personalisation:`` leaves at a hospital, and what it tells of it, in plain words."""

from __future__ import annotations

from common.study import Study

_NEVER = "It is encrypted, never leaves, and is erased when the study ends."
_KEPT = (
    "It is encrypted and never leaves. When the finished model comes, this site's own is put beside it in models/, "
    "not encrypted, signed by this site; no message takes it along, and the rest is erased. Where the study is "
    "withdrawn or expires before that, all of it is erased."
)


def personal_words(study: Study) -> str:
    """What stays here, what work it is, and what of it leaves."""
    personal = study.personalisation
    assert personal is not None
    match personal.method:
        case "fedbn":
            text = f"The model's norm layers, with their statistics, are trained here and stay here. {_KEPT}"
        case "ditto":
            text = (
                "Beside the model of all a second one is trained here in every round, as long again, which that of all "
                f"draws towards itself with strength {personal.strength:g}. {_KEPT}"
            )
        case "finetune":
            text = (
                f"After the last round the finished model is trained on here for up to {personal.most_epochs} passes, "
                f"as long as that helps on this site's validation images. {_KEPT}"
            )
        case _:
            return (
                "Each step here is corrected for how this site's images differ from the others'. For that a record of "
                f"this site's mean gradient is kept here. {_NEVER} For the coordinator it follows from the weights "
                "and the sum of learning rates that leave; every site is sent the mean of all."
            )
    if study.metrics_suppressed:
        return f"{text} Nothing is told of how good it is."
    choice = "" if personal.split else ", and which of its two models this site would run by its validation images"
    return f"{text} Of its tests the same leaves as of the model of all{choice}."


def fits_a_round(study: Study) -> int:
    """How often a round trains on each image: Ditto's model of one's own is a second fit."""
    return 2 if study.personalisation is not None and study.personalisation.method == "ditto" else 1


def last_passes(study: Study) -> int:
    """Passes over the training images after the last round, at most."""
    personal = study.personalisation
    return personal.most_epochs if personal is not None and personal.method == "finetune" else 0
