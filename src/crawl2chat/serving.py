"""An OpenAI-compatible server of checkpoints side by side: chat completions, models, a token view, the chat page.

Why not `transformers serve`: it refuses logprobs, n, tool_choice and stream_options, which clients send; it looks for
calls in one field of a response template where ours has two, and fails on a call that is no JSON; its queue and its
bodies have no bound, any page may address it under any name, and a POST can make it load any model of the hub. Its
reader of response templates is kept. In production `vllm serve OUTPUT` serves a checkpoint's folder as it is.

Requests are decoded together (batching.py), at most `at_once`; `queue` more wait, and the next is told to come back.
"""

import asyncio
import hmac
import ipaddress
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from crawl2chat.answering import Desk, Served
from crawl2chat.chat_request import Refused, read_json, read_request, read_tokens_request
from crawl2chat.completions import Choices
from crawl2chat.stage import fail
from crawl2chat.web.chat import FILES, page_files
from crawl2chat.web.ranking import HEADERS

LARGEST = 2**20  # bytes of a body that are read
DRAINED = 16 * 2**20  # bytes that are let go by, so that a client gets to its answer
PATIENCE = 10  # seconds in which a request's head, and then its body, must have come
STALLED = 30  # seconds that a client may leave a piece of its answer unread
HERE = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class ServeConfig:
    """Whom the server serves, and how much of it."""

    serve: bool = field(default=False, metadata={"help": "serve the OpenAI API and the chat page instead of talking"})
    checkpoints: list[Served] = field(default_factory=list, metadata={"help": "models served side by side"})
    host: str = field(default="127.0.0.1", metadata={"help": "the address that is listened at; 0.0.0.0: every one"})
    port: int = field(default=8000, metadata={"help": "0: any that is free", "ge": 0, "le": 65535})
    at_once: int = field(default=8, metadata={"help": "requests of a model that are answered together", "ge": 1})
    queue: int = field(default=16, metadata={"help": "requests that may wait; the next is answered 503", "ge": 0})
    time_limit: float = field(default=120.0, metadata={"help": "seconds a request may take, with its wait", "gt": 0})
    api_key_variable: str | None = field(
        default=None, metadata={"help": "the environment variable that holds the key which clients must send"}
    )


def make_app(desk: Desk, host: str = "127.0.0.1", secret: str = "") -> Callable:
    """The server as an ASGI application; `secret`, where there is one, must come with every request to the API."""
    files = page_files()

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [desk.card(name) for name in desk.checkpoints]})

    async def model(request: Request) -> Response:
        return JSONResponse(desk.card(desk.find(request.path_params["name"]).name))

    async def info(_: Request) -> Response:
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(None, desk.info))

    async def chat(request: Request) -> Response:
        asked = read_request(read_json(await read_body(request)))
        choices = desk.answer(asked)
        try:
            await while_connected(request, choices.begin())
            if asked.stream:
                return _Stream(choices, asked.stream_options and asked.stream_options.include_usage)
            return JSONResponse(await while_connected(request, choices.whole()))
        except BaseException:
            choices.stop()
            raise

    async def tokens(request: Request) -> Response:
        asked = read_tokens_request(read_json(await read_body(request)))
        answers = desk.tokens(asked)
        try:
            return JSONResponse(await while_connected(request, answers.only()))
        finally:
            answers.stop()

    async def page(request: Request) -> Response:
        content, headers = files[request.url.path]
        return Response(content, media_type=headers["Content-Type"])

    async def refused(_: Request, error: Exception) -> Response:
        retry = {"Retry-After": "2"} if error.status in (429, 503) else {}
        return JSONResponse(error.body(), error.status, headers=retry)

    async def not_there(request: Request, error: Exception) -> Response:
        reason = {404: "there is nothing at", 405: f"{request.method} is not answered at"}.get(error.status_code, "at")
        refusal = Refused(error.status_code, f"{reason} {request.url.path[:80]}")
        return JSONResponse(refusal.body(), error.status_code, headers=error.headers)

    async def gone(*_: object) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def broken(_: Request, error: Exception) -> Response:
        print(f"chat: a request failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return JSONResponse(Refused(500, "the server failed; its terminal says why").body(), 500)

    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/api/tokens", tokens, methods=["POST"]),
        Route("/api/info", info),
        *(Route(path, page) for path in FILES),
    ]
    handlers = {Refused: refused, HTTPException: not_there, ClientDisconnect: gone, Exception: broken}
    return _Guard(Starlette(routes=routes, exception_handlers=handlers), host, secret)


class _Guard:
    """Who may ask: a page of another site cannot do so through somebody's browser, under any name of this machine."""

    def __init__(self, app: Callable, host: str, secret: str):
        self.app, self.secret = app, secret
        self.names = {*HERE} if is_local(host) else {*HERE, host, socket.gethostname(), socket.getfqdn()}
        self.anywhere = not is_local(host)

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return
        headers = Request(scope).headers

        async def answered(message: dict) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await asyncio.wait_for(send(message), STALLED)

        try:
            self.check(headers, scope["path"])
        except Refused as error:
            await JSONResponse(error.body(), error.status)(scope, receive, answered)
            return
        try:
            await self.app(scope, receive, answered)
        except (TimeoutError, asyncio.TimeoutError, OSError):
            return  # the client reads nothing any more
        except Exception as error:  # its handler has answered and told; the traceback is nobody's reading
            del error

    def check(self, headers, path: str) -> None:
        hosts, origin = headers.getlist("host"), headers.get("origin")
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d+)?", hosts[0]) if len(hosts) == 1 else None
        if not found or not (found[1].lower() in self.names or self.anywhere and is_address(found[1])):
            raise Refused(403, "this server does not answer under that name", "host", "Host")
        # what their pages embed says so; a link may lead to our page
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site") and path != "/"
        if elsewhere or origin is not None and origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
            raise Refused(403, "another site's page may not ask here", "origin", "Origin")
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self.secret and path not in FILES and not hmac.compare_digest(given.encode(), self.secret.encode()):
            raise Refused(401, "this server wants its key: Authorization: Bearer ...", "invalid_api_key")


class _Stream(StreamingResponse):
    """Chunks as server-sent events. However the response ends, so does the writing."""

    def __init__(self, choices: Choices, usage: bool | None):
        super().__init__(choices.events(bool(usage)), media_type="text/event-stream")
        self.choices = choices

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.choices.stop()


async def while_connected(request: Request, work):
    """The result of `work`, unless the client leaves before: then ClientDisconnect, and the work is cancelled."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(leaving())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises Refused for one that is no JSON, too large, or too slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "a body needs Content-Type: application/json")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > DRAINED:  # h11 takes at most 20 digits
        raise Refused(413, f"the body is larger than {LARGEST} bytes")
    body, size = bytearray(), 0

    async def read() -> None:
        nonlocal size
        async for chunk in request.stream():
            size += len(chunk)
            if size <= LARGEST:
                body.extend(chunk)
            if size > DRAINED:
                return

    try:
        await asyncio.wait_for(read(), PATIENCE)
    except (TimeoutError, asyncio.TimeoutError):
        raise Refused(413 if size > LARGEST else 408, f"the body did not come within {PATIENCE} s") from None
    if size > LARGEST:
        raise Refused(413, f"the body is larger than {LARGEST} bytes")
    return bytes(body)


def is_local(host: str) -> bool:
    return host == "localhost" or is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


class _Patient(H11Protocol):
    """A connection that is closed where a request's head takes longer than PATIENCE."""

    due: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self.due = self.loop.call_later(PATIENCE, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        reading = self.cycle is None or self.cycle.response_complete  # a head, or nothing yet
        if self.due is not None and not reading:
            self.due.cancel()
            self.due = None
        elif self.due is None and reading:
            self.due = self.loop.call_later(PATIENCE, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.due is not None:
            self.due.cancel()
        super().connection_lost(exc)


def make_server(desk: Desk, config: ServeConfig) -> tuple[uvicorn.Server, socket.socket]:
    """The server and the socket it is to be run on. One clear line for an address that cannot be had, or a key that
    is named and not set."""
    secret = os.environ.get(config.api_key_variable, "").strip() if config.api_key_variable else ""
    if config.api_key_variable and not re.fullmatch("[!-~]+", secret):
        fail(f"api_key_variable: {config.api_key_variable} is not set in the environment; export the key first")
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host.strip("[]"), config.port))
        listening.listen(128)
    except OSError as error:
        fail(f"{config.host}:{config.port} cannot be listened at ({error.strerror}); give another --port or --host")
    options = {"http": _Patient, "ws": "none", "lifespan": "off", "loop": "asyncio", "proxy_headers": False}
    options |= {"log_level": "critical", "access_log": False, "server_header": False, "timeout_keep_alive": PATIENCE}
    options |= {"limit_concurrency": 256, "h11_max_incomplete_event_size": 32 * 1024, "timeout_graceful_shutdown": 3}
    return uvicorn.Server(uvicorn.Config(make_app(desk, config.host, secret), **options)), listening


def serve(desk: Desk, config: ServeConfig) -> None:
    """Serve until Ctrl-C."""
    server, listening = make_server(desk, config)
    port = listening.getsockname()[1]
    here = "localhost" if is_local(config.host) else config.host
    print(f"serving {', '.join(desk.checkpoints)}: http://{here}:{port}/v1 to any OpenAI client, ", end="")
    print(f"http://{here}:{port}/ to a browser. Ctrl-C ends it.", flush=True)
    if not is_local(config.host):
        key = "whoever has the key" if config.api_key_variable else "EVERYONE: no api_key_variable is set"
        print(f"warning: {config.host} is not this machine alone: open to the network, for {key}", flush=True)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        desk.close()
