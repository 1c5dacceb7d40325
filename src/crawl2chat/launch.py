"""What was launched, and whether it is what runs: accelerate starts less than it was asked for without a word."""

import os
import sys

from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from crawl2chat.stage import fail


def check_launch(training_args: TrainingArguments) -> None:
    """Stop where fewer processes train together than were asked for, or DeepSpeed was asked for and is not used.

    Afterwards rank 0 alone prints. Under ZeRO-3 the model is made or read whole on every rank, and shared out when
    training begins: a seed then gives the same weights under every stage, and what counts or compares them is right.
    """
    environment = os.environ
    started = int(environment.get("WORLD_SIZE", "1"))
    if training_args.world_size != started:
        fail(f"{started} processes were started, each trains alone; without GPUs, add --use_cpu true to the command")
    asked = {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= environment.keys()
    if asked and "WORLD_SIZE" not in environment:
        fail(
            "accelerate was asked for several processes but starts only this one; without GPUs, launch with "
            "--config_file accelerate_configs/ddp.yaml --num_processes N --mixed_precision no, and --use_cpu true last"
        )
    zero = environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if zero and environment.get("ACCELERATE_USE_CPU", "false").lower() == "true":
        fail("ACCELERATE_USE_CPU switches DeepSpeed off; unset it, and add --use_cpu true to the command")
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        if hasattr(training_args, "num_generations") or hasattr(training_args, "num_ppo_epochs"):
            fail("what writes replies needs whole weights, which FSDP takes apart; use accelerate_configs/zero2.yaml")
        if training_args.device.type == "cpu":
            fail("FSDP was asked for, but on a CPU accelerate trains by DDP; use accelerate_configs/ddp.yaml there")
    if training_args.deepspeed_plugin is not None:
        unset_hf_deepspeed_config()  # the Trainer sets it again
    if training_args.process_index:
        sys.stdout = open(os.devnull, "w")
