"""From sites' replies to the next model: order-free sums, and Flower's arithmetic for the rest.

Means are folded as replies arrive, in 64-bit fixed point, so that neither the order of
arrival nor the number of workers shows in a single bit (DESIGN 8). Strategies that need
every reply (krum, median, …) get them sorted by site.
"""

from __future__ import annotations

import contextlib
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.typing import NDArray

from common.errors import ModelError, QuorumError
from common.protocol import TrainReply
from common.study import Study
from common.weights import Weights, all_finite, to_arrays
from server.central import NoisedMean
from server.strategies import build_strategy
from server.sums import FixedPointSum

_FOLDED = (flower.FedAvgM, flower.FedAdam, flower.FedYogi, flower.FedAdagrad)
_MOMENTS = ("m_t", "v_t", "momentum_vector")
"""What Flower's strategies remember from round to round."""


@dataclass(frozen=True)
class Layout:
    """Which of a model's tensors the server's optimiser moves, which are only averaged, which are counters.

    All others are frozen: the next round has them as they were.
    """

    parameters: frozenset[str]
    buffers: frozenset[str]
    counters: frozenset[str]

    @classmethod
    def of(cls, weights: Weights, trainable: Sequence[str], changing: Sequence[str] | None = None) -> Layout:
        """``changing``: names that a fit may change, the trainable ones among them; by default all."""
        parameters, moving = frozenset(trainable), frozenset(weights if changing is None else changing)
        counters = frozenset(name for name in moving if weights[name].dtype.kind in "iub")
        return cls(parameters, moving - parameters - counters, counters)


class Aggregator(ABC):
    """One round's replies in, next weights out."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @abstractmethod
    def begin(self, round_: int, weights: Weights) -> None:
        """Start a round that was sent ``weights``."""

    @abstractmethod
    def add(self, reply: TrainReply) -> None:
        """Take one checked reply, in any order."""

    def add_sum(self, sums: Mapping[str, NDArray[np.int64]], examples: int) -> None:
        """Take a round's sum in place of its replies (``common.contribution``); of strategies that need no more."""
        raise ModelError(f"{type(self).__name__} looks at each reply, and only their sum is there")

    @abstractmethod
    def finish(self) -> Weights:
        """The next weights. Raises :class:`QuorumError` where the strategy needs more replies."""

    def told(self) -> dict[str, Any]:
        """What the record of the round that :meth:`finish` ended says of it; JSON."""
        return {}

    def state(self) -> dict[str, NDArray[Any]]:
        """What must survive a restart between rounds (moments of a server optimiser)."""
        return {}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:  # noqa: B027 (most strategies keep nothing)
        """Continue from :meth:`state`."""


def _counters(layout: Layout, template: Weights, current: dict[str, NDArray[Any]], reply: Weights) -> None:
    """Integer counters (batches seen by a norm layer) take the maximum: they stay integers, in any order."""
    for name in layout.counters:
        current[name] = np.maximum(current.get(name, template[name]), reply[name])


class MeanAggregator(Aggregator):
    """Weighted mean, folded on arrival; then, for FedOpt-type strategies, the server's optimiser step.

    Buffers of norm layers are statistics, not parameters: they are averaged and never
    pass through the optimiser (a momentum step can turn a variance negative).
    """

    def __init__(self, layout: Layout, optimiser: flower.FedAvg | None) -> None:
        super().__init__(layout)
        self._optimiser = optimiser

    def begin(self, round_: int, weights: Weights) -> None:
        self._round, self._sent = round_, weights
        summed = self.layout.parameters | self.layout.buffers
        floats = {name: weights[name] for name in weights if name in summed}
        self._sum = FixedPointSum(floats)
        self._counted: dict[str, NDArray[Any]] = {}

    def add(self, reply: TrainReply) -> None:
        self._sum.add(reply.weights, reply.examples)
        _counters(self.layout, self._sent, self._counted, reply.weights)

    def add_sum(self, sums: Mapping[str, NDArray[np.int64]], examples: int) -> None:
        """Take a round's sum in place of its replies (``common.contribution``)."""
        self._sum.add_sum(sums, examples)

    def finish(self) -> Weights:
        if self._sum.examples == 0:
            raise QuorumError("no reply to average")
        mean, examples = self._mean(), self._sum.examples
        del self._sum  # twice the model's size, not needed before the next round
        if self._optimiser is not None:
            before = {name: self._sent[name] for name in sorted(self.layout.parameters)}
            reply = _as_reply({name: mean[name] for name in before}, examples, 0.0)
            mean |= _next(self._optimiser, self._round, before, [reply])
        return _in_order(mean, self._sent)

    def _mean(self) -> dict[str, NDArray[Any]]:
        return self._sum.mean() | self._counted

    def state(self) -> dict[str, NDArray[Any]]:
        return {} if self._optimiser is None else _state_of(self._optimiser, sorted(self.layout.parameters))

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        if self._optimiser is not None:
            _restore(self._optimiser, state)


class CentralAggregator(MeanAggregator):
    """As the mean, of clipped updates and with noise (``server.central``); all that is not trained stays as it was."""

    def __init__(self, layout: Layout, optimiser: flower.FedAvg | None, mean: NoisedMean) -> None:
        super().__init__(layout, optimiser)
        self._noised = mean

    def begin(self, round_: int, weights: Weights) -> None:
        self._round, self._sent = round_, weights
        self._sum = self._noised.begin({name: weights[name] for name in sorted(self.layout.parameters)})

    def add(self, reply: TrainReply) -> None:
        self._noised.add(reply.weights)

    def _mean(self) -> dict[str, NDArray[Any]]:
        return {**self._sent, **self._noised.finish()}

    def told(self) -> dict[str, Any]:
        return {"central": self._noised.told}

    def state(self) -> dict[str, NDArray[Any]]:
        return super().state() | {"central/clip": np.array(self._noised.clip)}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        state = dict(state)
        self._noised.clip = float(state.pop("central/clip"))
        super().restore(state)


class CollectAggregator(Aggregator):
    """Strategies that look at every reply: Flower's arithmetic on parameters, replies sorted by site.

    Buffers take the coordinate-wise median under robust strategies (one liar cannot move
    them far) and the weighted mean under q-FedAvg, which trusts its sites.
    """

    def __init__(self, layout: Layout, strategy: flower.Strategy) -> None:
        super().__init__(layout)
        self._strategy = strategy

    def begin(self, round_: int, weights: Weights) -> None:
        self._round, self._sent = round_, weights
        self._replies: dict[str, TrainReply] = {}

    def add(self, reply: TrainReply) -> None:
        self._replies[reply.site] = reply

    def finish(self) -> Weights:
        replies = [self._replies[site] for site in sorted(self._replies)]
        if not replies:
            raise QuorumError("no reply to aggregate")
        before = {name: self._sent[name] for name in sorted(self.layout.parameters)}
        messages = [_as_reply({n: r.weights[n] for n in before}, r.examples, r.loss or 0.0) for r in replies]
        after: dict[str, NDArray[Any]] = _next(self._strategy, self._round, before, messages)
        for reply in replies:
            _counters(self.layout, self._sent, after, reply.weights)
        for name in self.layout.buffers:
            stack = np.stack([reply.weights[name] for reply in replies])
            if isinstance(self._strategy, flower.QFedAvg):
                value = np.average(stack, axis=0, weights=[reply.examples for reply in replies])
            else:
                value = np.median(stack, axis=0)
            after[name] = np.asarray(value, self._sent[name].dtype)
        self._replies = {}
        return _in_order(after, self._sent)

    def state(self) -> dict[str, NDArray[Any]]:
        return _state_of(self._strategy, sorted(self.layout.parameters))

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        _restore(self._strategy, state)


def build_aggregator(study: Study, layout: Layout, *, sites: int, central: NoisedMean | None = None) -> Aggregator:
    """The aggregator for ``study.federation.strategy`` with ``sites`` taking part; ``central`` where noise is added.

    Only Flower's own classes get one averaged reply: a researcher's subclass may look at each. One site alone
    has nobody to be robust against, so its mean stands in for Bulyan, which would need three. Raises
    :class:`StudyError` for parameters, :class:`QuorumError` for a Bulyan that could never have enough replies.
    """
    strategy = build_strategy(study.federation.strategy)
    kind = type(strategy)
    if central is not None:
        optimiser = strategy if isinstance(strategy, flower.FedAvg) and kind in _FOLDED else None
        return CentralAggregator(layout, optimiser, central)
    if kind in (flower.FedAvg, flower.FedProx) or (kind is flower.Bulyan and sites == 1):
        return MeanAggregator(layout, None)
    if isinstance(strategy, flower.Bulyan) and sites < 4 * strategy.num_malicious_nodes + 3:
        raise _too_few(strategy, sites)
    if isinstance(strategy, flower.FedAvg) and kind in _FOLDED:
        return MeanAggregator(layout, strategy)
    return CollectAggregator(layout, strategy)


def _next(
    strategy: flower.Strategy, round_: int, before: dict[str, NDArray[Any]], replies: list[Message]
) -> dict[str, NDArray[Any]]:
    """What Flower's strategy makes of the parameters ``before`` and ``replies``, in their types and shapes.

    Raises :class:`QuorumError` where it needs more replies, :class:`ModelError` where it fails or diverges.
    """
    if isinstance(strategy, FedOpt):
        strategy.current_arrays = before
    elif hasattr(strategy, "current_arrays"):
        strategy.current_arrays = to_arrays(before)
    name = type(strategy).__name__
    try:
        with np.errstate(all="ignore"), _quick_collections():  # a step that overflows is refused below
            arrays, _ = strategy.aggregate_train(round_, replies)
            after = None if arrays is None else _cast(arrays, before)
    except Exception as error:
        # Somebody else's arithmetic on checked replies: whatever it raises, the strategy has failed, not a site.
        raise ModelError(f"strategy {name} failed in round {round_} with {type(error).__name__}: {error}") from error
    if after is None:
        raise _too_few(strategy, len(replies))
    if not all_finite(after):
        raise ModelError(
            f"strategy {name} gave weights that are not finite in round {round_}; lower its learning rate (eta, …)"
        )
    return after


@contextlib.contextmanager
def _quick_collections() -> Iterator[None]:
    """Keep what exists by now out of garbage collections.

    Flower's qfedavg and bulyan run a full one for every reply, 0.2 s each in a process with torch in it.
    """
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def _too_few(strategy: flower.Strategy, replies: int) -> QuorumError:
    name, liars = type(strategy).__name__, int(getattr(strategy, "num_malicious_nodes", 0))
    needs = f" (it needs {4 * liars + 3})" if isinstance(strategy, flower.Bulyan) else ""
    remedy = "federate more sites" if not liars else f"lower num_malicious_nodes ({liars}) or federate more sites"
    return QuorumError(f"{name} cannot work with {replies} replies{needs}; {remedy}")


def _state_of(strategy: flower.Strategy, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Moments and momentum; of a researcher's strategy whatever its own ``state()`` gives."""
    own: Callable[[], dict[str, NDArray[Any]]] | None = getattr(strategy, "state", None)
    if own is not None:
        return {f"own/{name}": np.asarray(array) for name, array in own().items()}
    saved: dict[str, NDArray[Any]] = {}
    for key in _MOMENTS:
        value = getattr(strategy, key, None)
        if value is not None:
            pairs = value.items() if isinstance(value, dict) else zip(names, value, strict=True)
            saved |= {f"{key}/{name}": np.asarray(array) for name, array in pairs}
    return saved


def _restore(strategy: flower.Strategy, state: dict[str, NDArray[Any]]) -> None:
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for path in sorted(state):
        key, _, name = path.partition("/")
        parts.setdefault(key, {})[name] = state[path]
    own: Callable[[dict[str, NDArray[Any]]], None] | None = getattr(strategy, "restore", None)
    if own is not None:
        own(parts.get("own", {}))
        return
    for key, part in parts.items():
        setattr(strategy, key, list(part.values()) if key == "momentum_vector" else part)


def _in_order(weights: Weights, sent: Weights) -> Weights:
    """In the model's order, what is frozen as it was sent."""
    return {name: weights.get(name, sent[name]) for name in sent}


def _as_reply(arrays: Weights, examples: int, loss: float) -> Message:
    content = RecordDict(
        {
            "arrays": to_arrays(arrays),
            "metrics": MetricRecord({"num-examples": examples, "train_loss": loss}),
        }
    )
    return Message(content, 1, "train")


def _cast(arrays: ArrayRecord, template: Weights) -> dict[str, NDArray[Any]]:
    found = {name: array.numpy() for name, array in arrays.items()}
    return {name: np.asarray(found[name], template[name].dtype).reshape(template[name].shape) for name in template}


__all__ = ["Aggregator", "FixedPointSum", "Layout", "build_aggregator"]
