"""The model card: what the model is, how to use it, and the numbers and figures of the run that made it.

The text is model_card.md, filled by huggingface_hub's ModelCard; every number comes out of a stage's metrics.json.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from crawl2chat import llama_cpp
from crawl2chat.figures import Ink
from crawl2chat.model import count_parameters
from crawl2chat.runs import Run, versions

TEMPLATE = Path(__file__).with_name("model_card.md")
# what a reader wants first of every stage; the rest is in the run's report
FIRST = {
    "data": "documents_read documents_kept precision recall",
    "tokenizer": "vocab_size bytes_per_token",
    "pretrain": "tokens eval_bits_per_byte tokens_per_second",
    "sft": "rows tokens train_loss",
    "rejection": "pass_at_1_first pass_at_1_last",
    "grpo": "pass_at_1_before pass_at_1_after rollouts",
    "reward": "accuracy pairs",
    "ppo": "gold_before gold_after win_rate kl",
    "merge": "largest_difference",
}
CURVES = [
    ("pretrain", "loss", "pretraining loss"),
    ("sft", "loss", "finetuning loss"),
    ("grpo", "reward", "practice reward"),
]


@dataclass
class About:
    """What no metrics.json says: the recipe's words."""

    name: str
    about: str
    licence: str
    repository: str
    language: list[str]
    data: list[dict[str, str]]
    limits: list[str]
    base_model: str | None = None
    checkpoint: str = ""  # the name under which eval asked this model
    files: list[dict] = field(default_factory=list)  # of GGUF: name, bytes, and what llama_cpp.compare found

    @property
    def publisher(self) -> str:
        """Whose folder the model goes to in programs that ask for one."""
        return self.repository.partition("/")[0] if "/" in self.repository else "crawl2chat"


def text(value: float) -> str:
    """A number for a reader: 1,234, 0.818, 2.0e-05."""
    if float(value).is_integer():
        return f"{int(value):,}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.1e}"


def numbers(run: Run, stage: str, checkpoint: str) -> dict[str, float]:
    """The first numbers of a stage; of eval, the accuracies of the released checkpoint."""
    metrics = run.metrics[stage]
    if stage != "eval":
        return {key: metrics[key] for key in FIRST.get(stage, "").split() if key in metrics}
    own = {key: value for key, value in metrics.items() if key.startswith(f"{checkpoint}/")}
    return {key: value for key, value in own.items() if key.endswith(("/accuracy", "/share"))}


def rows(run: Run, stage: str, checkpoint: str) -> list[tuple[str, str]]:
    """Those numbers for a reader; accuracies with their standard errors and how many questions they rest on."""
    metrics, found = run.metrics[stage], []
    for key, value in numbers(run, stage, checkpoint).items():
        task, shown = key.rpartition("/")[0], text(value)
        shown += f" ± {metrics[f'{task}/stderr']:.3f}" if f"{task}/stderr" in metrics else ""
        shown += f" of {metrics[f'{task}/n']:,.0f}" if f"{task}/n" in metrics else ""
        found.append((key.removeprefix(f"{checkpoint}/"), shown))
    return found


def results(run: Run, about: About) -> list[EvalResult]:
    """eval's accuracies in the form that the hub reads."""
    found = []
    for key, value in numbers(run, "eval", about.checkpoint).items() if "eval" in run.metrics else ():
        task, metric = key.removeprefix(f"{about.checkpoint}/").rsplit("/", 1)
        found.append(EvalResult("text-generation", f"crawl2chat/{task}", task, metric, round(value, 4)))
    return found


def draw_curves(run: Run, folder: Path) -> list[str]:
    """PNG figures of what training logged; their names without ending, none where no stage kept a log."""
    panels = []
    for stage, key, title in CURVES:
        points = [(row["step"], row[key]) for row in run.json(stage, "log_history.json") or [] if key in row]
        panels += [(title, points)] if len(points) > 1 else []
    if not panels:
        return []
    ink, figure = Ink("light"), Figure(figsize=(4.2 * len(panels), 3), layout="constrained", facecolor="white")
    for axes, (title, points), colour in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, ink.series, strict=False
    ):
        axes.plot(*zip(*points, strict=True), color=colour)
        axes.grid(axis="y", color=ink.grid)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("step")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "training.png", dpi=110, metadata={"Software": None})
    return ["training"]


def write_card(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    run: Run | None,
    about: About,
    figures: Sequence[str],
    folder: Path,
) -> None:
    """README.md of a release."""
    metrics, facts = run.metrics if run else {}, versions()
    stages = [
        {
            "name": stage,
            "rows": rows(run, stage, about.checkpoint),
            "seconds": text(round(values.get("seconds", 0))),
            "memory": f"{values.get('peak_memory_gb', 0):.2f}",
        }
        for stage, values in metrics.items()
    ]
    evaluated = results(run, about) if run else []
    data = ModelCardData(
        language=about.language,
        license=about.licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["crawl2chat", *(["conversational"] if tokenizer.chat_template else [])] + ["gguf"] * bool(about.files),
        base_model=about.base_model,
        model_name=about.name if evaluated else None,
        eval_results=evaluated or None,
    )
    seconds = sum(values.get("seconds", 0) for values in metrics.values())
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=about.name,
        about=about.about,
        parameters=f"{count_parameters(model):,}",
        architecture=type(model).__name__,
        vocabulary=f"{len(tokenizer):,}",
        context=f"{getattr(model.config, 'max_position_embeddings', 0):,}",
        repository=about.repository,
        publisher=about.publisher,
        files=about.files,
        texts=llama_cpp.TEXTS,
        prompts=len(llama_cpp.PROMPTS),
        tokens=llama_cpp.TOKENS,
        stages=stages,
        figures=figures,
        spent=f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours",
        base_model=about.base_model,
        versions=", ".join(f"{name} {version}" for name, version in facts.items()),
        data=about.data,
        limits=about.limits,
    )
    (folder / "README.md").write_text(re.sub(r"\n{3,}", "\n\n", card.content), encoding="utf-8")
