"""A model from random weights out of a recipe's dict, a model from a folder, and what a token of it costs."""

import ctypes
import json
import platform
import shutil
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from trl import ModelConfig, get_quantization_config

from crawl2chat.checkpoint_folder import SAVING, publish
from crawl2chat.disk import is_full
from crawl2chat.stage import fail

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt's, from glibc's malloc.h


def fastest_attention(device: torch.device, length: int) -> str | None:
    """ "eager" for rows of up to 512 tokens on a CPU, where its SDPA kernel's backward pass is up to 7 times slower;
    None, the architecture's own choice, elsewhere.
    """
    return "eager" if device.type == "cpu" and length <= 512 else None


def build_model(
    config: dict, tokenizer: PreTrainedTokenizerBase, attention: str | None = None, pad_vocab_to: int = 64
) -> PreTrainedModel:
    """A causal language model with random weights.

    `config` holds `model_type` (llama, qwen3, gpt2, ...), that architecture's own keys, and perhaps
    `attn_implementation` for the training run, in place of `attention` (it is not saved). The vocabulary is the
    tokenizer's, rounded up to a multiple of `pad_vocab_to` for faster matrix products.
    """
    config = dict(config)
    model_type = config.pop("model_type", None)
    attention = config.pop("attn_implementation", attention)
    if model_type is None:
        fail(
            "model: a model from random weights needs `model_type` (llama, qwen3, gpt2, ...) in the recipe's `model:`"
        )
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError:
        fail(f"model: transformers knows no model_type {model_type!r}; llama, qwen3 and gpt2 are some it knows")
    known = set(default.to_dict()) | set(getattr(default, "attribute_map", {}))
    for key in config:
        if key not in known:
            fail(
                f"model: {model_type} has no key {key!r}; its keys are those of transformers' {type(default).__name__}"
            )
    vocab_size = -(-len(tokenizer) // pad_vocab_to) * pad_vocab_to
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        model_type, vocab_size=vocab_size, pad_token_id=tokenizer.pad_token_id, **ids, **config
    )
    if model_type == "gpt2":
        config.n_ctx = config.n_positions  # GGUF's converter reads it
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def load_model(path: str | Path, **kwargs) -> PreTrainedModel:
    """A causal language model from a folder or the hub; a local folder without config or weights is one clear line."""
    folder = Path(path)
    if folder.exists():
        if (folder / "adapter_config.json").is_file():
            return load_adapter(folder, **kwargs)
        if not (folder / "config.json").is_file():
            fail(f"{path}: no config.json; give a folder that pretrain.py or sft.py has finished")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
            fail(f"{path}: no weights (*.safetensors); run the stage that writes this folder again")
    elif str(path).count("/") != 1 or str(path).startswith(("output/", "./", "/")):
        fail(f"{path}: no such folder; run the stage that writes it first")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        fail(f"{path}: cannot load the model: {str(error).splitlines()[0]}")
    except SafetensorError as error:
        fail(f"{path}: the weights are damaged ({error}); run the stage that writes this folder again")
    if missing := sorted(report["missing_keys"]):  # the library makes them up
        fail(f"{path}: the weights lack {len(missing)} tensors, {missing[0]} first; write the folder again")
    return model


def check_weights(folder: str | Path) -> None:
    """Stop with one line unless a model's folder holds every tensor that its config asks for, whole and in its shape.

    Reads the files' headers alone. A tied head may be there a second time (ZeRO-1 and 2 write it so) or not. Of an
    adapter's folder only the file itself is checked.
    """
    folder, again = Path(folder), "run the stage that writes this folder again"
    files, wanted, tied = ["adapter_model.safetensors"], {}, {}
    if not (folder / "adapter_config.json").is_file():
        index = folder / "model.safetensors.index.json"
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        if not files:
            fail(f"{folder}: no weights (*.safetensors); under ZeRO-3 zero3_save_16bit_model gathers them; {again}")
        try:
            if index.is_file():
                files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            config = AutoConfig.from_pretrained(folder)
            with torch.device("meta"):
                model = getattr(transformers, config.architectures[0])(config)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            fail(f"{folder}: cannot read its config or index: {str(error).splitlines()[0]}; {again}")
        wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        tied = model.all_tied_weights_keys
    found = {}
    for name in files:
        if not (folder / name).is_file():
            fail(f"{folder}: no weights: {name} is missing; {again}")
        try:
            with safe_open(folder / name, "pt") as tensors:
                found |= {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}
        except (SafetensorError, OSError) as error:
            fail(f"{folder}: the weights are damaged ({name}: {error}); {again}")
    missing = [key for key in wanted if key not in found and key not in tied]
    other = [key for key in wanted if found.get(key, wanted[key]) != wanted[key]]
    if missing or not found:
        first = f", {missing[0]} first" if missing else ""
        fail(f"{folder}: {len(missing)} of {len(wanted)} tensors are missing{first}; {again}")
    if other:
        key = other[0]
        fail(f"{folder}: {key} is {tuple(found[key])}, the config asks for {tuple(wanted[key])}; {again}")


def load_adapter(folder: Path, merge: bool = True, **kwargs) -> PreTrainedModel:
    """The base model that a LoRA folder names, with the adapter merged into its weights, or beside them."""
    from peft import PeftConfig, PeftModel

    if not any(folder.glob("adapter_model.*")):
        fail(f"{folder}: no weights (adapter_model.safetensors); run the stage that writes this folder again")
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not Path(base).exists() and str(base).count("/") != 1:
        fail(f"{folder}: the adapter's base model {base} is not there; put it back, or run the stage again")
    model = load_model(base, **{key: value for key, value in kwargs.items() if key != "revision"})
    try:
        model = PeftModel.from_pretrained(model, folder)
        return model.merge_and_unload() if merge else model
    except Exception as error:  # a cut file, or shapes of another base model: as many kinds as libraries
        fail(f"{folder}: the adapter cannot be loaded onto {base}: {str(error).splitlines()[0]}")


def quantization(model_args: ModelConfig, training_args: TrainingArguments) -> dict:
    """What `load_model` is given for QLoRA (Dettmers et al. 2023): the frozen weights in 4 or 8 bits, beside an
    adapter. Nothing unless the recipe says load_in_4bit or load_in_8bit; without an adapter or a GPU, one clear line.
    """
    config = get_quantization_config(model_args)
    if config is None:
        return {}
    key = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if not model_args.use_peft:
        fail(f"{key}: quantized weights cannot be trained, only an adapter beside them; add use_peft: true")
    if training_args.device.type != "cuda":
        fail(f"{key}: QLoRA needs a CUDA GPU, this run is on {training_args.device.type}; leave {key} out: plain LoRA")
    if not transformers.utils.is_bitsandbytes_available():
        fail(f"{key}: QLoRA needs bitsandbytes: pip install bitsandbytes")
    return {"quantization_config": config, "device_map": {"": training_args.device}}


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model and its tokenizer into a folder, aside and synced first: no final name holds half a file."""
    saving = folder / SAVING / "model"
    shutil.rmtree(saving.parent, ignore_errors=True)
    try:
        model.save_pretrained(saving)
        tokenizer.save_pretrained(saving)
        publish(saving, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full(error):
            raise
        fail(f"{folder}: the model could not be written ({str(error).splitlines()[0]}); make room and start again")
    finally:
        shutil.rmtree(saving.parent, ignore_errors=True)


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str | Path) -> None:
    """Refuse a tokenizer with more tokens than the model's embedding has rows, naming both numbers."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        fail(
            f"{path}: the tokenizer has {len(tokenizer)} tokens but the model's embedding only {rows} rows; "
            "use the tokenizer that the model was trained with"
        )


def count_parameters(model: PreTrainedModel) -> int:
    """Parameters, a tied head counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_per_token(model: PreTrainedModel, length: int) -> int:
    """Training FLOPs a token: 6 per matrix parameter (forward 2, backward 4) plus attention's 12 * layers * width *
    length (Chowdhery et al. 2022, PaLM, appendix B). An embedding that is only looked up costs none; a tied one
    counts as the head.
    """
    config = model.config
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    looked_up = [model.get_input_embeddings().weight] if not config.tie_word_embeddings else []
    matrices -= sum(weight.numel() for weight in looked_up)
    if config.model_type == "gpt2":
        matrices -= model.transformer.wpe.weight.numel()
    return 6 * matrices + 12 * config.num_hidden_layers * config.hidden_size * length


def fast_on_cpu(training_args: TrainingArguments) -> None:
    """On a CPU: bf16 exactly where the processor is made for it, the fastest exact fp32 products, and freed memory
    kept.

    The arguments freeze `bf16` into `mixed_precision` when they are made, so both are set. glibc returns each large
    tensor to the system when it is freed and asks for it again a moment later; keeping it makes SFT's changing shapes
    1.7 times faster.
    """
    if training_args.device.type != "cpu":
        torch.set_float32_matmul_precision("high")
        return
    torch.set_float32_matmul_precision("medium")
    if training_args.deepspeed_plugin is None:  # its config has its own precision, fixed by the launch
        training_args.bf16 = cpu_has_bf16()
        training_args.mixed_precision = "bf16" if training_args.bf16 else "no"
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def cpu_has_bf16() -> bool:
    """True where the processor multiplies bf16 matrices in hardware (AVX512-BF16 or AMX, or ARM's BF16)."""
    if platform.machine() in ("arm64", "aarch64"):
        return platform.system() == "Linux" and "bf16" in Path("/proc/cpuinfo").read_text()
    flags = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    cpuinfo = Path("/proc/cpuinfo")
    return flags.startswith("AVX512") and cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()
