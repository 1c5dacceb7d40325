"""Muon for the hidden matrices and AdamW for the rest, as one optimizer that a Trainer can schedule, save and resume.

Muon: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the step is scaled to AdamW's
size as in Liu et al. 2025, "Muon is scalable for LLM training". The arithmetic is torch.optim.Muon's (a test holds
them together); matrices of one shape are orthogonalised in one batch, which on a CPU and for small matrices is
several times faster.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.optim.adamw import adamw
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from crawl2chat.stage import fail

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, Jordan et al. 2024


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly, by Newton-Schulz in bf16. (batch, rows, columns) -> the same."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """One optimizer of two kinds of groups: {"muon": True} by Muon, {"muon": False} by AdamW.

    Args:
        params: parameter groups, each with "muon", "lr" and "weight_decay"; see `muon_optimizer`.
        momentum: Muon's, with Nesterov's look ahead.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[dict],
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        super().__init__(params, {"lr": 1e-3, "weight_decay": 0.0, "muon": False})
        self.momentum, self.betas, self.eps = momentum, betas, eps

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["muon"] else self._adamw)(params, group)

    def _muon(self, params: list[torch.Tensor], group: dict) -> None:
        shapes = defaultdict(list)
        for p in params:
            buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
            buffer.lerp_(p.grad, 1 - self.momentum)
            shapes[p.shape].append((p, p.grad.lerp(buffer, self.momentum)))
        for (rows, columns), pairs in shapes.items():
            updates = orthogonalise(torch.stack([update for _, update in pairs])).to(pairs[0][0].dtype)
            size = 0.2 * max(rows, columns) ** 0.5  # the root mean square of an AdamW step
            for (p, _), update in zip(pairs, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * size)

    def _adamw(self, params: list[torch.Tensor], group: dict) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(p),
                    "exp_avg_sq": torch.zeros_like(p),
                }
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self.eps,
            maximize=False,
        )


def hidden_matrices(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The matrices between embeddings and head, which Muon trains."""
    ends = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    ends |= {id(module.weight) for module in [model.get_output_embeddings()] if module is not None}
    return [p for p in model.parameters() if p.ndim == 2 and id(p) not in ends]


def muon_groups(model: torch.nn.Module, args: TrainingArguments) -> list[dict]:
    """Muon with `muon_learning_rate` on the hidden matrices; AdamW with `learning_rate`, undecayed, on embeddings,
    head and vectors. Stops with one line for an adapter, whose small factors are no hidden matrices.
    """
    if any("lora_" in name for name, _ in model.named_parameters()):
        fail("optim: muon is for whole weights, not for LoRA's factors; take `optim: muon` out, or use_peft: false")
    hidden = [p for p in hidden_matrices(model) if p.requires_grad]
    chosen = {id(p) for p in hidden}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    rate = args.muon_learning_rate or args.learning_rate
    return [
        {"params": hidden, "muon": True, "lr": rate, "weight_decay": args.weight_decay},
        {"params": rest, "muon": False, "lr": args.learning_rate, "weight_decay": 0.0},
    ]


def muon_optimizer(model: torch.nn.Module, args: TrainingArguments) -> Muon:
    """Muon over `muon_groups`."""
    return Muon(muon_groups(model, args), betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)


def zero_muon(model: torch.nn.Module, args: TrainingArguments, stage: int, offload: bool) -> torch.optim.Optimizer:
    """Muon over `muon_groups` by DeepSpeed, which knows the matrices that ZeRO 1 and 2 flatten and share out.

    Its update is orthogonal times sqrt(max(1, rows / columns)): ours by 0.2 sqrt(columns), which is put into the rates
    of one group for each width. Stops with one line where its steps would not be ours: it clips the orthogonal updates
    in place of the gradients, and cannot reduce-scatter under ZeRO-3.
    """
    if stage > 2 or offload:
        fail(
            "optim: muon needs whole matrices, which ZeRO-3 and offloading take apart; launch with "
            "accelerate_configs/zero2.yaml or ddp.yaml, or set optim: adamw_torch"
        )
    if args.max_grad_norm:
        fail(
            "optim: muon under ZeRO: DeepSpeed would clip the orthogonal updates in place of the gradients; "
            "set max_grad_norm: 0, or launch with accelerate_configs/ddp.yaml"
        )
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    widths: dict[int, dict] = {}
    hidden, rest = muon_groups(model, args)
    for p in hidden["params"]:
        size = 0.2 * p.shape[1] ** 0.5
        rates = {"lr": hidden["lr"] * size, "weight_decay": hidden["weight_decay"] / size}
        group = widths.setdefault(p.shape[1], {"params": [], "use_muon": True, "ns_method": "standard", **rates})
        group["params"].append(p)
    adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    rest = {key: rest[key] for key in ("params", "lr", "weight_decay")} | {"use_muon": False, **adam}
    for group in (rest, *widths.values()):
        for p in group["params"]:
            p.use_muon = group["use_muon"]
    return MuonWithAuxAdam([rest, *widths.values()])


@dataclass
class MuonKeys:
    """`optim: muon` in a recipe: a base of our arguments classes, before the library's."""

    optim: str = field(
        default="adamw_torch",
        metadata={"help": "the optimizer", "choices": ["muon", *(name.value for name in OptimizerNames)]},
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Muon's, for the hidden matrices; by default learning_rate", "gt": 0}
    )

    def __post_init__(self):
        muon = self.optim == "muon"
        if muon:  # a name that the library does not know
            self.optim = OptimizerNames.ADAMW_TORCH
        elif self.muon_learning_rate is not None:
            raise ValueError("muon_learning_rate needs `optim: muon`")
        super().__post_init__()
        if muon:
            self.optim = "muon"


class MuonOptimizer:
    """Mixin before a transformers Trainer: makes the optimizer where the arguments say `optim: muon`."""

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.args.optim != "muon" or self.optimizer is not None:
            return super().create_optimizer(model)
        if self.is_fsdp_enabled:
            fail(
                "optim: muon needs whole matrices, which FSDP takes apart; "
                "launch with accelerate_configs/ddp.yaml, or set optim: adamw_torch"
            )
        if self.is_deepspeed_enabled:
            plugin = self.accelerator.state.deepspeed_plugin
            offload = plugin.offload_optimizer_device not in (None, "none")
            self.optimizer = zero_muon(self.model, self.args, plugin.zero_stage, offload)
        else:
            self.optimizer = muon_optimizer(self.model, self.args)
        return self.optimizer
