"""TRL's GRPOTrainer with the rollouts of our engine, safe to kill, and held-out problems tried along the way.

What differs from the stock trainer:
- rollouts come from engine.py: a prompt is read once for its whole group, a finished row leaves the batch, the tools a
  reply calls are run in it, and what a reply becomes depends on (seed, step, row) alone, so a resumed run is exact
  (`use_vllm: true` leaves them to TRL and vLLM);
- on one CPU process the loss, too, reads a prompt once for its whole group, nearly without padding; the head meets
  only the tokens that were written, and rows without an advantage get no gradient;
- the strategy is TRL's otherwise: losses, clipping, KL, aggregation of rewards, metrics and their names.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather_object
from pyarrow.parquet import read_table
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from crawl2chat import strategies
from crawl2chat.checkpoints import ResumeKeys, SafeCheckpoints
from crawl2chat.engine import generate
from crawl2chat.guards import text_shares
from crawl2chat.model import load_model
from crawl2chat.practice import Rollout, rollouts, summary
from crawl2chat.stage import fail

TRIES = 2  # at each held-out problem along the way
PROMPTS = 8  # of like length whose replies go through the model together, on a CPU


@dataclass
class GRPOArguments(ResumeKeys, GRPOConfig):
    """TRL's, and how a run goes on."""


def check_arguments(args: GRPOArguments) -> None:
    """One clear line for what our rollouts do not do, and for saves that could not be gone on from exactly."""
    ours = {"min_p": None, "repetition_penalty": 1.0, "generation_kwargs": None, "cache_implementation": None}
    for key, plain in ours.items():
        if not args.use_vllm and getattr(args, key) != plain:
            fail(f"grpo: {key} needs use_vllm: true; leave it out")
    if args.use_transformers_continuous_batching:
        fail("grpo: use_transformers_continuous_batching: rollouts are batched by the engine; leave it out")
    if not args.use_vllm and not args.ds3_gather_for_generation:
        fail(
            "grpo: ds3_gather_for_generation: false: under ZeRO-3 ranks whose replies are of unlike length would wait "
            "for each other forever; leave it out"
        )
    updates = args.num_iterations * args.steps_per_generation // args.gradient_accumulation_steps
    if args.save_strategy == "steps" and updates and args.save_steps % updates:
        fail(
            f"grpo: each set of rollouts is trained on for {updates} steps: save_steps {args.save_steps} must be a "
            f"multiple of it, for a checkpoint holds no rollouts"
        )


class PractisingTrainer(SafeCheckpoints, GRPOTrainer):
    """GRPOTrainer on rows of {"prompt", "answer", "task", ...}.

    Args:
        tools: typed functions that replies may call; with vLLM, TRL's own loop runs them.
    """

    def __init__(self, *args, tools: Sequence[Callable] = (), **kwargs):
        training_args = kwargs["args"]
        check_arguments(training_args)
        super().__init__(*args, tools=list(tools) or None if training_args.use_vllm else None, **kwargs)
        self.own_tools = list(tools)
        self.moving: torch.Tensor | None = None  # the rows at hand that have an advantage, where no other row moves
        sharded = self.accelerator.num_processes > 1 or self.is_deepspeed_enabled
        self.lean = training_args.use_cpu and not sharded and not training_args.gradient_checkpointing

    # -- rollouts

    def _generate(self, prompts: list):
        """TRL's, with replies by the engine: (prompt ids, completion ids, mask of what the model wrote, completions as
        messages, log-probabilities, extra fields, images, tools' images)."""
        began = time.perf_counter()
        found = super()._generate(prompts) if self.use_vllm else self._roll_out(prompts)
        self._log_seconds("rollout", began)
        return found

    def _roll_out(self, prompts: list):
        with self._whole_model() as model:
            if self.lean and self.args.bf16:  # a copy without autocast: as the loss sees it, and quicker
                model = self.accelerator.unwrap_model(copy.deepcopy(model), keep_fp32_wrapper=False)
                model = model.to(torch.bfloat16)
            replies = generate(
                model, self._tokenizer, prompts, self.own_tools, batch_size=len(prompts), seed=self._draw_seed(),
                first=self.accelerator.process_index * len(prompts), max_new_tokens=self.max_completion_length,
                temperature=self.temperature, top_k=max(self.top_k, 0), top_p=self.top_p,
            )  # fmt: skip
        written = torch.tensor([sum(reply.completion_mask) for reply in replies], device=self.accelerator.device)
        ended = torch.tensor([reply.ended for reply in replies], device=self.accelerator.device)
        read = torch.tensor([len(reply.prompt_ids) for reply in replies], device=self.accelerator.device)
        lengths, ended, read = (self.accelerator.gather(column) for column in (written, ended, read))
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self.state.num_input_tokens_seen += int(read.sum() + lengths.sum())
        metrics, lengths = self._metrics[mode], lengths.float()
        metrics["num_tokens"] = [self.state.num_input_tokens_seen]
        metrics["completions/clipped_ratio"].append(1 - ended.float().mean().item())
        terminated = lengths[ended] if ended.any() else torch.zeros(1)
        for name, values in (("", lengths), ("terminated_", terminated)):
            metrics[f"completions/mean_{name}length"].append(values.mean().item())
            metrics[f"completions/min_{name}length"].append(values.min().item())
            metrics[f"completions/max_{name}length"].append(values.max().item())
        for name, share in text_shares([reply.messages for reply in replies]).items():
            metrics[name].append(share)
        if self.own_tools:
            calls = sum(len(m.get("tool_calls") or ()) for reply in replies for m in reply.messages)
            metrics["tools/call_frequency"].append(calls / len(replies))
        mask = [reply.completion_mask for reply in replies] if self.own_tools else None
        ids = [reply.completion_ids for reply in replies]
        return [r.prompt_ids for r in replies], ids, mask, [r.messages for r in replies], None, {}, None, []

    def _whole_model(self):
        """The policy as `generate` needs it: under ZeRO-3, its weights gathered."""
        if not self.is_deepspeed_enabled:
            return nullcontext(self.accelerator.unwrap_model(self.model_wrapped))
        return unwrap_model_for_generation(self.model_wrapped, self.accelerator)

    def _draw_seed(self) -> int:
        """Another one for every step; the same when a run goes on, and on every rank."""
        return self.args.seed * 1_000_003 + self.state.global_step

    def _calculate_rewards(self, *args, **kwargs):
        began = time.perf_counter()
        found = super()._calculate_rewards(*args, **kwargs)
        found[found.isnan().any(dim=1)] = torch.nan  # a failed grader says nothing: no other reward speaks for it
        self._log_seconds("reward", began)
        return found

    def _log_seconds(self, part: str, began: float) -> None:
        self._metrics["train" if self.model.training else "eval"][f"{part}_seconds"].append(
            time.perf_counter() - began
        )

    # -- loss

    def _compute_loss(self, model, inputs):
        """TRL's; a row without an advantage moves nothing where the loss has no other term, and needs no gradient."""
        alone = self.beta == 0 and not self._entropy_bonus_enabled and self.lean
        self.moving = inputs["advantages"] != 0 if alone and inputs["advantages"].dim() == 1 else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.moving = None

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False,
        compute_aux_loss=False, **images,
    ):  # fmt: skip
        """TRL's; on one CPU process by `token_logps`. Both (rows, logits_to_keep)."""
        if not self.lean or compute_aux_loss or any(value is not None for value in images.values()):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss,
                **images,
            )  # fmt: skip
        plain = self.accelerator.unwrap_model(model)
        plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        rows = (input_ids, attention_mask)
        with self.accelerator.autocast():
            if self.moving is None or self.moving.all() or not self.moving.any():
                return *token_logps(plain, *rows, logits_to_keep, self.temperature), None
            parts = []
            for chosen in (self.moving, ~self.moving):
                with torch.set_grad_enabled(chosen is self.moving and torch.is_grad_enabled()):
                    part = token_logps(plain, *(side[chosen] for side in rows), logits_to_keep, self.temperature)
                parts.append(part)
        order = torch.cat([self.moving.nonzero()[:, 0], (~self.moving).nonzero()[:, 0]]).argsort()
        return *(torch.cat(pair)[order] for pair in zip(*parts, strict=True)), None

    # -- held-out problems

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Try the held-out problems of `eval_dataset`, TRIES times each, and log what practice.summary says of them,
        with the counts of strategy phrases; every rank takes its share."""
        began = time.perf_counter()
        problems = list(self.eval_dataset)
        groups = self.try_problems(problems, TRIES, self.temperature, seed=self.args.seed)
        numbers = summary(problems, groups)
        counts = strategies.counts([rollout.text for group in groups for rollout in group])
        numbers |= {f"strategies/{name}": value for name, value in counts.items()}
        numbers["seconds"] = time.perf_counter() - began
        looking = sum(row.get(f"{metric_key_prefix}_seconds", 0.0) for row in self.state.log_history)
        practised = self.seconds + time.time() - self.began - looking - numbers["seconds"]
        numbers["so_far_seconds"] = max(practised, 0.0)  # of practice, without looking at the held-out problems
        numbers = {f"{metric_key_prefix}_{key}": value for key, value in numbers.items()}
        self.log(numbers)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return numbers

    def measure(self, problems: Sequence[dict], tries: int, temperature: float, seed: int) -> dict[str, float]:
        """practice.summary of `tries` at each problem, and `greedy`, the share right at temperature 0."""
        sampled = summary(problems, self.try_problems(problems, tries, temperature, seed))
        return sampled | {"greedy": summary(problems, self.try_problems(problems, 1, 0.0, seed))["pass_at_1"]}

    def try_problems(self, problems: Sequence[dict], tries: int, temperature: float, seed: int) -> list[list[Rollout]]:
        """practice.rollouts of the policy as it stands, shared out over the ranks and gathered."""
        share = math.ceil(len(problems) / self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        with self._whole_model() as model:
            groups = rollouts(
                model, self._tokenizer, problems[first : first + share], tries, self.own_tools,
                temperature=temperature, seed=seed, first=first * tries, batch_size=128,
                max_new_tokens=self.max_completion_length,
            )  # fmt: skip
        return gather_object(groups)


def token_logps(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, keep: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the last `keep` of (rows, length) ids at `temperature`, and the entropy in nats of the
    distribution each was drawn from: both (rows, keep) floats, 0 where `attention_mask` is. Prompts lie at the right
    end of their columns, replies at the left end of the last `keep`. Gradients flow through the log-probabilities.

    A prompt is read once for all replies to it, with its gradient, and the replies to PROMPTS prompts go together.
    """
    ids, mask = input_ids.masked_fill(attention_mask == 0, -1), attention_mask.bool()
    prompts, owner = ids[:, :-keep].unique(dim=0, return_inverse=True)
    lengths, reply_lengths = (prompts >= 0).sum(1), mask[:, -keep:].sum(1)
    logps, entropies = input_ids.new_zeros(2, len(ids), keep, dtype=torch.float32).unbind()
    found, places = [], []
    for chunk in lengths.argsort().split(PROMPTS):
        # rows of these prompts; the prompts' keys and values, one copy a row
        rows = torch.isin(owner, chunk).nonzero()[:, 0]
        if not reply_lengths[rows].any():
            continue
        copies = (owner[rows, None] == chunk).nonzero()[:, 1]
        asked = prompts[chunk, prompts.shape[1] - int(lengths[chunk].max()) :]
        seen = (asked >= 0).long()
        read = model.base_model(
            asked.clamp(min=0), attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0), use_cache=True
        )
        read.past_key_values.batch_select_indices(copies)
        # the replies behind them
        width = int(reply_lengths[rows].max())
        reply, real = input_ids[rows, -keep:][:, :width], mask[rows, -keep:][:, :width]
        wrote = model.base_model(
            reply, attention_mask=torch.cat([seen[copies], real.long()], 1), past_key_values=read.past_key_values,
            position_ids=lengths[chunk][copies, None] + torch.arange(width, device=ids.device), use_cache=True,
        )  # fmt: skip
        before = torch.cat([read.last_hidden_state[copies, -1:], wrote.last_hidden_state[:, :-1]], 1)
        log_probabilities = (model.get_output_embeddings()(before[real]).float() / temperature).log_softmax(-1)
        chosen = log_probabilities.gather(-1, reply[real][:, None])[:, 0]
        with torch.no_grad():
            entropy = -log_probabilities.exp().mul_(log_probabilities).sum(-1)
        row, column = real.nonzero(as_tuple=True)
        places.append((rows[row], column))
        found.append((chosen, entropy))
    place = tuple(torch.cat(parts) for parts in zip(*places, strict=True))
    logps = logps.index_put(place, torch.cat([chosen for chosen, _ in found]))
    return logps, entropies.index_put(place, torch.cat([entropy for _, entropy in found]))


@dataclass
class Teacher:
    """Whoever wrote what the start was finetuned on, and how imitation went on the way there."""

    accuracy: float = field(metadata={"help": "share of the teacher's solutions that are right", "ge": 0, "le": 1})
    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "checkpoint-N folders of the finetuning, tried too", "reads": True}
    )


def imitation(
    teacher: Teacher, tokenizer: PreTrainedTokenizerBase, problems: Sequence[dict], tries: int, **generation
) -> dict:
    """{"teacher": accuracy, "sft": [[step, pass@1], ...]}: the finetuning's checkpoints on the same problems."""
    rows = []
    for path in map(Path, teacher.checkpoints):
        if not path.name.removeprefix("checkpoint-").isdigit():
            fail(f"grpo: teacher: {path} is no folder checkpoint-N of a finetuning")
        groups = rollouts(load_model(str(path)).eval(), tokenizer, problems, tries, **generation)
        rows.append([int(path.name.removeprefix("checkpoint-")), summary(problems, groups)["pass_at_1"]])
    return {"teacher": teacher.accuracy, "sft": sorted(rows)}


def curve(log_history: Sequence[dict], rollouts_a_step: int) -> list[dict]:
    """The held-out evaluations of a run's log, as rows of step, seconds, rollouts (of training), pass_at_1, stderr,
    greedy, mean_length, worked and strategies."""
    rows = []
    for row in {row["step"]: row for row in log_history if "eval_pass_at_1" in row}.values():
        keys = ("pass_at_1", "pass_at_k", "stderr", "greedy", "mean_length", "worked")
        found = {"step": row["step"], "seconds": row["eval_so_far_seconds"], "rollouts": row["step"] * rollouts_a_step}
        found |= {key: row[f"eval_{key}"] for key in keys if f"eval_{key}" in row}
        prefix = "eval_strategies/"
        found["strategies"] = {key.removeprefix(prefix): v for key, v in row.items() if key.startswith(prefix)}
        rows.append(found)
    return rows


def seconds(log_history: Sequence[dict]) -> dict[str, float]:
    """Seconds of a run's steps spent on rollout, reward and update, from the log's means."""
    rows = [row for row in log_history if "rollout_seconds" in row and "step_time" in row]
    steps = [row["step"] - before for row, before in zip(rows, [0, *(row["step"] for row in rows)], strict=False)]
    found = {part: 0.0 for part in ("rollout", "reward", "update")}
    for row, count in zip(rows, steps, strict=True):
        found["rollout"] += count * row["rollout_seconds"]
        found["reward"] += count * row["reward_seconds"]
        found["update"] += count * (row["step_time"] - row["rollout_seconds"] - row["reward_seconds"])
    return found


def completions(folder: str | Path, a_step: int = 4) -> list[dict]:
    """A sample of what TRL's `log_completions` wrote below an output folder: the first `a_step` rows of each step."""
    rows = []
    for path in sorted(Path(folder).glob("completions/*.parquet")):
        known = {"step", "prompt", "completion", "advantage"}
        for row in read_table(path).slice(0, a_step).to_pylist():
            rewards = {name: float(value) for name, value in row.items() if name not in known}
            texts = {key: "\n".join(turn["content"] or "" for turn in row[key]) for key in ("prompt", "completion")}
            rows.append({"step": int(row["step"]), **texts, "rewards": rewards, "advantage": float(row["advantage"])})
    return rows
