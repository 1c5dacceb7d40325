"""Log-probabilities of chosen tokens: cut by length, and differentiated by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2chat.logps import PASS, ChosenLogps, by_length, token_logps
from tiny import tiny_model, tiny_tokenizer


@given(st.lists(st.integers(1, 400), max_size=60), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_groups_hold_every_row_once_shortest_first_and_no_cut_into_equal_groups_costs_less(lengths, most):
    groups = by_length(lengths, most)
    flat = [row for group in groups for row in group]
    assert sorted(flat) == list(range(len(lengths))) and all(1 <= len(group) <= most for group in groups)
    assert [lengths[row] for row in flat] == sorted(lengths)

    def cost(groups):
        return sum(PASS + len(group) * max(lengths[row] for row in group) for group in groups)

    for size in range(1, most + 1):
        assert cost(groups) <= cost(by_length(lengths, size, full=True))


def test_a_few_long_rows_are_read_apart():
    assert by_length([30] * 20 + [200], 32) == [list(range(20)), [20]]
    assert by_length([30] * 20 + [31], 32) == [list(range(21))]  # a pass of its own would cost more than the padding


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_written_by_hand_is_autograds(temperature):
    torch.manual_seed(0)
    logits = torch.randn(7, 50, dtype=torch.float64).float().requires_grad_()
    chosen, slopes = torch.randint(50, (7,)), torch.randn(7)
    logps, entropies = ChosenLogps.apply(logits, chosen, temperature)
    (ours,) = torch.autograd.grad((logps * slopes).sum(), logits)
    found = (logits / temperature).log_softmax(-1)
    (theirs,) = torch.autograd.grad((found[range(7), chosen] * slopes).sum(), logits)
    torch.testing.assert_close(logps, found[range(7), chosen])
    torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=found).entropy())
    torch.testing.assert_close(ours, theirs)


def test_a_tokens_log_probability_does_not_depend_on_the_rows_beside_it():
    model = tiny_model(tiny_tokenizer()).eval()
    lengths = torch.tensor([5, 30, 9, 6])
    ids = torch.randint(5, 50, (4, 30), generator=torch.Generator().manual_seed(1))
    wanted = (torch.arange(30) >= 2) & (torch.arange(30) < lengths[:, None])
    logps, entropies = token_logps(model, ids, lengths, wanted, 1.0)
    alone = [
        token_logps(model, ids[i : i + 1], lengths[i : i + 1], wanted[i : i + 1], 1.0) for i in range(len(lengths))
    ]
    torch.testing.assert_close(logps, torch.cat([one[0] for one in alone]))
    torch.testing.assert_close(entropies, torch.cat([one[1] for one in alone]))
