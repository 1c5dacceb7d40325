"""Draw several replies to every prompt, have a labeler put them in order, and write the pairs that the order implies.

Reads: a chat model; prompts of the tasks or of conversations; perhaps a judge behind an endpoint, or a person's word
Writes: train.jsonl and test.jsonl ({"prompt", "chosen", "rejected": messages, "rank_distance"}), rankings.jsonl
({"prompt", "replies", "order", "labeler", "split"}), rollouts.jsonl, metrics.json

python scripts/preferences.py recipes/preferences.yaml
python scripts/preferences.py recipes/laptop/preferences.yaml
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from crawl2chat import preferences
from crawl2chat.drift import digest, digest_weights
from crawl2chat.endpoint import Endpoint
from crawl2chat.labeler import Judged, Person, Simulated
from crawl2chat.model import check_fit, load_model
from crawl2chat.practice import rows_as_lines
from crawl2chat.preferences import PromptRows
from crawl2chat.problems import TaskRows
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text


@dataclass
class PreferencesConfig:
    """Who replies to what, how often, and who puts the replies in order."""

    model_name_or_path: str = field(metadata={"help": "the chat model whose replies are ordered"})
    output_dir: str = field(metadata={"help": "where replies, orders and pairs go"})
    problems: list[TaskRows] = field(
        default_factory=list, metadata={"help": "prompts of tasks; test: prompts held out"}
    )
    conversations: list[PromptRows] = field(default_factory=list, metadata={"help": "prompts out of conversations"})
    samples: int = field(default=5, metadata={"help": "replies to every prompt", "ge": 2, "le": 26})
    labeler: str = field(
        default="simulated",
        metadata={"help": "who orders them", "choices": ["simulated", "judge", "person"]},
    )
    noise: float = field(default=0.03, metadata={"help": "how the simulated human errs, in gold reward", "ge": 0})
    judge: Endpoint | None = field(default=None, metadata={"help": "the model that the labeler `judge` asks"})
    person: str | None = field(default=None, metadata={"help": "the name of the `person`, who is shown a page"})
    best_against_worst: bool = field(default=False, metadata={"help": "one pair a prompt in place of all pairs"})
    temperature: float = field(default=1.0, metadata={"help": "of the replies", "gt": 0})
    max_new_tokens: int = field(default=64, metadata={"help": "tokens a reply may take", "ge": 1})
    batch_size: int = field(default=128, metadata={"help": "replies written at once", "ge": 1})
    seed: int = field(default=0, metadata={"help": "decides prompts, replies and the labeler's errors"})


RECIPE = (PreferencesConfig,)
DRAWN = ("samples", "temperature", "max_new_tokens", "seed")  # what replies depend on, beside model and prompts


def main(config: PreferencesConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")
    disable_progress_bar()  # of the loading of weights: one bar is enough
    output = Path(config.output_dir)
    for key in ("judge", "person"):
        if (config.labeler == key) != (getattr(config, key) is not None):
            fail(f"preferences: labeler: {key}, and the key {key} that says which one, go together")
    labeler = Simulated(config.noise, config.seed)
    if config.judge:
        labeler = Judged(config.judge, output / "judged.jsonl", config.seed)
    if config.person:
        labeler = Person(config.person, output / "people/rankings.jsonl")

    # data: prompts, those of the test held out
    rows = preferences.read_prompts(config.problems, config.conversations, config.seed)
    if config.labeler == "simulated" and (others := [row for row in rows if row["task"] != "verse"]):
        fail(
            f"preferences: the simulated human knows verses alone, and {len(others)} of {len(rows)} prompts are of "
            f"other kinds ({others[0]['prompt'][-1]['content'][:60]!r}); take task verse, or another labeler"
        )

    # tokenizer, model
    start = config.model_name_or_path
    tokenizer = load_tokenizer(start)
    model = load_model(start).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    check_fit(model, tokenizer, start)
    asked = preferences.fitting(rows, model, tokenizer, config.max_new_tokens)

    # replies: what an earlier start of this command has drawn is not drawn again
    ways = {key: value for key, value in asdict(config).items() if key in DRAWN}
    fingerprint = {"start": digest_weights(model), "prompts": digest(json.dumps(asked))}
    preferences.begin(output, {"recipe": ways, "fingerprint": fingerprint})
    ways["batch_size"] = config.batch_size
    drawn = preferences.draw(model, tokenizer, asked, path=output / preferences.ROLLOUTS, **ways)
    groups, identical = preferences.different(drawn)
    replies = config.samples * len(drawn)
    cut = sum(not ended for row in drawn for ended in row["ended"])
    print(
        f"preferences: {replies:,} replies, {cut:,} cut at {config.max_new_tokens} tokens, {identical:,} identical "
        f"to another of their prompt dropped; {len(drawn) - len(groups):,} prompts without two different ones"
    )

    # orders
    rankings = preferences.rank(groups, labeler)
    write_text(output / "rankings.jsonl", rows_as_lines(rankings))
    print(preferences.the_sum(len(rankings), sum(len(row["replies"]) for row in rankings)))

    # pairs
    pairs = {split: [] for split in preferences.SPLITS}
    for ranking in rankings:
        pairs[ranking["split"]] += preferences.pairs(ranking, config.best_against_worst)
    for split in preferences.SPLITS:
        write_text(output / f"{split}.jsonl", rows_as_lines(pairs[split]))
    against = preferences.against_gold(rankings)
    finish(
        output,
        {
            "prompts": len(rankings),
            "prompts_test": sum(row["split"] == "test" for row in rankings),
            "rollouts_per_prompt": config.samples,
            "rollouts": replies,
            "cut": cut,
            "identical": identical,
            "without_choice": len(drawn) - len(groups),
            "unordered": len(groups) - len(rankings),
            "too_long": len(rows) - len(asked),
            "pairs": len(pairs["train"]),
            "pairs_test": len(pairs["test"]),
            **against,
        },
        read=f"{start}, {len(asked):,} prompts",
        wrote=str(output),
        headline=f"{len(pairs['train']):,} pairs and {len(pairs['test']):,} held out, ordered by {labeler.name}"
        + (f" ({against['flipped']:.1%} of pairs against the gold reward)" if against else ""),
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
