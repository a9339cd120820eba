"""Who is there, before anybody works."""

from __future__ import annotations

from collections.abc import Mapping

from common import protocol
from common.errors import ProtocolError
from common.study import Study
from server.asking import Link, ask


def survey(link: Link, study: Study, *, deadline_s: float = 600.0) -> dict[str, tuple[int, Mapping[str, int]]]:
    """Ask every node who it is: alias -> (node id, images per split). Nodes without a site are left out.

    Raises :class:`ProtocolError` when two nodes claim one alias.
    """
    nodes = {f"node-{node}": node for node in link.grid.get_node_ids()}
    found: dict[str, tuple[int, Mapping[str, int]]] = {}
    sealed = protocol.seal(protocol.SurveyRequest(protocol.Task(study)))
    for answer in ask(link, sealed, nodes, deadline_s):
        if not isinstance(answer.reply, protocol.SurveyReply):
            link.events.emit("site-absent", node=answer.site, reason=answer.reason or "wrong kind of reply")
            continue
        if answer.reply.site in found:
            raise ProtocolError(f"two nodes say they are {answer.reply.site}; give each site its own directory")
        found[answer.reply.site] = (nodes[answer.site], answer.reply.images)
    return dict(sorted(found.items()))
