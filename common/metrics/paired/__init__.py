"""Two deciders on the same images: two models, a model and a reader, or two readers; as sums that merge.

First every site sends a :class:`Joint` table of both deciders' decisions; their sum goes back out, and every site sends
:class:`Spread` (and, of two models, :class:`Areas`): sums over its patients of squared differences of influences. From
all of them :func:`compare` gives each difference with its interval and p-value. No score leaves a site.
"""

from common.metrics.paired.areas import Areas
from common.metrics.paired.comparison import COMPARED, Comparison, Contrast, Models, compare
from common.metrics.paired.decisions import UNREAD, Decided, called, read
from common.metrics.paired.joint import Joint
from common.metrics.paired.kappa import Kappa, kappa_of
from common.metrics.paired.pair import Pair
from common.metrics.paired.significance import McNemar, mcnemar
from common.metrics.paired.spread import Spread

__all__ = [
    "COMPARED",
    "UNREAD",
    "Areas",
    "Comparison",
    "Contrast",
    "Decided",
    "Joint",
    "Kappa",
    "McNemar",
    "Models",
    "Pair",
    "Spread",
    "called",
    "compare",
    "kappa_of",
    "mcnemar",
    "read",
]
