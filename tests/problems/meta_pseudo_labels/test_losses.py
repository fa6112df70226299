import pytest
import torch
from torch.nn.functional import log_softmax

from metaopt.problems.meta_pseudo_labels.losses import Consistency


def test_consistency_leaves_out_uncertain_rows_and_has_no_gradient_through_the_target():
    weak = torch.tensor([[3.0, 0.0], [0.1, 0.0]], requires_grad=True)
    strong = torch.tensor([[1.0, 0.0], [5.0, 0.0]], requires_grad=True)
    loss = Consistency(weight=2.0, temperature=1.0, threshold=0.9, ramp=0)(weak, strong, 0)
    q = torch.softmax(weak[0], -1)
    assert loss.item() == pytest.approx(2 * -(q * log_softmax(strong[0], -1)).sum().item() / 2)
    (grad,) = torch.autograd.grad(loss, weak, allow_unused=True)
    assert grad is None
