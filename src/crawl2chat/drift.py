"""What a run's losses depend on, and how that differs between a checkpoint and the command that goes on from it."""

import hashlib
import json
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer

# keys that may change while a run is interrupted: they alter what is seen, kept and sent, not what is learned
FREE = frozenset(
    "output_dir resume_from_checkpoint allow_drift restore_callback_states_from_checkpoint "
    "do_train do_eval do_predict logging_strategy logging_steps logging_first_step logging_nan_inf_filter "
    "log_on_each_node log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id "
    "trackio_bucket_id trackio_static_space_id include_num_input_tokens_seen skip_memory_metrics debug "
    "save_strategy save_steps save_total_limit save_on_each_node save_only_model enable_jit_checkpoint "
    "push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision "
    "eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps eval_do_concat_batches "
    "eval_use_gather_object per_device_eval_batch_size prediction_loss_only include_for_metrics batch_eval_metrics "
    "bf16_full_eval fp16_full_eval load_best_model_at_end metric_for_best_model greater_is_better "
    "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
    "dataloader_multiprocessing_context dataset_num_proc gradient_checkpointing gradient_checkpointing_kwargs "
    "activation_checkpointing activation_checkpointing_kwargs activation_offloading torch_empty_cache_steps "
    "ddp_timeout ddp_bucket_cap_mb local_rank".split()
)
NOT_THE_MODEL = frozenset("_name_or_path name_or_path transformers_version use_cache torch_dtype".split())


def facts(trainer: Trainer, fingerprint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the losses of `trainer` depend on, as JSON values: arguments, model, adapter, tokenizer, ranks, and the
    script's own `fingerprint`. No secret is among them.
    """
    accelerator = trainer.accelerator
    model = accelerator.unwrap_model(trainer.model)
    ranks = {"processes": trainer.args.world_size, "kind": accelerator.distributed_type.value}
    if trainer.is_deepspeed_enabled:
        ranks["zero_stage"] = accelerator.state.deepspeed_plugin.zero_stage
    tokenizer = getattr(trainer.processing_class, "backend_tokenizer", None)
    found = {
        "arguments": {key: value for key, value in trainer.args.to_dict().items() if key not in FREE},
        "model": {key: value for key, value in model.config.to_dict().items() if key not in NOT_THE_MODEL},
        "adapter": {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()},
        "ranks": ranks,
        "tokenizer": {"tokenizer": digest(tokenizer.to_str())} if tokenizer else {},
        "fingerprint": fingerprint,
    }
    return json.loads(json.dumps(found, default=lambda v: sorted(map(str, v)) if isinstance(v, set) else str(v)))


def changes(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> list[str]:
    """`key: old -> new` for every fact that differs; arguments that one version of a library lacks are left out."""
    lines = []
    for part in new:
        before, now = old.get(part, {}), new[part]
        if part in ("arguments", "model"):
            before, now = ({k: v for k, v in side.items() if k in before and k in now} for side in (before, now))
        before, now = flat(before), flat(now)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                name = {"model": f"model.{key}", "adapter": f"adapter.{key}", "ranks": f"ranks.{key}"}.get(part, key)
                lines.append(f"{name}: {short(before.get(key))} -> {short(now.get(key))}")
    return lines


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings and lists to dotted keys."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {
        k: v for key, child in value.items() for k, v in flat(child, f"{name}.{key}" if name else str(key)).items()
    }


def short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 48 else f"{text[:45]}..."


def digest(text: str | bytes) -> str:
    """The first 16 hex digits of a sha256."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def digest_rows(dataset: Dataset) -> str:
    """Of every value of a dataset, in its order."""
    total = hashlib.sha256(f"{dataset.column_names} {len(dataset)}".encode())
    for batch in dataset.with_format("arrow").iter(1000):
        for column in batch.columns:
            total.update(str(column.to_pylist()).encode())
    return total.hexdigest()[:16]


def digest_weights(model: torch.nn.Module) -> str:
    """Of every parameter, by the sum of its bits: exact, so the same on any device and any number of threads."""
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    weights = [parameter.detach().flatten() for parameter in model.parameters()]
    sums = [weight.view(words[weight.element_size()]).sum(dtype=torch.int64).item() for weight in weights]
    return digest(repr(sums))
