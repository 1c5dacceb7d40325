"""Generate and grade, once or several times a question, and bits per byte on held-out text.

Public benchmarks are lm-eval's, in benchmarks.py; choices scored during a run are in choices.py.
"""

import difflib
import hashlib
import importlib
import json
import pkgutil
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import crawl2chat.tasks
from crawl2chat import metrics, verifier
from crawl2chat.engine import complete, generate
from crawl2chat.protocol import END_OF_TEXT
from crawl2chat.stage import fail

PROMPTS = "chat: its own template; transcript: a base model goes on with a page that reads like a conversation"
NEXT_SPEAKER = re.compile(r"\n\s*\w[\w ]{0,20}:")  # where a transcript's next turn begins, whoever speaks


@dataclass
class Checkpoint:
    """A model to grade."""

    name: str = field(metadata={"help": "what metrics call it"})
    path: str = field(metadata={"help": "a model folder with its tokenizer", "reads": True})
    prompt: str = field(default="chat", metadata={"help": PROMPTS, "choices": ["chat", "transcript"]})
    max_new_tokens: int | None = field(default=None, metadata={"help": "tokens its replies may take", "ge": 1})


@dataclass
class Questions:
    """A task and how it is asked."""

    name: str = field(metadata={"help": "the folder under `conversations` whose test.jsonl is asked"})
    task: str | None = field(default=None, metadata={"help": "the module of src/crawl2chat/tasks; none: the name"})
    folder: str | None = field(default=None, metadata={"help": "in place of `conversations`", "reads": True})
    n: int = field(default=100, metadata={"help": "questions at most", "ge": 1})
    tools: list[str] = field(default_factory=list, metadata={"help": "what the model may call: search, python"})
    system: str | None = field(default=None, metadata={"help": "a system message before every question"})
    samples: int = field(default=1, metadata={"help": "replies to every question; above 1 they are drawn", "ge": 1})
    temperature: float | None = field(default=None, metadata={"help": "in place of the recipe's", "ge": 0})


def load_task(name: str) -> ModuleType:
    """The module crawl2chat.tasks.<name>; an unknown name is one line with the nearest right one."""
    known = [module.name for module in pkgutil.iter_modules(crawl2chat.tasks.__path__)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        fail(f"unknown task {name!r}; {hint}")
    return importlib.import_module(f"crawl2chat.tasks.{name}")


def read_rows(path: str | Path, keys: Sequence[str]) -> list[dict]:
    """The rows of a JSONL file, each with `keys`; a missing file, a broken line or a lacking key is one clear line."""
    path = Path(path)
    if not path.is_file():
        fail(f"{path}: no such file; run the stage that writes it first")
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            fail(f"{path}, line {number}: not a JSON row ({error}); write the file again")
        lacking = [key for key in keys if key not in row] if isinstance(row, dict) else keys
        if lacking:
            fail(f"{path}, line {number}: the row lacks {', '.join(map(repr, lacking))}; write the file again")
        rows.append(row)
    if not rows:
        fail(f"{path}: no rows; write the file again")
    return rows


def held_out(entry: Questions, folder: str | Path | None, seed: int) -> list[dict]:
    """At most n rows of folder/<name>/test.jsonl ({"prompt", "answer", "calls"?}), each with the system message; none
    of an empty file, for a stage may have found nothing to ask."""
    folder = entry.folder or folder
    if folder is None:
        fail(f"eval: the task {entry.name} needs `conversations`, the folder of <task>/test.jsonl")
    path = Path(folder) / entry.name / "test.jsonl"
    if path.is_file() and not path.stat().st_size:
        return []
    rows = read_rows(path, ("prompt", "answer"))
    rows = random.Random(seed).sample(rows, min(entry.n, len(rows)))
    system = [{"role": "system", "content": entry.system}] if entry.system else []
    return [{**row, "prompt": system + row["prompt"]} for row in rows]


def tools_called(messages: Iterable[dict]) -> set[str]:
    """Names of the tools that the assistant's turns call."""
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    return {call["name"] for call in calls if isinstance(call, dict)}  # text: a call that could not be read


def grade_reply(task: ModuleType, example: dict, messages: list[dict], text: str) -> tuple[float | None, str]:
    """The task's verdict on a reply (0 to 1) and, where the grader itself failed, None with what it raised.

    An example with `calls` asks for those tools: an answer that came without calling each of them by name scores 0.
    """
    try:
        score = float(task.grade(text, example["answer"]))
    except Exception as error:  # a grader that fails says nothing about the answer
        return None, f"{type(error).__name__}: {error}"
    wanted = {call["name"] for call in example.get("calls") or ()}
    return (score if wanted <= tools_called(messages) else 0.0), ""


def continue_transcript(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict]],
    template: str,
    **generation,
) -> Iterator[tuple[list[dict], str, bool, int]]:
    """Answers of a base model: it goes on with a web document that reads like a conversation (Jinja `template`).

    What comes after the next speaker's turn begins is cut off. Yields messages, text, ended, tokens for each prompt.
    """
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": True}
    documents = [END_OF_TEXT + tokenizer.apply_chat_template(messages, **options) for messages in conversations]
    for completion in complete(model, tokenizer, documents, **generation):
        text, *cut = NEXT_SPEAKER.split(completion.text, maxsplit=1)
        text = text.strip()
        tokens = min(len(completion.ids), len(tokenizer(text, add_special_tokens=False)["input_ids"]))
        yield [{"role": "assistant", "content": text}], text, bool(cut) or completion.ended, tokens


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: ModuleType,
    examples: Sequence[dict],
    tools: Sequence[Callable] = (),
    transcript: str | None = None,
    samples: int = 1,
    **generation,
) -> dict:
    """Answer every example ({"prompt", "answer", "calls"?}), `samples` times each, and grade the answers.

    A chat model answers in its own template and may call `tools`; with `transcript` (a Jinja template) a base model
    goes on with that document instead. `generation` is the engine's (max_new_tokens, temperature, seed, batch_size).
    Returns accuracy, stderr, n and ungraded as metrics.accuracy, with several samples all of metrics.sampled; ended
    (share of replies that ended themselves), mean_tokens (written by the model, a reply), and rows: each reply's
    prompt, answer, reply, score, ended, tokens, seen where the example has one, and with several samples the number
    of its own (0 for the first reply to each question; more samples leave the earlier ones as they were).
    Raises ValueError where not one answer could be graded.
    """
    asked = [example for _ in range(samples) for example in examples]
    conversations = [example["prompt"] for example in asked]
    if transcript is None:
        replies = generate(model, tokenizer, conversations, tools=tools, **generation)
        answers = [(reply.messages, reply.text, reply.ended, sum(reply.completion_mask)) for reply in replies]
    else:
        answers = list(continue_transcript(model, tokenizer, conversations, transcript, **generation))
    rows, forms = [], []
    for number, (example, (messages, text, ended, tokens)) in enumerate(zip(asked, answers, strict=True)):
        score, error = grade_reply(task, example, messages, text)
        row = {"prompt": example["prompt"], "answer": example["answer"], "reply": messages, "score": score}
        row |= {"seen": example["seen"]} if "seen" in example else {}
        row |= {"sample": number // len(examples)} if samples > 1 else {}
        rows.append({**row, "ended": ended, "tokens": tokens, **({"error": error} if error else {})})
        forms.append(normal_form(task, text) if samples > 1 else "")
    errors = [row["error"] for row in rows if "error" in row]
    if len(errors) == len(rows):
        raise ValueError(f"none of {len(rows)} answers could be graded: {errors[0]}" if errors else "no examples")
    scores, size = [row["score"] for row in rows], len(examples)
    by_question = [scores[i::size] for i in range(size)]
    found = metrics.sampled(by_question, [forms[i::size] for i in range(size)]) if samples > 1 else {}
    return {
        **(found or metrics.accuracy(scores)),
        "ended": sum(row["ended"] for row in rows) / len(rows),
        "mean_tokens": sum(row["tokens"] for row in rows) / len(rows),
        "rows": rows,
    }


def normal_form(task: ModuleType, text: str) -> str:
    """What a reply votes for: the task's `normal(completion)`, else what the task's `stated`, or the verifier's, says
    that it commits itself to, in small letters, numbers by value. A reply that states nothing stands for itself."""
    if hasattr(task, "normal"):
        return str(task.normal(text))
    said = getattr(task, "stated", verifier.stated)(text) or text
    places = re.split(r"answer is:?", said, flags=re.IGNORECASE)[-1:] if isinstance(said, str) else said
    forms = [" ".join(verifier.plain(place).casefold().split()) for place in places]
    numbers = [verifier.number(form) for form in forms]
    pairs = zip(forms, numbers, strict=True)
    return "; ".join(dict.fromkeys(form if number is None else str(number) for form, number in pairs))


def settings(entry: Questions, questions: Sequence[dict], **generation) -> dict:
    """What two runs must share for their numbers on a task to compare: how replies are drawn, and what is asked
    (`prompts_sha256`, of the questions in their order, system messages included). Stops at several greedy samples."""
    drawn = {**generation, "samples": entry.samples}
    if entry.temperature is not None:
        drawn["temperature"] = entry.temperature
    if entry.samples > 1 and not drawn["temperature"]:
        fail(f"eval: {entry.name}: {entry.samples} greedy samples are all the same; give it a temperature above 0")
    prompts = json.dumps([row["prompt"] for row in questions], ensure_ascii=True, sort_keys=True)
    digest = hashlib.sha256(prompts.encode()).hexdigest()
    return {**drawn, "questions": len(questions), "prompts_sha256": digest}


@torch.no_grad()
def token_nats(model: PreTrainedModel, sequences: Sequence[list[int]], batch_size: int) -> list[torch.Tensor]:
    """Negative log-likelihood in nats of every token but the first: for each sequence a float tensor (length - 1,)."""
    nats: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    order = sorted((i for i, ids in enumerate(sequences) if len(ids) > 1), key=lambda i: -len(sequences[i]))
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        # padded on the right: under causal attention no token sees what comes after it, so no mask is needed
        rows = [torch.tensor(sequences[i]) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits  # (batch, seq, vocab)
        for row, i in enumerate(batch):
            length = len(sequences[i])
            nats[i] = F.cross_entropy(logits[row, : length - 1].float(), ids[row, 1:length], reduction="none").cpu()
    model.train(training)
    return nats


def document_nats(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 512,
    batch_size: int = 16,
) -> list[float]:
    """Negative log-likelihood in nats of each text, as a document after END_OF_TEXT.

    A text longer than `max_length` tokens is read in windows that overlap by half: every token is scored once, and
    with at least max_length / 2 tokens before it once the document is that long.
    """
    stride = max_length // 2
    start_id = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    windows, scored, owners = [], [], []
    for owner, text in enumerate(texts):
        ids = [start_id, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        done = 1
        for start in range(0, max(len(ids) - max_length + stride, 1), stride):
            window = ids[start : start + max_length]
            windows.append(window)
            scored.append(start + len(window) - done)
            owners.append(owner)
            done = start + len(window)
    totals = [0.0] * len(texts)
    for owner, count, nats in zip(owners, scored, token_nats(model, windows, batch_size), strict=True):
        totals[owner] += nats[len(nats) - count :].double().sum().item()
    return totals


def bits_per_byte(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int = 512,
    batch_size: int = 16,
) -> float:
    """Bits the model needs for each UTF-8 byte of `texts`, each a document of its own; see document_nats."""
    nats = document_nats(model, tokenizer, texts, max_length, batch_size)
    return metrics.bits_per_byte(sum(nats), sum(len(text.encode()) for text in texts))


def evaluate_pages(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pages: Sequence[dict], max_length: int = 512
) -> dict[str, float]:
    """bits_per_byte over held-out pages ({"text", "source"}), and bits_per_byte_<source> over each source's own."""
    nats, size = defaultdict(float), defaultdict(int)
    costs = document_nats(model, tokenizer, [page["text"] for page in pages], max_length)
    for page, cost in zip(pages, costs, strict=True):
        for key in ("bits_per_byte", f"bits_per_byte_{page['source']}"):
            nats[key] += cost
            size[key] += len(page["text"].encode())
    return {key: metrics.bits_per_byte(nats[key], size[key]) for key in nats}


def capability_table(numbers: dict[str, float], checkpoints: Sequence[str], tasks: Sequence[str]) -> str:
    """Tasks down, checkpoints across: accuracy and standard error in per cent, with several samples pass@k and the
    majority's; below, endings and bits per byte."""
    rows = [["", *checkpoints]]
    for task in tasks:
        pairs = [(numbers[f"{name}/{task}/accuracy"], numbers[f"{name}/{task}/stderr"]) for name in checkpoints]
        rows.append([task, *(f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in pairs)])
        drawn = [key.split("/")[-1] for key in numbers if key.startswith(f"{checkpoints[0]}/{task}/")]
        for key in [key for key in drawn if key.startswith(("pass_at_", "majority_at_"))]:
            shares = [numbers.get(f"{name}/{task}/{key}") for name in checkpoints]
            rows.append([f"  {key}", *("" if share is None else f"{100 * share:.1f}" for share in shares)])
    for key in ("ended/share", "bits_per_byte"):
        values = [numbers.get(f"{name}/{key}") for name in checkpoints]
        rows.append([key, *("" if value is None else f"{value:.3f}" for value in values)])
    return "\n".join(f"{row[0]:20}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in rows)
