"""Ask any endpoint that speaks OpenAI's chat API: retried, cached, resumable, and never beyond the recipe's dollars.

Every answer is appended to a cache with its prompt the moment it arrives, so that a run that was stopped goes on where
it was, and money is spent once. The key comes from an environment variable; no file, log or message holds it.
Not covered: streaming, tools, and hidden tokens that a server bills beyond `max_tokens`.
"""

import email.utils
import hashlib
import http.client
import json
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from crawl2chat.stage import fail

FIRST_WAIT = 1.0  # seconds before the second try; each further wait is twice as long
LONGEST_WAIT = 300.0  # seconds: a server that asks for more is left alone
DOWN = 3  # prompts in a row that no try could get answered: the endpoint is down
FRAME = 16  # tokens that a chat template may add to a turn
LARGEST = 16_000_000  # bytes of a reply that are read
MENDABLE = {408, 409, 425, 429, 500, 502, 503, 504, 529}
HOPELESS = {
    401: "it does not take the key: check {variable}",
    402: "the account has no money left",
    403: "the key may not use this model: check {variable} and `model`",
    404: "there is no such address or model: check `base_url` (it ends in /v1 at most servers) and `model`",
}


@dataclass
class Endpoint:
    """A model behind an address, how to ask it, and what that may cost."""

    base_url: str = field(metadata={"help": "up to and without /chat/completions, such as http://localhost:8000/v1"})
    model: str = field(metadata={"help": "the name that the server knows the model by"})
    api_key_variable: str | None = field(
        default=None, metadata={"help": "the environment variable that holds the key; null for a server without one"}
    )
    temperature: float = field(default=0.7, metadata={"help": "0 to 2", "ge": 0, "le": 2})
    max_tokens: int = field(default=1024, metadata={"help": "longest answer, in tokens", "ge": 1})
    at_once: int = field(default=8, metadata={"help": "requests in flight", "ge": 1})
    retries: int = field(default=6, metadata={"help": "further tries after a failure that may pass", "ge": 0})
    timeout: float = field(default=120.0, metadata={"help": "seconds for one whole answer", "gt": 0})
    dollars_per_million_in: float = field(default=0.0, metadata={"help": "price of the prompt's tokens", "ge": 0})
    dollars_per_million_out: float = field(default=0.0, metadata={"help": "price of the answer's tokens", "ge": 0})
    max_dollars: float | None = field(
        default=None, metadata={"help": "the cache's answers cost at most this, all runs together", "gt": 0}
    )

    def __post_init__(self) -> None:
        # no message repeats a value: it may be a key that was written into the wrong place
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must begin with http:// or https:// and name a host")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("base_url must hold no password and no ?query; put the key into an environment variable")
        if self.api_key_variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.api_key_variable):
            raise ValueError("api_key_variable must be the NAME of an environment variable (A-Z, 0-9, _), not a key")
        if bool(self.max_dollars) != bool(self.dollars_per_million_in or self.dollars_per_million_out):
            raise ValueError("max_dollars and the prices (dollars_per_million_in, _out) go together")


@dataclass
class Answer:
    """The reply to one prompt; `text` is None where no try brought one, and `finish` says why."""

    number: int
    messages: list[dict]
    text: str | None
    finish: str
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0
    cached: bool = False


class Mendable(Exception):
    """A failure that another try may get past; `wait` is what the server asked for, `billed` whether it may cost."""

    def __init__(self, reason: str, wait: float = 0.0, billed: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.billed = wait, billed


class Refused(Exception):
    """The server will not answer this prompt, others perhaps."""


class Hopeless(Exception):
    """Nothing more can be asked of this endpoint."""


class Ledger:
    """The cache file, what was spent on it, and what the requests in flight may still cost. Safe in threads."""

    def __init__(self, endpoint: Endpoint, path: Path) -> None:
        self.endpoint, self.path, self.known, self.unreadable = endpoint, path, {}, 0
        self.spent = self.reserved = 0.0
        self.changed = threading.Condition()
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines():
            try:
                row = json.loads(line)
                self.spent += row["dollars"]
                if "text" in row:
                    self.known[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                self.unreadable += 1
        self.file = open(path, "ab", buffering=0)
        if data and not data.endswith(b"\n"):  # a stop in mid-write: what follows stands on a line of its own
            self.file.write(b"\n")

    def price(self, tokens_in: int, tokens_out: int) -> float:
        """Dollars."""
        prices = self.endpoint.dollars_per_million_in, self.endpoint.dollars_per_million_out
        return (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6

    def reserve(self, dollars: float) -> None:
        """Set aside what a request may cost at most, waiting for those in flight where it may not fit. Raises
        Hopeless where it does not fit."""
        with self.changed:
            cap = self.endpoint.max_dollars
            while cap is not None and self.spent + self.reserved + dollars > cap:
                if not self.reserved:
                    raise Hopeless(
                        f"${self.spent:.4f} of max_dollars {cap:g} are spent and the next request may cost "
                        f"${dollars:.4f}; raise max_dollars to go on"
                    )
                self.changed.wait()
            self.reserved += dollars

    def settle(self, reserved: float, row: dict | None) -> None:
        """Give back what was set aside, and write what came of it: one line, synced."""
        with self.changed:
            try:
                if row is not None:
                    self.spent += row["dollars"]
                    self.file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                    os.fsync(self.file.fileno())
                    if "text" in row:
                        self.known[row["key"]] = row
            finally:
                left = self.reserved - reserved
                self.reserved = left if left > 1e-12 else 0.0
                self.changed.notify_all()


class StayHere(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host: it is an error."""

    def redirect_request(self, *args: object) -> None:
        return None


class Asker:
    """One run over one endpoint: what its threads share."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger, label: str) -> None:
        self.endpoint, self.ledger, self.label = endpoint, ledger, label
        self.secret = read_secret(endpoint)
        self.opener = urllib.request.build_opener(StayHere)
        self.stop, self.not_before, self.lost_in_a_row = threading.Event(), 0.0, 0
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.ended: Hopeless | None = None
        self.lost_to = ""  # what the last prompt that no try could get answered was lost to

    def parameters(self) -> dict:
        """What is asked for beside the messages, and keys the cache with them."""
        return {"temperature": self.endpoint.temperature, "max_tokens": self.endpoint.max_tokens}

    def answer(self, number: int, messages: list[dict], occurrence: int) -> Answer:
        """From the cache, or from the server within its tries. Raises Hopeless, and stops the other threads then."""
        identity = [self.endpoint.model, messages, self.parameters(), occurrence]
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        if row := self.ledger.known.get(key):
            found = {name: row[name] for name in ("text", "finish", "tokens_in", "tokens_out", "dollars")}
            return Answer(number, messages, **found, cached=True)
        reason = ""
        try:
            for attempt in range(self.endpoint.retries + 1):
                self.wait_for_turn()
                try:
                    return self.pay(number, messages, key)
                except Mendable as error:
                    reason = str(error)
                    if attempt < self.endpoint.retries:
                        self.hold(error.wait, FIRST_WAIT * 2**attempt * random.uniform(1, 1.25))
            with self.lock:
                self.counts["lost"] += 1
                self.lost_in_a_row += 1
                self.lost_to = reason
            if self.lost_in_a_row >= DOWN:
                raise Hopeless(f"{reason}, {self.endpoint.retries + 1} times each for {DOWN} prompts in a row")
        except Refused as error:
            with self.lock:
                self.counts["refused"] += 1
            reason = str(error)
        except Hopeless as error:
            with self.lock:
                self.ended = self.ended or error
            self.stop.set()
            raise
        return Answer(number, messages, None, reason)

    def pay(self, number: int, messages: list[dict], key: str) -> Answer:
        """One request, its most expensive outcome set aside before and its answer in the cache after."""
        # bytes are never fewer than the tokens of a byte-level vocabulary
        most_in = sum(len(str(turn["content"]).encode("utf-8", "replace")) + FRAME for turn in messages)
        most = self.ledger.price(most_in, self.endpoint.max_tokens)
        self.ledger.reserve(most)
        row = None
        try:
            text, finish, used = self.post(messages)
            tokens_in, tokens_out = used or (most_in, self.endpoint.max_tokens)
            with self.lock:
                self.lost_in_a_row = 0
                self.counts["no_usage"] += used is None
            answer = {"text": text, "finish": finish, "tokens_in": tokens_in, "tokens_out": tokens_out}
            answer["dollars"] = self.ledger.price(tokens_in, tokens_out)
            row = {"key": key, "model": self.endpoint.model, "messages": messages, "parameters": self.parameters()}
            row |= answer
            return Answer(number, messages, **answer)
        except Mendable as error:
            if error.billed and most:
                row = {"key": key, "lost": str(error), "dollars": most}
            raise
        finally:
            self.ledger.settle(most, row)

    def wait_for_turn(self) -> None:
        """Until no Retry-After holds any more. Raises Hopeless when the run has ended meanwhile."""
        while (left := self.not_before - time.monotonic()) > 0 and not self.stop.is_set():
            self.stop.wait(left)
        if self.stop.is_set():
            raise Hopeless("the run was stopped")

    def hold(self, asked: float, own: float) -> None:
        """Wait before the next try; what the server asks for (Retry-After, seconds) holds for all threads."""
        if asked > LONGEST_WAIT:
            raise Hopeless(f"the server asks to come back in {asked:.0f} s; run the same command then")
        with self.lock:
            self.counts["retries"] += 1
            self.not_before = max(self.not_before, time.monotonic() + asked)
        self.stop.wait(min(own, LONGEST_WAIT))

    def post(self, messages: list[dict]) -> tuple[str, str, tuple[int, int] | None]:
        """(text, finish reason, (tokens in, tokens out) if the server says). Raises Mendable, Refused, Hopeless."""
        request = urllib.request.Request(
            self.endpoint.base_url.rstrip("/") + "/chat/completions",
            json.dumps({"model": self.endpoint.model, "messages": messages, **self.parameters()}).encode(),
            {"Content-Type": "application/json", "User-Agent": "crawl2chat"},
        )
        if self.secret:
            request.add_unredirected_header("Authorization", f"Bearer {self.secret}")
        deadline = time.monotonic() + self.endpoint.timeout
        try:
            with self.opener.open(request, timeout=self.endpoint.timeout) as response:
                body = read_body(response, deadline)
        except urllib.error.HTTPError as error:
            self.refuse(error, deadline)
        except TimeoutError as error:
            raise Mendable(f"no answer within {self.endpoint.timeout:g} s", billed=True) from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            cause = getattr(error, "reason", error)
            arrived = not isinstance(cause, ConnectionRefusedError | socket.gaierror)
            raise Mendable(self.hide(f"{type(cause).__name__}: {cause}"), billed=arrived) from error
        return self.read(body)

    def read(self, body: bytes) -> tuple[str, str, tuple[int, int] | None]:
        """What a reply of status 200 says. Raises Mendable for one that is no whole chat completion."""
        try:
            reply = json.loads(self.hide(body.decode("utf-8")))
            choice = reply["choices"][0]
            text, finish = choice["message"]["content"], choice.get("finish_reason")
            if not isinstance(text, str):
                raise TypeError("its content is no text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise Mendable(f"a reply that is no chat completion ({type(error).__name__})", billed=True) from error
        usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
        used = usage.get("prompt_tokens"), usage.get("completion_tokens")
        counted = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in used)
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written
        return text, finish if isinstance(finish, str) else "stop", used if counted else None

    def refuse(self, error: urllib.error.HTTPError, deadline: float) -> None:
        """Raise what a status other than 200 means."""
        variable = self.endpoint.api_key_variable or "api_key_variable"
        if error.code in HOPELESS:  # no word of the server's: some repeat a part of the key
            raise Hopeless(f"HTTP {error.code}: {HOPELESS[error.code].format(variable=variable)}") from error
        if 300 <= error.code < 400:
            raise Hopeless(f"HTTP {error.code}, a redirect: give the address it leads to as `base_url`") from error
        try:
            body = read_body(error, deadline)
        except (OSError, http.client.HTTPException):
            body = b""
        reason = f"HTTP {error.code} {self.hide(body.decode('utf-8', 'replace'))[:200]}".strip()
        if error.code in MENDABLE:
            raise Mendable(reason, wait=seconds_to_wait(error.headers.get("Retry-After"))) from error
        raise Refused(reason) from error

    def hide(self, text: str) -> str:
        """The server's words without the key, should it repeat it."""
        return text.replace(self.secret, "[key]") if self.secret else text


def read_secret(endpoint: Endpoint) -> str:
    """The key from the environment, empty where the endpoint takes none."""
    if endpoint.api_key_variable is None:
        return ""
    secret = os.environ.get(endpoint.api_key_variable, "").strip()
    if not re.fullmatch(r"[!-~]+", secret):
        state = "holds no key (spaces or odd characters)" if secret else "is not set"
        fail(f"{endpoint.base_url}: the environment variable {endpoint.api_key_variable} {state}; export it first")
    return secret


def read_body(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """The whole body. Raises TimeoutError for one that trickles beyond `deadline` (monotonic seconds)."""
    body = b""
    while chunk := response.read1(65536):
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError("the body was not whole in time")
        if len(body) > LARGEST:
            raise http.client.HTTPException(f"more than {LARGEST:,} bytes")
    return body


def seconds_to_wait(header: str | None) -> float:
    """Retry-After as seconds: a number or a date; 0 where it is neither."""
    try:
        wait = float(header or 0)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return wait if 0 < wait < float("inf") else 0.0


def ask(endpoint: Endpoint, prompts: Sequence[list[dict]], cache: Path, label: str = "answers") -> Iterator[Answer]:
    """One answer for each prompt (a list of {"role", "content"}), in their order; a prompt that stands twice is asked
    twice. Ends with one line, all answers so far kept in `cache`, where the endpoint is down or the money is spent."""
    try:
        ledger = Ledger(endpoint, cache)
    except OSError as error:
        fail(f"{label}: {cache} cannot be opened ({error.strerror}); name a folder that can be written")
    asker = Asker(endpoint, ledger, label)
    if ledger.unreadable:
        print(f"{label}: {ledger.unreadable} lines of {cache} cannot be read and are asked again")
    seen: Counter[str] = Counter()
    waiting, cached = deque(), 0
    pool = ThreadPoolExecutor(endpoint.at_once)
    with tqdm(total=len(prompts), desc=label, unit="answer") as progress:
        try:
            for number, messages in enumerate([*prompts, None]):
                while waiting and (messages is None or len(waiting) >= 4 * endpoint.at_once):
                    answer = waiting.popleft().result()
                    cached += answer.cached
                    progress.set_postfix_str(f"${ledger.spent:.3f}" if endpoint.max_dollars else "", refresh=False)
                    progress.update()
                    yield answer
                if messages is not None:
                    text = json.dumps(messages, sort_keys=True)
                    waiting.append(pool.submit(asker.answer, number, messages, seen[text]))
                    seen[text] += 1
            if asker.counts["lost"] == len(prompts) > 0:  # too few to be DOWN in a row
                raise Hopeless(f"{asker.lost_to}, {endpoint.retries + 1} times each for all {len(prompts)} prompts")
        except Hopeless as error:
            asker.stop.set()
            pool.shutdown(cancel_futures=True)  # what is in flight arrives and is kept
            kept = f"{len(ledger.known)} answers are kept in {cache}, and the same command goes on from them"
            fail(f"{label}: {endpoint.base_url} ({endpoint.model}): {asker.ended or error}; {kept}")
        except OSError as error:
            fail(f"{label}: {cache} cannot be written ({error.strerror}); the answers before it are kept")
        finally:
            asker.stop.set()
            pool.shutdown(cancel_futures=True)
            ledger.file.close()
    notes = [f"{asker.counts[name]} {name}" for name in ("retries", "refused", "lost", "no_usage")]
    money = f"${ledger.spent:.4f} in all" if endpoint.max_dollars else "no prices in the recipe, so no cost"
    print(f"{label}: {len(prompts)} answers, {cached} from {cache}; {', '.join(notes)}; {money}")
