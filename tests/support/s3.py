"""S3 on this machine: moto's server, for pyarrow's own client."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs


@contextmanager
def s3_bucket(name: str) -> Iterator[str]:
    """An empty bucket, while it is served: `uri.format("folder")` is the URI of a folder in it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # its state outlives a server
    query = urlencode({"endpoint_override": f"http://{host}:{port}", "region": "us-east-1"})
    with pytest.MonkeyPatch.context() as patch:
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(key, "tests")
        fs.FileSystem.from_uri(f"s3://{name}?{query}&allow_bucket_creation=true")[0].create_dir(name)
        try:
            yield f"s3://{name}/{{}}?{query}"
        finally:
            server.stop()
