import torch

from mmgslora.losses import bounded_ascent


def test_values_and_gradient_worked_by_hand():
    loss = torch.tensor([0.0, 4.0, 10.0, 11.0], requires_grad=True)
    value = bounded_ascent(loss, 10.0)
    assert torch.equal(value, torch.tensor([10.0, 6.0, 0.0, 0.0]))
    value.sum().backward()
    assert torch.equal(loss.grad, torch.tensor([-1.0, -1.0, 0.0, 0.0]))


def test_one_hinge_on_the_batch_mean_is_not_the_mean_of_hinges():
    loss = torch.tensor([1.0, 5.0])
    assert bounded_ascent(loss.mean(), 2.0).item() == 0.0
    assert bounded_ascent(loss, 2.0).mean().item() == 0.5


def test_descending_on_it_raises_the_loss_up_to_the_bound():
    weight = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.25)
    for _ in range(20):
        optimizer.zero_grad()
        bounded_ascent(weight + 1.0, 3.0).backward()
        optimizer.step()
    assert weight.item() == 2.0
