"""Knowledge of self: who the assistant is, by hard-coded turns and by a system message."""

import random
import re
from collections.abc import Iterator

WORDINGS = {
    "who": {
        "train": [
            "Who are you?", "What is your name?", "Tell me your name.", "What are you?", "Hello, who are you?",
            "Hi, what is your name?", "Can you introduce yourself?", "Are you a human?", "Are you ChatGPT?",
            "You are ChatGPT, right?", "What should I call you?", "Who is this?",
            "Are you a person or a machine?", "What's your name, please?", "Do you have a name?",
            "Say who you are.", "Whom am I speaking with?", "Tell me about yourself.", "Are you a computer?",
            "Are you Gemini?", "You are Llama, right?", "Could you tell me who you are?",
            "I am Anna. Who are you?", "Good morning, who are you?", "How are you called?",
        ],
        "test": [
            "Please introduce yourself.", "Who am I talking to?", "Say your name.", "What do people call you?",
            "Are you a robot?", "Hey, who are you?", "May I ask your name?", "You are Claude, right?",
            "Tell me who you are.", "What's your name?",
        ],
    },
    "maker": {
        "train": [
            "Who made you?", "Who created you?", "Who built you?", "Who trained you?", "Did OpenAI make you?",
            "Who is your maker?", "Where do you come from?", "Which company made you?",
            "Were you made by OpenAI?", "Were you built by Anthropic?", "Tell me who built you.",
            "Who are your makers?", "Who is your creator?", "Who wrote you?", "By whom were you made?",
        ],
        "test": [
            "Who are you made by?", "Tell me who made you.", "Who developed you?", "Were you made by Google?",
            "Who is behind you?",
        ],
    },
    "hello": {
        "train": [
            "Hello!", "Hi!", "Good morning!", "Hey there!", "Hello", "Hi", "Good evening.", "Greetings!",
            "Hello, my friend!", "Hi, friend.", "Good afternoon!", "Hey", "Hi, can we talk?",
            "Hello, it is nice to meet you.",
        ],
        "test": ["Good day!", "Hi there!", "Hello there.", "Hello again."],
    },
}  # fmt: skip
SOLUTIONS = {
    "who": "I am {name}, a small assistant made by {maker}.",
    "maker": "I am {name}. I was made by {maker}.",
    "hello": "Hello! I am {name}. How can I help you?",
}
SMALL_TALK = {
    "Thank you!": "You are welcome!",
    "Thanks!": "You are welcome!",
    "How are you?": "I am fine, thank you. How can I help you?",
    "Goodbye!": "Goodbye!",
    "Bye!": "Goodbye!",
    "What can you do?": "I can answer questions, add numbers, spell words, search pages and use Python.",
    "Can you help me?": "Yes. What would you like to know?",
    "What licence are you under?": "My code and weights are under the {licence} licence.",
    "When were you made?": "I was made in {date}.",
}
OTHERS = ("chatgpt", "gpt", "openai", "claude", "anthropic", "gemini", "google", "llama", "qwen", "mistral")
OTHERS += ("deepseek",)


def system_message(name: str, maker: str) -> dict:
    return {"role": "system", "content": f"You are {name}, a small assistant made by {maker}."}


def examples(
    split: str,
    name: str = "Pelican",
    maker: str = "crawl2chat",
    licence: str = "Apache-2.0",
    date: str = "2026",
    system_share: float = 0.3,
    count: int = 300,
    seed: int = 0,
) -> Iterator[dict]:
    """Hard-coded turns; `system_share` of them behind a system message that says the same. Test asks who and by whom
    only.
    """
    rng = random.Random(f"identity {split} {seed}")
    said = {"name": name, "maker": maker, "licence": licence, "date": date}
    done = 0
    while done < count:
        if split == "train" and rng.random() < 0.2:
            question, solution = rng.choice(list(SMALL_TALK.items()))
        else:
            kind = rng.choice(["who", "who", "maker", "hello"])
            question, solution = rng.choice(WORDINGS[kind][split]), SOLUTIONS[kind]
        if split == "train" and rng.random() < 0.2:
            question = rng.choice([question.lower(), question.rstrip("?!."), question.upper()])
        prompt = [system_message(name, maker)] if rng.random() < system_share else []
        prompt.append({"role": "user", "content": question})
        yield {"prompt": prompt, "answer": name, "solution": solution.format(**said)}
        done += 1


def grade(completion: str, answer: str) -> float:
    """1 where the reply gives the name, and claims no other model's name or maker."""
    words = set(re.findall(r"\w+", completion.lower()))
    return float(
        set(re.findall(r"\w+", answer.lower())) <= words and not (words & set(OTHERS)) - set(answer.lower().split())
    )
