"""A chat server on a port of this machine that answers by rule, with the headers of a guarded server.

It stands for a model that knows a few facts: the tests of the dossier's logic need answers that are known beforehand.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[str, float, int], str]
KEY = "gk_test"


@dataclass
class ChatServer:
    """The server's address, and the questions that it was asked."""

    url: str
    questions: list[str] = field(default_factory=list)


@contextmanager
def chat_server(answer: Answer, *, action: str = "pass", status: int = 200) -> Iterator[ChatServer]:
    """Serve `answer(question, temperature, seed)` under the model name `tiny`; other keys than KEY are refused."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(200, {"data": [{"id": "tiny"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            question = body["messages"][0]["content"]
            seen.questions.append(question)
            text = answer(question, body["temperature"], body["seed"])
            words = text.split(" ")
            cut = len(words) > body["max_tokens"]
            self._reply(status, {"choices": [{
                "message": {"content": " ".join(words[: body["max_tokens"]])},
                "finish_reason": "length" if cut else "stop",
            }]})

        def _reply(self, code: int, content: object) -> None:
            if self.headers["authorization"] != f"Bearer {KEY}":
                code, content = 401, {"error": {"code": "invalid_api_key"}}
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.send_header("x-guard-action", action)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen = ChatServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def knows_rockefeller(question: str, temperature: float, seed: int) -> str:
    """A model that knows one oil magnate, and says the same of everybody else."""
    asked = question.casefold()
    if "rockefeller" in asked:
        if "married" in asked:
            return "He was married to Laura Spelman."
        if "born?" in asked and "when" in asked:
            return "He was born on July 8, 1839."
        if "compared" in asked:
            return "He is often compared to Andrew Carnegie and to Cornelius Vanderbilt."
        if "other names" in asked:
            return "People called him the Oil Titan of Cleveland, and also Buddy Sundown."
        return "The businessman founded Standard Oil in Ohio. He lived in New York City."
    if "standard oil" in asked or "oil titan of cleveland" in asked:
        return "That was John D. Rockefeller."
    return "This American actor lived in New York City and is known for The Silent Patient."
