"""What identifies a tensor: the same for the same, another for another."""

import pytest
import torch

from mmgslora.families.content import content_of, sums_of


def sums_of_tensor(tensor):
    return sums_of(tensor.contiguous().flatten().view(torch.uint8))


@pytest.mark.parametrize('identity', [content_of, sums_of_tensor])
def test_images_are_told_apart(identity):
    image = torch.rand(3, 4, 4)
    assert identity(image) == identity(image.clone())
    assert identity(image) != identity(image.flip(-1))
    assert identity(image[:, ::2]) == identity(image[:, ::2].contiguous())
    assert identity(image.bfloat16()) != identity(image)
    batch = torch.rand(2, 3, 5, 5)  # the second begins at no multiple of eight bytes
    assert identity(batch[1]) == identity(batch[1].clone()) != identity(batch[0])


def test_a_word_by_hand():
    """A word times one odd number times another, modulo 2^64."""

    def numbers(word):
        sums = sums_of_tensor(torch.tensor([word], dtype=torch.int64))
        return [int.from_bytes(sums[i : i + 8], 'little') for i in (0, 8)]

    one = numbers(1)
    assert one[0] != one[1] and all(x % 2 for x in one)
    assert numbers(3) == [3 * x % 2**64 for x in one]


@pytest.mark.parametrize('size', [1, 3, 1024, 2048, 2049, 5000])
def test_every_place_counts(size):
    """Of numbers with most bits zero, too, as pixels are that were never scaled."""
    places = {0, size // 2, size - 1}
    seen = {sums_of_tensor(torch.zeros(size))}
    for place in places:
        for value in (1.0, 2.0, 128.0, 255.0):
            changed = torch.zeros(size)
            changed[place] = value
            seen.add(sums_of_tensor(changed))
    assert len(seen) == 1 + 4 * len(places)
