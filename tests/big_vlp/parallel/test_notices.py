"""A machine's notice that it goes ends a run as SIGTERM does, where there is one to ask."""

import http.server
import threading
import time

import pytest

from big_vlp.parallel import notices, signals


@pytest.fixture
def metadata(monkeypatch):
    """What a metadata server says: {path after instance/: text or status}."""
    said = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            answer = said[self.path.removeprefix("/computeMetadata/v1/instance/")]
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(str(answer).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(notices, "_POLL_SECONDS", 0.02)
    yield said
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "name, notice",
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
def test_a_notice_ends_the_run(name, notice, metadata, capsys):
    with pytest.raises(signals.Stop) as stop, signals.heard(), notices.heard():
        time.sleep(0.3)
        metadata[name] = notice
        time.sleep(10)
    assert stop.value.code == 143
    assert f"about to go ({name})" in capsys.readouterr().err


@pytest.mark.parametrize(
    "before, then",
    [
        ("TERMINATE_ON_HOST_MAINTENANCE", None),  # another start has heard it
        ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"),
        ("NONE", 503),
        (404, 404),
    ],
)
def test_what_is_no_news(before, then, metadata):
    metadata["maintenance-event"] = before
    with signals.heard(), notices.heard():
        time.sleep(0.2)
        metadata["maintenance-event"] = before if then is None else then
        time.sleep(0.2)
        assert not signals.received()


def test_elsewhere_nothing_asks(monkeypatch, tmp_path):
    before = set(threading.enumerate())

    def watching():
        found = set(threading.enumerate()) - before
        return [thread for thread in found if thread.name == "notices"]

    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.delenv("NO_GCE_CHECK", raising=False)
    product = tmp_path / "product_name"
    monkeypatch.setattr(notices, "_PRODUCT", product)
    for text in (None, "ThinkPad"):
        if text:
            product.write_text(text)
        with notices.heard():
            assert not watching()
    product.write_text("Google Compute Engine")
    monkeypatch.setattr(notices, "_SERVER", "127.0.0.1:9")  # nobody there
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with notices.heard():
        assert not watching()
    monkeypatch.delenv("NO_GCE_CHECK")
    with notices.heard():
        [thread] = watching()
    thread.join(10)
    assert not watching()
