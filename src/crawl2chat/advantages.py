"""The arithmetic of PPO on text: a KL penalty a token, advantages, clipped losses.

An action is a token that the policy wrote. Everything is (rows, actions): one row a reply, its actions in order from
the left with nothing between them (what a tool wrote is no action), the rest of the row 0 and 0 in the mask.
"""

from collections.abc import Callable
from typing import Literal

import torch


def kl_estimate(logps: torch.Tensor, ref_logps: torch.Tensor, estimator: Literal["k1", "k3"] = "k1") -> torch.Tensor:
    """How far each sampled token is from the reference, in nats, from two tensors of log-probabilities of one shape.

    k1, log(p / q), and k3, q / p - 1 - log(q / p), both have the KL divergence as their mean over samples of p; k3 is
    never negative and varies less (Schulman 2020, http://joschu.net/blog/kl-approx.html).
    """
    ratio = ref_logps - logps
    return -ratio if estimator == "k1" else ratio.exp() - 1 - ratio


def token_rewards(kl: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """What every action earns, (rows, actions): minus `kl_coef` times its KL, and on the last action of a row the
    row's score as well (Ziegler et al. 2019, arXiv:1909.08593; Ouyang et al. 2022, arXiv:2203.02155). `scores` is
    (rows,); that of a row without actions is earned by none.
    """
    rewards = -kl_coef * kl * mask
    counts = mask.sum(1)
    rows = counts.nonzero()[:, 0]
    rewards[rows, counts[rows] - 1] += scores[rows].to(rewards)
    return rewards


def estimate_advantages(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation: advantages, and returns (advantages + values), both (rows, actions).

    A(t) is the sum over l of (gamma lam)^l d(t + l) with d(t) = r(t) + gamma V(t + 1) - V(t); after the last action
    there is nothing more to earn (Schulman et al. 2015, arXiv:1506.02438, equation 16). `values` holds what was
    expected before each action.
    """
    advantages, later = torch.zeros_like(values), values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        following = values[:, t + 1] * mask[:, t + 1] if t + 1 < values.shape[1] else 0.0
        later = (rewards[:, t] + gamma * following - values[:, t] + gamma * lam * later) * mask[:, t]
        advantages[:, t] = later
    return advantages, (advantages + values) * mask


def against_others(earned: torch.Tensor, graded: torch.Tensor, size: int, scaled: bool) -> torch.Tensor:
    """How much better than the other replies to its prompt each reply did, (rows,); `size` replies in a row have one
    prompt. `earned` and `graded` are (rows,): what is not graded counts for none and gets 0.

    Less the mean of the others (RLOO: Ahmadian et al. 2024, arXiv:2402.14740, section 3.2); or, `scaled`, less the
    mean of all and divided by their deviation (GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1.2). A reply that
    no other can be compared with gets 0.
    """
    mask = graded.view(-1, size).to(earned)
    values = earned.view(-1, size) * mask
    count = mask.sum(1, keepdim=True)
    away = (values - values.sum(1, keepdim=True) / count.clamp(min=1)) * mask
    others = (count - 1).clamp(min=1)
    if scaled:
        away = away / (((away**2).sum(1, keepdim=True) / others).sqrt() + 1e-4)
    else:
        away = away * count / others
    return away.flatten()


def whiten(
    values: torch.Tensor,
    mask: torch.Tensor,
    shift_mean: bool = True,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> torch.Tensor:
    """`values` scaled to a variance of 1 where `mask` is, and moved to a mean of 0 unless told otherwise; 0 elsewhere.

    The variance is the unbiased one. `total` adds a tensor of sums up over the ranks, so that every rank scales alike.
    """
    mask = mask.to(values)
    count, mean = total(torch.stack([mask.sum(), (values * mask).sum()]))
    mean = mean / count.clamp(min=1)
    variance = total(((values - mean) ** 2 * mask).sum()) / (count - 1).clamp(min=1)
    return ((values - mean) * torch.rsqrt(variance + 1e-8) + (0.0 if shift_mean else mean)) * mask


def policy_losses(
    logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """An action's loss, and whether clipping decided it: -min(ratio A, clip(ratio, 1 - cliprange, 1 + cliprange) A)
    with ratio = exp(logps - old_logps) (Schulman et al. 2017, arXiv:1707.06347, equation 7). Any one shape.
    """
    ratio = (logps - old_logps).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.maximum(plain, clipped), clipped > plain


def value_losses(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """An action's value loss, and whether clipping decided it: half the larger of the squared errors of the value and
    of the value kept within `cliprange` of what it was. Any one shape.
    """
    near = torch.minimum(torch.maximum(values, old_values - cliprange), old_values + cliprange)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return torch.maximum(plain, clipped) / 2, clipped > plain


def adapt(kl_coef: float, kl: float, target: float, gain: float) -> float:
    """The next KL coefficient: times 1 + gain e, with e the relative error of the KL against its target, kept within
    -0.2 and 0.2 (Ziegler et al. 2019, arXiv:1909.08593, section 2.2, where the gain is 0.1). Nats a reply.
    """
    return kl_coef * (1 + gain * max(-0.2, min(0.2, kl / target - 1)))
