"""What is wasteful about a training plan, or cannot work: a line each, with the key to change."""

import torch

from crawl2chat.budget import CHINCHILLA, Run, count_parameters, epochs_read, optimizer_flops, seconds_of
from crawl2chat.model import flops_per_token

FEW, MANY = 5, 200  # tokens a parameter: a quarter of Chinchilla's 20, and ten times it
REPEATS = 4  # epochs that are nearly as good as fresh data: Muennighoff et al. 2023
LONG = 0.5  # hours after which a run should have saved something
TILE = 128  # rows of a matrix that tensor cores take at once
OPTIMIZER_SHARE = 0.1  # of a step's FLOPs


def warnings(run: Run) -> list[str]:
    """What to look at before this run is paid for; empty for a plan without waste."""
    lines = schedule_warnings(run) + data_warnings(run)
    if run.model is not None and run.length:
        lines += size_warnings(run) + device_warnings(run)
    return lines


def schedule_warnings(run: Run) -> list[str]:
    """Of the learning rate's course."""
    args, lines = run.args, []
    steps, kwargs = args.max_steps, args.lr_scheduler_kwargs or {}
    wsd = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) == "warmup_stable_decay"
    decay = kwargs.get("num_decay_steps") if isinstance(kwargs, dict) else None
    if 0 < steps <= args.warmup_steps:
        lines.append(
            f"warmup_steps {args.warmup_steps:g}: the rate still climbs when the run ends after {steps:,} steps"
        )
    if wsd and not decay:
        lines.append(
            "warmup_stable_decay gains most in its decay, and has none: lr_scheduler_kwargs: {num_decay_steps: ...}"
        )
    elif wsd and 0 < steps < decay + args.warmup_steps:
        lines.append(
            f"warmup_steps {args.warmup_steps:g} + num_decay_steps {decay:,} are more than max_steps {steps:,}"
        )
    return lines


def data_warnings(run: Run) -> list[str]:
    """Of how often a source is read, where its token file is there."""
    return [
        f"{name} is read {times:.1f} times: beyond {REPEATS} passes the same pages teach little"
        for name, times in epochs_read(run).items()
        if times > REPEATS
    ]


def size_warnings(run: Run) -> list[str]:
    """Of the model against its tokens, its vocabulary and its rows."""
    lines, config = [], run.model.config
    ratio = run.tokens / count_parameters(run.model) if run.tokens and run.from_scratch else CHINCHILLA
    if ratio < FEW:
        lines.append(f"{ratio:.1f} tokens a parameter: a smaller model, trained longer, is better at the same cost")
    if ratio > MANY:
        lines.append(
            f"{ratio:.0f} tokens a parameter: a larger model is better at the same cost, if it may be slower to use"
        )
    if config.vocab_size % 64 and not run.on_cpu:
        lines.append(f"vocabulary {config.vocab_size:,}: no multiple of 64, which slows the head's matrix product")
    positions = getattr(config, "max_position_embeddings", None)
    if positions and run.length > positions:
        lines.append(f"max_length {run.length:,}: the model has {positions:,} positions")
    return lines


def device_warnings(run: Run) -> list[str]:
    """Of speed, memory and saving, on this machine's device or else on the table's first."""
    args, step, device, lines = run.args, run.step, run.devices[0], []
    if not run.on_cpu:
        if not step.bf16:
            lines.append("fp32: a GPU's matrix units are several times as fast in bf16: true")
        if not step.compiled:
            lines.append(
                "no torch_compile: each small operation is a kernel of its own, and keeps its result in memory"
            )
        if step.rows * step.length % TILE:
            lines.append(f"{step.rows} x {step.length} tokens: no multiple of {TILE}, the tile of tensor cores")
    need = run.memory(step, run.launch).total + run.beside
    if need > device.memory and (run.on_cpu or torch.cuda.is_available()):
        lines.append(f"a step does not fit into this machine's {device.memory / 1e9:.0f} GB: see its row of time")
    if not run.tokens:
        return lines
    work = flops_per_token(run.model, run.length) * run.sequences * run.length
    share = optimizer_flops(run) / (work / run.launch.processes + optimizer_flops(run))
    if share > OPTIMIZER_SHARE:
        lines.append(f"Muon's own products are {share:.0%} of a step: more tokens a step would spread them")
    hours = seconds_of(run, device) / 3600
    strategy = getattr(args.save_strategy, "value", args.save_strategy)
    saves = strategy != "no" and not (strategy == "steps" and args.save_steps > max(args.max_steps, 1))
    if hours > LONG and not saves:
        lines.append(
            f"nothing is saved in {hours:.1f} hours: save_strategy: steps, and save_steps below {args.max_steps:,}"
        )
    return lines
