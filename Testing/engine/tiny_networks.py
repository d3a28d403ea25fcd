"""Tiny networks with all that adapters meet: stride, groups, dilation, transposition, normalisation, attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from peftseg.networks import Anatomy


class TinyUNet(nn.Module):
    """Two levels; (B, 1, *spatial) -> (B, 3, *spatial)."""

    def __init__(self, dims: int, norm: str) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        batch_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]

        def normalise(channels: int) -> nn.Module:
            return batch_norm(channels) if norm == "batch" else nn.GroupNorm(2, channels)

        self.stem = conv(1, 4, 3, padding=1, padding_mode="reflect")
        self.norm1 = normalise(4)
        self.down = conv(4, 8, 2, stride=2, groups=2, bias=False)
        self.norm2 = normalise(8)
        self.dilated = conv(8, 8, 3, padding=2, dilation=2)
        self.dropout = nn.Dropout(0.5)
        self.up = transposed(8, 4, 2, stride=2)
        self.norm3 = normalise(4)
        self.mix = conv(8, 4, 3, padding=1)
        self.head = conv(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = torch.relu(self.norm1(self.stem(x)))
        deep = torch.relu(self.norm2(self.down(skip)))
        deep = self.dropout(torch.relu(self.dilated(deep)))
        wide = torch.relu(self.norm3(self.up(deep)))
        return self.head(torch.relu(self.mix(torch.cat([wide, skip], 1))))


class Attention(nn.Module):
    """Self-attention with one head and a fused projection whose rows are q, k, v."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    """Transformer block over all voxels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + self.attn(self.norm(tokens))
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).reshape(x.shape)


class TinyTransformer(nn.Module):
    """Embedding, one attention block, decoder, head; (B, 1, *spatial) -> (B, 3, *spatial)."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
        self.embed = conv(1, 6, 2, stride=2)
        self.block = Block(6)
        self.up = transposed(6, 4, 2, stride=2)
        self.head = conv(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.up(self.block(self.embed(x)))))


@dataclass(frozen=True)
class Case:
    """A network, its anatomy and the shape of an input."""

    network: nn.Module
    anatomy: Anatomy
    shape: tuple[int, ...]


def _tiny_unet(dims: int, norm: str) -> Case:
    anatomy = Anatomy("head", ("stem", "norm1", "down", "norm2", "dilated"), ("up", "norm3", "mix"), 2)
    return Case(TinyUNet(dims, norm), anatomy, (2, 1, *(8,) * dims))


def _tiny_transformer(dims: int) -> Case:
    return Case(TinyTransformer(dims), Anatomy("head", ("embed", "block"), ("up",), 2), (2, 1, *(6,) * dims))


def _segresnet(dims: int) -> Case:
    from monai.networks.nets import SegResNet

    network = SegResNet(
        spatial_dims=dims, init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 1, 1), blocks_up=(1, 1)
    )
    anatomy = Anatomy("conv_final.2.conv", ("convInit", "down_layers"), ("up_layers", "up_samples", "conv_final.0"), 4)
    # 12 voxels: in bfloat16 on a processor with avx512_bf16, torch 2.13 gives random weight gradients at 2 x 2 x 2.
    return Case(network, anatomy, (1, 1, *(12,) * dims))


def swin_unetr(feature_size: int = 12, blocks: int = 1) -> tuple[nn.Module, Anatomy]:
    """MONAI's SwinUNETR in 3D with that many blocks a stage, and its anatomy."""
    from monai.networks.nets import SwinUNETR

    network = SwinUNETR(
        in_channels=1, out_channels=3, feature_size=feature_size, depths=(blocks,) * 4, num_heads=(3, 6, 12, 24)
    )
    decoder = tuple(f"decoder{i}" for i in range(1, 6))
    encoder = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
    return network, Anatomy("out.conv.conv", encoder, decoder, 32)


NETWORKS = {
    "unet-2d-batch": lambda: _tiny_unet(2, "batch"),
    "unet-3d-batch": lambda: _tiny_unet(3, "batch"),
    "unet-3d-group": lambda: _tiny_unet(3, "group"),
    "transformer-2d": lambda: _tiny_transformer(2),
    "transformer-3d": lambda: _tiny_transformer(3),
    "segresnet-2d": lambda: _segresnet(2),
    "segresnet-3d": lambda: _segresnet(3),
}


def make(name: str, seed: int = 0) -> Case:
    """A case with repeatable weights and, where it has them, running statistics that are not the initial ones."""
    torch.manual_seed(seed)
    case = NETWORKS[name]()
    for module in case.network.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    case.network.eval()
    return case


def an_input(case: Case, seed: int = 7) -> torch.Tensor:
    return torch.randn(case.shape, generator=torch.Generator().manual_seed(seed))


def train(attached, case: Case, steps: int = 3, rates: dict[str, float] | None = None) -> list[set[str]]:
    """Train in train mode on noise; returns, for each step, the keys of the tensors with a gradient that is not 0."""
    kinds = ("adapter", "norm", "head", "decoder", "body")
    optimiser = torch.optim.AdamW(attached.parameter_groups(rates or dict.fromkeys(kinds, 1e-2)))
    x = an_input(case, 11)
    target = torch.randint(0, 3, (case.shape[0], *case.shape[2:]), generator=torch.Generator().manual_seed(3))
    moved = []
    for step in range(steps):
        attached.network.train()
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(attached.network(x), target)
        penalty = attached.penalty()
        (loss if penalty is None else loss + penalty).backward()
        moved.append({k for k, t in attached.trainable().items() if t.grad is not None and t.grad.abs().max() > 0})
        optimiser.step()
        attached.after_step(optimiser.param_groups[0]["lr"], (step + 1) / steps)
    attached.network.eval()
    return moved
