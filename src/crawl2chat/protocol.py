"""The protocol: its tokens, a tokenizer dressed for it, how a reply is read, what bears loss, what text weighs.

    python -m crawl2chat.protocol "some text" --tokenizer output/laptop/tokenizer --html tokens.html
    python -m crawl2chat.protocol --conversation output/laptop/conversations/facts --row 12 --html tokens.html

prints the ladder (characters, bits, bytes, tokens) and writes the coloured token view; of a conversation it shows
which tokens bear loss. How a conversation is written stands in chat_templates/<family>.jinja, how a reply is read back
in chat_templates/<family>.response.json; this module only carries them to the tokenizer.
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from crawl2chat.stage import fail, write_text
from crawl2chat.web.tokens import token_page
from crawl2chat.web.tokens import token_view as token_view

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
START_HEADER, END_HEADER, EOT = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
THINK_START, THINK_END = "<think>", "</think>"
TOOL_CALL_START, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_RESPONSE_START, TOOL_RESPONSE_END = "<tool_response>", "</tool_response>"
SEARCH_START, SEARCH_END = "<SEARCH_START>", "<SEARCH_END>"

RESERVED = [f"<|reserved_{i}|>" for i in range(16)]
# control tokens, gone from text decoded with skip_special_tokens
SPECIAL_TOKENS = [END_OF_TEXT, PAD, IM_START, IM_END, *RESERVED]
# marks that the model writes, or reads, as part of a text: graders and rewards must see them
MARKS = [THINK_START, THINK_END, TOOL_CALL_START, TOOL_CALL_END, TOOL_RESPONSE_START, TOOL_RESPONSE_END]
MARKS += [SEARCH_START, SEARCH_END]
# every token of the protocol, in the order of its ids: 0, 1, 2, ...
PROTOCOL_TOKENS = [END_OF_TEXT, PAD, IM_START, IM_END, *MARKS, *RESERVED]
# how turns are marked: each family of chat templates, and what it calls the tokens that ChatML has or leaves reserved
FAMILIES = {"chatml": {}, "llama3": {IM_START: START_HEADER, IM_END: EOT, RESERVED[0]: END_HEADER}}
ROLES = ("system", "user", "assistant", "tool")

CHAT_TEMPLATES = Path(__file__).resolve().parents[2] / "chat_templates"


def dress(
    tokenizer: Tokenizer | PreTrainedTokenizerFast, eos_token: str = END_OF_TEXT, family: str = "chatml"
) -> PreTrainedTokenizerFast:
    """A tokenizer that speaks the protocol, made of a trained one that already holds PROTOCOL_TOKENS.

    Sets which of them are special, `eos_token` (END_OF_TEXT for a base model, the token that closes a turn for a chat
    model), the padding token, the chat template and the response template of `family`; all of it is saved and loaded
    with the tokenizer. The tokens keep their ids, the family gives them their names: id 3 closes a turn in both.
    Raises ValueError for a tokenizer that lacks a protocol token.
    """
    backend = tokenizer if isinstance(tokenizer, Tokenizer) else tokenizer.backend_tokenizer
    lacking = [token for token in PROTOCOL_TOKENS if backend.token_to_id(token) is None]
    if lacking:
        raise ValueError(f"the tokenizer lacks {', '.join(lacking)}: train it with PROTOCOL_TOKENS")
    names = FAMILIES[family]
    special = [names.get(token, token) for token in SPECIAL_TOKENS]
    state = json.loads(backend.to_str())
    state["model"]["vocab"] = {names.get(token, token): i for token, i in state["model"]["vocab"].items()}
    # a BPE trainer makes every token it is given special; the marks must not be
    for token in state["added_tokens"]:
        if token["content"] in PROTOCOL_TOKENS:
            token["special"] = token["content"] in SPECIAL_TOKENS
            token["content"] = names.get(token["content"], token["content"])
    dressed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=eos_token,
        pad_token=PAD,
        additional_special_tokens=special,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    dressed.chat_template = (CHAT_TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    dressed.response_template = json.loads((CHAT_TEMPLATES / f"{family}.response.json").read_text(encoding="utf-8"))
    return dressed


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a folder (of the tokenizer stage, or of any checkpoint) or by its hub name.

    Stops with one line for a folder that is missing, holds no tokenizer, or holds one that cannot be read.
    """
    folder = Path(path)
    looks_local = folder.exists() or str(path).startswith((".", "/", "~")) or str(path).count("/") != 1
    if looks_local and not folder.is_dir():
        fail(f"{path}: no such folder; run the tokenizer stage first, or name a folder that holds a tokenizer")
    if looks_local and not any(
        (folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        fail(f"{path}: no tokenizer.json in this folder; name a folder that holds a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except Exception as error:  # the libraries raise a dozen kinds here, none of which names the folder
        fail(f"{path}: the tokenizer cannot be loaded ({type(error).__name__}: {str(error)[:200]}); make it again")
    return tokenizer


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids at which a turn ends: <|im_end|>, <|eot_id|> and <|endoftext|> where the tokenizer has them, and its own end
    token."""
    vocabulary = tokenizer.get_vocab()
    ids = {vocabulary[token] for token in (IM_END, EOT, END_OF_TEXT) if token in vocabulary}
    return ids | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


def turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that closes the assistant's turn in the tokenizer's chat template: a chat model's end token.

    Raises ValueError for a template that does not mark what the assistant writes.
    """
    ids, mask = loss_mask(tokenizer, [{"role": "user", "content": "-"}, {"role": "assistant", "content": "-"}])
    if not any(mask):
        raise ValueError("the chat template does not mark what the assistant writes: it needs a generation block")
    return tokenizer.convert_ids_to_tokens([i for i, bears in zip(ids, mask, strict=True) if bears][-1])


def loss_mask(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None
) -> tuple[list[int], list[int]]:
    """Ids of a conversation and, for each, 1 where it bears loss: the assistant's words, calls and end tokens.

    The ids and the mask that training sees. Raises jinja2.TemplateError for a role that is not a role.
    """
    encoded = tokenizer.apply_chat_template(messages, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    return encoded["input_ids"], encoded["assistant_masks"]


def read_reply(tokenizer: PreTrainedTokenizerBase, text: str) -> dict:
    """The message that an assistant's generated text spells, read with the tokenizer's response template.

    {"role": "assistant", "content": str, "tool_calls"?: [{"type": "function", "function": {"name", "arguments"}}],
    "thinking"?: str}, the calls in the order they were written. A call that is not JSON with a name and arguments is
    {"type": "function", "function": its raw text}. Without a response template the text is all content.
    """
    if getattr(tokenizer, "response_template", None) is None:
        return {"role": "assistant", "content": text.removesuffix(tokenizer.eos_token or "")}
    parser = tokenizer.get_response_parser(prefix="")
    events = parser.feed(text)
    message, last_events = parser.finalize()
    # the template reads searches and other calls as two fields: a field has one way to read its body
    fields = ("tool_calls", "search_calls")
    calls = [e["value"] for e in events + last_events if e["type"] == "region_close" and e["field"] in fields]
    message = {key: value for key, value in message.items() if key not in fields}
    return {**message, "tool_calls": calls} if calls else message


def ladder(text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, int]:
    """How long the same text is in ever larger alphabets: characters, bits (2 symbols), bytes (256 symbols), tokens
    (`vocabulary` symbols) and, where its ranks are at hand, GPT-4's cl100k tokens (100,277 symbols)."""
    from crawl2chat import cl100k

    size = len(text.encode("utf-8", errors="surrogatepass"))
    rungs = {"characters": len(text), "bits": 8 * size, "bytes": size}
    if tokenizer is not None:
        rungs["tokens"] = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        rungs["vocabulary"] = len(tokenizer)
    if cl100k.ranks_file() is not None:
        rungs["cl100k_tokens"] = cl100k.count(text)
    return rungs


def _print_ladder(rungs: dict[str, int]) -> None:
    symbols = {"bits": 2, "bytes": 256, "tokens": rungs.get("vocabulary"), "cl100k_tokens": 100_277}
    for name in ("characters", "bits", "bytes", "tokens", "cl100k_tokens"):
        if name in rungs:
            of = f"  of {symbols[name]:,} symbols" if name in symbols else ""
            print(f"{name.replace('_', ' '):<14}{rungs[name]:>10,}{of}")


def _rows(source: str) -> Iterator[dict]:
    """Rows of a JSON text, of a JSON file, of shards (a file or a folder of them), or of a dataset on the hub."""
    from crawl2chat.data.shards import SUFFIXES, documents

    path = Path(source)
    if given := source.lstrip().startswith(("[", "{")):
        text = source
    elif path.is_file() and not source.endswith(SUFFIXES):
        text = path.read_text(encoding="utf-8", errors="replace")
    elif path.exists() or (source.count("/") == 1 and not source.endswith(SUFFIXES)):
        try:
            yield from documents(source, ("messages", "tools"))
        except Exception as error:  # whatever the hub's client raises about a name, a network, a configuration
            fail(f"{source}: cannot be read ({type(error).__name__}: {str(error)[:200]})")
        return
    else:
        fail(f"{source}: no such file or folder; give rows with messages (JSON, JSONL, parquet), or the JSON itself")
    try:
        rows = json.loads(text)
    except ValueError as error:
        try:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            fail(f"{'--conversation' if given else source}: not JSON ({error}); give a row with messages")
    rows = rows if isinstance(rows, list) else [rows]
    alone = all(isinstance(row, dict) and "role" in row for row in rows)
    yield from [{"messages": rows}] if alone else rows


def _conversation(source: str, number: int) -> tuple[list[dict], list | None, str]:
    """Messages and tools of row `number` (from 1) of `source`, checked as SFT checks them, and where they stand."""
    from crawl2chat.mixture import check_messages

    where = "--conversation" if source.lstrip().startswith(("[", "{")) else source
    if number < 1:
        fail(f"--row {number}: rows are counted from 1")
    last = deque(enumerate(islice(_rows(source), number), 1), maxlen=1)
    count, row = last[0] if last else (0, None)
    if count < number:
        fail(f"{where}: row {number} was asked for and there {'is 1 row' if count == 1 else f'are {count} rows'}")
    where = f"{where}: row {number}"
    if not isinstance(row, dict) or row.get("messages") is None:
        fail(f"{where}: no `messages`; give [{{'role': 'user', 'content': ...}}, ...] or a row with messages")
    for key in ("messages", "tools"):  # tables keep nested lists as JSON
        if isinstance(row.get(key), str) and row[key].strip():
            try:
                row[key] = json.loads(row[key])
            except ValueError as error:
                fail(f"{where}: `{key}` is no JSON ({error})")
    check_messages(row["messages"], where)
    tools = row.get("tools") or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        fail(f"{where}: `tools` must be a list of tools, got {str(tools)[:80]!r}")
    return row["messages"], tools, where


def main() -> None:
    from crawl2chat import cl100k

    parser = argparse.ArgumentParser(prog="python -m crawl2chat.protocol", description=__doc__.split("\n")[0])
    parser.add_argument("text", nargs="?", help="text to weigh; - reads it from standard input")
    parser.add_argument("--tokenizer", default="output/laptop/tokenizer", help="folder of a tokenizer")
    parser.add_argument(
        "--conversation",
        help="show what bears loss in it: JSON; a JSON, JSONL or parquet file; a folder of them; owner/set on the hub",
    )
    parser.add_argument("--row", type=int, default=1, help="which row of --conversation, counted from 1")
    parser.add_argument("--html", default="tokens.html", help="where the coloured token view is written")
    arguments = parser.parse_args()
    if (arguments.text is None) == (arguments.conversation is None):
        parser.error("give a text or --conversation")

    tokenizer = load_tokenizer(arguments.tokenizer)
    mask = None
    if arguments.conversation is not None:
        messages, tools, where = _conversation(arguments.conversation, arguments.row)
        try:
            ids, mask = loss_mask(tokenizer, messages, tools)
        except Exception as error:  # whatever a template raises about the messages it is given
            fail(f"{where}: the chat template refuses it: {error}")
        described = f", {len(tools)} tools described" if tools else ""
        print(f"{where}: {', '.join(message['role'] for message in messages)}{described}")
        text = tokenizer.decode(ids)
    else:
        text = sys.stdin.read() if arguments.text == "-" else arguments.text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    note = cl100k.fetch()
    rungs = ladder(text, tokenizer)
    _print_ladder(rungs)
    if note:
        print(note)
    if mask is not None:
        print(f"{sum(mask)} of {len(ids)} tokens bear loss:")
        spans, previous = [], 0
        for token_id, bears in zip(ids, mask, strict=True):
            if bears and not previous:
                spans.append([])
            if bears:
                spans[-1].append(token_id)
            previous = bears
        for span in spans:
            print(f"  {len(span):>4}  {tokenizer.decode(span)!r}")
    write_text(arguments.html, token_page(ids, tokenizer, mask, rungs))
    print(f"token view: {arguments.html}")


if __name__ == "__main__":
    main()
