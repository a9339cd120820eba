"""What leaves this site, named for the audit log before it leaves; ``client.left`` tells it from the log later."""

from __future__ import annotations

from common import protocol
from common.metrics.paired.wire import compares_models, compares_readers
from common.metrics.passes import tells_outlines
from common.protocol.secure import MaskedReply
from common.study import Study

LEDGER_HEAD = "ledger head"
"""Goes with each fit, as the agent adds it: how many entries the privacy ledger has, and the last one's digest."""


def kinds(study: Study, reply: protocol.Reply) -> list[str]:
    """The kinds of values in ``reply``, in words. A refusal's code and the program's version are not listed."""
    if isinstance(reply, protocol.SurveyReply):
        counts = "whether there are images" if study.counts_kept else "image counts"
        return [counts, *(f"survey of {asked}" for asked in study.surveyed if reply.statistics is not None)]
    if isinstance(reply, protocol.TrainReply | protocol.UpdateReply):
        what = "weights" if isinstance(reply, protocol.TrainReply) else "weight differences"
        if study.privacy is not None:
            return [f"{what}, noised"]
        if study.counts_kept:
            return [what]
        paced = isinstance(reply, protocol.TrainReply) and reply.pace is not None
        return [what, "number of images", "training loss", "seconds", *(["sum of learning rates"] if paced else [])]
    if isinstance(reply, MaskedReply):
        if study.noised_at_sites:
            return ["weights, noised and masked"]
        return [f"{what}, masked" for what in ("weights", "number of images", "training loss")]
    if isinstance(reply, protocol.StatisticsReply):
        return [*_counted(reply), "seconds", *(["choice of model"] if reply.chosen else [])]
    if isinstance(reply, protocol.Receipt):
        return ["receipt"]
    return []


def _counted(reply: protocol.StatisticsReply) -> list[str]:
    if compares_readers(reply.statistics):
        return ["counts of readers' labels"]
    return [
        "counts of scores",
        *(["joint counts of two models"] if compares_models(reply.statistics) else []),
        *(["sums of outlines"] if tells_outlines(reply.statistics) else []),
    ]
