import torch

from mmgslora.losses import joint_weighted_mean, mean_over_processes, mean_with_local_grad


def test_one_process_is_the_mean():
    value = torch.tensor([1.0, 2.0], requires_grad=True)
    assert mean_over_processes(value).tolist() == [1, 2]
    assert not mean_over_processes(value).requires_grad


def test_the_value_is_that_of_all_and_the_gradient_ones_own(monkeypatch):
    def other_has_seven(value, op):
        assert op == 'mean'
        value.add_(7).div_(2)

    monkeypatch.setattr('mmgslora.losses.over_processes.all_reduce', other_has_seven)
    value = torch.tensor(1.0, requires_grad=True)
    joint = mean_with_local_grad(3 * value)
    assert joint.item() == 5
    joint.backward()
    assert value.grad == 3 and value.item() == 1


def test_a_weighted_mean_over_two_processes(monkeypatch):
    """Here 0.1 of 4 and 0.3 of 8, there a sum of 0.6 in weights of 0.2: 3.4 / 0.6."""
    sums = iter((0.2, 0.6 / ((0.4 + 0.2) / 2)))

    def with_the_other(value, op):
        value.add_(next(sums)).div_(2)

    monkeypatch.setattr('mmgslora.losses.over_processes.all_reduce', with_the_other)
    values = torch.tensor([4.0, 8.0], requires_grad=True)
    mean = joint_weighted_mean(values, torch.tensor([0.1, 0.3]))
    torch.testing.assert_close(mean.detach(), torch.tensor((0.4 + 2.4 + 0.6) / 0.6))
    mean.backward()
    # Training halves the sum of both gradients: this one's share is 2 w / 0.6.
    torch.testing.assert_close(values.grad, torch.tensor([0.2, 0.6]) / 0.6)


def test_a_weighted_mean_of_nothing_is_0():
    values = torch.tensor([4.0, 8.0])
    assert joint_weighted_mean(values, torch.zeros(2)) == 0
    assert joint_weighted_mean(values[:0], torch.ones(0)) == 0
    small = joint_weighted_mean(values, torch.tensor([1e-5, 3e-5]))
    torch.testing.assert_close(small, torch.tensor(7.0))  # however small the weights are
