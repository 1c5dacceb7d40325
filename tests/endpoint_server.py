"""A server on this machine that speaks OpenAI's chat API, and plays what real ones do on a bad day."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"


def completion(text: str | None, tokens_in: int = 10, tokens_out: int = 5) -> dict:
    """The body of a good reply."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


class Played:
    """What a reply is made of: status, headers, body, how many of its bytes are sent, how long it takes."""

    def __init__(self, status=200, body=None, headers=None, send=None, seconds=0.0):
        self.status, self.headers, self.send, self.seconds = status, headers or {}, send, seconds
        self.body = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()


class Server:
    """`play(number, request)` decides on each reply, the number counting from 0; a string is a good answer."""

    def __init__(self, play: Callable[[int, dict], "str | Played"]) -> None:
        self.play, self.requests, self.headers, self.in_flight, self.most_in_flight = play, [], [], 0, 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    number = len(server.requests)
                    server.requests.append(request)
                    server.headers.append(dict(self.headers))
                    server.in_flight += 1
                    server.most_in_flight = max(server.most_in_flight, server.in_flight)
                try:
                    played = server.play(number, request) if self.path.endswith("/chat/completions") else Played(404)
                    played = Played(body=completion(played)) if isinstance(played, str) else played
                    time.sleep(played.seconds)
                    self.send_response(played.status)
                    for name, value in played.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(played.body)))
                    self.end_headers()
                    self.wfile.write(played.body[: played.send])
                except OSError:
                    pass  # the client has gone
                finally:
                    with server.lock:
                        server.in_flight -= 1

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@contextmanager
def serving(play: Callable[[int, dict], "str | Played"]) -> Iterator[Server]:
    """A server at `.url` for the length of the block."""
    server = Server(play)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
