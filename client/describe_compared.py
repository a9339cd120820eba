"""What leaves for comparisons, in plain words: a second model's decisions beside the first's, and readers' labels."""

from __future__ import annotations

from common.study import Study

_OTHERS = {"start": "the one that training began with", "last": "the last round's"}


def compared_words(study: Study) -> str:
    """Sentences, with a space before them; empty where the study compares nothing."""
    text, evaluation = "", study.evaluation
    if evaluation.compare:
        others = " and ".join(_OTHERS[name] for name in evaluation.compare)
        text += (
            f" The kept model is also compared with {others}, which comes here once more: what leaves is how many test "
            "images of each class both models call the same and how many only one of them has right, and sums over "
            "patients of how far the two are apart."
        )
    if evaluation.readers:
        columns = ", ".join(evaluation.readers)
        text += (
            f" Of this site's readers (columns {columns} of its label sheets) leaves how many test images of each "
            "class each of them, the model and every two of them have right, which is how well they read: by column, "
            "and of no single image. Where the vault holds no such column, nothing leaves of them."
        )
    if text and evaluation.min_cell > 1:
        text += f" A table with a cell of fewer than {evaluation.min_cell} patients does not leave at all."
    return text
