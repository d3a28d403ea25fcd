"""SSF: where scale and shift go, and what is said where a normalisation undoes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftseg.adapters import attach
from peftseg.networks import Anatomy
from peftseg.networks.unet3d import make_unet3d
from tiny_networks import make


def layers_of(attached) -> set[str]:
    return {key.partition("::")[0].rpartition(".")[0] for key in attached.state() if key.endswith("::gamma")}


@pytest.mark.parametrize(
    ("network", "chosen"),
    [
        # stem and down go into a normalisation, dilated and mix into a ReLU; transposed convolutions need a pattern.
        ("unet-2d-batch", {"norm1", "norm2", "norm3", "dilated", "mix"}),
        ("unet-3d-group", {"norm1", "norm2", "norm3", "dilated", "mix"}),
        ("transformer-2d", {"embed", "block.norm", "block.norm2"}),
    ],
)
def test_convolutions_that_no_normalisation_follows_are_scaled_too(network, chosen):
    case = make(network)
    attached = attach(case.network, case.anatomy, "ssf", {"after": "norm_else_conv"})
    assert layers_of(attached) == chosen
    assert attached.notes == ()


def test_a_pattern_reaches_a_transposed_convolution_only_where_no_normalisation_follows():
    case, other = make("unet-2d-batch"), make("transformer-2d")
    followed = attach(case.network, case.anatomy, "ssf", {"after": "norm_else_conv", "layers": "up|dilated"})
    assert layers_of(followed) == {"dilated"}
    free = attach(other.network, other.anatomy, "ssf", {"after": "norm_else_conv", "layers": "up"})
    assert layers_of(free) == {"up"}


def test_the_default_is_normalisation_layers_alone():
    case = make("unet-2d-batch")
    assert layers_of(attach(case.network, case.anatomy, "ssf", {})) == {"norm1", "norm2", "norm3"}


def test_all_convolutions_of_the_unet_are_followed_so_that_only_its_transposed_ones_are_free():
    torch.manual_seed(0)
    chosen = {}
    for after in ("norm", "norm_else_conv"):
        network, anatomy = make_unet3d({}, 2)
        chosen[after] = layers_of(attach(network, anatomy, "ssf", {"after": after, "layers": ".*"}))
    more = chosen["norm_else_conv"] - chosen["norm"]
    assert all(isinstance(network.get_submodule(name), nn.ConvTranspose3d) for name in more)
    assert more == {f"up_tr{n}.up_conv" for n in (64, 128, 256)}


@pytest.mark.parametrize(("after", "said"), [("conv", True), ("norm_else_conv", False)])
def test_the_warning_sees_transposed_convolutions(after, said):
    up, norm = nn.ConvTranspose2d(2, 4, 2, stride=2), nn.GroupNorm(4, 4)
    network = nn.Sequential(up, norm, nn.ConvTranspose2d(4, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    attached = attach(network, Anatomy("3", ("0", "1"), ("2",), 1), "ssf", {"after": after, "layers": "[02]"})
    assert layers_of(attached) == ({"0", "2"} if said else {"2"})
    assert any("undoes scale and shift" in note for note in attached.notes) is said
