"""A real S3 server on this machine's loopback, and a scan in a process of its own that uses it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

BUCKET = "archive"
# Parts and blocks are small, so that there are several.
SCAN = """
from aivsreal.runtime.scale import cluster, output
output.ROWS_A_PART = cluster.FILES_A_BLOCK = {rows}
from aivsreal.runtime.commands.scan import main
main()
"""


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Environment in which boto3 and pyarrow find the server; it has one bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    names = {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + 120
        while server.poll() is None and time.monotonic() < until_s:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        client(names).create_bucket(Bucket=BUCKET)
        yield names
    finally:
        server.kill()
        server.wait()


def client(names: dict[str, str]) -> Any:
    """A client of that server."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=names["AWS_ENDPOINT_URL"], region_name=names["AWS_DEFAULT_REGION"],
        aws_access_key_id="test", aws_secret_access_key="test",
    )  # fmt: skip


def upload(names: dict[str, str], folder: Path, prefix: str) -> None:
    """Put the files of a folder into the bucket."""
    s3 = client(names)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())


def started(names: dict[str, str], *arguments: str, rows_a_part: int = 50_000) -> subprocess.Popen[str]:
    """`aivsreal-scan`, running."""
    # Ray reads these when it is imported, which is before the command begins here.
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token_hex(32)}
    command = [sys.executable, "-c", SCAN.format(rows=rows_a_part), *arguments]
    return subprocess.Popen(command, env={**os.environ, **names, **secret}, stderr=subprocess.PIPE, text=True)


def actors_of(driver: int) -> list[int]:
    """Processes of the actors that judge for a driver, which has started Ray itself."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended

    def is_below(process: int) -> bool:
        while process > 1:
            if process == driver:
                return True
            process = parents.get(process, 0)
        return False

    return [process for process, title in titles.items() if "ray::MapWorker" in title and is_below(process)]
