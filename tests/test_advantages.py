"""PPO's arithmetic: hand-worked numbers, and slow loops over single tokens that share nothing with the module."""

import math
import random

import pytest
import torch

from crawl2chat.advantages import (
    adapt,
    against_others,
    estimate_advantages,
    kl_estimate,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)


def rows(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """Rewards, values, mask (rows, actions) and the actions of each row, one of them without any."""
    rng = random.Random(seed)
    counts = [rng.randint(1, 7) for _ in range(5)] + [0]
    mask = torch.tensor([[i < n for i in range(max(counts))] for n in counts])
    rewards, values = (torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1))
    return rewards, values, mask, counts


def test_advantages_are_those_worked_by_hand():
    # gamma 0.5, lambda 0.5: d3 = 1 - 0.5 = 0.5; d2 = 0 + 0.5 * 0.5 - 1 = -0.75; d1 = 0 + 0.5 * 1 - 2 = -1.5
    # A3 = 0.5; A2 = -0.75 + 0.25 * 0.5 = -0.625; A1 = -1.5 + 0.25 * -0.625 = -1.65625
    rewards, values = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[2.0, 1.0, 0.5, 7.0]])
    mask = torch.tensor([[True, True, True, False]])
    advantages, returns = estimate_advantages(rewards, values, mask, 0.5, 0.5)
    assert advantages.tolist() == [[-1.65625, -0.625, 0.5, 0.0]]
    assert returns.tolist() == [[0.34375, 0.375, 1.0, 0.0]]


def test_with_lambda_1_the_return_is_what_is_still_to_come():
    rewards, values, mask, counts = rows(3)
    _, returns = estimate_advantages(rewards, values, mask, 1.0, 1.0)
    for row, n in enumerate(counts):
        for t in range(n):
            assert returns[row, t].item() == pytest.approx(rewards[row, t:n].sum().item(), abs=1e-5)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.0, 1.0)])
def test_advantages_are_those_of_the_sum_over_single_tokens(gamma, lam):
    rewards, values, mask, counts = rows(1)
    advantages, returns = estimate_advantages(rewards, values, mask, gamma, lam)
    for row, n in enumerate(counts):
        expected = [float(values[row, t]) for t in range(n)] + [0.0]
        surprise = [float(rewards[row, t]) + gamma * expected[t + 1] - expected[t] for t in range(n)]
        for t in range(mask.shape[1]):
            found = sum((gamma * lam) ** (later - t) * surprise[later] for later in range(t, n)) if t < n else 0.0
            assert advantages[row, t].item() == pytest.approx(found, abs=1e-5)
            assert returns[row, t].item() == pytest.approx(found + expected[t] if t < n else 0.0, abs=1e-5)


def test_what_stands_behind_the_last_action_changes_nothing():
    rewards, values, mask, _ = rows(2)
    noise = torch.full_like(rewards, 1e3).masked_fill(mask, 0.0)
    plain = estimate_advantages(rewards, values, mask, 0.9, 0.8)
    other = estimate_advantages(rewards + noise, values + noise, mask, 0.9, 0.8)
    wider = [torch.nn.functional.pad(part, (0, 3)) for part in (rewards, values, mask)]
    wide = estimate_advantages(*wider, 0.9, 0.8)
    for ours, theirs, padded in zip(plain, other, wide, strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(ours, padded[:, :-3])


def test_a_reply_is_measured_against_the_others_to_its_prompt():
    earned = torch.tensor([1.0, 2.0, 6.0, 5.0, 9.0, 7.0, 4.0, 4.0, 8.0])
    graded = torch.tensor([True, True, True, True, False, True, False, False, True])
    # 1 - (2 + 6) / 2, 2 - 3.5, 6 - 1.5; 5 - 7 and 7 - 5 beside one without a verdict; 8 alone
    expected = [-3.0, -1.5, 4.5, -2.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(against_others(earned, graded, 3, scaled=False), torch.tensor(expected))
    # deviations of 7 ** 0.5 and 2 ** 0.5
    expected = [-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5, -1 / 2**0.5, 0.0, 1 / 2**0.5, 0.0, 0.0, 0.0]
    found = against_others(earned, graded, 3, scaled=True)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=0)
    assert not against_others(torch.full((4,), 3.0), torch.ones(4, dtype=torch.bool), 4, scaled=True).any()


def test_a_score_lands_on_the_last_real_action_and_every_action_pays_its_kl():
    kl = torch.tensor([[1.0, 2.0, 3.0], [1.0, 5.0, 5.0], [4.0, 4.0, 4.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    found = token_rewards(kl, torch.tensor([10.0, -10.0, 99.0]), mask, 0.1)
    torch.testing.assert_close(found, torch.tensor([[-0.1, -0.2, 9.7], [-10.1, 0.0, 0.0], [0.0, 0.0, 0.0]]))


def test_kl_estimates_are_those_worked_by_hand():
    logps, ref = torch.tensor([math.log(0.5), math.log(0.2)]), torch.tensor([math.log(0.25), math.log(0.2)])
    torch.testing.assert_close(kl_estimate(logps, ref, "k1"), torch.tensor([math.log(2), 0.0]))
    torch.testing.assert_close(kl_estimate(logps, ref, "k3"), torch.tensor([0.5 - 1 + math.log(2), 0.0]))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_over_what_a_policy_draws_is_its_kl_divergence(estimator):
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.3, 0.3, 0.4])
    exact = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    found = kl_estimate(p.log(), q.log(), estimator)
    assert (p * found).sum().item() == pytest.approx(exact, abs=1e-6)
    assert estimator == "k1" or (found >= 0).all()


def test_whitened_values_have_mean_0_and_variance_1_where_the_mask_is():
    values, mask = torch.tensor([[1.0, 2.0, 50.0], [3.0, 50.0, 50.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(whiten(values, mask, shift_mean=False), torch.tensor([[1.0, 2.0, 0], [3.0, 0, 0]]))
    noise, _, mask, _ = rows(4)
    found = [whiten(7 * noise + 3, mask)[row, t].item() for row, t in mask.nonzero().tolist()]
    mean = sum(found) / len(found)
    assert mean == pytest.approx(0, abs=1e-5)
    assert sum((value - mean) ** 2 for value in found) / (len(found) - 1) == pytest.approx(1, abs=1e-4)


def test_ranks_that_share_the_rows_whiten_as_one_does():
    values, _, mask, _ = rows(5)
    whole, halves, calls = whiten(values, mask), [(values[:3], mask[:3]), (values[3:], mask[3:])], []

    def total(sums: torch.Tensor) -> torch.Tensor:
        """What the other rank would add: its sums are worked out beside."""
        calls.append(sums)
        other_values, other_mask = halves[1 - at]
        if len(calls) % 2:
            return sums + torch.stack([other_mask.sum(), (other_values * other_mask).sum()])
        mean = (values * mask).sum() / mask.sum()
        return sums + ((other_values - mean) ** 2 * other_mask).sum()

    for at, half in enumerate(halves):
        torch.testing.assert_close(whiten(*half, total=total), whole[3 * at : 3 * at + 3])


def test_a_ratio_out_of_range_is_clipped_where_that_makes_the_loss_larger():
    # ratios 1.5, 1.5, 0.5, 0.5, 1.1 with cliprange 0.2
    new = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]).log()
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 1.0])
    found, clipped = policy_losses(new, torch.zeros(5), advantages, 0.2)
    torch.testing.assert_close(found, torch.tensor([-2.4, 3.0, -1.0, 1.6, -1.1]))
    assert clipped.tolist() == [True, False, False, True, False]


def test_a_clipped_action_moves_the_policy_no_further():
    new = torch.tensor([1.5, 0.9]).log().requires_grad_()
    policy_losses(new, torch.zeros(2), torch.tensor([1.0, 1.0]), 0.2)[0].sum().backward()
    assert new.grad[0] == 0 and new.grad[1].item() == pytest.approx(-0.9)


def test_a_value_far_from_what_it_was_is_clipped_where_that_makes_the_loss_larger():
    # was 0, return 1: 0.5 -> clipped to 0.2: (0.8)^2 / 2; return -1 with 0.5: (1.5)^2 / 2 is the larger
    values, old = torch.tensor([0.5, 0.5, 0.1]), torch.zeros(3)
    found, clipped = value_losses(values, old, torch.tensor([1.0, -1.0, 1.0]), 0.2)
    torch.testing.assert_close(found, torch.tensor([0.32, 1.125, 0.405]))
    assert clipped.tolist() == [True, False, False]


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_a_loop_over_single_tokens(seed):
    draw = torch.Generator().manual_seed(seed)
    new, old, advantages, values, old_values, returns = torch.randn(6, 40, generator=draw).unbind()
    policy, clipped = policy_losses(new, old, advantages, 0.3)
    value, value_clipped = value_losses(values, old_values, returns, 0.4)
    for i in range(40):
        ratio, advantage = math.exp(float(new[i]) - float(old[i])), float(advantages[i])
        near = max(1 - 0.3, min(1 + 0.3, ratio))
        assert policy[i].item() == pytest.approx(-min(ratio * advantage, near * advantage), rel=1e-5)
        assert bool(clipped[i]) == (near * advantage < ratio * advantage)
        was, wanted, now = float(old_values[i]), float(returns[i]), float(values[i])
        kept = was + max(-0.4, min(0.4, now - was))
        assert value[i].item() == pytest.approx(max((now - wanted) ** 2, (kept - wanted) ** 2) / 2, rel=1e-4)
        assert bool(value_clipped[i]) == ((kept - wanted) ** 2 > (now - wanted) ** 2)


def test_the_coefficient_follows_its_target():
    assert adapt(0.2, kl=6.0, target=6.0, gain=0.1) == pytest.approx(0.2)
    assert adapt(0.2, kl=6.6, target=6.0, gain=0.1) == pytest.approx(0.2 * 1.01)
    assert adapt(0.2, kl=60.0, target=6.0, gain=0.1) == pytest.approx(0.2 * 1.02)  # the error is kept within 0.2
    assert adapt(0.2, kl=0.0, target=6.0, gain=0.1) == pytest.approx(0.2 * 0.98)
