"""The Trainer's price: transformers' Trainer, ours, and a bare PyTorch loop, on the same model, rows and optimizer.

python benchmarks/pretraining.py                                  # CPU: 0.8M and 12M; then Muon against AdamW
python benchmarks/pretraining.py --models 0.8m --threads 2 --rounds 8
python benchmarks/pretraining.py --models 124m,350m --muon false  # one GPU: tokens a second, MFU, memory

Prints a table and, last, one JSON line: {"trainer_tax", "vs_stock", "muon_token_ratio"}. The sides take turns (A B C C
B A) in one process; a figure is the median over rounds of the seconds a step, a ratio the median over rounds of the
ratio within a round, with its lowest and highest.
"""

import argparse
import gc
import json
import logging
import os
import tempfile
import time
import warnings
from statistics import median

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--models", help="of 0.8m, 12m, 124m, 350m, 1.6b; default: what the machine is for")
parser.add_argument("--threads", type=int, default=1, help="CPU threads")
parser.add_argument("--rounds", type=int, default=6, help="measurements of each side")
parser.add_argument("--steps", type=int, help="steps in a measurement; default: two seconds' worth")
parser.add_argument("--muon_steps", type=int, default=1500, help="AdamW's steps of 2,048 bytes in that race")
parser.add_argument("--muon", choices=["true", "false"], default="true", help="race Muon against AdamW, too")
options = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(options.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, set_seed  # noqa: E402

from crawl2chat.data.facts import load_articles  # noqa: E402
from crawl2chat.data.tokens import PackedRows, Tokens  # noqa: E402
from crawl2chat.model import count_parameters, fast_on_cpu, fastest_attention, flops_per_token  # noqa: E402
from crawl2chat.pretraining import PretrainingArguments, PretrainingTrainer  # noqa: E402

MODELS = {  # nanoGPT's CPU configuration, a laptop's, and GPT-2's sizes in the modern block: batch, length, model
    "0.8m": (12, 64, dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, vocab_size=256)),
    "12m": (8, 256, dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=6, vocab_size=4096)),
    "124m": (32, 1024, dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=50304)),
    "350m": (16, 1024, dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, vocab_size=50304)),
    "1.6b": (4, 1024, dict(hidden_size=1600, num_hidden_layers=48, num_attention_heads=25, vocab_size=50304)),
}
RATES = {  # held-out loss after 600 steps: AdamW 1.568 at 1e-3, 1.565 at 2e-3, 1.663 at 4e-3, 2.016 at 8e-3; Muon at
    # 4e-3 on the hidden matrices 1.371 with 4e-3 on the rest, 1.368 with 8e-3 (no other rate of Muon's was tried)
    "adamw_torch_fused": {"learning_rate": 2e-3},
    "muon": {"learning_rate": 8e-3, "muon_learning_rate": 4e-3},
}
WARM = 8  # steps before the clock starts
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows_of(name: str, steps: int) -> PackedRows:
    """Random tokens: what a step costs does not depend on what they say."""
    batch, length, model = MODELS[name]
    ids = np.random.default_rng(0).integers(0, model["vocab_size"], 200 * length, dtype=np.uint16)
    return PackedRows([Tokens("random", ids, len(ids), 1, [])], [1.0], length, steps * batch, 0)


def build(name: str, attention: str | None):
    _, length, model = MODELS[name]
    set_seed(0)
    heads = model["num_attention_heads"]
    config = AutoConfig.for_model(
        "llama", **model, intermediate_size=-(-model["hidden_size"] * 8 // 3 // 64) * 64, tie_word_embeddings=True,
        num_key_value_heads=heads, max_position_embeddings=length,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def arguments(name: str, steps: int, folder: str, compiled: bool = False) -> PretrainingArguments:
    args = PretrainingArguments(
        output_dir=folder, per_device_train_batch_size=MODELS[name][0], max_steps=steps, learning_rate=1e-4,
        optim="adamw_torch_fused", lr_scheduler_type="constant", logging_steps=50, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=0, bf16=DEVICE.type == "cuda", use_cpu=DEVICE.type == "cpu",
        torch_compile=compiled,
    )  # fmt: skip
    fast_on_cpu(args)
    return args


class Clock(TrainerCallback):
    """Seconds a step after the first few."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == WARM:
            self.start = now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == args.max_steps:
            self.seconds = (now() - self.start) / (args.max_steps - WARM)


def now() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def stock(name: str, steps: int, folder: str, compiled: bool = False) -> float:
    """transformers' Trainer as it comes: its loader, its loss, the architecture's default attention."""

    class Labelled(torch.utils.data.Dataset):
        def __init__(self, rows):
            self.rows = rows

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, i):
            ids = self.rows[i]["input_ids"]
            return {"input_ids": ids, "labels": ids}

    clock = Clock()
    trainer = Trainer(
        build(name, None), arguments(name, steps, folder, compiled), train_dataset=Labelled(rows_of(name, steps)),
        callbacks=[clock],
    )  # fmt: skip
    trainer.train()
    return clock.seconds


def ours(name: str, steps: int, folder: str) -> float:
    """scripts/pretrain.py's Trainer; compiled on a GPU, as the recipes have it."""
    clock, rows = Clock(), rows_of(name, steps)
    trainer = PretrainingTrainer(
        build(name, fastest_attention(DEVICE, rows.max_length)), arguments(name, steps, folder, DEVICE.type == "cuda"),
        train_dataset=rows, callbacks=[clock], shares={},
    )  # fmt: skip
    trainer.train()
    return clock.seconds


def stock_compiled(name: str, steps: int, folder: str) -> float:
    return stock(name, steps, folder, compiled=True)


def bare(name: str, steps: int, folder: str) -> float:
    """A loop with nothing in it but our model and loss, the gradient's norm, the optimizer and the rows."""
    from crawl2chat.loss import return_the_loss_alone

    args, rows = arguments(name, steps, folder), rows_of(name, steps)
    model = build(name, fastest_attention(DEVICE, rows.max_length)).to(DEVICE)
    return_the_loss_alone(model)
    model = torch.compile(model) if DEVICE.type == "cuda" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    size = args.per_device_train_batch_size
    gc.collect()
    for step in range(steps):
        if step == WARM:
            start = now()
        ids = torch.from_numpy(rows.batch(range(step * size, (step + 1) * size))).to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=args.bf16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (now() - start) / (steps - WARM)


def ratio(above: list[float], below: list[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios within the rounds."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    return median(ratios), ratios[0], ratios[-1]


def race(name: str, folder: str) -> dict[str, list[float]]:
    """Seconds a step of every side, in rounds of alternating order."""
    sides = {"bare": bare, "ours": ours, "stock": stock}
    if DEVICE.type == "cuda":
        sides["stock, compiled"] = stock_compiled
        torch.cuda.reset_peak_memory_stats()
    steps = options.steps or WARM + max(round(2 / bare(name, 2 * WARM, folder)), 10)
    seconds = {side: [] for side in sides}
    for turn in range(options.rounds):
        for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            seconds[side].append(sides[side](name, steps, folder))
            gc.collect()
    return seconds


def matmul_ceiling() -> float:
    """FLOP/s of the largest bf16 product that a GPU is ever given, measured now."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    for _ in range(5):
        a @ a
    start = now()
    for _ in range(20):
        a @ a
    return 20 * 2 * 8192**3 / (now() - start)


def report(name: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    batch, length, _ = MODELS[name]
    model = build(name, None)
    print(f"\n{name}: {count_parameters(model):,} parameters, {batch} x {length} tokens a step, bf16 products")
    for side, values in seconds.items():
        speed = batch * length / median(values)
        print(f"  {side:16}{median(values) * 1e3:9.2f} ms a step  {min(values) * 1e3:8.2f} to {max(values) * 1e3:.2f}"
              f"  {speed:10,.0f} tokens/s  {speed * flops_per_token(model, length) / 1e9:10,.0f} GFLOP/s")  # fmt: skip
    if DEVICE.type == "cuda":
        used = batch * length * flops_per_token(model, length) / median(seconds["ours"])
        print(f"  ours: {used / matmul_ceiling():.1%} of the measured matmul ceiling; "
              f"at most {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")  # fmt: skip
    tax, stock_ratio = ratio(seconds["ours"], seconds["bare"]), ratio(seconds["stock"], seconds["ours"])
    print(f"  ours takes {tax[0] - 1:+.1%} over the bare loop ({tax[1] - 1:+.1%} to {tax[2] - 1:+.1%}), "
          f"stock {stock_ratio[0]:.2f} times ours ({stock_ratio[1]:.2f} to {stock_ratio[2]:.2f})")  # fmt: skip
    return {"trainer_tax": round(tax[0] - 1, 4), "vs_stock": round(stock_ratio[0], 3)}


def held_out_loss(text: Tokens, optim: str, steps: int, folder: str) -> float:
    """The loss (nats a byte) on bytes nobody trained on, after `steps` steps of a whole warm-up-stable-decay schedule
    at the best rate that was tried (see RATES).
    """
    batch, length = 16, 128
    train = Tokens("train", text.ids[:-200_000], len(text.ids) - 200_000, 1, [])
    args = PretrainingArguments(
        output_dir=folder, per_device_train_batch_size=batch, max_steps=steps, optim=optim, **RATES[optim],
        adam_beta2=0.95, weight_decay=0.1, lr_scheduler_type="warmup_stable_decay", warmup_steps=steps // 20,
        lr_scheduler_kwargs={"num_decay_steps": steps * 2 // 5}, save_strategy="no", report_to="none",
        disable_tqdm=True, seed=0, use_cpu=DEVICE.type == "cpu", bf16=DEVICE.type == "cuda", logging_steps=10_000,
    )  # fmt: skip
    fast_on_cpu(args)
    rows = PackedRows([train], [1.0], length, steps * batch, 0)
    model = build("0.8m", fastest_attention(DEVICE, length))
    model.config.max_position_embeddings = length
    trainer = PretrainingTrainer(model, args, train_dataset=rows, shares={})
    trainer.train()
    held_out = torch.from_numpy(text.ids[-200_000:][: 1024 * length].astype(np.int64).reshape(-1, length)).to(DEVICE)
    with torch.no_grad():
        losses = [model.eval()(input_ids=part, labels=part).loss.item() for part in held_out.split(64)]
    return sum(losses) / len(losses)


def muon_race(folder: str) -> dict[str, float]:
    """How many of AdamW's tokens Muon needs for AdamW's held-out loss, each run with its own whole schedule."""
    text = "\n\n".join(article["extract"] for article in load_articles()).encode()
    text = Tokens("wikipedia", np.frombuffer(text, np.uint8).astype(np.uint16), len(text), 1, [])
    steps = options.muon_steps
    began = time.perf_counter()
    goal = held_out_loss(text, "adamw_torch_fused", steps, folder)
    adamw_seconds = time.perf_counter() - began
    print(f"\nMuon against AdamW: 0.8M parameters on bytes of Wikipedia's introductions, {steps * 2048:,} bytes")
    print(f"  adamw 1.00 of the tokens: loss {goal:.4f}, {adamw_seconds:.0f} s")
    shares, losses, seconds = (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85), [], []
    for share in shares:
        began = time.perf_counter()
        losses.append(held_out_loss(text, "muon", round(share * steps), folder))
        seconds.append(time.perf_counter() - began)
        print(f"  muon  {share:.2f} of the tokens: loss {losses[-1]:.4f}, {seconds[-1]:.0f} s", flush=True)
        if losses[-1] <= goal:
            break
    ends = np.array(losses[-2:])
    found = float(np.interp(-goal, -ends, shares[len(losses) - len(ends) : len(losses)]))
    print(f"  Muon reaches AdamW's loss in {found:.2f} of its tokens, {seconds[-1] / adamw_seconds:.2f} of its time")
    return {"muon_token_ratio": round(found, 3)}


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    names = (options.models or ("124m,350m" if DEVICE.type == "cuda" else "0.8m,12m")).split(",")
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {options.threads} thread(s)"
    print(f"{device}, torch {torch.__version__}")
    numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found = report(name, race(name, folder))
            numbers = numbers or found
        if options.muon == "true":
            numbers |= muon_race(folder)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
