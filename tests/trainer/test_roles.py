"""What stands in for torch.compile where nothing is compiled."""

import copy

import torch

from trainer.roles import _uncompiled


def test_a_module_has_a_compiled_ones_names_and_is_otherwise_itself():
    plain = torch.nn.Linear(3, 2)
    model = _uncompiled(plain, mode="max-autotune")
    assert list(model.state_dict()) == ["_orig_mod.weight", "_orig_mod.bias"]
    assert torch.equal(model(torch.ones(3)), plain(torch.ones(3)))
    model.eval()
    model.note = "kept"
    assert not model.training
    assert not plain.training
    assert plain.note == "kept"
    assert model.weight is plain.weight
    twin = copy.deepcopy(model)
    twin.weight.data.zero_()
    assert not torch.equal(model(torch.ones(3)), twin(torch.ones(3)))


def test_a_function_is_itself_with_and_without_options():
    assert _uncompiled(abs) is abs
    assert _uncompiled(fullgraph=True)(abs) is abs
