"""What a study asks of its kept model beyond the test, in plain words."""

from __future__ import annotations

from common.study import Study


def examined_words(study: Study) -> str:
    """What leaves of the kept model beyond the test, and what that costs."""
    asked, text = study.evaluation, ""
    if asked.by:
        text += f" Of the last test the same again by {', '.join(asked.by)}: for each value that images here have, "
        if asked.min_cell > 1:
            text += (
                f"where it has {asked.min_cell} patients or more, and so that what is left out does not follow from "
                "the rest; a value that nobody or too few have is not named."
            )
            if len(asked.by) > 1:
                text += (
                    " Each is hidden by itself: where values of two of them are of nearly the same patients, their "
                    "counts, subtracted, tell of the few who have only one of them."
                )
        else:
            text += "however few patients have it: the value is named, and their counts can be their scores."
    if asked.robustness:
        text += (
            f" And the same of the test images made worse here ({', '.join(asked.robustness)}, five levels each): "
            f"{5 * len(asked.robustness)} more passes over them, once."
        )
    return text
