"""The two models that PPO trains as one module: the policy, and the value model that expects what it will earn."""

import copy
from collections.abc import Sequence

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from crawl2chat.logps import token_logps, token_values
from crawl2chat.reward_model import HEAD
from crawl2chat.stage import fail


class PolicyAndValue(torch.nn.Module):
    """Policy and value model, if there is one, as the one module that the Trainer optimizes."""

    def __init__(self, policy: PreTrainedModel, value_model: PreTrainedModel | None):
        super().__init__()
        self.policy, self.value_model = policy, value_model
        self.config, self.generation_config = policy.config, policy.generation_config
        self.peft_config = getattr(policy, "peft_config", {})

    def forward(
        self, ids: torch.Tensor, lengths: torch.Tensor, wanted: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies and values (0 without a value model) of the wanted tokens: (tokens,) each; see
        logps.py."""
        logps, entropies = token_logps(self.policy, ids, lengths, wanted, temperature)
        if self.value_model is None:
            return logps, entropies, torch.zeros_like(entropies)
        return logps, entropies, token_values(self.value_model, ids, lengths, wanted)

    @property
    def models(self) -> list[PreTrainedModel]:
        return [self.policy] if self.value_model is None else [self.policy, self.value_model]

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.policy.is_gradient_checkpointing

    def gradient_checkpointing_enable(self, **keys) -> None:
        for model in self.models:
            model.gradient_checkpointing_enable(**keys)

    def activation_checkpointing_enable(self, **keys) -> None:
        for model in self.models:
            model.activation_checkpointing_enable(**keys)

    def gradient_checkpointing_disable(self) -> None:
        for model in self.models:
            model.gradient_checkpointing_disable()


def begin_value_model(policy: PreTrainedModel, judges: Sequence[PreTrainedModel]) -> PreTrainedModel:
    """A copy of the first reward model; without one, a copy of the policy's body under a head of zeros."""
    if judges:
        return copy.deepcopy(judges[0])
    if isinstance(policy, PeftModel):
        fail("ppo: the policy is an adapter already; give its base as `model`, and `peft_config`, or merge it first")
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(
        config, dtype=policy.dtype, attn_implementation=policy.config._attn_implementation
    )
    model.base_model.load_state_dict(policy.base_model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    return model.to(policy.device)


def no_dropout(model: torch.nn.Module) -> None:
    """Switch off every dropout of `model`, that attention layers hold as a number too: a probability ratio compares
    a network with itself."""
    for module in model.modules():
        names = ["p"] if isinstance(module, torch.nn.Dropout) else [name for name in vars(module) if "dropout" in name]
        for name in names:
            if isinstance(getattr(module, name), float):
                setattr(module, name, 0.0)


def value_adapter(peft_config: PeftConfig) -> PeftConfig:
    """The policy's LoRA, for a value model: its head is trained whole."""
    config = copy.deepcopy(peft_config)
    config.task_type = "SEQ_CLS"
    if isinstance(config, LoraConfig):
        config.modules_to_save = [HEAD]
    return config
