"""LoRA and DoRA against huggingface/peft: the same factors give the same output and the same gradients."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from peftseg.adapters import attach
from peftseg.networks import Anatomy

# transformers, which peft imports, takes torchvision where it is installed, also one for another build of torch that
# cannot be loaded. Nothing here needs it. What another test has loaded of them has seen torchvision, and is loaded anew.
for name in [n for n in sys.modules if n.split(".")[0] in ("transformers", "accelerate", "peft")]:
    del sys.modules[name]
torchvision = sys.modules.get("torchvision")
sys.modules["torchvision"] = None
peft = pytest.importorskip("peft", reason="the outside check needs peft, of the extra dev")
if torchvision is None:
    del sys.modules["torchvision"]
else:
    sys.modules["torchvision"] = torchvision

RANK, ALPHA = 3, 5
LAYERS = ("stem", "down", "token")


class Small(nn.Module):
    """Convolutions with stride and bias, a linear layer over channels, a head; (B, 2, *S) -> (B, 2, *S')."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.stem = conv(2, 6, 3, padding=1)
        self.down = conv(6, 8, (3, 1, 2)[:dims], stride=2, padding=1, bias=False)
        self.token = nn.Linear(8, 8)
        self.head = conv(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.down(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.token(x.movedim(1, -1))).movedim(-1, 1))


def pair(dims: int, dora: bool):
    """The network with our method and the same network wrapped by peft, with the same random factors."""
    torch.manual_seed(dims)
    ours, theirs = (network := Small(dims)), copy.deepcopy(network)
    method, anatomy = ("dora" if dora else "lora"), Anatomy("head", ("stem", "down", "token"), (), 2)
    attached = attach(ours, anatomy, method, {"rank": RANK, "alpha": ALPHA, "layers": "|".join(LAYERS)})
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(LAYERS), use_dora=dora, lora_dropout=0.0)
    wrapped = peft.get_peft_model(theirs, config)
    with torch.no_grad():
        for key, tensor in attached.tensors().items():
            layer, _, suffix = key.replace(".weight::", "/").partition("/")
            if suffix in ("A", "B", "m"):
                tensor.mul_(1.2) if suffix == "m" else tensor.normal_(0, 0.3)
                _theirs(wrapped, layer, suffix).copy_(tensor.view(_theirs(wrapped, layer, suffix).shape))
    return attached, wrapped


def _theirs(wrapped: nn.Module, layer: str, suffix: str) -> torch.Tensor:
    module = wrapped.base_model.model.get_submodule(layer)
    if suffix == "m":
        return module.lora_magnitude_vector["default"].weight
    return {"A": module.lora_A, "B": module.lora_B}[suffix]["default"].weight


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_same_factors_give_the_same_output_and_gradients(dims, dora):
    attached, wrapped = pair(dims, dora)
    x = torch.randn(2, 2, *(8,) * dims)
    ours, theirs = attached.network(x), wrapped(x)
    assert torch.allclose(ours, theirs, atol=1e-5)
    ours.square().mean().backward()
    theirs.square().mean().backward()
    compared = 0
    for key, tensor in attached.trainable().items():
        layer, _, suffix = key.replace(".weight::", "/").partition("/")
        if suffix in ("A", "B", "m"):
            gradient = _theirs(wrapped, layer, suffix).grad
            assert torch.allclose(tensor.grad, gradient.view(tensor.shape), rtol=1e-3, atol=1e-5), key
            compared += 1
    assert compared == 3 * (2 + dora)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_merged_weights_are_the_same(dora):
    attached, wrapped = pair(3, dora)
    ours, theirs = attached.merge(), wrapped.merge_and_unload()
    for layer in LAYERS:
        assert torch.allclose(ours.get_submodule(layer).weight, theirs.get_submodule(layer).weight, atol=1e-5)


def test_counts_are_the_same():
    attached, wrapped = pair(3, dora=False)
    ours = attached.trained_share()["adapter"]
    assert ours == sum(p.numel() for n, p in wrapped.named_parameters() if "lora_" in n)
