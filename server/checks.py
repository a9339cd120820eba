"""What a reply must satisfy before it may touch the model (DESIGN 11)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import ReplyRefused
from common.protocol import TrainReply
from common.study import FederationSpec
from common.weights import Weights, check_like, delta_norm

_MOST_EXAMPLES = 1 << 31


@dataclass
class ReplyChecks:
    """Bounds for one round's replies, and the norms from which the next round's bound comes.

    The bound comes from the *previous* round's accepted median so that a reply can be
    judged, folded and freed on arrival, and so that the verdict does not depend on the
    order of arrival.
    """

    spec: FederationSpec
    trainable: Sequence[str]
    cap: float = field(default=0.0)
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cap = self.cap or self.spec.first_norm_cap

    def accept(self, reply: TrainReply, *, site: str, round_: int, sent: Weights) -> float:
        """The norm of the accepted update. Raises :class:`ReplyRefused` with the reason."""
        if reply.site != site:
            raise ReplyRefused("it answers under another site's name")
        if reply.round != round_:
            raise ReplyRefused(f"it answers round {reply.round}, not {round_}")
        if not 0 < reply.examples < _MOST_EXAMPLES:
            raise ReplyRefused(f"it says it trained on {reply.examples} examples")
        if not math.isfinite(reply.loss):
            raise ReplyRefused("its training loss is not finite; a smaller learning rate may help")
        check_like(reply.weights, sent)
        norm = delta_norm(reply.weights, sent, self.trainable)
        if norm > self.cap:
            raise ReplyRefused(f"its update's norm {norm:.3g} is above the bound {self.cap:.3g}")
        self.norms.append(norm)
        return norm

    def next_round(self) -> None:
        """Set the next round's bound from this round's accepted norms."""
        if self.norms:
            median = statistics.median(self.norms)
            self.cap = median * self.spec.norm_factor if median > 0 else self.spec.first_norm_cap
            self.norms = []
