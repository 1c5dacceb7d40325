"""What a training stage will take before it is run: parameters, tokens, FLOPs, memory, hours, dollars, and its waste.

Nothing is loaded and nothing is written: the model stands on torch's meta device, its activations are counted on fake
tensors (memory.py), the devices are those of a table (hardware.py).
"""

import json
import os
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from ruamel.yaml import YAML
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from crawl2chat.hardware import DEVICES, PRICES_OF, Device, find_device, seconds_of_run, this_cpu
from crawl2chat.memory import CUDA, LIBRARIES, Launch, Memory, Step, memory, plain_attention, policy_memory
from crawl2chat.model import build_model, count_parameters, cpu_has_bf16, fastest_attention, flops_per_token
from crawl2chat.muon import hidden_matrices
from crawl2chat.protocol import load_tokenizer
from crawl2chat.stage import fail

CHINCHILLA = 20  # tokens a parameter, all counted: Hoffmann et al. 2022
NANOCHAT = 10.5  # tokens a parameter of the hidden matrices and the head: nanochat's scaling runs of January 2026
GPT2_VOCABULARY = 50_304  # GPT-2's 50,257 rounded up to a multiple of 64
PROMPT = 256  # tokens of a prompt, where a recipe says how long a reply may be and not how long a prompt
ADAM_BYTES = 28  # that AdamW's step moves a parameter, fp32: reads weight, gradient, two states; writes three of them


@dataclass
class Vocabulary:
    """Stands in for a tokenizer of which the size alone is known, and says how."""

    size: int
    source: str
    bos_token_id: None = None
    eos_token_id: None = None
    pad_token_id: None = None

    def __len__(self) -> int:
        return self.size


@dataclass
class Run:
    """A training stage as its configs describe it, on a launch; a model on the meta device, if one could be known."""

    args: Any
    launch: Launch
    on_cpu: bool
    length: int | None
    sources: list[Any] = field(default_factory=list)
    model: PreTrainedModel | None = None
    vocabulary: str = ""
    from_scratch: bool = False
    peft: bool = False
    judges: int = 0  # reward models that PPO asks
    hint: str = ""
    known: dict[tuple[Step, Launch], Memory] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        """A step's."""
        return self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.launch.processes

    @property
    def reply(self) -> int | None:
        """Tokens that a reply of PPO may have."""
        return getattr(self.args, "response_length", None)

    @property
    def pairs(self) -> bool:
        """Whether a row is two conversations, as a reward model reads them."""
        return hasattr(self.args, "center_rewards_coefficient")

    @property
    def tokens(self) -> int | None:
        """All steps', at most; None where the recipe counts epochs or episodes."""
        if not self.length or self.reply or self.args.max_steps <= 0:
            return None
        return self.sequences * (1 + self.pairs) * self.length * self.args.max_steps

    @property
    def beside(self) -> float:
        """Bytes that a process takes before the model is there."""
        return LIBRARIES if self.on_cpu else CUDA

    @cached_property
    def devices(self) -> list[Device]:
        """This CPU for a CPU's recipe; else the table, this machine's own GPU first."""
        if self.on_cpu:
            return [this_cpu(self.step.bf16, psutil.virtual_memory().total)]
        own = find_device(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        return sorted(DEVICES, key=lambda device: device is not own)

    def memory(self, step: Step, launch: Launch) -> Memory:
        """Of one process, with this run's model and another step or launch."""
        if (step, launch) not in self.known:
            found = memory(self.model, step, launch, not self.on_cpu)
            if self.reply:
                found = policy_memory(self.model, step, launch, self.reply, self.judges)
            self.known[step, launch] = found
        return self.known[step, launch]

    @property
    def step(self) -> Step:
        """What one micro-batch is."""
        args = self.args
        mixed = args.bf16 or args.fp16 or getattr(args, "mixed_precision", "no") != "no"
        return Step(
            rows=args.per_device_train_batch_size * (1 + self.pairs),
            length=self.length,
            bf16=cpu_has_bf16() if self.on_cpu else mixed,
            compiled=args.torch_compile,
            checkpointing=args.gradient_checkpointing,
            optimizer=str(getattr(args.optim, "value", args.optim)),
            chunked_loss=self.from_scratch or args.use_liger_kernel,
            frozen=self.peft,
            scored=self.pairs,
        )


def read_run(configs: tuple[Any, ...], args: Any, recipe: Path | None, flags: list[str]) -> Run:
    """The run that the configs describe, under the launch that the environment holds; no weights are loaded."""

    def value(key: str) -> Any:
        return next((found for config in configs if (found := getattr(config, key, None))), None)

    run = Run(args, Launch.of(), for_cpu(args, recipe, flags), value("max_length"), value("datasets") or [])
    run.peft, run.hint = bool(value("use_peft")), launch_hint(recipe)
    run.judges = len(value("reward_models") or [])
    run.length = run.reply + PROMPT if run.reply else run.length
    unset_hf_deepspeed_config()  # under ZeRO-3 transformers would share this model out, too
    folder = value("model_name_or_path")
    if isinstance(value("model"), dict):
        run.from_scratch, vocabulary = True, read_vocabulary(str(value("tokenizer")), recipe)
        run.vocabulary = vocabulary.source
        mapping, device = dict(value("model")), torch.device("cpu" if run.on_cpu else "cuda")
        attention = mapping.pop("attn_implementation", None) or fastest_attention(device, run.length)
        try:
            with torch.device("meta"):
                run.model = build_model(mapping, vocabulary, "eager" if attention == "eager" else "sdpa")
        except (ValueError, TypeError) as error:  # a width that its heads do not divide, and the like
            fail(f"{recipe}: model: {error}")
    elif folder and Path(folder, "config.json").is_file():
        try:
            config = AutoConfig.from_pretrained(folder, attn_implementation=value("attn_implementation"))
        except (OSError, ValueError, KeyError) as error:
            fail(f"{folder}: cannot read its config.json: {str(error).splitlines()[0]}")
        with torch.device("meta"):
            run.model = AutoModelForCausalLM.from_config(config, attn_implementation=plain_attention(config))
        run.vocabulary = f"{folder}'s"
    return run


def for_cpu(args: Any, recipe: Path | None, flags: list[str]) -> bool:
    """Whether the run itself is for a CPU. A dry run without a GPU builds every recipe's arguments as for a CPU, so
    that the recipe is asked there.
    """
    if torch.cuda.is_available() or not recipe:
        return args.use_cpu
    asked = {"--use_cpu", "--use_cpu=true"} & set(flags) or YAML(typ="safe").load(recipe).get("use_cpu")
    return bool(asked) or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


def launch_hint(recipe: Path | None) -> str:
    """How to see the plan of the launch that a recipe's second line asks for, where this is another one."""
    lines = recipe.read_text(encoding="utf-8").splitlines() if recipe else []
    config = re.search(r"accelerate launch --config_file (\S+)", "".join(lines[1:2]))
    if "WORLD_SIZE" in os.environ or not config or not Path(config[1]).is_file():
        return ""
    processes = YAML(typ="safe").load(Path(config[1])).get("num_processes", 1)
    return f"; `{config[0]} ... --dry_run` plans for its {processes}" if processes > 1 else ""


def read_vocabulary(tokenizer: str, recipe: Path | None) -> Vocabulary:
    """The tokenizer's size: from its folder, or as the recipe that will write the folder asks, or assumed."""
    if Path(tokenizer).is_dir():
        return Vocabulary(len(load_tokenizer(tokenizer)), tokenizer)
    for sibling in sorted(recipe.parent.glob("*.yaml")) if recipe else ():
        text = sibling.read_text(encoding="utf-8", errors="replace")
        size = re.search(r"^vocab_size: *(\d+)", text, re.MULTILINE)
        if size and re.search(rf"^output_dir: *{re.escape(tokenizer)} *$", text, re.MULTILINE):
            return Vocabulary(int(size[1]), f"as {sibling} asks")
    return Vocabulary(GPT2_VOCABULARY, f"assumed, GPT-2's: {tokenizer} is not here")


def budget_rows(run: Run) -> list[tuple[str, str]]:
    """The sums of a training stage: (name, text) each."""
    rows = [("launch", f"{run.launch}{run.hint}"), *batch_rows(run)]
    if run.model is None:
        return rows
    rows += model_rows(run)
    if run.length is None:
        return rows
    rows.append(("memory", memory_text(run, run.memory(run.step, run.launch))))
    rows += [("time", time_text(run, device)) for device in run.devices]
    if run.tokens and not run.on_cpu:
        rows.append(("", f"time is training alone at an assumed MFU, dollars are on demand in {PRICES_OF}"))
    return rows + measured_rows(run)


def batch_rows(run: Run) -> list[tuple[str, str]]:
    """Sequences and, where their longest length is known, tokens a step; steps or epochs; the learning rate."""
    args = run.args
    ranks = f"{run.launch.processes} process{'es' if run.launch.processes > 1 else ''}"
    what = "pairs" if run.pairs else "replies" if run.reply else "sequences"
    sums = f"{args.per_device_train_batch_size} {what} x {args.gradient_accumulation_steps} accumulation x {ranks}"
    sums += f" = {run.sequences:,} {what} a step"
    if run.pairs:
        sums += f", x 2 x {run.length:,} tokens = at most {2 * run.sequences * run.length:,} tokens a step"
    elif run.length and not run.reply:
        sums += f", x {run.length:,} tokens = at most {run.sequences * run.length:,} tokens a step"
    steps = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"epochs: {args.num_train_epochs:g}"
    if getattr(args, "total_episodes", None):
        steps = f"{args.total_episodes:,} episodes"
    steps += f", at most {run.tokens:,} tokens" if run.tokens else ""
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    rate = f"{args.learning_rate:g}, {schedule}, warmup_steps {args.warmup_steps:g}"
    rows = [("batch", sums), ("length", steps), ("rate", rate)]
    epochs = ", ".join(f"{name} {times:.2f}" for name, times in epochs_read(run).items())
    return rows + ([("epochs", f"{epochs} (by the token files that are here)")] if epochs else [])


def model_rows(run: Run) -> list[tuple[str, str]]:
    """Parameters, tokens a parameter, FLOPs."""
    model, count = run.model, count_parameters(run.model)
    ends = count_embeddings(model)
    head = "the head too" if model.config.tie_word_embeddings else "the head among them"
    size = f"{count:,} parameters: {ends:,} in embeddings ({head}), {count - ends:,} in blocks"
    rows = [("model", f"{size}; vocabulary {model.config.vocab_size:,} ({run.vocabulary})")]
    if run.tokens:
        each = flops_per_token(model, run.length)
        if run.from_scratch:
            text = f"{run.tokens / count:.1f} a parameter (Chinchilla: {CHINCHILLA}), "
            text += f"{run.tokens / count_scaling(model):.1f} a parameter of matrices and head (nanochat: {NANOCHAT})"
            rows.append(("tokens", text))
        rows.append(("compute", f"{each * run.tokens:.2e} FLOPs, {each / 1e6:,.0f} million a token"))
    return rows


def count_embeddings(model: PreTrainedModel) -> int:
    """Parameters of tokens, positions and an untied head."""
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    return matrices - sum(p.numel() for p in hidden_matrices(model))


def count_scaling(model: PreTrainedModel) -> int:
    """Parameters as nanochat counts them: the hidden matrices and the head."""
    return sum(p.numel() for p in hidden_matrices(model)) + model.get_output_embeddings().weight.numel()


def memory_text(run: Run, used: Memory) -> str:
    """The parts of a device's memory, and what the other way of keeping activations would take."""
    other = replace(run.step, checkpointing=not run.step.checkpointing)
    activations = run.memory(other, run.launch).activations
    parts = [("weights", used.weights), ("gradients", used.gradients), ("optimizer", used.optimizer)]
    parts += [("activations", used.activations), ("loss", used.loss)]
    text = f"{gigabytes(used.total)} a process: " + " + ".join(f"{name} {gigabytes(size)}" for name, size in parts)
    text += (
        f"; activations {'with' if other.checkpointing else 'without'} gradient_checkpointing {gigabytes(activations)}"
    )
    text += f"; models that look on, in it, {gigabytes(used.looking_on)}" if used.looking_on else ""
    text += f"; for rows of {run.length:,} tokens, {PROMPT} of them a prompt's" if run.reply else ""
    text += f"; in the host's memory {gigabytes(used.host)}" if used.host else ""
    return text + ("; LoRA's own parameters left out" if run.peft else "")


def time_text(run: Run, device: Device) -> str:
    """How long and how dear on this kind of device, and whether a step fits its memory."""
    need = run.memory(run.step, run.launch).total + run.beside
    fit = f"{need / 1e9:.2g} of {device.memory / 1e9:.0f} GB"
    if need > device.memory:
        fit += f": {what_fits(run, device.memory)}"
    if not run.tokens:
        return f"{device.name}: {fit}"
    seconds, share = seconds_of(run, device), f"{device.mfu:.0%} of {device.flops / 1e12:,.3g} TFLOP/s"
    if run.on_cpu:
        return f"{device.name}: {duration(seconds)} ({share}, measured now); {fit}"
    count = run.launch.processes
    cost = seconds / 3600 * count * device.dollars
    rate = f"{share}, ${device.dollars:.2f} an hour"
    return f"{count} x {device.name}: {duration(seconds)}, ${cost:,.2f} ({rate}); {fit}"


def what_fits(run: Run, room: float) -> str:
    """The smallest change that makes a step fit into `room` bytes: a smaller micro-batch, ZeRO, checkpointing."""
    step, launch, accumulation = run.step, run.launch, run.args.gradient_accumulation_steps
    tries = []
    for rows in (rows for rows in range(step.rows - 1, 0, -1) if step.rows % rows == 0):
        text = f"per_device_train_batch_size: {rows}, gradient_accumulation_steps: {accumulation * step.rows // rows}"
        tries.append((text, replace(step, rows=rows), launch))
    again = "gradient_checkpointing: true"
    tries.append((again, replace(step, checkpointing=True), launch))
    one = replace(step, rows=1, checkpointing=True)
    tries.append((f"{again} and per_device_train_batch_size: 1", one, launch))
    for name, other in [(f"zero{stage}", Launch(launch.processes, stage)) for stage in (1, 2, 3)] + [
        ("zero3_offload", Launch(launch.processes, 3, True, True))
    ]:
        if launch.processes > 1 or other.offload_weights:
            tries.append((f"accelerate_configs/{name}.yaml", step, other))
            tries.append((f"accelerate_configs/{name}.yaml, {again} and per_device_train_batch_size: 1", one, other))
    for text, smaller, spread in tries:
        if run.memory(smaller, spread).total + run.beside <= room:
            return f"fits with {text}"
    return "does not fit, whatever the batch, checkpointing or ZeRO stage"


def seconds_of(run: Run, device: Device) -> float:
    """The run's training time on as many of these devices as the launch has processes."""
    flops = flops_per_token(run.model, run.length) * run.tokens
    flops *= 4 / 3 if run.step.checkpointing else 1  # a second forward pass
    moved = ADAM_BYTES * count_parameters(run.model) / (run.launch.processes if run.launch.zero_stage else 1)
    devices = 1 if run.on_cpu else run.launch.processes
    return seconds_of_run(device, devices, flops, optimizer_flops(run), moved, run.args.max_steps)


def optimizer_flops(run: Run) -> float:
    """Muon's matrix products a step: five Newton-Schulz iterations, each two products with the matrix and one with
    its square; every process does them all. Other optimizers have none.
    """
    if run.step.optimizer != "muon":
        return 0.0
    sides = [sorted(p.shape) for p in hidden_matrices(run.model)]
    return float(sum(5 * (4 * short**2 * long + 2 * short**3) for short, long in sides))


def measured_rows(run: Run) -> list[tuple[str, str]]:
    """The speed that this run's folder, or a sibling stage's, has measured before, and this plan at that speed."""
    own = Path(run.args.output_dir)
    for folder in (own, *sorted(own.parent.glob("*"))):
        try:
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            speed, flops = metrics["tokens_per_second"], metrics["flops_per_second"]
        except (OSError, ValueError, KeyError, TypeError):  # no such stage, or one without speeds
            continue
        text = f"{folder}: {speed:,.0f} tokens a second, {flops:.2e} FLOP/s"
        text += f", MFU {metrics['mfu']:.0%}" if "mfu" in metrics else ""
        text += f", {metrics['peak_memory_gb']:.1f} GB of the host's memory" if "peak_memory_gb" in metrics else ""
        if run.tokens:
            again = duration(run.tokens * flops_per_token(run.model, run.length) / flops)
            text += f"; this plan at that speed: {again}"
        return [("ran", text)]
    return []


def epochs_read(run: Run) -> dict[str, float]:
    """How often each source of the mixture is read, where its token file is there already."""
    weights = {source.name: source.weight for source in run.sources if hasattr(source, "weight")}
    epochs = {}
    for name, weight in weights.items() if run.tokens else ():
        files = sorted(Path(run.args.output_dir, "tokens").glob(f"{name}-{'[0-9a-f]' * 16}.bin"), key=os.path.getmtime)
        if files:
            width = 2 if run.model is None or run.model.config.vocab_size <= 2**16 else 4  # bytes a token
            epochs[name] = run.tokens * weight / sum(weights.values()) / (files[-1].stat().st_size / width)
    return epochs


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.{0 if size >= 1e10 else 1 if size >= 1e9 else 2}f} GB"


def duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length or unit == "minutes":
            return f"{seconds / length:.1f} {unit}"
    raise AssertionError
