"""Next-token cross-entropy without the usual copies of the logits, by a forward that returns the loss alone.

A language model's logits are its largest tensor by far (tokens x vocabulary), and the usual way writes them several
times: in bf16, in fp32, as log-probabilities, as a zeroed gradient, as a gradient. Here a chunk's logits become their
own gradient in place and are forgotten once both of the backward pass's matrix products are done. The idea is that of
Hsu et al. 2024, "Liger Kernel", in plain PyTorch.
"""

from types import MethodType

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

# architectures whose logits are the head's product with the last hidden state and nothing else
PLAIN_HEADS = {"gpt2", "llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"}
CHUNK = {"cpu": 2**22, "cuda": 2**28}  # logits at once: a core's share of cache, half a GB of a GPU's memory


class ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy in nats of (tokens, width) hidden states under a (vocabulary, width) head, given the next tokens
    (tokens,): their sum over `count`. The gradients are made in the forward pass, in the type of the hidden states.
    """

    @staticmethod
    def forward(ctx, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, count: int) -> torch.Tensor:
        head, tokens = weight.to(hidden.dtype), len(targets)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # LoRA freezes the head
        total = torch.zeros((), device=hidden.device)
        size = max(CHUNK.get(hidden.device.type, 2**28) // len(weight), 64)
        for start in range(0, tokens, size):
            part, target = hidden[start : start + size], targets[start : start + size, None]
            logits = part @ head.T
            likeliest = logits.amax(-1, keepdim=True)
            right = (logits.gather(1, target) - likeliest).float()
            grad = (logits - likeliest).exp_()
            mass = grad.sum(-1, keepdim=True, dtype=torch.float32)
            total += (mass.log() - right).sum()
            grad.mul_((1 / (mass * count)).to(grad.dtype))
            grad.scatter_add_(1, target, grad.new_full((1, 1), -1 / count).expand(len(target), 1))
            torch.mm(grad, head, out=grad_hidden[start : start + size])
            if grad_weight is not None:
                grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / count

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, None if grad_weight is None else grad_weight * grad, None, None


def next_token_loss(
    model: PreTrainedModel,
    ids: torch.Tensor,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **kwargs,
) -> torch.Tensor:
    """Mean cross-entropy in nats of the next labels of (batch, length) ids; no label is left out (-100 raises). With
    `num_items_in_batch`, the sum over the labels that are not -100, divided by it: the others never meet the head.
    """
    hidden = model.base_model(ids, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1].flatten(0, 1)
    head, targets = model.get_output_embeddings(), labels[:, 1:].flatten()
    if num_items_in_batch is not None:
        bear_loss = targets != -100
        hidden, targets = hidden[bear_loss], targets[bear_loss]
    count = len(targets) if num_items_in_batch is None else int(num_items_in_batch)
    # compiled, the plain way is fused; sharded (ZeRO-3), only a call of the module gathers its weight
    if torch.compiler.is_compiling() or hasattr(head.weight, "ds_id") or not torch.is_grad_enabled():
        return F.cross_entropy(head(hidden).float(), targets, ignore_index=-1, reduction="sum") / count
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return ChunkedCrossEntropy.apply(hidden, head.weight, targets, count)


def return_the_loss_alone(model: PreTrainedModel) -> bool:
    """Let `model(input_ids=, labels=, num_items_in_batch=)` compute and return no logits, under any wrapper that calls
    its forward (DDP, DeepSpeed, torch.compile, autocast); without labels the forward is as before. False, and
    nothing changed, for an architecture whose logits are more than the head's product.
    """
    head = model.get_output_embeddings()
    if model.config.model_type not in PLAIN_HEADS or head is None or getattr(head, "bias", None) is not None:
        return False
    whole = model.forward

    def forward(self, input_ids=None, labels=None, **kwargs):
        if labels is None:
            return whole(input_ids=input_ids, **kwargs)
        return CausalLMOutputWithPast(loss=next_token_loss(self, input_ids, labels, **kwargs))

    model.forward = MethodType(forward, model)
    return True
