"""Alarms for reinforcement learning that goes wrong: what the log and the held-out evaluations give away.

A policy finds whatever its reward pays for. `Watch` reads the rows a trainer logs (TRL's names) and the evaluations on
held-out problems, and says what has gone wrong; `Guards` is the callback that does so during a run.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from statistics import fmean, stdev

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from crawl2chat.rewards import Completion, unrepeated, words
from crawl2chat.stage import fail

LENGTH = "completions/mean_length"
ALARMS = "zero_variance entropy_collapse length_blow_up truncated empty repeated kl".split()  # of the training log
ALARMS += ["reward_up_accuracy_down", "reward_up_onlooker_down"]  # of the evaluations


@dataclass
class Thresholds:
    """When an alarm is raised. A step's numbers are noisy: what counts is their mean over the last `patience` rows."""

    patience: int = field(default=5, metadata={"help": "logged rows that are averaged", "ge": 1})
    zero_variance: float = field(default=0.95, metadata={"help": "share of groups whose rewards are all equal"})
    entropy_collapse: float = field(default=0.1, metadata={"help": "entropy as a share of what it began with"})
    length_blow_up: float = field(default=3.0, metadata={"help": "growth that held-out accuracy does not repay"})
    length_window: int = field(default=50, metadata={"help": "rows within which it grows so", "ge": 2})
    truncated: float = field(default=0.4, metadata={"help": "share of replies cut off at the limit"})
    empty: float = field(default=0.2, metadata={"help": "share of replies without a letter or digit"})
    repeated: float = field(default=0.2, metadata={"help": "share of replies that mostly repeat themselves"})
    kl: float = field(default=0.5, metadata={"help": "nats a token away from the reference, where beta is above 0"})
    fall: float = field(default=3.5, metadata={"help": "standard errors below the best evaluation", "gt": 0})
    rise: float = field(default=2.0, metadata={"help": "standard errors that the reward rose meanwhile", "gt": 0})


@dataclass
class Alarm:
    """What was raised, at which step, and in words."""

    name: str
    step: int
    message: str


def text_shares(completions: Sequence[Completion]) -> dict[str, float]:
    """What TRL does not log of a batch of replies, under the names `Watch` knows: completions/empty, the share without
    a letter or digit (a thought and a call count as words), and completions/repeated, the share that say at least half
    of their runs of four words again. Raises ValueError for no replies."""
    if not completions:
        raise ValueError("no replies: there is no share of them")
    calls = [isinstance(reply, list) and any(turn.get("tool_calls") for turn in reply) for reply in completions]
    texts = [words(reply) for reply in completions]
    spoken = [any(map(str.isalnum, text)) for text in texts]
    fresh = unrepeated(texts)
    return {
        "completions/empty": fmean(not (said or call) for said, call in zip(spoken, calls, strict=True)),
        "completions/repeated": fmean(said and part < 0.5 for said, part in zip(spoken, fresh, strict=True)),
    }


class Watch:
    """Fed with `row` and `evaluation`, it returns the alarms that are new; `standing` are those whose cause goes on.

    `memory` is all it knows, in JSON's types: {"start", "recent": values by key, "since": rewards since the last
    evaluation, "evaluations", "standing"}.
    """

    def __init__(self, thresholds: Thresholds):
        self.thresholds = thresholds
        self.memory: dict = {"start": {}, "recent": {}, "since": [], "evaluations": [], "standing": {}, "alarms": []}

    @property
    def alarms(self) -> list[Alarm]:
        """Every alarm that was raised, each name once."""
        return [Alarm(**alarm) for alarm in self.memory["alarms"]]

    @property
    def standing(self) -> dict[str, str]:
        return self.memory["standing"]

    def row(self, row: dict, step: int) -> list[Alarm]:
        """A row of the training log; rows without a reward (an evaluation's, the last one's) are passed over."""
        if row.get("reward") is None:
            return []
        limits, known = self.thresholds, self.memory
        keys = ("entropy", LENGTH, "frac_reward_zero_std", "kl", "reward")
        shares = {"truncated": "clipped_ratio", "empty": "empty", "repeated": "repeated"}
        for key in [*keys, *(f"completions/{share}" for share in shares.values())]:
            if row.get(key) is not None:
                start = known["start"].setdefault(key, [])
                start += [row[key]] * (len(start) < limits.patience)
                known["recent"][key] = [*known["recent"].get(key, []), row[key]][-limits.length_window :]
        known["recent"]["step"] = [*known["recent"].get("step", []), step][-limits.length_window :]
        known["since"] = [*known["since"], row["reward"]][-limits.length_window :]
        found = {}
        if (share := self._recent("frac_reward_zero_std")) is not None and share >= limits.zero_variance:
            found["zero_variance"] = f"{share:.0%} of the groups have equal rewards: they teach nothing"
        if (entropy := self._recent("entropy")) is not None:
            began = fmean(known["start"]["entropy"])
            if entropy < limits.entropy_collapse * began and not self._rose():
                found["entropy_collapse"] = f"entropy fell from {began:.3g} to {entropy:.2g} nats a token"
        if (kl := self._recent("kl")) is not None and not kl <= limits.kl:
            found["kl"] = f"{kl:.2g} nats a token away from the reference model"
        for name, key in shares.items():
            share = self._recent(f"completions/{key}")
            if share is not None and share > getattr(limits, name):
                found[name] = f"{share:.0%} of the replies are {name if name != 'truncated' else 'cut off'}"
        if message := self._blown_up():
            found["length_blow_up"] = message
        return self._raise(found, step, [name for name in ALARMS if not name.startswith("reward_up")])

    def evaluation(self, accuracy: float, stderr: float, step: int, of: str = "accuracy") -> list[Alarm]:
        """Accuracy on held-out problems with its standard error, after `step` steps; the first before any training.
        Where nothing can be verified, `of` is "onlooker": the mean that held-out replies get from a reward model the
        policy is never trained on. The same step again, as where a run goes on, is passed over."""
        if any(one["step"] >= step for one in self.memory["evaluations"]):
            return []
        rewards, self.memory["since"] = self.memory["since"], []
        now = {"step": step, "accuracy": accuracy, "stderr": stderr, "reward": _mean(rewards)}
        self.memory["evaluations"].append(now)
        name, message = f"reward_up_{of}_down", self._hacked(of)
        return self._raise({name: message} if message else {}, step, [name])

    def _recent(self, key: str) -> float | None:
        values = self.memory["recent"].get(key, [])[-self.thresholds.patience :]
        return fmean(values) if len(values) == self.thresholds.patience else None

    def _rose(self) -> bool:
        """Held-out accuracy is above its first by two standard errors: a policy that has found the answers is sure."""
        evaluations = self.memory["evaluations"]
        return len(evaluations) > 1 and self._fall(evaluations[:1], evaluations[-1:]) <= -2

    def _blown_up(self) -> str:
        """Longer by the factor within the window, and held-out accuracy did not rise by a standard error meanwhile:
        thinking that grows because it pays is no blow-up."""
        values, width = self.memory["recent"].get(LENGTH, []), self.thresholds.patience
        means = [fmean(values[i : i + width]) for i in range(len(values) - width + 1)]
        if not means or means[-1] <= self.thresholds.length_blow_up * min(means):
            return ""
        evaluations, first = self.memory["evaluations"], self.memory["recent"]["step"][0]
        if len(evaluations) > 1:
            began = [one for one in evaluations if one["step"] <= first][-1:] or evaluations[:1]
            if self._fall(began, evaluations[-1:]) <= -1:
                return ""
        return f"replies grew from {min(means):.0f} to {means[-1]:.0f} tokens and held-out accuracy did not rise"

    def _hacked(self, of: str) -> str:
        """The reward rose since the best evaluation, and what is held out fell: the last evaluation's, or the mean of
        the last two's. Errors that few problems understate count as the mean of all evaluations' errors."""
        *before, now = self.memory["evaluations"]
        if not before:
            return ""
        at = max(range(len(before)), key=lambda i: before[i]["accuracy"])
        began = before[at]["reward"] or _mean(self.memory["start"].get("reward", []))
        if not began or not now["reward"]:
            return ""
        rise, error = now["reward"][0] - began[0], math.hypot(now["reward"][1], began[1])
        lasts = [[now], [before[-1], now]][: 1 + (at < len(before) - 1)]
        fall = max(self._fall([before[at]], last) for last in lasts)
        if fall < self.thresholds.fall or rise <= 0 or rise < self.thresholds.rise * error:
            return ""
        return (
            f"the reward rose from {began[0]:.3g} to {now['reward'][0]:.3g} while held-out {of} fell from "
            f"{before[at]['accuracy']:.3f} (step {before[at]['step']}) to {now['accuracy']:.3f}"
        )

    def _fall(self, high: list[dict], low: list[dict]) -> float:
        """From the mean accuracy of some evaluations to that of others, in standard errors of the difference."""
        usual = max(fmean(one["stderr"] for one in self.memory["evaluations"]), 1e-3)
        errors = [math.hypot(*(max(one["stderr"], usual) for one in side)) / len(side) for side in (high, low)]
        return (fmean(one["accuracy"] for one in high) - fmean(one["accuracy"] for one in low)) / math.hypot(*errors)

    def _raise(self, found: dict[str, str], step: int, names: list[str]) -> list[Alarm]:
        """Of `names`, those found stand and the others no more; what never stood before is new."""
        self.memory["standing"] = {name: m for name, m in self.standing.items() if name not in names} | found
        raised = {alarm["name"] for alarm in self.memory["alarms"]}
        new = [Alarm(name, step, message) for name, message in found.items() if name not in raised]
        self.memory["alarms"] += [asdict(alarm) for alarm in new]
        return new


def _mean(values: list[float]) -> tuple[float, float] | None:
    """A mean and its standard error."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return (fmean(values), error) if values else None


class Guards(TrainerCallback, ExportableState):
    """Watches a run: an alarm is one printed line, and alarms/<name> in every row of the log from then on, 1 while its
    cause goes on and 0 after. Where one named by `stop_on` stands, training stops, and `stopped` says why.

    An evaluation that says eval_pass_at_1 and eval_stderr is taken for the held-out accuracy, one that says
    eval_rewards/onlooker and eval_stderr/onlooker for the onlooker's; others are told to `evaluated`, the same numbers
    on every rank. What it knows is saved with the checkpoints and found again by a run
    that goes on. Trackers read a row in the order of the callbacks: put this one first,
    `trainer.callback_handler.callbacks.insert(0, guards)`, or they never see an alarm.
    """

    def __init__(self, thresholds: Thresholds | dict | None = None, stop_on: Sequence[str] = ()):
        for name in stop_on:
            if name not in ALARMS:
                near = get_close_matches(name, ALARMS, n=1)
                fail(f"stop_on: no alarm {name!r}; " + (f"did you mean {near[0]!r}?" if near else ", ".join(ALARMS)))
        self.thresholds = Thresholds(**thresholds) if isinstance(thresholds, dict) else thresholds or Thresholds()
        self.stop_on = list(stop_on)
        self.watch = Watch(self.thresholds)
        self.stopped = ""

    @property
    def memory(self) -> dict:
        return self.watch.memory

    @memory.setter
    def memory(self, memory: dict) -> None:
        self.watch.memory = memory

    def state(self) -> dict:
        return {
            "args": {"thresholds": asdict(self.thresholds), "stop_on": self.stop_on},
            "attributes": {"memory": self.memory, "stopped": self.stopped},
        }

    def evaluated(
        self, accuracy: float, stderr: float, step: int, main_process: bool = True, of: str = "accuracy"
    ) -> None:
        """See `Watch.evaluation`; its alarm enters the next row of the log, and may stop the run there."""
        self._say(self.watch.evaluation(accuracy, stderr, step, of), main_process)

    def on_train_begin(self, args, state, control, **kwargs):
        # of its own accord: transformers restores callbacks only where asked to, as new objects, and at the end
        for name, value in state.stateful_callbacks.get("Guards", {}).get("attributes", {}).items():
            setattr(self, name, value)

    def on_log(self, args, state, control, logs: dict, **kwargs):
        self._say(self.watch.row(logs, state.global_step), state.is_world_process_zero)
        marks = {f"alarms/{one.name}": float(one.name in self.watch.standing) for one in self.watch.alarms}
        logs.update(marks)
        if state.log_history and state.log_history[-1]["step"] == state.global_step:
            state.log_history[-1].update(marks)
        self._stop(state, control)

    def on_evaluate(self, args, state, control, metrics: dict, **kwargs):
        kinds = {"accuracy": ("pass_at_1", "stderr"), "onlooker": ("rewards/onlooker", "stderr/onlooker")}
        for of, (value, error) in kinds.items():
            if f"eval_{value}" in metrics:
                numbers = metrics[f"eval_{value}"], metrics[f"eval_{error}"], state.global_step
                self.evaluated(*numbers, state.is_world_process_zero, of)
                self._stop(state, control)

    def _stop(self, state, control) -> None:
        for name in self.stop_on:
            if name in self.watch.standing and not control.should_training_stop:
                control.should_training_stop = True
                self.stopped = f"{name} at step {state.global_step}: {self.watch.standing[name]}"

    def _say(self, alarms: list[Alarm], main_process: bool) -> None:
        for alarm in alarms:
            if main_process:
                print(f"alarm: {alarm.name} at step {alarm.step}: {alarm.message}", flush=True)
