"""What devices can do and what they cost: a table of GPUs, this CPU measured, the hours and dollars of a run."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Device:
    """One device: its name, dense bf16 peak (FLOP/s), memory (bytes), bandwidth (bytes/s), price of an hour
    (dollars), and `mfu`, the share of the peak that training is assumed to reach.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    dollars: float
    mfu: float


# Peaks (dense: without sparsity), memory and bandwidth are the vendor's: NVIDIA's data sheets of the H100 SXM, H200
# SXM, A100 80GB SXM, L40S and L4, and its white papers of the Ada (4090) and GA102 (3090) chips, with sums in fp32.
# Dollars are an on-demand hour at RunPod in March 2026 (deploybase.ai/articles/runpod-gpu-pricing), near the market's
# low end: llm.c counts 3.50 for an H100 and 1.75 for an A100, and Lambda asked 3.78 for one H100 in May 2026.
# The assumed MFU is about what was published, by the same count of FLOPs: on H100 0.40 (124M in 45 minutes,
# modded-nanogpt) and 0.50 (1.6B in 24 hours, llm.c), on A100 0.60 to 0.64 (llm.c's scripts, 124M to 774M) but 0.29
# (nanoGPT, 124M in 4 days). The last four are guesses, and nothing in the table has been measured with this Trainer.
PRICES_OF = "March 2026"
DEVICES = [
    Device("H100", 989e12, 80e9, 3350e9, 2.69, 0.45),
    Device("H200", 989e12, 141e9, 4800e9, 3.59, 0.45),
    Device("A100", 312e12, 80e9, 2039e9, 1.39, 0.50),
    Device("L40S", 362e12, 48e9, 864e9, 0.79, 0.40),
    Device("L4", 121e12, 24e9, 300e9, 0.44, 0.40),
    Device("RTX 4090", 165e12, 24e9, 1008e9, 0.34, 0.45),
    Device("RTX 3090", 71e12, 24e9, 936e9, 0.22, 0.45),
]
OTHERS = re.compile("H100 PCIe|H100 NVL|H200 NVL|3090 Ti|4090 D|Laptop")  # share a name with a device, not its numbers
CPU_MFU = 0.45  # the laptop's recipe: 4.0e11 FLOP/s, Muon's products included, where one large product reaches 8.5e11


def find_device(name: str) -> Device | None:
    """The table's device for a name such as "NVIDIA H100 80GB HBM3"; None for one that is not in it."""
    if OTHERS.search(name):
        return None
    return next((device for device in DEVICES if re.search(rf"\b{device.name}\b", name)), None)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 peak in FLOP/s, or None where it is not in the table."""
    if device.type != "cuda":
        return None
    found = find_device(torch.cuda.get_device_name(device))
    return found.flops if found else None


def dollars(device_name: str | None, seconds: float, devices: int) -> float | None:
    """What `devices` of this kind cost for so long; None where the table has no price (a CPU, another GPU)."""
    found = find_device(device_name) if device_name else None
    return found.dollars * devices * seconds / 3600 if found else None


def this_cpu(bf16: bool, memory: float) -> Device:
    """This machine's CPU, measured for a quarter of a second: one large product, and one pass over memory."""
    size, dtype = 1024, torch.bfloat16 if bf16 else torch.float32
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    long = torch.ones(2**23)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # as the trainer's
    flops = 2 * size**3 / _fastest(lambda: left @ right)
    torch.set_float32_matmul_precision(precision)
    bandwidth = 2 * long.nbytes / _fastest(lambda: long.add_(1.0))
    return Device("this CPU", flops, memory, bandwidth, 0.0, CPU_MFU)


def _fastest(work: Callable[[], object], tries: int = 8) -> float:
    """Seconds of the fastest of some tries: the one that others on the machine disturbed least."""
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def seconds_of_run(
    device: Device, devices: int, flops: float, step_flops: float, step_bytes: float, steps: int
) -> float:
    """How long a run takes on `devices` of a kind.

    `flops` of forward and backward passes are shared out; the optimizer's `step_flops` and `step_bytes` come once a
    step on every device, the second at the memory's bandwidth. Communication, evaluation and saving are left out.
    """
    step = step_flops / (device.flops * device.mfu) + step_bytes / device.bandwidth
    return flops / (device.flops * device.mfu * devices) + steps * step
