"""Proximal policy optimization of a chat model against reward models.

Each batch of prompts is answered once by the policy and every reply is scored. The score, less a KL penalty a token,
is what its tokens earned; then come several epochs of clipped updates over minibatches, of the policy and of a value
model that learns to expect what will be earned (Schulman et al. 2017, arXiv:1707.06347; on text Ziegler et al. 2019,
arXiv:1909.08593; Ouyang et al. 2022, arXiv:2203.02155). Options and logged metrics have the names of the PPOTrainer
that TRL had until 1.12. What differs from it:
- a step is one update on one minibatch, per_device_train_batch_size x gradient_accumulation_steps rows on each rank;
  a batch is num_mini_batches of them, and takes num_ppo_epochs x num_mini_batches steps;
- rollouts come from engine.py: what a reply becomes depends on (seed, step, row) alone, so a resumed run is exact;
- the score lands on the last token that the policy wrote, and what tools wrote bears no loss;
- advantage_estimator rloo or grpo measures a reply against the others to its prompt, without a value model;
- a loss is the mean over all tokens of its minibatch, however it is cut into micro-batches and ranks;
- with LoRA there is no reference in memory (the adapter is switched off), and the value model is an adapter beside the
  reward model's own weights.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl.models import unwrap_model_for_generation

from crawl2chat import rms_norm
from crawl2chat.advantages import (
    adapt,
    against_others,
    estimate_advantages,
    kl_estimate,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)
from crawl2chat.checkpoints import SafeCheckpoints
from crawl2chat.engine import Reply, generate
from crawl2chat.episodes import (
    Episode,
    Rollouts,
    as_messages,
    batch_numbers,
    encode,
    named,
    score_replies,
    summary,
    table,
    to_episodes,
    write_completions,
)
from crawl2chat.logps import token_logps
from crawl2chat.policy_and_value import PolicyAndValue, begin_value_model, no_dropout, value_adapter
from crawl2chat.ppo_config import Leash, PPOConfig, check_apart, check_arguments, check_models, check_prompts
from crawl2chat.reward_model import load_reward_model, score_ids
from crawl2chat.stage import fail

VALUE = "value_model"  # the folder beside the policy's files

RewardFunc = PreTrainedModel | Callable[..., list[float | None]]


class PPOTrainer(SafeCheckpoints, Trainer):
    """Trainer by PPO on rows of {"prompt": messages or a user's words, ...}.

    Args:
        model: the policy to begin with.
        reward_funcs: reward models (sequence classifiers with one label, or folders of reward.py) and functions, one
            or several. A function is called with `prompts`, `completions` (lists of messages), `completion_ids` and
            the rows' other columns, and returns a float a reply, or None where the grader itself failed: such a reply
            moves nothing.
        reward_processing_classes: the reward models' tokenizers, in their order; refused unless they are the policy's.
        value_model: a sequence classifier with one label; default: it begins as the first reward model, or as the
            policy under a head of zeros where there is none.
        ref_model: what the KL is measured from; default: the policy as it begins.
        peft_config: LoRA beside policy and value model.
        eval_dataset: rows, or several sets of rows by name.
        eval_funcs: further functions that replies to `eval_dataset` are shown to, and that are never trained on.
        tools: typed functions that replies may call.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reward_funcs: str | RewardFunc | Sequence[str | RewardFunc],
        args: PPOConfig,
        train_dataset: Dataset | Sequence[dict],
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Dataset | Sequence[dict] | dict | None = None,
        reward_processing_classes: Sequence[PreTrainedTokenizerBase] = (),
        value_model: PreTrainedModel | None = None,
        ref_model: PreTrainedModel | None = None,
        peft_config: PeftConfig | None = None,
        eval_funcs: Sequence[Callable[..., list[float | None]]] = (),
        tools: Sequence[Callable] = (),
        **kwargs,
    ):
        given = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else reward_funcs
        given = [load_reward_model(one, processing_class)[0] if isinstance(one, str) else one for one in given]
        self.rewards, self.eval_funcs, self.own_tools = named(given), named(eval_funcs), list(tools)
        self.weights = check_arguments(args, list(self.rewards), len(train_dataset))
        judges = [judge for judge in self.rewards.values() if isinstance(judge, PreTrainedModel)]
        check_models(model, judges, value_model, processing_class, reward_processing_classes)
        check_apart({"model": model, "ref_model": ref_model, "value_model": value_model, **self.rewards})
        if both := self.rewards.keys() & self.eval_funcs.keys():
            fail(f"ppo: {min(both)} is a reward and one of eval_funcs; give one of them another name")
        sets = eval_dataset if isinstance(eval_dataset, dict) else {"eval_dataset": eval_dataset or []}
        if empty := [name for name, rows in sets.items() if args.eval_strategy != "no" and not len(rows)]:
            fail(f"ppo: {empty[0]} has no rows for eval_strategy {args.eval_strategy.value}; give it some, or no")
        models = [one for one in (model, value_model, *judges) if one is not None]
        check_prompts({"train_dataset": train_dataset, **sets}, models, processing_class, args.response_length)
        for judge in judges:
            judge.requires_grad_(False).eval().to(args.device)
        self.shared = None  # a reward model whose weights the value model's adapter lies beside
        if args.advantage_estimator == "gae":
            if peft_config is not None and judges and value_model is None:
                self.shared = value_model = judges[0]
            value_model = value_model or begin_value_model(model, judges)
            if peft_config is not None:
                value_model = get_peft_model(value_model, value_adapter(peft_config))
            else:
                value_model.requires_grad_(True)
        elif value_model is not None:
            fail(f"ppo: advantage_estimator {args.advantage_estimator} has no use for a value model; leave it out")
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        else:
            ref_model = copy.deepcopy(model) if ref_model is None else ref_model
        self.ref_model = None if ref_model is None else ref_model.requires_grad_(False).eval().to(args.device)
        pair = PolicyAndValue(model, value_model)
        no_dropout(pair)
        if args.device.type == "cpu":
            rms_norm.install(pair)
        super().__init__(
            model=pair, args=args, train_dataset=train_dataset,
            eval_dataset=eval_dataset, processing_class=processing_class, **kwargs,
        )  # fmt: skip
        pair.to(args.device)  # DeepSpeed moves it only when training begins, and replies may be asked for before
        self.leash = Leash(args.kl_coef)
        self.add_callback(self.leash)
        self.steps_a_batch = args.num_ppo_epochs * args.num_mini_batches
        self.rows_a_rank = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.num_mini_batches
        self.episodes_a_batch = self.rows_a_rank * args.world_size
        self.batch: Rollouts | None = None
        self._sums: dict[str, torch.Tensor] = {}
        self._table: list[dict] = []
        self._here = 0  # episodes since the process began

    # -- the Trainer's loop: a step is a minibatch

    def get_train_dataloader(self) -> DataLoader:
        """For its length alone: `get_batch_samples` makes the rows."""
        passes = max(len(self.train_dataset) // self.episodes_a_batch, 1) * self.steps_a_batch
        return DataLoader(range(passes * self.args.gradient_accumulation_steps), collate_fn=list)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The micro-batches of the minibatch at hand, of new rollouts where those before are used up."""
        left, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not left:
            return [], None
        number, update = divmod(self.state.global_step, self.steps_a_batch)
        if update == 0:
            self.batch = None  # its memory
            self.batch = self._roll_out(number)
        elif self.batch is None:
            fail(f"ppo: step {self.state.global_step} is inside a batch of {self.steps_a_batch}; begin anew")
        rows = self.batch.updates[update].split(self.args.per_device_train_batch_size)
        return [{"rows": part, "count": self.batch.counts[update]} for part in rows], None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> torch.Tensor:
        """This micro-batch's share of the minibatch's mean loss an action; a scalar. The Trainer divides it by the
        number of micro-batches, and the ranks' gradients are averaged: both are made up for."""
        args, batch, rows = self.args, self.batch, inputs["rows"]
        mask = batch.mask[rows]
        logps, entropies, values = model(batch.ids[rows], batch.lengths[rows], batch.wanted[rows], args.temperature)
        old_logps, advantages = batch.logps[rows][mask], batch.advantages[rows][mask]
        policy, clipped = policy_losses(logps, old_logps, advantages, args.cliprange)
        loss = policy.sum()
        if batch.returns is not None:
            old_values, returns = batch.values[rows][mask], batch.returns[rows][mask]
            value, value_clipped = value_losses(values, old_values, returns, args.cliprange_value)
            loss = loss + args.vf_coef * value.sum()
            self._note("loss/value_avg", value.detach())
            self._note("val/clipfrac_avg", value_clipped)
        with torch.no_grad():
            self._note("policy/approxkl_avg", (logps - old_logps) ** 2 / 2)
            self._note("policy/clipfrac_avg", clipped)
            self._note("policy/entropy_avg", entropies)
            self._note("loss/policy_avg", policy)
            self._note("val/ratio", (logps - old_logps).exp())
        share = args.gradient_accumulation_steps * args.world_size / inputs["count"].clamp(min=1)
        return loss * share

    # -- rollouts

    def _asked(self, number: int) -> list[dict]:
        """This rank's rows of a batch: the prompts one after the other, each `num_generations` times, in another order
        in every pass over them."""
        size = self.args.num_generations
        first = number * self.episodes_a_batch + self.args.process_index * self.rows_a_rank
        rows, orders = [], {}
        for i in range(first, first + self.rows_a_rank):
            turn, place = divmod(i // size, len(self.train_dataset))
            if turn not in orders:
                generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + turn)
                orders[turn] = torch.randperm(len(self.train_dataset), generator=generator).tolist()
            rows.append(self.train_dataset[orders[turn][place]])
        return rows

    def _roll_out(self, number: int) -> Rollouts:
        """A batch of replies, with the advantages of their tokens and the order in which they are trained on."""
        args, began = self.args, time.perf_counter()
        seed = args.seed * 1_000_003 + self.state.global_step
        batch = self._try(self._asked(number), seed, args.process_index * self.rows_a_rank, self.rewards)
        scores = torch.tensor([episode.score or 0.0 for episode in batch.episodes], device=args.device)
        kl = kl_estimate(batch.logps, batch.ref_logps, args.kl_estimator) * batch.mask
        rewards = token_rewards(kl, scores, batch.mask, self.leash.kl_coef)
        if args.whiten_rewards:
            rewards = whiten(rewards, batch.mask, shift_mean=False, total=self._total)
        if args.advantage_estimator == "gae":
            found = estimate_advantages(rewards, batch.values, batch.mask, args.gamma, args.lam)
            batch.advantages, batch.returns = found
        else:
            scaled = args.advantage_estimator == "grpo"
            better = against_others(rewards.sum(1), batch.mask.any(1), args.num_generations, scaled)
            batch.advantages = better[:, None] * batch.mask
        if args.whiten_advantages:
            batch.advantages = whiten(batch.advantages, batch.mask, total=self._total)
        shuffled = torch.Generator().manual_seed(seed)
        size = self.rows_a_rank // args.num_mini_batches
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(self.rows_a_rank, generator=shuffled).to(args.device)
            batch.updates += [rows[batch.lengths[rows].argsort()] for rows in order.split(size)]
        batch.counts = self._total(torch.stack([batch.mask[rows].sum() for rows in batch.updates]))
        self._report(batch, kl, number, time.perf_counter() - began)
        return batch

    @torch.no_grad()
    def _try(self, rows: list[dict], seed: int, first: int, judges: dict) -> Rollouts:
        """Reply to every row and score the replies; `first` is the number of the first row among all ranks' rows."""
        args, pair = self.args, self.accelerator.unwrap_model(self.model_wrapped)
        device, pad = args.device, self.processing_class.pad_token_id
        penalty = args.missing_eos_penalty or 0.0
        pair.eval()
        prompts = [as_messages(row["prompt"]) for row in rows]
        with self._whole_policy() as policy, self.accelerator.autocast():
            replies = generate(
                policy, self.processing_class, prompts, self.own_tools, max_new_tokens=args.response_length,
                temperature=args.temperature, seed=seed, first=first,
                batch_size=args.local_rollout_forward_batch_size,
            )  # fmt: skip
        judged = score_replies(rows, replies, judges, self._judge)
        weights = dict(zip(self.rewards, self.weights, strict=True))
        aggregate = min if args.reward_aggregation == "min" else sum
        episodes = to_episodes(rows, replies, judged, weights, penalty, aggregate)
        ids, lengths, wanted = encode(replies, pad, [episode.score is not None for episode in episodes], device)
        mask = torch.arange(int(wanted.sum(1).max()), device=device) < wanted.sum(1)[:, None]
        with self.accelerator.autocast():
            found = list(pair(ids, lengths, wanted, args.temperature))
            with pair.policy.disable_adapter() if self.ref_model is None else nullcontext():
                reference = pair.policy if self.ref_model is None else self.ref_model.to(pair.policy.dtype)
                found.append(token_logps(reference, ids, lengths, wanted, args.temperature)[0])
        logps, entropies, values, ref_logps = (
            torch.zeros(mask.shape, device=device).masked_scatter(mask, part.float()) for part in found
        )
        for episode, kl in zip(episodes, kl_estimate(logps, ref_logps).sum(1).tolist(), strict=True):
            episode.kl = kl
        return Rollouts(episodes, ids, lengths, wanted, mask, logps, ref_logps, values, entropies)

    @contextmanager
    def _whole_policy(self) -> Iterator[PreTrainedModel]:
        """The policy as `generate` needs it: under ZeRO-3 gathered, or replies of unlike length would make the ranks
        wait for each other forever."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is None or plugin.zero_stage < 3:
            yield self.accelerator.unwrap_model(self.model_wrapped).policy
            return
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as pair:
            yield pair.policy

    def _judge(self, judge: PreTrainedModel, replies: list[Reply]) -> list[float]:
        """A reward model's scores of the ids as they were written; padding at the end is no word of a reply."""
        ids, pad = [reply.prompt_ids + reply.completion_ids for reply in replies], judge.config.pad_token_id
        for row in ids:
            while row[-1] == pad:
                row.pop()
        size = self.args.local_rollout_forward_batch_size
        pair = self.accelerator.unwrap_model(self.model_wrapped)
        bare = pair.value_model.disable_adapter() if judge is self.shared else nullcontext()
        with bare, self.accelerator.autocast():
            return score_ids(judge, ids, min(size, 32) if judge.device.type == "cpu" else size)

    # -- held-out prompts

    def episodes(self, rows: Sequence[dict], seed: int) -> list[Episode]:
        """One reply of the policy as it stands to every row, scored by the rewards and by `eval_funcs`. Ranks share
        the rows and all return every episode, in order; the same seed draws the same random numbers."""
        rows, ranks, rank = list(rows), self.args.world_size, self.args.process_index
        share = math.ceil(len(rows) / ranks)
        mine = [rows[i % len(rows)] for i in range(rank * share, (rank + 1) * share)]  # ZeRO-3 needs equal shares
        found = self._try(mine, seed, rank * share, self.rewards | self.eval_funcs).episodes
        return gather_object(found)[: len(rows)] if ranks > 1 else found

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Reply to the rows of each set and log, under the set's name, the means of score (`reward`), KL in nats a
        reply, length in tokens, ended and the single `rewards/...`."""
        began, numbers = time.perf_counter(), {}
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        for name, rows in (sets if isinstance(sets, dict) else {"": sets}).items():
            found = summary(self.episodes(rows, self.args.seed))
            numbers |= {f"{name}_{key}" if name else key: value for key, value in found.items()}
        numbers["seconds"] = time.perf_counter() - began
        looking = sum(row.get(f"{metric_key_prefix}_seconds", 0.0) for row in self.state.log_history)
        trained = self.seconds + time.time() - self.began - looking - numbers["seconds"]
        numbers["so_far_seconds"] = max(trained, 0.0) if self.began else 0.0  # without looking at held-out prompts
        numbers = {f"{metric_key_prefix}_{key}": value for key, value in numbers.items()}
        self.log(numbers)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, numbers)
        return numbers

    # -- what is logged

    def _total(self, sums: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(sums, "sum")

    def _note(self, name: str, values: torch.Tensor) -> None:
        """Values whose mean, over all of them on all ranks since the last row of the log, is logged."""
        sums = torch.stack([values.sum().float(), torch.tensor(float(values.numel()), device=values.device)])
        self._sums[name] = self._sums[name] + sums if name in self._sums else sums

    def _report(self, batch: Rollouts, kl: torch.Tensor, number: int, seconds: float) -> None:
        """A batch's numbers for the log and for the table, and the next KL coefficient."""
        numbers = batch_numbers(batch, kl, self.leash.kl_coef, self.args.world_size)
        numbers["rollout_seconds"] = torch.tensor([seconds], device=kl.device)
        for name, values in numbers.items():
            self._note(name, values)
        if self.args.kl_target is not None:
            away = numbers["objective/kl"]
            summed, count = self._total(torch.stack([away.sum(), away.new_tensor(len(away))])).tolist()
            mean = summed / max(count, 1)
            self.leash.kl_coef = adapt(self.leash.kl_coef, mean, self.args.kl_target, self.args.kl_gain)
        self.state.num_input_tokens_seen += int(self._total(batch.lengths.sum()))
        self._here += self.episodes_a_batch
        if self.args.log_completions:
            rows = table(batch)
            self._table = gather_object(rows) if self.args.world_size > 1 else rows

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A row with a loss has the numbers of all steps since the last such row, and the table beside it."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = self._total(torch.stack([self._sums[name] for name in names])).tolist()
            logs |= {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}
            self._sums = {}
            logs["episode"] = math.ceil(self.state.global_step / self.steps_a_batch) * self.episodes_a_batch
            logs["eps"] = self._here / max(time.time() - self.began, 1e-9)
            logs["num_tokens"] = self.state.num_input_tokens_seen
        super().log(logs, start_time)
        if "loss" in logs and self._table and self.is_world_process_zero():
            own = Path(self.args.output_dir)
            write_completions(self._table, own, self.state.global_step, "wandb" in self.args.report_to)
            self._table = []

    # -- what is saved: the policy as the model, the value model in a folder beside it

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        pair = self.model
        parts = {name: state_dict for name in ("policy", "value_model")}
        if state_dict is not None:  # a sharded run's, gathered
            for name in parts:
                own = f"{name}."
                parts[name] = {key.removeprefix(own): v for key, v in state_dict.items() if key.startswith(own)}
        try:
            self.model = pair.policy
            super()._save(output_dir, parts["policy"])
        finally:
            self.model = pair
        if pair.value_model is not None:
            folder = Path(output_dir or self.args.output_dir, VALUE)
            pair.value_model.save_pretrained(folder, state_dict=parts["value_model"])

    def _load_best_model(self) -> None:
        """The Trainer's own looks for the policy's tensors in the pair, where they have other names."""
        best = self.state.best_model_checkpoint
        super()._load_best_model() if self.is_deepspeed_enabled else self._load_from_checkpoint(best)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        for part, own in zip(self.model.models, (folder, folder / VALUE), strict=False):
            if isinstance(part, PeftModel):
                part.load_adapter(str(own), part.active_adapter, is_trainable=True)
            else:
                super()._load_from_checkpoint(str(own), part)
