"""From where a Ray is reached: the addresses on which its processes listen, and what its dashboard says to whom."""

import contextlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any

import psutil

from mtrl_cluster.authentication import token_file


def reach(processes: Iterable[psutil.Process], dashboard: str) -> dict[str, Any]:
    """`listening`: addresses; `without` and `with` the token: the HTTP status of the job server's answer."""
    listening = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            listening |= {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    token = os.environ.get("RAY_AUTH_TOKEN") or token_file().read_text().strip()
    return {
        "listening": sorted({address.removeprefix("::ffff:") for address in listening}),
        "without": _status(dashboard, {}),
        "with": _status(dashboard, {"Authorization": f"Bearer {token}"}),
    }


def _status(dashboard: str, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"http://{dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
