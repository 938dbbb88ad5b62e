"""A snapshot restores weights and optimizer."""

import torch

from mirl.agents.on_policy.rollback import Snapshot, are_finite


def test_snapshot_restores_same_tensors() -> None:
    """A snapshot is restored into the same tensors."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(module.parameters())

    def step() -> None:
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()

    step()
    live, before = (
        list(module.parameters()),
        [tensor.clone() for tensor in module.state_dict().values()],
    )
    moments = [tensor.clone() for each in optimizer.state.values() for tensor in each.values()]
    snapshot = Snapshot(module, optimizer)
    step()
    assert not torch.equal(before[0], module.state_dict()["0.weight"])
    snapshot.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
    again = [tensor for each in optimizer.state.values() for tensor in each.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, again, strict=True))
    assert all(a is b for a, b in zip(live, module.parameters(), strict=True))
    assert are_finite(module)
    module[1].running_mean[0] = torch.nan  # type: ignore[index]
    assert not are_finite(module)
