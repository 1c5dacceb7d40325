"""What a prompt alone makes of a base model: a translator by worked examples (Brown et al. 2020), and an assistant by
a page that reads like a conversation.
"""

import random
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat import evaluation
from crawl2chat.engine import complete
from crawl2chat.metrics import accuracy
from crawl2chat.protocol import CHAT_TEMPLATES
from crawl2chat.psychology import beginning
from crawl2chat.stage import fail

NAMES = {  # of the trials, for people
    "few_shot_accuracy": "worked examples",
    "one_shot_accuracy": "one example",
    "zero_shot_accuracy": "no example",
    "shuffled_shots_accuracy": "examples with their translations exchanged",
    "other_shots_accuracy": "examples into the other language",
    "other_language_accuracy": "the same, the other language counted right",
    "unlisted_accuracy": "examples, words that stand on no page",
}


@dataclass
class Translation:
    """Words to translate by the example of others."""

    layout: str = field(metadata={"help": "a shot, with {word}, {translation} and what ends it"})
    pairs: str | None = field(
        default=None, metadata={"help": "rows: english, languages, listed in pages or not", "reads": True}
    )
    words: dict[str, str] = field(default_factory=dict, metadata={"help": "or the pairs themselves"})
    language: str = field(default="french", metadata={"help": "what is translated into"})
    other: str | None = field(default=None, metadata={"help": "another language of the rows, for comparison"})
    shots: int = field(default=5, metadata={"help": "worked examples before the question", "ge": 2})
    questions: int = field(default=60, metadata={"help": "words asked at most", "ge": 1})


@dataclass
class Exchange:
    """A question, and what is right to say."""

    human: str = field(metadata={"help": "the question"})
    assistant: str = field(metadata={"help": "the answer"})


@dataclass
class Assistant:
    """A conversation that a base model goes on with, and the questions that stand last in it."""

    turns: list[Exchange] = field(metadata={"help": "worked turns before the question"})
    task: str = field(default="facts", metadata={"help": "the module of src/crawl2chat/tasks that grades"})
    knobs: dict = field(default_factory=dict, metadata={"help": "arguments of the task's examples()"})
    asked: list[Exchange] = field(default_factory=list, metadata={"help": "or the questions themselves"})
    questions: int = field(default=60, metadata={"help": "questions at most", "ge": 1})


def translate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Translation, seed: int = 0
) -> tuple[dict[str, float], list[dict]]:
    """Ask for words after worked examples in a layout of their own; right is the exact word up to the layout's end.

    Returns few_shot_accuracy, and for comparison one_shot_accuracy, zero_shot_accuracy, shuffled_shots_accuracy (the
    examples' translations exchanged), other_shots_accuracy (examples into the other language; right is still the
    first), other_language_accuracy (the same, right is the other) and unlisted_accuracy (words that stand on no page);
    and for each of them {"name", "accuracy", "prompt", "rows": [{"word", "answer", "said", "right"}]}.
    """
    before, _, end = task.layout.partition("{translation}")
    if "{word}" not in before or not end:
        fail(f"translation: the layout {task.layout!r} must hold {{word}}, then {{translation}}, then what ends it")
    rows = evaluation.read_rows(task.pairs, ("english", task.language)) if task.pairs else []
    rows += [{"english": word, task.language: answer} for word, answer in task.words.items()]
    listed = [row for row in rows if row.get("listed", True)]
    unlisted = [row for row in rows if not row.get("listed", True)]
    if len(listed) <= task.shots:
        fail(f"translation: {len(listed)} words are too few for {task.shots} examples and a question; give `pairs`")
    rng = random.Random(f"translation {seed}")

    def shot(row: dict, language: str, answer: str | None = None) -> str:
        return task.layout.replace("{word}", row["english"]).replace("{translation}", answer or row[language])

    trials = defaultdict(list)  # name -> (prompt, question, right answer)
    for row in rng.sample(listed, min(task.questions, len(listed))) + unlisted:
        question = before.replace("{word}", row["english"]).rstrip(" ")
        shots = rng.sample([other for other in listed if other is not row], task.shots)
        worked = [shot(other, task.language) for other in shots]
        few = "".join(worked) + question
        if row in unlisted:
            trials["unlisted_accuracy"].append((few, row, row[task.language]))
            continue
        turned = [other[task.language] for other in shots[1:] + shots[:1]]
        mixed = [shot(other, task.language, answer) for other, answer in zip(shots, turned, strict=True)]
        trials["few_shot_accuracy"].append((few, row, row[task.language]))
        trials["one_shot_accuracy"].append((worked[-1] + question, row, row[task.language]))
        trials["zero_shot_accuracy"].append((question, row, row[task.language]))
        trials["shuffled_shots_accuracy"].append(("".join(mixed) + question, row, row[task.language]))
        if task.other:
            swapped = "".join(shot(other, task.other) for other in shots) + question
            trials["other_shots_accuracy"].append((swapped, row, row[task.language]))
            trials["other_language_accuracy"].append((swapped, row, row[task.other]))
    prompts = list(dict.fromkeys(prompt for asked in trials.values() for prompt, _, _ in asked))
    texts = complete(model, tokenizer, [beginning(tokenizer) + prompt for prompt in prompts], max_new_tokens=16)
    said = {p: c.text.partition(end.strip(" ") or end)[0].strip() for p, c in zip(prompts, texts, strict=True)}
    found = []
    for name, asked in trials.items():
        answers = [
            {"word": row["english"], "answer": answer, "said": said[prompt], "right": same(said[prompt], answer)}
            for prompt, row, answer in asked
        ]
        accuracy = sum(answer["right"] for answer in answers) / len(answers)
        found.append({"name": name, "accuracy": accuracy, "prompt": asked[0][0], "rows": answers})
    return {one["name"]: one["accuracy"] for one in found}, found


def translation_table(evidence: list[dict]) -> str:
    """The evidence of `translate` as lines of text, with a prompt and what was said."""
    few = evidence[0]
    lines = ["\ntranslated by example alone:"]
    lines += [f"  {one['accuracy']:6.1%} of {len(one['rows']):>3}  {NAMES[one['name']]}" for one in evidence]
    lines += [f"    {line}" for line in few["prompt"].splitlines()]
    lines += [f"  {row['word']}: {row['said']!r} ({row['answer']})" for row in few["rows"][:4]]
    return "\n".join(lines)


def same(said: str, answer: str) -> bool:
    """Equal but for case and for how accents are encoded."""
    return unicodedata.normalize("NFC", said).casefold() == unicodedata.normalize("NFC", answer).casefold()


def converse(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, assistant: Assistant, seed: int = 0
) -> tuple[dict[str, float], dict]:
    """Ask questions at the end of a transcript (chat_templates/transcript.jinja), after worked turns and without any.

    An answer ends where anyone else begins to speak. Returns transcript_accuracy (with the worked turns), its
    transcript_stderr, transcript_ended (share of answers after which the model writes the next "Human:" itself),
    transcript_accuracy_bare (no worked turns) and question_alone_accuracy (no transcript: the first line that follows
    the question as a document's beginning); and {"preface", "rows", "alone": what followed} as evidence.
    """
    task = evaluation.load_task(assistant.task)
    try:
        count = 0 if assistant.asked else assistant.questions
        examples = list(task.examples("test", count=count, seed=seed, **assistant.knobs)) if count else []
    except (TypeError, ValueError, OSError) as error:
        fail(f"assistant: {error}; check the knobs of task {assistant.task}")
    examples += [
        {"prompt": [{"role": "user", "content": one.human}], "answer": one.assistant} for one in assistant.asked
    ]
    examples = examples[: assistant.questions]
    template = (CHAT_TEMPLATES / "transcript.jinja").read_text(encoding="utf-8")
    preface = [
        {"role": role, "content": getattr(turn, name)}
        for turn in assistant.turns
        for role, name in (("user", "human"), ("assistant", "assistant"))
    ]
    found = {}
    for name, before in (("shown", preface), ("bare", [])):
        asked = [before + example["prompt"] for example in examples]
        options = {"template": template, "max_new_tokens": 32}
        try:
            answers = list(evaluation.continue_transcript(model, tokenizer, asked, **options))
        except ValueError as error:  # a transcript that does not fit the model
            fail(f"assistant: {error}; give fewer turns")
        said = [text for _, text, _, _ in answers]
        scores = [task.grade(text, example["answer"]) for text, example in zip(said, examples, strict=True)]
        found[name] = said, scores, [ended for _, _, ended, _ in answers]
    alone = [beginning(tokenizer) + example["prompt"][-1]["content"] for example in examples]
    alone = [c.text.strip().partition("\n")[0] for c in complete(model, tokenizer, alone, max_new_tokens=32)]
    right = [task.grade(text, example["answer"]) for text, example in zip(alone, examples, strict=True)]
    said, scores, ended = found["shown"]
    shown, bare = (accuracy(found[name][1]) for name in ("shown", "bare"))
    metrics = {"transcript_accuracy": shown["accuracy"], "transcript_stderr": shown["stderr"]}
    metrics |= {"transcript_ended": sum(ended) / len(ended), "transcript_accuracy_bare": bare["accuracy"]}
    metrics["question_alone_accuracy"] = accuracy(right)["accuracy"]
    rows = [
        {"question": example["prompt"][-1]["content"], "answer": example["answer"], "said": text, "score": score}
        for example, text, score in zip(examples, said, scores, strict=True)
    ]
    return metrics, {"preface": preface, "rows": rows, "alone": alone}


def transcript_table(metrics: dict[str, float], evidence: dict) -> str:
    """What `converse` found as lines of text, with a few answers."""
    lines = ["\nan assistant by prompt alone:"]
    lines += [f"  {metrics['transcript_accuracy']:6.1%} right after {len(evidence['preface']) // 2} worked turns"]
    lines += [f"  {metrics['transcript_accuracy_bare']:6.1%} right after none, in a transcript all the same"]
    lines += [f"  {metrics['question_alone_accuracy']:6.1%} right where the question stands alone"]
    for row in evidence["rows"][:4]:
        lines += [f"  Human: {row['question']}", f"    Assistant: {row['said']!r} ({row['answer']})"]
    return "\n".join(lines)
