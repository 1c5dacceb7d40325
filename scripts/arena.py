"""Let checkpoints battle: they reply to the same prompts, a judge says who is better, and that makes ratings.

Reads: model folders, held-out questions (<task>/test.jsonl) or prompts of conversations, perhaps the search index
Writes: battles.jsonl ({"prompt", "a", "b", "replies", "winner", "judge"}), ratings.svg, metrics.json
(rating/<checkpoint>, win_rate/<a>/<b>, ...); a person judges the same replies on a page by crawl2chat.web.arena

python scripts/arena.py recipes/arena.yaml
python scripts/arena.py recipes/laptop/arena.yaml
"""

from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from crawl2chat import arena
from crawl2chat.endpoint import Endpoint
from crawl2chat.evaluation import Checkpoint, Questions
from crawl2chat.labeler import Simulated
from crawl2chat.model import check_fit, load_model
from crawl2chat.practice import rows_as_lines
from crawl2chat.preferences import PromptRows
from crawl2chat.protocol import CHAT_TEMPLATES, load_tokenizer
from crawl2chat.ratings import rate, table
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish, write_text
from crawl2chat.tools import open_tools
from crawl2chat.verdicts import counts
from crawl2chat.web import battles as figures
from crawl2chat.web.arena import judge as on_a_page


@dataclass
class ArenaConfig:
    """Who battles on what, and who says who is better."""

    checkpoints: list[Checkpoint] = field(metadata={"help": "the players, two or more"})
    output_dir: str = field(metadata={"help": "where battles and ratings go"})
    tasks: list[Questions] = field(default_factory=list, metadata={"help": "held-out questions of tasks"})
    conversations: str | None = field(default=None, metadata={"help": "folder of <task>/test.jsonl", "reads": True})
    search_index: str | None = field(default=None, metadata={"help": "the index search looks into", "reads": True})
    prompts: list[PromptRows] = field(
        default_factory=list, metadata={"help": "prompts out of conversations; those of `test` are asked"}
    )
    judge: str = field(
        default="grader",
        metadata={"help": "who says who is better", "choices": ["grader", "simulated", "model", "person"]},
    )
    endpoint: Endpoint | None = field(default=None, metadata={"help": "the judge `model`, asked in both orders"})
    person: str | None = field(default=None, metadata={"help": "the name of the `person`, who is shown a page"})
    noise: float = field(default=0.0, metadata={"help": "how the simulated human errs, in gold reward", "ge": 0})
    anchor: str | None = field(default=None, metadata={"help": "the checkpoint rated 1000; null: their mean is"})
    draws: int = field(default=1000, metadata={"help": "refits for the intervals", "ge": 2})
    max_new_tokens: int = field(default=128, metadata={"help": "tokens a reply may take", "ge": 1})
    batch_size: int = field(default=64, metadata={"help": "conversations answered at once", "ge": 1})
    backend: Literal["monty", "cpython"] = field(default="monty", metadata={"help": "the Python that a reply calls"})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy", "ge": 0})
    top_p: float = field(default=1.0, metadata={"help": "draw from the likeliest that hold it", "gt": 0, "le": 1})
    seed: int = field(default=0, metadata={"help": "decides prompts, replies, refits and the judge's errors"})


RECIPE = (ArenaConfig,)


def main(config: ArenaConfig) -> None:
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else "medium")
    disable_progress_bar()  # of the loading of weights: one bar is enough
    output, players = Path(config.output_dir), [checkpoint.name for checkpoint in config.checkpoints]
    arena.check_players(players, config.anchor)
    for key, judge in (("endpoint", "model"), ("person", "person")):
        if (config.judge == judge) != (getattr(config, key) is not None):
            fail(f"arena: judge: {judge}, and the key {key} that says which one, go together")

    # data: questions and prompts that no stage has trained on
    rows = arena.read_questions(config.tasks, config.conversations, config.prompts, config.seed)
    arena.check_judge(config.judge, rows)
    names = list(dict.fromkeys(tool for entry in config.tasks for tool in entry.tools))
    try:
        tools = dict(zip(names, open_tools(names, config.search_index, config.backend), strict=True))
    except (ValueError, OSError, RuntimeError) as error:
        fail(f"arena: {error}")

    # replies: every checkpoint's to all prompts
    replies, bar = {}, tqdm(total=len(players) * len(rows), unit=" replies")
    for checkpoint in config.checkpoints:
        tokenizer = load_tokenizer(checkpoint.path)
        model = load_model(checkpoint.path).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        check_fit(model, tokenizer, checkpoint.path)
        how = {key: getattr(config, key) for key in ("batch_size", "temperature", "top_p", "seed")}
        how["max_new_tokens"] = checkpoint.max_new_tokens or config.max_new_tokens
        if checkpoint.prompt == "transcript":
            how["transcript"] = (CHAT_TEMPLATES / "transcript.jinja").read_text(encoding="utf-8")
        replies[checkpoint.name] = own = []
        for given, part in groupby(rows, key=lambda row: row["tools"]):
            asked = list(part)
            own += arena.reply(model, tokenizer, asked, [tools[name] for name in given], **how)
            bar.update(len(asked))
        if left_out := own.count(None):
            bar.write(f"arena: {checkpoint.name}: {left_out} of {len(rows)} prompts do not fit its context")
    bar.close()
    battles = arena.battles(rows, replies, graded=config.judge == "grader")

    # verdicts
    bias: dict[str, float] = {}
    if config.judge == "grader":
        battles = arena.by_grader(battles)
    elif config.judge == "simulated":
        battles = arena.by_simulated_human(battles, Simulated(config.noise, config.seed))
    elif config.judge == "model":
        battles, bias = arena.by_model(battles, config.endpoint, output / "judged.jsonl")
    else:
        battles = on_a_page(battles, output / "people/decisions.jsonl", config.person, open_browser=True)
    write_text(output / "battles.jsonl", rows_as_lines(battles))

    # ratings
    try:
        found = rate(battles, config.anchor, config.draws, config.seed)
    except ValueError as error:
        fail(f"arena: {error}; the replies are in {output / 'battles.jsonl'}")
    print(table(found))
    metrics = {**found.metrics(), **dict(counts(battles)), **bias}
    write_text(output / "ratings.svg", figures.svg(metrics))
    best = found.players[0]
    finish(
        output,
        metrics,
        read=f"{', '.join(checkpoint.path for checkpoint in config.checkpoints)}, {len(rows):,} prompts",
        wrote=str(output),
        headline=f"{best} leads with {found.rating[best]:.0f} [{found.low[best]:.0f}, {found.high[best]:.0f}] after "
        f"{found.battles:,} battles of {len(found.players)} by {battles[0]['judge']}",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
