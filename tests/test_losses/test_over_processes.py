import torch

from mmgslora.losses import mean_over_processes, mean_with_local_grad


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
