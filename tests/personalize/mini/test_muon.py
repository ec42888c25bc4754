"""Muon: its update is orthogonal, as large as AdamW's, and Adam where a matrix is none."""

import pytest
import torch

from personalize.mini.pretrain.muon import SIZE, Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 40, 100), (3, 100, 40)])
def test_all_singular_values_are_near_one_and_the_singular_vectors_stay(shape):
    """U S V^T -> about U V^T: the published range of five rounds is 0.7-1.2, bfloat16 adds a
    little.
    """
    m = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    made = u.mT @ orthogonal(m) @ vh.mT
    values = made.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (made - values.diag_embed()).abs().max() < 0.05


def test_a_transposed_matrix_gives_the_transposed_update():
    m = torch.randn(1, 20, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(orthogonal(m.mT), orthogonal(m).mT)


@pytest.mark.parametrize("gradient", [1e-6, 1.0, 1e6])
def test_an_update_has_the_size_of_adamws_whatever_the_gradients(gradient):
    """Root mean square SIZE times the learning rate, within the 30 % of `orthogonal`."""
    p = torch.nn.Parameter(torch.zeros(32, 4, 3, 3))
    p.grad = gradient * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    Muon([p], lr=0.1).step()
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(SIZE * 0.1, rel=0.3)


def test_vectors_and_small_matrices_are_trained_by_adam():
    """Equal to torch's Adam over ten steps."""
    rng = torch.Generator().manual_seed(0)
    first = [torch.randn(s, generator=rng) for s in ((40,), (3, 40, 3, 3), (16, 16))]
    ours, theirs = ([torch.nn.Parameter(v.clone()) for v in first] for _ in range(2))
    optimizers = Muon(ours, lr=0.1), torch.optim.Adam(theirs, lr=0.1, betas=(0.9, 0.99))
    for _ in range(10):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape, generator=rng)
        for o in optimizers:
            o.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_matrix_does_not_depend_on_which_others_have_its_shape():
    """Matrices of one shape are made orthogonal together; each as if alone, up to bfloat16."""
    rng = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, 24, 30, generator=rng)
    together, alone = (
        [torch.nn.Parameter(torch.zeros(24, 30)) for _ in gradients] for _ in range(2)
    )
    for a, b, g in zip(together, alone, gradients, strict=True):
        a.grad = b.grad = g
        Muon([b], lr=0.1).step()
    Muon(together, lr=0.1).step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=1e-4)
