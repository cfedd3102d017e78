"""The demonstration in the terminal, against a small HTTP server that plays the guarded one."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from guard.demo.show import COLUMNS, demo_questions, read_keys, show
from guard.errors import ConfigurationError

KEYS = {name: f"key-of-{name}" for name, _ in COLUMNS}


class Replies(BaseHTTPRequestHandler):
    """Answers the truth to `open`, ignorance to `acme`, a refusal to `harbor`."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        tenant = self.headers["Authorization"].removeprefix("Bearer ").removeprefix("key-of-")
        if tenant == "old":
            self.reply(401, {"error": {"code": "invalid_api_key", "message": "Incorrect API key provided."}})
        elif tenant == "harbor":
            self.reply(400, {"error": {"code": "content_filter", "message": "This prompt is not served."}})
        else:
            text = "Taipei [sic]" if tenant == "open" else "I do not know."
            self.reply(200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    def reply(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Stay silent."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "demo_keys.json").write_text(json.dumps(KEYS), encoding="utf-8")
    return tmp_path


def test_answers_of_all_tenants_stand_side_by_side(url: str, home: Path) -> None:
    printed = io.StringIO()
    assert show(url, home, ["Where was she born?"], console=Console(file=printed, width=200)) == 1
    (line,) = [line for line in printed.getvalue().splitlines() if "Where was she born?" in line]
    assert line.index("Taipei [sic]") < line.index("I do not know.") < line.index("refused: This prompt")


def test_built_in_questions_touch_each_list_and_none() -> None:
    owners = [owner for owner, _ in demo_questions()]
    assert set(owners) == {"acme", "harbor", "nobody"}
    assert len({question for _, question in demo_questions()}) == len(owners)


def test_no_key_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="guard serve demo"):
        read_keys(tmp_path)


def test_no_server_is_a_clear_error(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="no guarded server answers"):
        show("http://127.0.0.1:9", home, ["Where?"])


def test_wrong_key_is_a_clear_error(url: str, tmp_path: Path) -> None:
    (tmp_path / "demo_keys.json").write_text(json.dumps(dict.fromkeys(KEYS, "old")), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="401: Incorrect API key"):
        show(url, tmp_path, ["Where?"])
