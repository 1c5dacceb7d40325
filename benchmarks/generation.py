"""Replies a second: the engine's batches against one `generate` of transformers after another, on the same questions.

python benchmarks/generation.py                            # the laptop's assistant and its held-out questions
python benchmarks/generation.py --model DIR --questions FILE --rounds 5

Needs a finished laptop run. Both sides answer greedily, as long as their model goes on, at most 32 tokens; the sides
take turns (A B B A). Prints a table and, last, one JSON line: {"batched_vs_one_at_a_time", "same_replies"}.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from crawl2chat.engine import generate
from crawl2chat.evaluation import read_rows
from crawl2chat.model import load_model
from crawl2chat.protocol import end_tokens, load_tokenizer

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="output/laptop/sft", help="a model folder with its tokenizer")
parser.add_argument("--questions", default="output/laptop/conversations/facts/test.jsonl", help="rows with a prompt")
parser.add_argument("--n", type=int, default=128, help="questions")
parser.add_argument("--rounds", type=int, default=5, help="measurements of each side")
parser.add_argument("--threads", type=int, default=2, help="CPU threads")
options = parser.parse_args()
LONGEST = 32


def one_at_a_time(model, tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """Ids that transformers' own generate writes after each prompt."""
    written = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            out = model.generate(
                **ids,
                max_new_tokens=LONGEST,
                do_sample=False,
                eos_token_id=sorted(end_tokens(tokenizer)),
                pad_token_id=tokenizer.pad_token_id,
            )
        written.append(out[0, ids["input_ids"].shape[1] :].tolist())
    return written


def batched(model, tokenizer, prompts: list[list[dict]]) -> list[list[int]]:
    """Ids that the engine writes after each prompt."""
    return [reply.completion_ids for reply in generate(model, tokenizer, prompts, max_new_tokens=LONGEST)]


def main() -> None:
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("medium")
    for needed in (options.model, options.questions):
        if not Path(needed).exists():
            raise SystemExit(f"{needed}: not there; run the laptop's lifecycle first, or name --model and --questions")
    tokenizer, model = load_tokenizer(options.model), load_model(options.model).eval()
    prompts = [row["prompt"] for row in read_rows(options.questions, ("prompt",))][: options.n]
    sides = {"one at a time": one_at_a_time, "batched": batched}
    said = {name: side(model, tokenizer, prompts) for name, side in sides.items()}  # warm
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            sides[name](model, tokenizer, prompts)
            seconds[name].append(time.perf_counter() - began)
    same = sum(a == b for a, b in zip(*said.values(), strict=True)) / len(prompts)
    print(f"{len(prompts)} questions, {options.threads} threads, torch {torch.__version__}")
    for name, values in seconds.items():
        speed = f"{len(prompts) / median(values):8.1f} replies a second"
        print(f"  {name:14} {median(values):7.2f} s  {min(values):.2f} to {max(values):.2f}  {speed}")
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"  batched is {median(ratios):.1f} times as fast ({spread}); {same:.0%} same ids")
    print(json.dumps({"batched_vs_one_at_a_time": round(median(ratios), 2), "same_replies": round(same, 3)}))


if __name__ == "__main__":
    main()
