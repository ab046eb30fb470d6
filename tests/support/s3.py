"""S3 on this machine: moto's server, for pyarrow's own client."""

import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import pytest
from pyarrow import fs

from mtrl_cluster.local import free_port
from tests.support.processes import wait_until

HOST, SECONDS = "127.0.0.1", 60.0


@contextmanager
def s3_server() -> Iterator[Callable[[], str]]:
    """Makes empty buckets; `uri.format("folder")`, of what it gives, is the URI of a folder in one.

    In a process of its own: vLLM looks at every object of every module, and those of Flask do not bear it.
    """
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    query = urlencode({"endpoint_override": f"http://{HOST}:{port}", "region": "us-east-1"})

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    def bucket() -> str:
        name = f"bucket-{uuid.uuid4().hex}"
        uri = f"s3://{name}/{{}}?{query}"
        fs.FileSystem.from_uri(f"{uri.format('')}&allow_bucket_creation=true")[0].create_dir(name)
        return uri

    with pytest.MonkeyPatch.context() as patch:
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(key, "tests")
        try:
            wait_until(answers, SECONDS, server)
            yield bucket
        finally:
            server.kill()
            server.wait()
