"""The nodes of a local cluster as Ray's autoscaler sees them: raylets that it starts on this machine and ends again.

Ray's own provider for this never removes a dead node from its list, and the autoscaler waits for it for ever. A cloud's list
does not contain lost machines; nor does this one, so a lost node is replaced.

Nor do these nodes monitor logs, as Ray says of nodes on one machine (`ray start --include-log-monitor`): the head does. Each
monitor reads all of the machine's, and a driver would hear every line from each.
"""

from functools import partial
from typing import Any

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class LocalNodes(FakeMultiNodeProvider):
    """Named in the autoscaler's configuration (`mtrl_cluster.local.autoscaling`); lives in its process."""

    def create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        """See Ray's `NodeProvider`."""
        with self.lock:
            whole = parameter.RayParams
            parameter.RayParams = partial(whole, include_log_monitor=False)
            try:
                super().create_node_with_resources_and_labels(*arguments)
            finally:
                parameter.RayParams = whole

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """Identities of the nodes with these tags that live; what is left of the others is ended."""
        with self.lock:
            for identity in [identity for identity, node in self._nodes.items() if _is_dead(node)]:
                self.terminate_node(identity)
            found: list[str] = super().non_terminated_nodes(tag_filters)
            return found


def _is_dead(node: dict[str, Any]) -> bool:
    """Whether its raylet has ended; always false for the head, which is never replaced."""
    return "node" in node and any(kind == "raylet" for kind, _ in node["node"].dead_processes())
