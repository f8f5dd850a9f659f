"""An S3 server over HTTP on this machine, in this process: it can be stopped and started again with what it holds."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

HOST = "127.0.0.1"


class S3Server:
    """One bucket on one server. What an attacker or a careless colleague does to it is done through `client`."""

    def __init__(self) -> None:
        self.bucket = f"models-{uuid.uuid4().hex[:8]}"
        self._port = 0
        self._server: ThreadedMotoServer | None = None
        self.start()
        self.client.create_bucket(Bucket=self.bucket)

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._port}"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/team"

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="somebody",
            aws_secret_access_key="else",
            region_name="us-east-1",
        )

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address=HOST, port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def deny(self) -> None:
        """From now on whom the server does not know may do nothing: it knows nobody."""
        self._post("/moto-api/reset-auth", b"0")

    def allow(self) -> None:
        self._post("/moto-api/reset-auth", b"inf")

    def sizes(self) -> dict[str, int]:
        """Sizes of the objects by key."""
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        return {entry["Key"]: entry["Size"] for entry in found}

    def read(self, key: str) -> bytes:
        with self.client.get_object(Bucket=self.bucket, Key=key)["Body"] as body:
            return bytes(body.read())

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def _post(self, path: str, body: bytes) -> None:
        plain = {"Content-Type": "text/plain"}
        urlopen(Request(self.endpoint + path, data=body, headers=plain, method="POST"), timeout=60).close()


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server, and an environment that leads to it as to Amazon's."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "tested")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        try:
            yield server
        finally:
            server.stop()
