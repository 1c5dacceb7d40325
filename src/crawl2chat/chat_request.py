"""What a client asks of the server, in OpenAI's words: read from bytes, checked whole, or refused in one line.

What would change a reply and is not to be had here (penalties, forced calls, JSON schemas) is refused, never dropped.
Beyond OpenAI's fields there are `top_k`, and `run_tools`: the server runs its own tools within the reply.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

DEEPEST = 64  # levels of nesting in a body
HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
ONLY: dict[str, Any] = {  # fields that are taken with the value that changes nothing
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
}


class Refused(Exception):
    """A request that is answered with `status` and OpenAI's error object."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict:
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def _text(content: Any) -> Any:
    """A message's content as one text: a string, or a list of text parts."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError('only parts {"type": "text", "text": ...} can be read')
    return "".join(texts)


def _arguments(arguments: Any) -> Any:
    """A call's arguments, as they are sent (a string that holds a JSON object), to the object."""
    if not isinstance(arguments, str):
        raise ValueError("arguments must be a string that holds a JSON object")
    try:
        value = read_json(arguments.encode("utf-8", "surrogatepass"))
    except Refused as error:
        raise ValueError(f"arguments must be a string that holds a JSON object: {error}") from None
    return value


Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Sent(BaseModel):
    """Types as they are, no number from text; what a client repeats of our own answers beyond them is passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _CalledFunction(_Sent):
    name: Annotated[str, Field(min_length=1, max_length=200)]
    arguments: Annotated[dict[str, Any], BeforeValidator(_arguments)]


class _Call(_Sent):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _CalledFunction


class _Message(_Sent):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def whole(self) -> "_Message":
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs its content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant message has tool_calls")
        return self


class _Parameters(_Sent):
    model_config = ConfigDict(extra="allow")
    properties: dict[str, dict[str, Any]] | None = None


class _Function(_Sent):
    name: Name
    description: str | None = None
    parameters: _Parameters | None = None


class _Tool(_Sent):
    type: Literal["function"]
    function: _Function


class _StreamOptions(_Sent):
    include_usage: bool | None = False


class ChatRequest(_Sent):
    """The fields of a chat completion that this server has."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=2000)]
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = None
    tools: Annotated[list[_Tool], Field(max_length=64)] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    run_tools: bool | None = False

    @model_validator(mode="after")
    def agreeing(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.run_tools and (self.n or 1) > 1:
            raise ValueError("run_tools gives one choice; leave `n` out")
        if self.run_tools and self.tools:
            raise ValueError("run_tools runs the server's own tools; leave `tools` out")
        if self.stop and len(self.stop) > 4:
            raise ValueError("stop takes at most 4 texts")
        return self

    @property
    def offered(self) -> list[dict]:
        """The client's tools, as a chat template reads them."""
        if self.tool_choice == "none":
            return []
        return [tool.model_dump(exclude_none=True) for tool in self.tools or []]

    def conversation(self) -> list[dict]:
        """The messages as our chat templates read them."""
        return conversation(self.messages)


class TokensRequest(_Sent):
    """What the token view is asked for."""

    model_config = ConfigDict(extra="forbid")
    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=200)]


def conversation(messages: list[_Message]) -> list[dict]:
    """Messages as our chat templates read them: arguments are objects, a result knows its tool's name."""
    rows, names = [], {}
    for message in messages:
        row: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
        row["content"] = message.content or ""
        if message.role == "assistant" and message.reasoning_content:
            row["reasoning_content"] = message.reasoning_content
        if message.tool_calls:
            functions = [call.function.model_dump() for call in message.tool_calls]
            row["tool_calls"] = [{"type": "function", "function": function} for function in functions]
            names |= {call.id: call.function.name for call in message.tool_calls}
        if message.role == "tool":
            row["name"] = names.get(message.tool_call_id) or message.name or "tool"
        rows.append(row)
    return rows


def read_json(body: bytes) -> dict:
    """The object in a body. Raises Refused for what is no JSON object, nested without end, or no Unicode."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:
        raise Refused(400, "the body is not UTF-8, or spells half a surrogate pair") from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body must be a JSON object")
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise Refused(400, f"the body is nested more than {DEEPEST} levels deep")
        children = (value.values() if isinstance(value, dict) else value for value in level)
        level = [child for row in children for child in row if isinstance(child, dict | list)]
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def read_request(body: dict) -> ChatRequest:
    """A chat completion's request. Raises Refused with the field and what is wrong with it."""
    for key, only in ONLY.items():
        value = body.get(key)
        same = value == only and not isinstance(value, bool) ^ isinstance(only, bool)
        if value is not None and not same:
            raise Refused(400, f"{key}: only {json.dumps(only)} can be had here", "unsupported_value", key)
    body = {key: value for key, value in body.items() if key not in ONLY and key not in HARMLESS}
    if isinstance(body.get("stop"), str):
        body["stop"] = [body["stop"]]
    return _checked(ChatRequest, body)


def read_tokens_request(body: dict) -> TokensRequest:
    return _checked(TokensRequest, body)


def _checked(kind: type[BaseModel], body: dict) -> Any:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(step) for step in first["loc"])[:200]
        if first["type"] == "extra_forbidden":
            raise Refused(400, f"{where}: there is no such field here", "unknown_parameter", where) from None
        message = first["msg"].removeprefix("Value error, ")
        raise Refused(400, f"{where}: {message}" if where else message, "invalid_value", where or None) from None


def room(prompt: int, context: int, asked: int | None, usual: int) -> int:
    """Tokens that a reply may take after a prompt of so many. Raises Refused where none are left, or more are asked
    for than the model has positions."""
    if prompt >= context:
        message = f"the messages are {prompt} tokens and the model's context is {context} tokens"
        raise Refused(400, message, "context_length_exceeded", "messages")
    if asked is not None and asked > context:
        message = f"max_tokens is {asked} and the model's context is {context} tokens"
        raise Refused(400, message, "context_length_exceeded", "max_tokens")
    return min(asked or usual, context - prompt)
