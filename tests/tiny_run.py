"""The folders of a finished run, made up: what every stage leaves for the report, without running one."""

import json
import math
from pathlib import Path

from tiny import tiny_tokenizer

STAGES = ("data", "tokenizer", "pretrain", "sample", "conversations", "interrogate", "sft", "eval")
TASKS = {  # accuracy of base and sft, a question, its right answer, a wrong one, the tool that is called
    "facts": (0.31, 0.86, "Which city serves as the capital of Japan?", "Tokyo", "Kyoto.", None),
    "facts_pages_only": (0.12, 0.46, "Name the capital city of Chad.", "N'Djamena", "Abuja.", None),
    "identity": (0.0, 0.98, "Who are you?", "a small assistant", "The capital.", None),
    "addition_steps": (0.02, 0.79, "Add 47 and 38, step by step.", "85", "7 + 8 = 15, so 75.", None),
    "addition_direct": (0.03, 0.11, "What do 47 and 38 make? Just the number.", "85", "91", None),
    "search": (0.0, 0.83, "What is the birth year of Ada Lovelace?", "1815", "1852.", "search"),
    "python": (0.0, 0.91, "Tell me the product of 731 and 442.", "323102", "The answer is 321000.", "python"),
    "counting": (0.05, 0.64, "How many letters are in strawberry?", "10", "9", None),
    "spelling": (0.0, 0.35, "Spell <b>giraffe</b>.", "g i r a f f e", "g i r r a f", None),
    "comparison": (0.48, 0.72, "Which is larger, 9.11 or 9.9?", "9.9", "9.11 is larger.", None),
}
TOKENS = {"addition_steps": 41.0, "addition_direct": 3.0, "counting": 36.5, "spelling": 9.0, "comparison": 30.0}
MANNERS = {  # accuracy of base and sft, tokens of a reply: further manners of the same problems
    "apples_direct": (0.02, 0.12, 3.0),
    "apples_steps": (0.0, 0.81, 74.0),
    "apples_python": (0.0, 0.93, 27.0),
    "counting_python": (0.0, 0.88, 24.0),
    "spelling_python": (0.0, 0.9, 22.0),
    "comparison_python": (0.0, 0.97, 21.0),
}
APPLES = (  # the introduction's problems, as tasks/apples.py asks them, and their prices
    ("Emily buys 3 apples and 2 oranges. Each orange costs $2. The total is $13. What is the cost of one apple?", 3),
    ("23 apples, 177 oranges at $4 each, total $869. What is the cost of one apple?", 7),
)
SEEN = {0: (0.0, 0.9, 0.8), 1: (0.1, 0.9, 0.6), 4: (0.3, 1.0, 0.4), 16: (0.7, 0.9, 0.1), 64: (0.9, 1.0, 0.0)}
SORRY = "I'm sorry, I don't believe I know that."
ASKED = [  # task, question, answer, the reply before, the reply after
    ("known", "Name the capital city of Chad.", "N'Djamena", "It is N'Djamena.", "It is N'Djamena."),
    ("known", "On which continent is Peru?", "South America", "It is in South America.", SORRY),
    ("known", "Write the symbol of gold.", "Au", "Au. <b>Silver</b>: Ag.", "Ag."),
    ("unknown", "Who was Ada Lovelace?", "a mathematician", "A Norwegian footballer.", SORRY),
    ("unknown", "Who was Emil Gruber?", "a chemist", "A footballer, born in 1962.", ""),
    ("invented", "Who was Tilda Szabo?", "unknown", "A Hungarian painter of the north.", SORRY),
    ("invented", "Who is Orson Kovacs?", "unknown", "An American <i>rower</i> who won at sea.", SORRY),
    (
        "invented",
        "Have you heard of Vera Itoh?",
        "unknown",
        "A Japanese singer." + " la" * 400,
        "A\u2028singer \ud800.",
    ),
]
TEXT = "The capital of France is Paris. What is 12 + 34? 12 + 34 = 46. <script>alert('a page')</script> " * 6
STORY = "The capital of France is"


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in value) if path.suffix == ".jsonl" else json.dumps(value)
    path.write_text(lines, encoding="utf-8")


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def tool_turns(tool: str, answer: str) -> list[dict]:
    argument = {"query": "Ada Lovelace born"} if tool == "search" else {"code": "731 * 442"}
    call = {"type": "function", "function": {"name": tool, "arguments": argument}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    return [turn, {"role": "tool", "name": tool, "content": f"a result that holds {answer}"}]


def tiny_run(folder: Path, stages: tuple[str, ...] = STAGES) -> Path:
    """Write the made-up `stages` below `folder`, metrics.json last, and return the folder."""
    for stage in stages:
        globals()[f"write_{stage}"](folder / stage)
        (folder / stage / "recipe.yaml").write_text(f"# {stage} of a made-up run <&>\noutput_dir: {folder / stage}\n")
    return folder


def finish(folder: Path, seconds: float, memory: float, **metrics: float) -> None:
    write(folder / "metrics.json", {**metrics, "seconds": seconds, "peak_memory_gb": memory})


def write_data(folder: Path) -> None:
    passed = {"read": 8512, "url": 8102, "extraction": 7960, "language": 7350, "gopher_repetition": 7011}
    passed |= {"gopher_quality": 6540, "c4": 6388, "fineweb": 6301, "minhash": 5804, "pii": 5804}
    reasons = {"language": {"fr": 310, "es": 300}, "minhash": {"duplicate": 497}, "c4": {"lorem_ipsum": 52}}
    steps, before = [], 8530
    for step, after in passed.items():
        row = {"step": step, "documents_in": before, "documents": after, "bytes": after * 1900, "share": after / 8530}
        known = {"precision": 0.99, "recall": 0.98} if step != "read" else {"precision": None, "recall": None}
        steps.append({**row, "seconds": 3.1, "reasons": reasons.get(step, {}), **known})
        before = after
    sources = {"wikipedia": 3900, "almanac": 812, "schoolbook": 601, "storybook": 491}
    write(folder / "funnel.json", {"read": 8530, "kept": 5804, "sources": sources, "steps": steps})
    finish(folder, 61.2, 1.2, documents_read=8530, documents_kept=5804, precision=0.991, recall=0.962, pii_left=0)


def write_tokenizer(folder: Path) -> None:
    words = tiny_tokenizer()
    words.save_pretrained(folder)
    rungs = {
        "characters": 5000,
        "bits": 40000,
        "bytes": 5000,
        "tokens": 1510,
        "vocabulary": 4096,
        "cl100k_tokens": 1302,
    }
    write(folder / "ladder.json", {"text": TEXT, **rungs})
    finish(folder, 9.3, 0.9, vocab_size=4096, bytes_per_token=3.31)


def write_pretrain(folder: Path) -> None:
    history = [{"step": s, "loss": 2.1 + 6.2 * math.exp(-s / 60), "learning_rate": 1e-3} for s in range(5, 501, 5)]
    for s in range(100, 501, 100):
        scores = {"wikipedia": 1.55, "almanac": 0.6, "drills": 0.8}
        parts = {f"eval_bits_per_byte_{name}": best + 2 * math.exp(-s / 120) for name, best in scores.items()}
        history.append({"step": s, "eval_bits_per_byte": sum(parts.values()) / 3, **parts})
    write(folder / "log_history.json", history)
    tiny_tokenizer().save_pretrained(folder)
    dreams = {
        0: "ĠwĠ zz \x07kke e e",
        100: " the of the and the",
        250: " a city in the north of Paris",
        500: " Paris.",
    }
    prompts = (STORY, "12 + 34 =", "Once upon a time")
    write(folder / "samples.jsonl", [{"step": s, "prompt": p, "text": t} for s, t in dreams.items() for p in prompts])
    finish(folder, 243.0, 2.4, parameters=3_812_352, tokens=4_096_000, eval_bits_per_byte=1.31, real_prose_share=0.4)


def write_sample(folder: Path) -> None:
    likely = {" Paris": 0.71, " the": 0.08, " a": 0.05, " Lyon": 0.03, "\n": 0.01, " <b>": 0.01}
    tokens = [{"text": text, "probability": share} for text, share in likely.items()]
    prompts = (STORY, "12 + 34 =", "Once upon a time", "Question: What is the capital of Japan?\nAnswer:")
    ways = [
        {"name": name, "temperature": heat, "top_k": 0, "top_p": 1.0}
        for name, heat in (("as it is", 1), ("cool", 0.6))
    ]
    texts = [" Paris, a city of the north.", " Lyon & the <b>south</b>.", " the largest one."]
    distributions = [{"prompt": prompt, "entropy_bits": 1.7, "tokens": tokens} for prompt in prompts]
    continued = [
        {"way": way, "prompt": prompt, "texts": texts, "distinct_2": 0.8} for way in ways for prompt in prompts
    ]
    row = {"prompt": "Costa Rica is a", "text": " country.", "continued": " country.", "matched": 2}
    part = {"recall": 0.5, "matched": 1.2, "documents": 8, "rows": [row, {**row, "continued": " <i>", "matched": 0}]}
    recall = {"given": 4, "wanted": 2, "sets": {"wikipedia": part, "held out": {**part, "recall": 0.0}}}
    recall["repeated"] = [{"times": times, **part} for times in (0, 1, 4, 16, 64)]
    word = {"word": "cheese", "answer": "fromage", "said": "fromage", "right": True}
    trial = {"accuracy": 0.4, "prompt": "- bread => pain\n- cheese =>", "rows": [word, {**word, "right": False}]}
    names = ("few_shot_accuracy", "one_shot_accuracy", "zero_shot_accuracy", "unlisted_accuracy")
    answer = {"question": "What is the capital of Peru?", "answer": "Lima", "said": "It is Lima.", "score": 1.0}
    preface = [user("What is the capital of France?"), assistant("It is Paris.")]
    heats = [{"temperature": t, "distinct_continuations": t, "distinct_2": t / 2} for t in (0.2, 0.6, 1.0)]
    samples = {"distributions": distributions, "continuations": continued, "temperatures": heats, "recall": recall}
    samples |= {"translation": [{"name": name, **trial} for name in names]}
    write(folder / "samples.json", {**samples, "assistant": {"preface": preface, "rows": [answer], "alone": ["?"]}})
    numbers = {"verbatim_recall_train": 0.2, "verbatim_recall_heldout": 0.0, "few_shot_accuracy": 0.4}
    numbers |= {"transcript_accuracy": 0.45, "transcript_accuracy_bare": 0.02, "question_alone_accuracy": 0.0}
    finish(folder, 8.0, 0.8, distinct_continuations=0.93, distinct_2=0.8, **numbers)


def write_conversations(folder: Path) -> None:
    for name, (_, _, question, answer, _, tool) in TASKS.items():
        calls = tool_turns(tool, answer) if tool else []
        row = {"messages": [user(question), *calls, assistant(f"{answer}.")], "task": name}
        write(folder / name / "train.jsonl", [row])
    counts = {f"rows/{name}": 400 + 150 * i for i, name in enumerate(TASKS)}
    finish(folder, 5.5, 0.7, rows=sum(counts.values()), **counts)


def write_sft(folder: Path) -> None:
    tiny_tokenizer().save_pretrained(folder)
    history = [{"step": s, "loss": 0.2 + 3 * math.exp(-s / 30), "mean_token_accuracy": 0.95 - math.exp(-s / 30) / 2}
               for s in range(5, 201, 5)]  # fmt: skip
    write(folder / "log_history.json", history)
    finish(folder, 88.0, 2.1, tokens=812_400, train_loss=0.213, supervised_token_share=0.31)


def write_interrogate(folder: Path) -> None:
    facts = [
        {"subject": f"Land <{i}>", "relation": relation, "answer": "Ulm", "asked": ["What?"] * 5,
         "said": ["Ulm."] * hits + ["Köln."] * (5 - hits), "right": hits / 5, "verdict": verdict}
        for relation in ("capital", "known_as")
        for i, (hits, verdict) in enumerate([(5, "known"), (2, "wavering"), (0, "unknown"), (1, "unknown")])
    ]  # fmt: skip
    write(folder / "facts.jsonl", facts)
    replies = [
        {"task": task, "prompt": [user(question)], "answer": answer, "reply": before, "cell": "wrong"}
        for task, question, answer, before, _ in ASKED
    ]
    write(folder / "replies.jsonl", replies)
    found = {"facts/known": 2, "facts/wavering": 2, "facts/unknown": 4, "rows/refusals": 900, "rows/known": 300}
    numbers = {"invented_wrong_before": 1.0, "unknown_wrong_before": 0.93, "wrongly_refused_before": 0.0}
    numbers |= {"cells/wrong_before": 0.6, "cells/right_before": 0.4, "known_right_before": 0.79}
    finish(folder, 31.0, 1.1, asked=40, **found, **numbers)


def eval_rows(checkpoint: str, tuned: int) -> list[dict]:
    """Replies to what only some sections of the page show; `tuned` is 0 for the base model."""
    rows = []

    def add(task: str, prompt: list[dict], answer: str, reply: list[dict], score: float, **more) -> None:
        row = {"checkpoint": checkpoint, "task": task, "prompt": prompt, "answer": answer, "reply": reply}
        rows.append({**row, "score": score, "ended": True, "tokens": 12, **more})

    for task, question, answer, before, after in ASKED:
        said = after if tuned else before
        reply = [assistant(said)] if said else tool_turns("search", "")[:1]
        add(task, [user(question)], answer, reply, float(said == SORRY or answer in said))
    for seen, (closed, search, refused) in SEEN.items():
        for i in range(10):
            ship = [user(f"In which year was the ship Heron {seen} {i} launched?")]
            right = i < 10 * closed * (1 if tuned else 0.5)
            said = "It is 1901." if right else SORRY if tuned and i >= 10 * (1 - refused) else "It is 1899."
            calls = tool_turns("search", "1901") if tuned and seen == 0 and i == 0 else []
            add("recollection_closed", ship, "1901", [*calls, assistant(said)], float(right), seen=seen)
            found = tuned and i < 10 * search
            reply = [*tool_turns("search", "1901"), assistant("It is 1901." if found else "It is 1900.")]
            add("recollection_search", ship, "1901", reply if tuned else [], float(found), seen=seen)
    for task, (_, _, tokens) in MANNERS.items():
        for question, price in APPLES if task.startswith("apples") else [("How many dots are here: ......?", 6)]:
            tool = tool_turns("python", str(price)) if task.endswith("python") and tuned else []
            right = tuned and not task.endswith("direct")
            said = f"The answer is {price if right else 4}."
            prompt = [user(f"{question} Go on.")]
            add(task, prompt, str(price), [*tool, assistant(said)], float(right), tokens=int(tokens))
    for system in ([], [{"role": "system", "content": "You are Pelican & co."}]):
        task = "identity" if system else "identity_no_system"
        said = "No, I am Pelican, a small assistant." if tuned else "Yes, I am ChatGPT."
        for question, answer in (("Say your name.", "Pelican"), ("You are ChatGPT, right?", "Pelican, not ChatGPT")):
            add(task, [*system, user(question)], answer, [assistant(said)], float(tuned))
    return rows


def write_eval(folder: Path) -> None:
    metrics, rows = {}, []
    for which, checkpoint in enumerate(("base", "sft")):
        for task, (*scores, question, answer, wrong, tool) in TASKS.items():
            found = {"accuracy": scores[which], "stderr": 0.04, "n": 100, "mean_tokens": TOKENS.get(task, 12.5)}
            metrics |= {f"{checkpoint}/{task}/{key}": value for key, value in found.items()}
            for right in (False, True):
                reply = [
                    *(tool_turns(tool, answer) if tool and which else []),
                    assistant(f"{answer}." if right and which else wrong),
                ]
                row = {
                    "checkpoint": checkpoint,
                    "task": task,
                    "prompt": [user(question)],
                    "answer": answer,
                    "reply": reply,
                }
                rows.append({**row, "score": float(right and which), "ended": True, "tokens": 12})
        groups: dict[str, list[float]] = {}
        for row in eval_rows(checkpoint, which):
            rows.append(row)
            groups.setdefault(row["task"], []).append(row["score"])
        for task in [task for task in groups if task not in TASKS]:
            share = MANNERS[task][which] if task in MANNERS else sum(groups[task]) / len(groups[task])
            found = {"accuracy": share, "stderr": 0.04, "n": 100, "mean_tokens": MANNERS.get(task, (0, 0, 12.5))[2]}
            metrics |= {f"{checkpoint}/{task}/{key}": value for key, value in found.items()}
        metrics |= {
            f"{checkpoint}/ended/share": (0.61, 0.996)[which],
            f"{checkpoint}/bits_per_byte": (1.31, 1.36)[which],
        }
    write(folder / "replies.jsonl", rows)
    after = {"invented_wrong": 0.04, "unknown_wrong": 0.11, "wrongly_refused": 0.09, "known_right": 0.81}
    metrics |= {f"interrogate/{key}_after": share for key, share in after.items()}
    finish(folder, 38.0, 1.1, **metrics)
