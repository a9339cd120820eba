"""What travels between coordinator and site: typed requests and replies <-> Flower messages.

The only package that knows record keys. A message is decoded once, at the edge, into one
of frozen classes; whatever is missing, of the wrong type or of another protocol version is
a :class:`ProtocolError`, never a ``KeyError`` further in. A site's error leaves it as a
:class:`Refusal`: a code, never a text.

Each phase has a file that holds its classes, writes them and reads them; ``messages`` puts
them into envelopes and takes them out.
"""

from common.protocol.anchoring import add_anchors, anchors_of
from common.protocol.delivery import DELIVER, DeliveryRequest, Receipt
from common.protocol.evaluation import (
    CHOICES,
    EVALUATE,
    EVALUATED,
    MOMENTS,
    Beside,
    EvaluateRequest,
    MomentsRequest,
    StatisticsReply,
)
from common.protocol.fit import TRAIN, TrainReply, TrainRequest, UpdateReply, Variates
from common.protocol.kept import freeze, thaw
from common.protocol.messages import (
    VERSION,
    Reply,
    Request,
    Sealed,
    answer,
    open_reply,
    open_request,
    seal,
    size,
)
from common.protocol.records import Statistics
from common.protocol.refusal import Refusal
from common.protocol.survey import SURVEY, SurveyReply, SurveyRequest
from common.protocol.task import Task

__all__ = [
    "CHOICES",
    "DELIVER",
    "EVALUATE",
    "EVALUATED",
    "MOMENTS",
    "SURVEY",
    "TRAIN",
    "VERSION",
    "Beside",
    "DeliveryRequest",
    "EvaluateRequest",
    "MomentsRequest",
    "Receipt",
    "Refusal",
    "Reply",
    "Request",
    "Sealed",
    "Statistics",
    "StatisticsReply",
    "SurveyReply",
    "SurveyRequest",
    "Task",
    "TrainReply",
    "TrainRequest",
    "UpdateReply",
    "Variates",
    "add_anchors",
    "anchors_of",
    "answer",
    "freeze",
    "open_reply",
    "open_request",
    "seal",
    "size",
    "thaw",
]
