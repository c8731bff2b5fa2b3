"""The matrix product that explainers and fast formulations take."""

import pytest
import torch

import gnime.products as products_module
from gnime.products import product, products


@pytest.fixture
def calls(monkeypatch):
    """The shapes that oneDNN is given; every product is large enough for it."""
    if products_module._ONEDNN is None:
        pytest.skip("PyTorch is built without oneDNN")
    given, original = [], products_module._ONEDNN
    monkeypatch.setattr(products_module, "FEW", 0)
    monkeypatch.setattr(products_module, "_ONEDNN", lambda a, *rest: given.append(tuple(a.shape)) or original(a, *rest))
    return given


@pytest.mark.parametrize("a_strided", ["rows", "columns", "gaps"])
@pytest.mark.parametrize("b_strided", ["rows", "columns", "gaps"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (5, 7, 3), (64, 130, 33), (9, 128, 200), (200, 9, 64)])
def test_product_is_the_one_in_float64(m, k, n, a_strided, b_strided, calls):
    def laid_out(x, strided):
        if strided == "columns":
            return x.T.contiguous().T
        return torch.cat([x, x], 1)[:, : x.shape[1]] if strided == "gaps" else x

    torch.manual_seed(0)
    a, b = torch.randn(m, k), torch.randn(k, n)
    found = product(laid_out(a, a_strided), laid_out(b, b_strided))
    exact, bound = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    assert found.shape == (m, n)
    assert ((found.double() - exact).abs() <= k * 2.0**-24 * bound).all()  # the bound of a sum in any order
    assert calls == [(m, k)]


def test_products_matrix_by_matrix(calls, monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(3, 40, 50), torch.randn(3, 30, 50).transpose(1, 2)
    exact = a.double() @ b.double()
    for onednn, few in ((True, 0), (False, 40 * 50 * 30)):
        monkeypatch.setattr(products_module, "FEW", few)
        calls.clear()
        out = torch.full((3, 40, 30), torch.nan)  # what the memory held must not be read
        products(a, b, out)
        torch.testing.assert_close(out.double(), exact, atol=1e-4, rtol=0)
        products(a, b, out, add=True)
        torch.testing.assert_close(out.double(), 2 * exact, atol=2e-4, rtol=0)
        assert calls == [(40, 50)] * 6 * onednn
    out = exact * 0
    products(a.double(), b.double(), out)
    torch.testing.assert_close(out, exact)


def test_positive_numbers_keep_their_digits_however_small(calls):
    """LRP divides by such sums."""
    a, b = torch.rand(33, 65) * 10.0 ** torch.randint(-30, 1, (33, 1)), torch.rand(65, 17)
    a[3] = 0
    exact = a.double() @ b.double()
    torch.testing.assert_close(product(a, b).double(), exact, rtol=1e-6, atol=0)
    assert calls


def test_the_plain_product_where_onednns_is_not_the_same_or_slower(calls, monkeypatch):
    a, b = torch.rand(4, 5), torch.rand(5, 6)
    assert product(a.double(), b.double()).equal(a.double() @ b.double())
    assert product(torch.zeros(0, 5), b).shape == (0, 6)
    weight = b.clone().requires_grad_()
    product(a, weight).sum().backward()
    assert weight.grad.equal(a.sum(0)[:, None].expand(5, 6))
    monkeypatch.setattr(products_module, "FEW", 4 * 5 * 6)
    assert product(a, b).equal(a @ b)
    monkeypatch.setattr(products_module, "FEW", 0)
    assert not calls
    with torch.no_grad():
        product(a, weight)
    assert calls == [(4, 5)]
    monkeypatch.setattr(products_module, "_ONEDNN", None)
    assert product(a, b).equal(a @ b)
