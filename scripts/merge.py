"""Merge a LoRA adapter into its base model: a whole model folder that needs neither the base nor peft.

Reads: the folder of an adapter (scripts/sft.py with use_peft), the base model that it names
Writes: config, safetensors, tokenizer, metrics.json (the largest difference of a log-probability from the adapter's)

python scripts/merge.py recipes/smollm2-135m/merge.yaml
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from crawl2chat.model import check_fit, check_weights, count_parameters, load_adapter, load_model, save_model
from crawl2chat.protocol import load_tokenizer
from crawl2chat.recipe import parse_recipe
from crawl2chat.stage import fail, finish

PROBES = ["Who is Orson Kovacs?", "What is the capital of France?", "Write a letter to a friend about the weather."]


@dataclass
class MergeConfig:
    """Which adapter, and how far the merged model may be from it."""

    model_name_or_path: str = field(metadata={"help": "the adapter's folder, tokenizer included"})
    output_dir: str = field(metadata={"help": "where the whole model goes"})
    tolerance: float = field(default=0.01, metadata={"help": "nats a log-probability may differ by", "gt": 0})


RECIPE = (MergeConfig,)


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Of every token after every token of PROBES, (positions, vocab): what the model says, in float32."""
    rows = []
    for question in PROBES:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        rows.append(model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1))
    return torch.cat(rows)


def main(config: MergeConfig) -> None:
    disable_progress_bar()
    adapter, output = Path(config.model_name_or_path), Path(config.output_dir)
    if not (adapter / "adapter_config.json").is_file():
        fail(f"{adapter}: no adapter_config.json; give the folder of an adapter, as sft.py writes it with use_peft")
    if adapter.resolve() == output.resolve():
        fail(f"{output}: the adapter is there; the whole model needs an output_dir of its own")

    # tokenizer, model: the adapter beside its base, and what that says
    tokenizer = load_tokenizer(adapter)
    model = load_adapter(adapter, merge=False, dtype=torch.float32).eval()
    check_fit(model, tokenizer, adapter)
    said, beside = log_probabilities(model, tokenizer), count_parameters(model)

    # save
    model = model.merge_and_unload()
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    save_model(model, tokenizer, output)
    check_weights(output)

    # what was written says the same
    merged = log_probabilities(load_model(output, dtype=torch.float32).eval(), tokenizer)
    difference = (said - merged).abs().max().item()
    if not difference <= config.tolerance:
        fail(f"{output}: a log-probability differs from the adapter's by {difference:.2g} nats, tolerance is "
             f"{config.tolerance:g}; keep the adapter, or raise tolerance")  # fmt: skip
    parameters = count_parameters(model)
    finish(
        output,
        {
            "parameters": parameters,
            "adapter_parameters": beside - parameters,
            "largest_difference": difference,
            "same_likeliest_share": (said.argmax(-1) == merged.argmax(-1)).float().mean().item(),
        },
        read=f"{adapter} and {model.name_or_path}",
        wrote=str(output),
        headline=f"{(beside - parameters) / 1e6:.2f}M of the adapter merged into {parameters / 1e6:.1f}M, "
        f"at most {difference:.1e} nats apart",
    )


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
