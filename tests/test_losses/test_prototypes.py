import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgslora.losses import prototype_divergence


def test_by_hand():
    """softmax(0, log 3) = (1/4, 3/4) against softmax(0, 0) = (1/2, 1/2)."""
    prototypes = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    embeddings = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    expected = [
        0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5),
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75),
    ]
    torch.testing.assert_close(
        prototype_divergence(embeddings, prototypes), torch.tensor(expected), rtol=1e-6, atol=1e-7
    )


numbers = st.lists(st.floats(-20, 20), min_size=5, max_size=5)


@given(numbers, numbers)
def test_against_sums_in_float64(embedding, prototype):
    def softmax(values):
        powers = [math.exp(v - max(values)) for v in values]
        return [p / math.fsum(powers) for p in powers]

    p, q = softmax(prototype), softmax(embedding)
    expected = math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))
    found = prototype_divergence(
        torch.tensor([embedding], dtype=torch.float64),
        torch.tensor([prototype], dtype=torch.float64),
    )
    assert math.isclose(found.item(), expected, rel_tol=1e-9, abs_tol=1e-12)
    assert found.item() > -1e-12


def test_half_precision_is_summed_in_float32():
    embedding = torch.randn(1, 64).half()
    prototype = torch.randn(1, 64).half()
    found = prototype_divergence(embedding, prototype)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, prototype_divergence(embedding.float(), prototype.float()))
