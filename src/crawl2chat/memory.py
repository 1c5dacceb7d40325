"""What one training step keeps in a device's memory, counted before it runs and without the memory to run it.

Weights, gradients and optimizer states are sums over the parameters, shared out as ZeRO shares them (Rajbhandari et
al. 2020). Activations are counted, not estimated: the model's own forward runs on fake tensors, which have shapes and
no values, and what autograd keeps for the backward pass is added up. So every architecture of transformers is known.

Against the peak that torch's profiler saw in real steps on a CPU (llama of 3 and 12 million parameters, gpt2 and qwen3
of 124 million, bf16, whole and chunked loss, with and without checkpointing) the sums were 7 % low to 11 % high. On a
GPU nothing has been measured yet.
"""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from crawl2chat.logps import ROWS, TOKENS
from crawl2chat.loss import CHUNK, PLAIN_HEADS
from crawl2chat.muon import hidden_matrices

COMPILED = 2 / 3  # torch.compile makes pointwise results again instead of keeping them: 0.61 to 0.66 measured
DDP_BUCKETS = 4  # bytes a parameter: DDP's gradients lie in buckets beside the model's
GATHERED = 1e9  # parameters that ZeRO-3 may hold whole (DeepSpeed's stage3_max_live_parameters)
CUDA = 1e9  # bytes of CUDA's context, cuBLAS's and NCCL's workspaces, roughly
LIBRARIES = 0.7e9  # bytes of Python, torch and transformers in the host's memory, measured


@dataclass(frozen=True)
class Launch:
    """How a launch spreads a model: processes, ZeRO stage (0: each holds it whole), what the host keeps; or FSDP2."""

    processes: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    offload_weights: bool = False
    fsdp: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Launch":
        """The launch that accelerate or torchrun wrote into the environment; one process where nothing did."""
        processes = int(environment.get("WORLD_SIZE", "1"))
        if environment.get("ACCELERATE_USE_FSDP", "false") == "true":
            return cls(processes, fsdp=True)
        if environment.get("ACCELERATE_USE_DEEPSPEED", "false") != "true":
            return cls(processes)
        where = [
            environment.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{what}_DEVICE", "none") for what in ("OPTIMIZER", "PARAM")
        ]
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
        return cls(processes, stage, *(device not in ("", "none") for device in where))

    def __str__(self) -> str:
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        if self.fsdp:
            return f"{processes}, FSDP2: weights, gradients and optimizer states shared out"
        if self.zero_stage:
            shared = [
                "",
                "optimizer states",
                "optimizer states and gradients",
                "optimizer states, gradients and weights",
            ]
            moved = ["optimizer states"] * self.offload_optimizer + ["weights"] * self.offload_weights
            host = f"; in the host's memory: {' and '.join(moved)}" if moved else ""
            return f"{processes}, ZeRO-{self.zero_stage}: {shared[self.zero_stage]} shared out{host}"
        return processes + (", each with the whole model (DDP)" if self.processes > 1 else "")


@dataclass(frozen=True)
class Step:
    """What decides a step's memory, apart from the model: rows and tokens a row of one micro-batch, and how."""

    rows: int
    length: int
    bf16: bool = False
    compiled: bool = False
    checkpointing: bool = False
    optimizer: str = "adamw_torch"
    chunked_loss: bool = True  # crawl2chat.loss; else whole logits, as transformers' own loss
    frozen: bool = False  # LoRA: the model's own weights have neither gradient nor state
    scored: bool = False  # by one number a row: no logits


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the fullest moment of a step, the end of the forward pass; `host`: moved off it."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    loss: float
    host: float = 0.0
    looking_on: float = 0.0  # models beside it that are not trained

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self) if part.name != "host")


def memory(model: PreTrainedModel, step: Step, launch: Launch, on_gpu: bool = True) -> Memory:
    """The memory of one process of a launch. `model` may lie on the meta device."""
    count = sum(p.numel() for p in model.parameters())
    sharded = launch.zero_stage > 0
    halved = sharded and step.bf16  # DeepSpeed trains bf16 weights and keeps fp32 ones beside the optimizer's states
    weights = gradients = (2 if halved else 4) * count
    optimizer = state_bytes(model, step.optimizer) + (4 * count if halved else 0)
    if step.frozen:
        gradients = optimizer = 0
    elif launch.processes > 1 and not sharded and not launch.fsdp:
        gradients += DDP_BUCKETS * count
    host = 0.0
    if launch.fsdp:  # fp32 weights, of which two blocks and the embeddings are gathered at a time
        ends = sum(p.numel() for p in model.parameters() if p.ndim == 2) - sum(
            p.numel() for p in hidden_matrices(model)
        )
        gathered = ends + 2 * (count - ends) / model.config.num_hidden_layers
        weights = weights / launch.processes + gathered * (2 if step.bf16 else 4)
        gradients, optimizer = gradients / launch.processes, optimizer / launch.processes
    if launch.zero_stage >= 1:
        optimizer /= launch.processes
    if launch.zero_stage >= 2:
        gradients /= launch.processes
    if launch.offload_optimizer:
        host, optimizer = host + optimizer, 0
    if launch.zero_stage >= 3:
        share, gathered = weights / launch.processes, weights * min(1, GATHERED / count)
        host += share if launch.offload_weights else 0
        weights = min(weights, gathered + (0 if launch.offload_weights else share))
    activations = activation_bytes(model.config, step, halved)
    return Memory(weights, gradients, optimizer, activations, loss_bytes(model, step, on_gpu), host)


def policy_memory(model: PreTrainedModel, step: Step, launch: Launch, reply: int, judges: int) -> Memory:
    """PPO's: a policy and a value model of one size are trained as one; the policy as it began (not with LoRA, which
    is switched off instead) and `judges` reward models in fp32 look on, whole on every process. With LoRA the value
    model's body is the first reward model's. The last `reply` of a row's tokens meet the head.
    """
    one = memory(model, replace(step, scored=True), launch)
    count = sum(p.numel() for p in model.parameters())
    halved = launch.zero_stage > 0 and step.bf16
    looking_on = 4 * count * max(judges - step.frozen, 0) + (0 if step.frozen else (2 if halved else 4) * count)
    # head's output, its fp32 copy, the copy over the temperature, log-probabilities; then their gradient, or what the
    # entropy makes of them
    tokens = reply * max(step.rows, min(ROWS, TOKENS / reply))  # of a micro-batch, or of rollouts as they are read
    loss = tokens * model.config.vocab_size * ((2 if step.bf16 else 4) + 16)
    twice = {part: 2 * getattr(one, part) for part in ("weights", "gradients", "optimizer", "activations", "host")}
    return Memory(**twice, loss=loss, looking_on=looking_on)


def state_bytes(model: PreTrainedModel, optimizer: str) -> int:
    """Bytes of the optimizer's states: two fp32 numbers a parameter, one for Muon's hidden matrices."""
    count = sum(p.numel() for p in model.parameters())
    if optimizer == "muon":
        return 8 * count - 4 * sum(p.numel() for p in hidden_matrices(model))
    if optimizer.startswith("sgd"):
        return 0
    if "8bit" in optimizer:
        return 2 * count
    return (4 if optimizer.startswith("lion") else 8) * count


def activation_bytes(config: PreTrainedConfig, step: Step, halved: bool = False) -> float:
    """Bytes that the blocks keep for the backward pass, autocast's bf16 copies of their weights included.

    Two models of one and of two blocks are run on fake tensors; every further block keeps what the second one did.
    With checkpointing each block keeps its input and its copies, and one block at a time its activations.
    """
    (one, fewer), (two, more) = (run_blocks(config, blocks, step, halved) for blocks in (1, 2))
    block, ends, blocks = two - one, 2 * one - two, config.num_hidden_layers
    if not step.checkpointing:
        return ends + blocks * block * (COMPILED if step.compiled else 1)
    copies = 2 * (more - fewer) if step.bf16 and not halved else 0
    width = 2 if halved else 4  # autocast leaves the residual stream in fp32
    return ends + block + (blocks - 1) * copies + blocks * step.rows * step.length * config.hidden_size * width


def run_blocks(config: PreTrainedConfig, blocks: int, step: Step, halved: bool) -> tuple[int, int]:
    """A forward pass of so many blocks without values: bytes kept, and the model's parameters."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    with FakeTensorMode():
        dtype = torch.bfloat16 if halved else torch.float32
        trunk = AutoModel.from_config(config, attn_implementation=plain_attention(config), dtype=dtype)
        ids = torch.zeros((step.rows, step.length), dtype=torch.long)
        return kept_bytes(trunk, ids, step.bf16 and not halved), sum(p.numel() for p in trunk.parameters())


def plain_attention(config: PreTrainedConfig) -> str:
    """eager or sdpa: a flash kernel keeps what sdpa keeps, and need not be installed to be planned for."""
    return "eager" if config._attn_implementation == "eager" else "sdpa"


def kept_bytes(trunk: PreTrainedModel, ids: torch.Tensor, autocast: bool) -> int:
    """Bytes that autograd keeps of one forward pass of (rows, length) ids, parameters apart, each storage once."""
    own = {p.untyped_storage()._cdata for p in trunk.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is given out twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        trunk.train()(input_ids=ids, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


def loss_bytes(model: PreTrainedModel, step: Step, on_gpu: bool) -> float:
    """Bytes of the logits and what is made of them, and of the head's gradient that a chunked loss keeps."""
    if step.scored:
        return 0.0
    tokens, vocabulary, width = step.rows * step.length, model.config.vocab_size, 2 if step.bf16 else 4
    if not step.chunked_loss or model.config.model_type not in PLAIN_HEADS:
        # logits; their fp32 copy, its log-probabilities and the gradient of those
        return tokens * vocabulary * (width + 8 if step.bf16 else 12)
    if step.compiled:  # logits, and their gradient in one kernel
        return tokens * vocabulary * 2 * width
    chunk = min(CHUNK["cuda" if on_gpu else "cpu"], tokens * vocabulary)
    head = model.get_output_embeddings().weight.numel()
    return chunk * 2 * width + tokens * model.config.hidden_size * width + head * (width + 8)
