"""RMSNorm with its own backward pass against transformers' own."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from crawl2chat.rms_norm import NORMS, install

OWN = [LlamaRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm]


@pytest.mark.parametrize("norm", OWN)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_output_is_the_librarys_to_the_bit_and_gradients_are_autograds(norm, dtype, tolerance):
    torch.manual_seed(0)
    theirs = norm(64)
    theirs.weight.data.normal_()
    ours = copy.deepcopy(theirs)
    install(torch.nn.Sequential(ours))
    x = torch.randn(3, 5, 4, 64, dtype=dtype, requires_grad=True)
    slopes = torch.randn(3, 5, 4, 64)
    outputs = [one(x) for one in (theirs, ours)]
    assert type(ours) is norm and torch.equal(*outputs)
    gradients = [
        torch.autograd.grad((output * slopes).sum(), [x, one.weight])
        for output, one in zip(outputs, (theirs, ours), strict=True)
    ]
    for own, other in zip(gradients[1], gradients[0], strict=True):
        assert own.dtype == other.dtype
        torch.testing.assert_close(
            own.float(), other.float(), rtol=tolerance, atol=tolerance * float(other.abs().max())
        )


def test_a_copy_has_its_own_weights_and_other_models_stay_as_they_are():
    assert {norm.__name__ for norm in OWN} == set(NORMS)
    first = LlamaRMSNorm(8)
    install(first)
    second = copy.deepcopy(first)
    second.weight.data.fill_(2.0)
    x = torch.randn(2, 8)
    assert torch.equal(second(x), 2 * first(x))
    assert LlamaRMSNorm(8).forward.__func__ is LlamaRMSNorm.forward
