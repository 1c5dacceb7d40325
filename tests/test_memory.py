"""What a step keeps in memory: the counts on fake tensors against real ones, the shares of ZeRO against its paper."""

from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from transformers import AutoConfig, AutoModelForCausalLM

from crawl2chat.memory import Launch, Step, activation_bytes, kept_bytes, memory, state_bytes
from crawl2chat.muon import hidden_matrices, muon_optimizer
from crawl2chat.pretraining import PretrainingArguments

ROOT = Path(__file__).parents[1]
WIDTHS = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 2, "num_key_value_heads": 2}
SPECS = {
    "gpt2": {"n_embd": 128, "n_head": 2, "n_positions": 128, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0},
    "llama": WIDTHS,
    "qwen3": WIDTHS | {"head_dim": 64, "tie_word_embeddings": True},
}


def config_of(model_type: str, attention: str = "sdpa", blocks: int = 3):
    spec = SPECS[model_type]
    return AutoConfig.for_model(
        model_type, vocab_size=512, num_hidden_layers=blocks, bos_token_id=0, eos_token_id=0,
        attn_implementation=attention, **spec,
    )  # fmt: skip


def model_of(model_type: str, attention: str = "sdpa", device: str = "cpu"):
    config = config_of(model_type, attention)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", SPECS)
def test_the_activations_are_those_that_autograd_keeps(model_type, attention, bf16):
    real = kept_bytes(model_of(model_type, attention).base_model, torch.zeros((4, 64), dtype=torch.long), bf16)
    counted = activation_bytes(config_of(model_type, attention), Step(rows=4, length=64, bf16=bf16))
    assert counted == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("model_type", ["gpt2", "qwen3"])
def test_torch_compile_keeps_two_thirds(model_type):
    torch.compiler.reset()
    trunk = model_of(model_type).base_model
    compiled = torch.compile(trunk, backend="aot_eager_decomp_partition")  # inductor's choice, without its kernels
    compiled.parameters, compiled.train = trunk.parameters, lambda: compiled
    real = kept_bytes(compiled, torch.zeros((8, 128), dtype=torch.long), autocast=True)
    counted = activation_bytes(config_of(model_type), Step(rows=8, length=128, bf16=True, compiled=True))
    assert counted == pytest.approx(real, rel=0.15)


def test_checkpointing_keeps_each_blocks_input_and_one_block_at_a_time():
    config, step = config_of("llama"), Step(rows=4, length=64, checkpointing=True)
    trunk = model_of("llama").base_model
    trunk.gradient_checkpointing_enable({"use_reentrant": True})  # the kind whose saved tensors can be seen
    real = kept_bytes(trunk, torch.zeros((4, 64), dtype=torch.long), autocast=False)
    one, two = (activation_bytes(config_of("llama", blocks=n), Step(rows=4, length=64)) for n in (1, 2))
    assert activation_bytes(config, step) == pytest.approx(real + two - one, rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "muon"])
@pytest.mark.parametrize("model_type", SPECS)
def test_the_optimizers_bytes_are_those_of_its_states(model_type, optimizer, tmp_path):
    model = model_of(model_type)
    made = muon(model, tmp_path) if optimizer == "muon" else torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    made.step()
    states = [t for state in made.state.values() for t in state.values() if torch.is_tensor(t) and t.ndim]
    assert state_bytes(model, optimizer) == sum(t.nbytes for t in states)


def muon(model, folder):
    return muon_optimizer(model, PretrainingArguments(output_dir=str(folder), use_cpu=True, optim="muon"))


@pytest.mark.parametrize("model_type", SPECS)
def test_the_hidden_matrices_are_those_that_muon_trains(model_type, tmp_path):
    model = model_of(model_type)
    (chosen,) = (group["params"] for group in muon(model, tmp_path).param_groups if group["muon"])
    in_blocks = {id(p) for n, p in model.named_parameters() if p.ndim == 2 and (".h." in n or ".layers." in n)}
    assert {id(p) for p in chosen} == {id(p) for p in hidden_matrices(model)} == in_blocks


@pytest.mark.parametrize("stage, bytes_a_parameter", [(0, 16), (1, 4 + 12 / 8), (2, 2 + 14 / 8), (3, 2 + 16 / 8)])
def test_zero_shares_out_what_its_paper_says(stage, bytes_a_parameter):
    """Rajbhandari et al. 2020, figure 1: 16 bytes a parameter in mixed precision, 4 + 12/N, 2 + 14/N, 16/N. Stage 3's
    weights, gathered for a pass, stay whole in a model of less than a billion.
    """
    model = model_of("gpt2", device="meta")
    count = sum(p.numel() for p in model.parameters())
    used = memory(model, Step(rows=1, length=16, bf16=True), Launch(1 if stage == 0 else 8, stage))
    kept = used.weights + used.gradients + used.optimizer
    assert kept == pytest.approx(count * bytes_a_parameter - (2 * count / 8 if stage == 3 else 0))


def test_ddp_holds_its_gradients_twice_and_offloading_moves_states_to_the_host():
    model, step = model_of("gpt2", device="meta"), Step(rows=1, length=16, bf16=True)
    count = sum(p.numel() for p in model.parameters())
    assert memory(model, step, Launch(2)).gradients == 2 * memory(model, step, Launch(1)).gradients == 8 * count
    moved = memory(model, step, Launch(8, 3, offload_optimizer=True, offload_weights=True))
    assert (moved.optimizer, moved.host) == (0, pytest.approx((12 + 2) * count / 8))


def test_whole_logits_are_the_largest_part_and_chunked_ones_none():
    model = model_of("qwen3", device="meta")
    whole, chunked = (
        memory(model, Step(rows=64, length=128, bf16=True, chunked_loss=way), Launch(), on_gpu=False).loss
        for way in (False, True)
    )
    assert whole == 64 * 128 * 512 * 10
    assert chunked < whole / 2


def test_a_model_of_other_logits_keeps_them_whole():
    config = AutoConfig.for_model("granite", vocab_size=512, num_hidden_layers=1, **WIDTHS)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    step = Step(rows=4, length=64, bf16=True)
    assert memory(model, step, Launch()).loss == 4 * 64 * 512 * 10


def test_lora_has_neither_gradients_nor_states_of_the_frozen_weights():
    used = memory(model_of("llama", device="meta"), Step(rows=1, length=16, frozen=True), Launch(8))
    assert used.gradients == used.optimizer == 0 < used.weights


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_a_launch_is_read_from_what_accelerate_sets(name):
    command = ["--config_file", str(ROOT / f"accelerate_configs/{name}.yaml"), "train.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    args.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(args)
    launch = Launch.of(environment | {"WORLD_SIZE": str(args.num_processes)})
    offloads = name.endswith("offload")
    assert launch == Launch(8, int(name[4]), offload_optimizer=offloads, offload_weights=offloads)
    assert f"ZeRO-{name[4]}" in str(launch) and ("host" in str(launch)) == offloads


def test_without_a_launcher_a_launch_is_one_process():
    assert Launch.of({}) == Launch() and str(Launch()) == "1 process"
    assert str(Launch.of({"WORLD_SIZE": "2"})) == "2 processes, each with the whole model (DDP)"
