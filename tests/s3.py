"""An S3 server on this machine, with one bucket."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs


@contextmanager
def start_s3() -> Iterator[str]:
    """Yields the URL of a folder in the bucket; clients find their keys in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            query = f"scheme=http&endpoint_override={host}:{port}"
            filesystem, _ = fs.FileSystem.from_uri(f"s3://gift/?{query}&allow_bucket_creation=true")
            filesystem.create_dir("gift")
            yield f"s3://gift/runs?{query}"
    finally:
        server.stop()
