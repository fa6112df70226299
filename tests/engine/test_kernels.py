"""Blocks that say by which implementations torch runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from metaopt.engine.kernels import twice_differentiable


def enabled():
    """Return the kernels of attention that torch may use here, and the layers' fast path."""
    cuda = torch.backends.cuda
    return (
        cuda.math_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(), torch.backends.mha.get_fastpath_enabled(),
    )  # fmt: skip


def fail(x):
    """Differentiate attention twice, and raise an error."""
    with twice_differentiable():
        assert enabled() == (True, False, False, False, False)
        y = scaled_dot_product_attention(x, x, x).square().sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        torch.autograd.grad(slope.sum(), x)
        raise KeyError


def test_attention_is_differentiated_twice_and_the_kernels_are_as_before():
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        before = enabled()
        with pytest.raises(KeyError):
            fail(torch.randn(1, 2, 8, 4, requires_grad=True))
        assert enabled() == before == (False, True, True, False, True)
