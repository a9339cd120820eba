"""A cross-validation's last word: all metrics over the validation patients of all folds, with intervals.

Each patient counts once, scored by the model of the fold in which it did not train. Statistics of folds are sums over
disjoint patients, so they merge as those of sites do.
"""

from __future__ import annotations

from pathlib import Path

from common.metrics import Question, Reference, SecondPass, Summary, choose_outline, choose_threshold
from server.testing import second_pass, summed_up
from simulations.search.fit import Trainer, merged
from simulations.search.results import Judged
from simulations.search.run import Search, fold_of


def out_of_fold(search: Search, one: Judged) -> Summary:
    """Of a trial whose folds are all done and whose weights were kept. Thresholds are chosen on these same scores."""
    study, store = search.study, search.store
    together = merged(study, [store.counts(one.trial.number, fit.fold) for fit in one.fits])
    thresholds = choose_threshold(together.counts, study.evaluation.threshold)
    outline = None if together.outlines is None else choose_outline(together.outlines)
    homes = {site: store.sites / site for site in search.prepared.sites}
    question = Question(Reference(together.counts, thresholds), outline)
    total = SecondPass.zero(study)
    trainer = Trainer()
    try:
        for fit in one.fits:
            link, work = trainer.prepared(fold_of(study, fit.fold, search.spec), homes, Path(search.plan.base))
            weights = store.weights(one.trial.number, fit.fold)
            total += second_pass(link, work, weights, question, work.sites, "val")[0]
    finally:
        trainer.close()
    return summed_up(together, total, thresholds, outline, study)
