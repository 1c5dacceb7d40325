"""Our Muon is torch's, in batches, and AdamW beside it is torch's too."""

import copy

import torch
from tests.tiny import tiny_model, tiny_tokenizer

from crawl2chat.muon import Muon, muon_optimizer
from crawl2chat.pretraining import PretrainingArguments

ARGS = PretrainingArguments("unused", optim="muon", learning_rate=1e-3, muon_learning_rate=2e-3, weight_decay=0.1)


def test_a_step_is_torchs_muon_step():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (24, 8), (8, 24), (8, 8))]
    theirs = copy.deepcopy(ours)
    mine = Muon([{"params": ours, "muon": True, "lr": 0.02, "weight_decay": 0.1}])
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2)  # bf16 iterations in another order


def test_the_rest_is_torchs_adamw():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    mine = Muon([{"params": [ours], "muon": False, "lr": 0.01, "weight_decay": 0.1}])
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    for _ in range(4):
        ours.grad = torch.randn(5)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_every_parameter_is_in_one_group_and_embeddings_are_not_muons():
    model = tiny_model(tiny_tokenizer())
    optimizer = muon_optimizer(model, ARGS)
    hidden, rest = (group["params"] for group in optimizer.param_groups)
    assert len(hidden) + len(rest) == len(list(model.parameters()))
    assert all(p.ndim == 2 for p in hidden)
    assert any(p is model.get_input_embeddings().weight for p in rest)


def test_state_survives_saving():
    model = tiny_model(tiny_tokenizer())
    twin = copy.deepcopy(model)
    first, second = muon_optimizer(model, ARGS), muon_optimizer(twin, ARGS)

    def step(network: torch.nn.Module, optimizer: Muon, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()

    step(model, first, 1)
    step(twin, second, 1)
    third = muon_optimizer(twin, ARGS)
    third.load_state_dict(second.state_dict())
    step(model, first, 2)
    step(twin, third, 2)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
