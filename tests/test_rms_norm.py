"""RMSNorm with its own backward pass against transformers' own."""

from importlib import import_module

import pytest
import torch

from crawl2chat.rms_norm import FAMILIES, install

OWN = {}
for name, prefix in FAMILIES.items():  # as the library has them, whatever was installed before
    OWN[name] = getattr(import_module(f"transformers.models.{name}.modeling_{name}"), f"{prefix}RMSNorm")


def plain(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The published formula, by autograd."""
    wide = x.to(torch.float32)
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight * scaled.to(x.dtype)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_output_is_the_formulas_to_the_bit_and_gradients_are_autograds(name, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(OWN[name], "forward", OWN[name].forward)  # restored afterwards
    torch.manual_seed(0)
    norm = OWN[name](64)
    norm.weight.data.normal_()
    x = torch.randn(3, 5, 4, 64, dtype=dtype, requires_grad=True)
    slopes = torch.randn(3, 5, 4, 64)
    expected = plain(norm, x)
    theirs = torch.autograd.grad((expected * slopes).sum(), [x, norm.weight])
    install()
    found = norm(x)
    ours = torch.autograd.grad((found * slopes).sum(), [x, norm.weight])
    assert torch.equal(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(
            one.float(), other.float(), rtol=tolerance, atol=tolerance * float(other.abs().max())
        )
