"""A chat-completions server on a free local port."""

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any]], tuple[int, Any]]


class Endpoint:
    """`answer` maps a request's body to (status, content or body); `requests` and `keys` are what came.

    `stream`, where it is set, writes the whole response itself.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.answer: Answer = lambda body: (200, "Hello.")
        self.stream: Callable[[BaseHTTPRequestHandler], None] | None = None
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.keys.append(self.headers.get("Authorization", ""))
                if endpoint.stream is not None:
                    with contextlib.suppress(OSError):
                        endpoint.stream(self)
                    return
                status, content = endpoint.answer(body) if self.path == "/v1/chat/completions" else (404, {})
                message = {"role": "assistant", "content": content}
                whole = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
                whole["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
                payload = json.dumps(content if isinstance(content, dict) else whole).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 256

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.server.shutdown()
        self.server.server_close()
