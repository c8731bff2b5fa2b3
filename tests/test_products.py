"""The matrix product that explainers and fast formulations take."""

import contextlib
import threading

import pytest
import torch

import gnime.products as products_module
from gnime.products import product, products, training_products


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


@pytest.mark.parametrize("how", ["training", "training, less precise", "one by one", "PyTorch's"])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(("m", "k", "n"), [(40, 50, 30), (1, 7, 5), (128, 300, 64), (33, 1024, 129)])
def test_products_matrix_by_matrix(m, k, n, transposed, how, calls, monkeypatch):
    if how == "training, less precise":
        monkeypatch.setattr(products_module, "_onednn_keeps_32_bits", lambda: False)
    if how == "PyTorch's":
        monkeypatch.setattr(products_module, "FEW", m * k * n)
    torch.manual_seed(0)
    a, b = torch.randn(3, k, m).mT if transposed else torch.randn(3, m, k), torch.randn(3, n, k).mT
    exact, bound = a.double() @ b.double(), k * 2.0**-24 * (a.double().abs() @ b.double().abs())
    out = torch.full((3, m, n), torch.nan)  # what the memory held must not be read
    with training_products() if how.startswith("training") else contextlib.nullcontext():
        products(a, b, out)
        assert ((out - exact).abs() <= bound).all()
        products(a, b, out, add=True)
        assert ((out - 2 * exact).abs() <= 4 * bound).all()
        one_by_one = how == "one by one" or how.startswith("training") and not products_module._onednn_keeps_32_bits()
        assert calls == [(m, k)] * 6 * one_by_one
        out = exact * 0
        products(a.double(), b.double(), out)
        torch.testing.assert_close(out, exact)


@pytest.fixture
def setting():
    if not hasattr(torch.backends.mkldnn, "matmul") or not products_module._onednn_keeps_32_bits():
        pytest.skip("this PyTorch or this processor does not have the faster products")
    yield torch.backends.mkldnn.matmul
    torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_onednn_is_not_asked_where_its_products_are_less_precise(monkeypatch, setting):
    decide, found, original = products_module._onednn_keeps_32_bits.__wrapped__, torch.cpu.get_capabilities(), torch.bmm
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: found | {"amx_bf16": True})
        assert not decide()
    with monkeypatch.context() as patch:
        patch.delattr(torch.cpu, "get_capabilities")  # an older PyTorch
        assert not decide()
    assert decide()
    monkeypatch.setattr(torch, "bmm", lambda a, b: original(a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype))
                        if a.dtype == torch.float32 else original(a, b))
    assert not decide()
    assert setting.fp32_precision == "none"


def test_the_setting_is_that_of_before(setting):
    a = torch.rand(2, 64, 64)
    seen, original = [], torch.baddbmm

    def watched(*args, **named):
        seen.append(setting.fp32_precision)
        return original(*args, **named)

    with pytest.MonkeyPatch.context() as patch, training_products():
        patch.setattr(torch, "baddbmm", watched)
        products(a, a, torch.empty_like(a))
        assert seen == ["bf16"] and setting.fp32_precision == "none"
        with pytest.raises(RuntimeError):
            products(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
        assert setting.fp32_precision == "none"
        setting.fp32_precision = "ieee"  # the user's own
        products(a, a, torch.empty_like(a))
        assert seen[-1] == setting.fp32_precision == "ieee"


def test_other_threads_keep_the_setting_out(setting, monkeypatch):
    """A service answers bit for bit while no training runs, in whatever thread."""
    seen = []
    monkeypatch.setattr(torch, "baddbmm", lambda *args, **named: seen.append(setting.fp32_precision))
    a = torch.rand(2, 4, 4)
    with training_products():
        thread = threading.Thread(target=products, args=(a, a, torch.empty_like(a)))
        thread.start()
        thread.join()
    products(a, a, torch.empty_like(a))
    assert seen == ["none", "none"]


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
