"""Every declared model through one table of promises, on mock-ups of the public checkpoints (random weights)."""

from __future__ import annotations

import gc
import json
import zipfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet, SegResNetDS, SwinUNETR
from torch import nn

from peftseg import checkpoint_import
from peftseg.adapter_training import make_setting, starting_network
from peftseg.adapters import attach
from peftseg.checkpoint_import import import_checkpoint, match, read_tensors, strip_names
from peftseg.early_head import EarlyHead
from peftseg.errors import BadInput
from peftseg.events import Reporter
from peftseg.foundation_models import FOUNDATION_MODELS
from peftseg.grid import Grid
from peftseg.infer import _float32_head
from peftseg.licences import accept
from peftseg.models import (
    BUNDLED,
    Layout,
    ModelEntry,
    NetworkSpec,
    Structure,
    catalogue,
    entry_from_dict,
    known_models,
    remember,
    to_dict,
)
from peftseg.networks import build, head_of, head_rows, per_axis, replace_head
from peftseg.networks.clip_driven import ClipDrivenHead
from peftseg.networks.swin_unetr import LegacyPatchMerging
from peftseg.networks.unet3d import BatchStatisticsNorm3d
from peftseg.preprocess import prepare
from peftseg.segmenter import model_segmenter, segment_volume
from peftseg.volume import Volume
from peftseg.weights import fit_head, head_width, load_base, save_model

ENTRIES = {entry.id: entry for entry in FOUNDATION_MODELS}
CLIP = {"templates": 32, "rows": [0, 1, 2, 3, 5, 6, 7, 8, 10]}
SEGRESNET = {"in_channels": 1, "init_filters": 16, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}
SWIN = {"in_channels": 1, "feature_size": 48}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def network_of(name: str, arguments: dict, rows: int) -> nn.Module:
    torch.manual_seed(0)
    return build(NetworkSpec(name, arguments), rows)[0]


class TestCounts:
    """Of the networks as built by the code of SuPreM, MONAI and ConvLoRA (Docs/references.md)."""

    @pytest.mark.parametrize(("rows", "count"), [(9, 4701033), (17, 4701169), (18, 4701186), (25, 4701305)])
    def test_segresnet(self, rows, count):
        network = network_of("segresnet", SEGRESNET, rows)
        assert parameters(network) == count
        assert len(network.state_dict()) == 83

    @pytest.mark.parametrize(
        ("rows", "count"), [(1, 19073665), (17, 19074705), (18, 19074770), (25, 19075225), (32, 19075680)]
    )
    def test_unet3d(self, rows, count):
        assert parameters(network_of("unet3d", {}, rows)) == count

    def test_unet3d_parts(self):
        network, anatomy = build(NetworkSpec("unet3d"), 25)
        assert sum(parameters(network.get_submodule(n)) for n in anatomy.encoder) == 7027776
        assert sum(parameters(network.get_submodule(n)) for n in anatomy.decoder) == 12045824

    def test_swinunetr(self):
        network, anatomy = build(NetworkSpec("swinunetr", SWIN), 9)
        assert parameters(network) == 62187051
        assert parameters(network.swinViT) == 8062002
        encoder = [n for n in anatomy.encoder if n != "swinViT"]
        assert sum(parameters(network.get_submodule(n)) for n in encoder) == 34526784
        assert sum(parameters(network.get_submodule(n)) for n in anatomy.decoder) == 19597824
        # A row more is 48 weights and a bias.
        assert parameters(head_of(network, anatomy)) == 9 * 49
        assert [62187051 + (n - 9) * 49 for n in (14, 25, 29, 32)] == [62187296, 62187835, 62188031, 62188178]

    def test_text_driven_heads(self):
        assert parameters(network_of("unet3d", {"clip_driven": CLIP}, 9)) == 19416417
        head = ClipDrivenHead(48, 768, 32, CLIP["rows"])
        assert 62187051 - 9 * 49 + parameters(head) == 62595315

    def test_unet2d(self):
        network = network_of("unet2d", {}, 1)
        assert parameters(network) == 2434771
        parts = (network.init_path, network.down1, network.down2, network.down3)
        assert [parameters(p) for p in parts] == [14160, 57760, 230208, 919168]
        assert sum(b.numel() for n, b in network.named_buffers() if "running" in n) == 6338

    def test_early_heads(self):
        assert [parameters(EarlyHead(16 * 2**level)) for level in range(4)] == [2725, 4453, 7909, 14821]

    def test_ct_fm_has_the_published_size(self):
        network = SegResNetDS(init_filters=32, blocks_down=(1, 2, 2, 4, 4), dsdepth=4, out_channels=118)
        size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
        assert size == pytest.approx(349e6, rel=0.002)


def text_head(features: int, deepest: int) -> dict[str, torch.Tensor]:
    """The Universal Model's parts beside its backbone, by the names and shapes of its authors' code."""
    shapes = {
        "precls_conv.0.weight": (features,),
        "precls_conv.0.bias": (features,),
        "precls_conv.2.weight": (8, features, 1, 1, 1),
        "precls_conv.2.bias": (8,),
        "GAP.0.weight": (deepest,),
        "GAP.0.bias": (deepest,),
        "GAP.3.weight": (256, deepest, 1, 1, 1),
        "GAP.3.bias": (256,),
        "controller.weight": (153, 512, 1, 1, 1),
        "controller.bias": (153,),
        "text_to_vision.weight": (256, 512),
        "text_to_vision.bias": (256,),
    }
    return {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}


def genesis_unet() -> dict[str, torch.Tensor]:
    """The backbone of SuPreM's U-Net by the names and shapes of its authors' code."""
    found = {}

    def unit(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.conv1.weight"] = torch.randn(outputs, inputs, 3, 3, 3) * 0.05
        found[f"{name}.conv1.bias"] = torch.zeros(outputs)
        for leaf, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            found[f"{name}.bn1.{leaf}"] = torch.full((outputs,), value)
        found[f"{name}.bn1.num_batches_tracked"] = torch.tensor(7)

    for width, (inputs, middle) in {64: (1, 32), 128: (64, 64), 256: (128, 128), 512: (256, 256)}.items():
        unit(f"down_tr{width}.ops.0", inputs, middle)
        unit(f"down_tr{width}.ops.1", middle, width)
    for width, inputs, up in ((256, 768, 512), (128, 384, 256), (64, 192, 128)):
        found[f"up_tr{width}.up_conv.weight"] = torch.randn(up, up, 2, 2, 2) * 0.05
        found[f"up_tr{width}.up_conv.bias"] = torch.zeros(up)
        unit(f"up_tr{width}.ops.0", inputs, width)
        unit(f"up_tr{width}.ops.1", width, width)
    return found


def public_tensors(entry: ModelEntry) -> dict[str, torch.Tensor]:
    """The tensors of the public file with random values, named as its authors' code names them, not as our entry does."""
    torch.manual_seed(1)
    kind, text_driven = entry.network.name, "clip_driven" in entry.network.arguments
    rows = head_width(entry.structures, entry.activation)
    if kind == "segresnet_ds":
        return SegResNetDS(out_channels=118, dsdepth=4, **entry.network.arguments).state_dict()
    if kind == "segresnet":
        return SegResNet(out_channels=rows, **entry.network.arguments).state_dict()
    if kind == "unet2d":
        return build(entry.network, rows)[0].state_dict()  # no public file; names are checked in TestUNet2D
    if kind == "unet3d":
        body, head = genesis_unet(), text_head(64, 512)
    else:
        body, head = SwinUNETR(in_channels=1, out_channels=rows, feature_size=48).state_dict(), text_head(48, 768)
    if text_driven:
        body = {f"backbone.{n}": t for n, t in body.items() if not n.startswith("out.")}
        return {"organ_embedding": torch.randn(32, 512), **body, **head}
    if entry.id == "fseft-swinunetr":
        return {n.replace("out.conv.conv.", "classifier."): t for n, t in body.items()}
    return body


PREFIXES = {"bare": "", "DataParallel": "module."}


def write(path: Path, tensors: dict[str, torch.Tensor], prefix: str = "", container: str | None = None) -> Path:
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(named, path)
        return path
    whole = {container: named, "epoch": 2100, "optimizer": {"state": {}}} if container else named
    torch.save(whole, path)
    return path


# What each public file looks like, by what its authors' code saves: the key that holds the tensors, and the prefix.
PUBLISHED = {
    "monai-wholebody-ct-1.5mm": (None, ""),
    "monai-wholebody-ct-3mm": (None, ""),
    "ct-fm-wholebody": (None, ""),
    "suprem-segresnet": ("net", "module."),
    "suprem-unet": ("net", "module."),
    "suprem-swinunetr": ("net", "module."),
    "universal-unet": ("net", "module."),
    "universal-swinunetr": ("net", "module."),
    "fseft-swinunetr": (None, "module."),
    "btcv-swinunetr": ("state_dict", ""),
    "cc359-unet2d": (None, ""),
}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTSEGMENT_HOME", str(tmp_path / "home"))


def unhashed(entry: ModelEntry) -> ModelEntry:
    """The entry without its published hash, which no mock-up can have."""
    return replace(entry, source=replace(entry.source, md5="", sha256=""))


def spoilt(tensors: dict[str, torch.Tensor], how: str, head: str) -> dict[str, torch.Tensor]:
    body = [name for name in tensors if head.split(".", maxsplit=1)[0] not in name and tensors[name].ndim > 1]
    first = body[0]
    if how == "missing":
        return {name: t for name, t in tensors.items() if name != first}
    if how == "misshapen":
        return tensors | {first: torch.zeros(2, 2)}
    if how == "unexpected":
        return tensors | {"extra.weight": torch.zeros(1)}
    return {f"net.inner.{name}": t for name, t in tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("model", ENTRIES)
class TestEveryEntry:
    """Builds, loads its public file, refuses others, runs, round-trips, adapts."""

    def test_promises(self, model, tmp_path):
        entry = unhashed(ENTRIES[model])
        accept(entry)
        container, prefix = PUBLISHED[model]
        tensors = public_tensors(entry)

        # Every prefix, as far as names go.
        network, _ = build(entry.network, head_width(entry.structures, entry.activation))
        for added in PREFIXES.values():
            report = match(network, strip_names({added + name: t for name, t in tensors.items()}, entry.layout))
            assert report.complete, report.sentence()
        del network

        file = write(tmp_path / entry.source.file, tensors, prefix, container)
        imported = import_checkpoint(entry, file, reporter=Reporter.silent())
        file.unlink()
        assert imported.structures == entry.structures
        assert imported.record["import"]["hash"].startswith("recorded")
        assert len(imported.record["import"]["sha256"]) == 64

        # Through safetensors and the catalogue, tensor by tensor.
        found = catalogue()[model]
        assert found.weights_path is not None
        loaded, anatomy = load_base(found)
        expected = strip_names(tensors, entry.layout)
        state = loaded.state_dict()
        assert set(state) == set(expected)
        assert all(
            torch.equal(state[n], expected[n].float() if expected[n].is_floating_point() else expected[n])
            for n in state
        )

        # Forward: logits, a row a structure; nothing in the network changes.
        size = per_axis(anatomy.divisor)
        size = (2 * size[0], *size[1:])  # the smallest whose deepest level can be normalised
        image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(2))
        before = {n: t.clone() for n, t in state.items()}
        with torch.inference_mode():
            logits = loaded(image)
        rows = len(entry.structures) + (entry.activation == "softmax")
        assert logits.shape == (1, rows, *size)
        assert torch.isfinite(logits).all()
        assert all(torch.equal(before[n], t) for n, t in loaded.state_dict().items())
        del before

        # One step of ARENA on a base structure and a novel one.
        asked = (replace(entry.structures[0], value=1), Structure("novel", 2))
        fit_head(loaded, anatomy, found, asked, "softmax")
        attached = attach(loaded, anatomy, "arena", {"rank": 2}, train_decoder=False)
        rates = dict.fromkeys(("adapter", "head"), 1e-2)
        optimiser = torch.optim.AdamW(attached.parameter_groups(rates))
        loaded.train()
        output = loaded(image)
        assert output.shape[1] == 3
        nn.functional.cross_entropy(output, torch.randint(0, 3, (1, *size))).backward()
        optimiser.step()
        attached.after_step(1e-2, 0.5)
        assert all(torch.isfinite(t).all() for t in attached.state().values())
        gc.collect()

    @pytest.mark.parametrize("how", ["missing", "misshapen", "unexpected", "prefixed"])
    def test_refuses_what_is_not_its_own(self, model, how, tmp_path, monkeypatch):
        """The spoilt tensors are not written out, which would be up to 350 MB a case; reading is tested above."""
        entry = unhashed(ENTRIES[model])
        tensors, head = model_and_head(model)
        spoilt_ones = spoilt(tensors, how, head)
        monkeypatch.setattr(checkpoint_import, "read_tensors", lambda file, layout: dict(spoilt_ones))
        (tmp_path / entry.source.file).write_bytes(b"not read")
        with pytest.raises(BadInput, match=r"does not fit .*Likely cause"):
            import_checkpoint(entry, tmp_path / entry.source.file, reporter=Reporter.silent())
        assert catalogue()[model].weights_path is None


@lru_cache(maxsize=1)
def model_and_head(model: str) -> tuple[dict[str, torch.Tensor], str]:
    """The public tensors of a model and the name of its head; the last one is kept for the next test."""
    return public_tensors(ENTRIES[model]), build(ENTRIES[model].network, 2)[1].head


SMALL = replace(
    ENTRIES["suprem-segresnet"],
    source=None,
    network=NetworkSpec("segresnet", {"in_channels": 1, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}),
)


def small_tensors(rows: int) -> dict[str, torch.Tensor]:
    return network_of("segresnet", SMALL.network.arguments, rows).state_dict()


class TestLoader:
    @pytest.mark.parametrize(("rows", "last"), [(9, "stomach"), (25, "rectum")])
    def test_structures_are_read_from_the_heads_shape(self, rows, last, tmp_path):
        file = write(tmp_path / "w.pth", small_tensors(rows), "module.", "net")
        imported = import_checkpoint(SMALL, file, reporter=Reporter.silent())
        assert len(imported.structures) == rows
        assert imported.structures[-1].name == last
        found = catalogue()[SMALL.id]
        assert found.structures == imported.structures
        with pytest.raises(BadInput, match="models accept"):
            load_base(found)
        accept(found)
        network, anatomy = load_base(found)
        assert head_of(network, anatomy).out_channels == rows

    def test_other_heads_are_refused(self, tmp_path):
        file = write(tmp_path / "w.pth", small_tensors(13), "module.", "net")
        with pytest.raises(BadInput, match=r"13 outputs.*25 or 9"):
            import_checkpoint(SMALL, file, reporter=Reporter.silent())

    def test_prefixes_are_anchored(self):
        names = {"module.a.module.b": torch.zeros(1), "module.c": torch.zeros(1)}
        assert set(strip_names(names, Layout())) == {"a.module.b", "c"}
        # A prefix that only some carry stays: guessing would hide a mixture.
        assert set(strip_names({"module.a": torch.zeros(1), "b": torch.zeros(1)}, Layout())) == {"module.a", "b"}

    def test_renames_match_whole_components(self):
        layout = Layout(renames=(("swin", "body"),))
        assert set(strip_names({"swin.a": torch.zeros(1), "swine.a": torch.zeros(1)}, layout)) == {"body.a", "swine.a"}

    def test_half_precision_becomes_float32(self, tmp_path):
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in small_tensors(9).items()}
        imported = import_checkpoint(SMALL, write(tmp_path / "w.pth", tensors), reporter=Reporter.silent())
        accept(imported)
        assert all(t.dtype == torch.float32 for t in load_base(imported)[0].state_dict().values())

    def test_code_in_a_checkpoint_is_never_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"net": small_tensors(9), "hook": Evil()}, tmp_path / "evil.pth")
        with pytest.raises(BadInput, match="would run code"):
            import_checkpoint(SMALL, tmp_path / "evil.pth", reporter=Reporter.silent())
        assert not (tmp_path / "ran").exists()

    def test_numbers_of_numpy_in_a_checkpoint_are_harmless(self, tmp_path):
        torch.save({"net": small_tensors(9), "best": np.float64(0.5), "epoch": np.int64(3)}, tmp_path / "w.pth")
        assert len(read_tensors(tmp_path / "w.pth", Layout())) == len(small_tensors(9))

    def test_numbers_of_numpy_1_too(self, tmp_path):
        """Files from before 2024, as MONAI's BTCV training writes them ("best_acc")."""
        torch.save({"state_dict": {"a": torch.zeros(2)}, "best_acc": np.float32(0.8)}, tmp_path / "w.pth")
        with zipfile.ZipFile(tmp_path / "w.pth") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        new, old = (f"c{core}.multiarray\nscalar".encode() for core in ("numpy._core", "numpy.core"))
        assert any(new in data or old in data for data in parts.values())
        with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
            for name, data in parts.items():
                archive.writestr(name, data.replace(new, old))
        assert set(read_tensors(tmp_path / "w.pth", Layout())) == {"a"}

    @pytest.mark.parametrize(
        "content", [b"<html>not found</html>", b"", b"PK\x03\x04half", b"\x80\x02}q", b"hello", b"\x80\x02]q\x00."]
    )
    def test_no_checkpoint_at_all(self, content, tmp_path):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(BadInput, match=r"w\.pth (cannot be read|holds no tensors)"):
            import_checkpoint(SMALL, tmp_path / "w.pth", reporter=Reporter.silent())

    def test_a_wrong_hash_is_refused_and_nothing_is_written(self, tmp_path):
        entry = replace(SMALL, source=replace(ENTRIES["suprem-segresnet"].source, md5="0" * 32))
        file = write(tmp_path / "w.pth", small_tensors(9), "module.", "net")
        with pytest.raises(BadInput, match="0000"):
            import_checkpoint(entry, file, reporter=Reporter.silent())
        assert catalogue()[SMALL.id].weights_path is None

    @pytest.mark.parametrize(
        ("change", "cause"),
        [
            (lambda t: {f"student.{n}": v for n, v in t.items()}, "unknown prefix 'student.'"),
            (lambda t: {f"x{i}": v for i, v in enumerate(t.values())}, "another network"),
            (lambda t: {n: v for n, v in t.items() if not n.startswith("conv_final.2")}, "without its last layer"),
            (lambda t: {n: v for n, v in t.items() if n.startswith(("convInit", "down"))}, "encoder only"),
            (lambda t: t | {"convInit.conv.weight": torch.zeros(4, 1, 3, 3, 3)}, "another width"),
        ],
    )
    def test_likely_causes(self, change, cause, tmp_path):
        file = write(tmp_path / "w.pth", change(small_tensors(9)))
        with pytest.raises(BadInput, match=cause):
            import_checkpoint(replace(SMALL, structures=SMALL.alternatives[0]), file, reporter=Reporter.silent())

    def test_entries_survive_json(self):
        for entry in FOUNDATION_MODELS:
            assert entry_from_dict(to_dict(entry)) == entry


@pytest.fixture(scope="module")
def text_driven() -> dict[str, torch.Tensor]:
    return public_tensors(ENTRIES["suprem-unet"])


class TestTextDrivenHead:
    ENTRY = ENTRIES["suprem-unet"]

    def test_left_out_on_request_it_says_so(self, text_driven, tmp_path):
        file = write(tmp_path / "w.pth", text_driven, "module.", "net")
        reporter = Reporter.silent()
        imported = import_checkpoint(self.ENTRY, file, reporter=reporter, clip_driven=False)
        assert imported.structures == ()
        assert any("before it is adapted" in e.get("message", "") for e in reporter.events)
        accept(imported)
        network, anatomy = load_base(imported)
        assert not isinstance(head_of(network, anatomy), ClipDrivenHead)

    def test_demanded_but_not_there(self, text_driven, tmp_path):
        backbone = {n: t for n, t in text_driven.items() if n.startswith("backbone.")}
        file = write(tmp_path / "w.pth", backbone, "module.", "net")
        with pytest.raises(BadInput, match="no text-driven head"):
            import_checkpoint(self.ENTRY, file, reporter=Reporter.silent(), clip_driven=True)
        assert import_checkpoint(self.ENTRY, file, reporter=Reporter.silent()).structures == ()

    @torch.no_grad()
    def test_computes_what_the_paper_says(self):
        """One structure and one voxel at a time, without grouped convolutions."""
        torch.manual_seed(0)
        head = ClipDrivenHead(16, 32, 5, (3, 1)).eval()
        features, deepest = torch.randn(2, 16, 2, 3, 2), torch.randn(2, 32, 1, 1, 1)
        got = head(features, deepest)
        assert got.shape == (2, 2, 2, 3, 2)
        for scan in range(2):
            context = head.GAP(deepest[scan : scan + 1]).flatten()
            inputs = head.precls_conv(features[scan : scan + 1])[0]
            for place, row in enumerate((3, 1)):
                text = torch.relu(head.text_to_vision(head.organ_embedding[row]))
                made = head.controller(torch.cat([context, text])[None, :, None, None, None]).flatten()
                w1, w2, w3 = made[:64].reshape(8, 8), made[64:128].reshape(8, 8), made[128:136].reshape(1, 8)
                b1, b2, b3 = made[136:144], made[144:152], made[152:]
                voxel = inputs[:, 1, 2, 0]
                value = w3 @ torch.relu(w2 @ torch.relu(w1 @ voxel + b1) + b2) + b3
                assert got[scan, place, 1, 2, 0] == pytest.approx(float(value), abs=1e-5)

    @pytest.mark.parametrize(("scratch", "trained"), [(False, True), (True, True)])
    def test_its_structures_are_learnt_anew_with_the_decoder(self, scratch, trained, text_driven, tmp_path):
        """Its head has no rows to start from; from scratch, too, there is a row for each structure that is asked for."""
        file = write(tmp_path / "w.pth", text_driven, "module.", "net")
        entry = import_checkpoint(self.ENTRY, file, reporter=Reporter.silent())
        asked, loaded = (Structure("liver", 1), Structure("spleen", 2)), SimpleNamespace(masks={})
        loaded.volume = SimpleNamespace(grid=Grid((4, 4, 4), np.eye(4)))
        cpu = torch.device("cpu")
        accept(entry)
        setting = make_setting(entry, asked, [loaded], "lora", {}, cpu, Reporter.silent())
        assert setting.train_decoder is trained
        network, anatomy, _ = starting_network(replace(setting, scratch=scratch))
        assert head_of(network, anatomy).out_channels == 3

    def test_logits_are_float32_in_16_bits(self):
        head = ClipDrivenHead(16, 32, 5, (3, 1)).eval()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert head(torch.randn(1, 16, 4, 4, 4), torch.randn(1, 32, 2, 2, 2)).dtype == torch.float32

    def test_names_and_shapes_are_those_of_the_public_file(self):
        """Read from MrGiovanni/SuPreM's and ljwztc/CLIP-Driven-Universal-Model's code, not from ours."""
        shapes = {
            "organ_embedding": (32, 512),
            "backbone.down_tr64.ops.0.conv1.weight": (32, 1, 3, 3, 3),
            "backbone.down_tr512.ops.1.bn1.running_var": (512,),
            "backbone.up_tr256.up_conv.weight": (512, 512, 2, 2, 2),
            "backbone.up_tr256.ops.0.conv1.weight": (256, 768, 3, 3, 3),
            "backbone.up_tr64.ops.1.bn1.num_batches_tracked": (),
            "precls_conv.0.weight": (64,),
            "precls_conv.2.weight": (8, 64, 1, 1, 1),
            "GAP.0.weight": (512,),
            "GAP.3.weight": (256, 512, 1, 1, 1),
            "controller.weight": (153, 512, 1, 1, 1),
            "text_to_vision.weight": (256, 512),
        }
        with torch.device("meta"):
            ours = build(self.ENTRY.network, 9)[0].state_dict()
        public = {f"module.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}
        found = strip_names(public, self.ENTRY.layout)
        assert len(found) == len(shapes)
        assert {name: tensor.shape for name, tensor in found.items()} == {name: ours[name].shape for name in found}

    def test_a_head_row_that_is_no_template_is_refused(self):
        with pytest.raises(ValueError, match="0 to 31"):
            ClipDrivenHead(48, 768, 32, (32,))


class TestPatchMerging:
    def test_legacy_order_is_that_of_monai_before_1_5(self):
        """The eight slices as MONAI 0.9 to 1.4 wrote them: two twice, two never."""
        merging = LegacyPatchMerging(2)
        merging.norm, merging.reduction = nn.Identity(), nn.Identity()
        x = torch.arange(2.0**3 * 2).reshape(1, 2, 2, 2, 2)
        order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
        expected = torch.cat([x[0, i, j, k] for i, j, k in order])
        assert torch.equal(merging(x).flatten(), expected)

    def test_the_entry_decides_not_monai(self):
        small = {"in_channels": 1, "feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [3, 6, 12, 24]}
        image = torch.randn(1, 1, 64, 64, 64)
        networks = {}
        for merging in ("legacy", "monai-1.5"):
            torch.manual_seed(0)
            networks[merging] = build(NetworkSpec("swinunetr", {**small, "merging": merging}), 2)[0].eval()
        torch.manual_seed(0)
        theirs = SwinUNETR(out_channels=2, **small).eval()
        with torch.inference_mode():
            new, old, monai = networks["monai-1.5"](image), networks["legacy"](image), theirs(image)
        assert torch.equal(new, monai)  # with the head of its own the network is MONAI's
        assert (old - monai).abs().max() > 0.01

    def test_every_public_entry_is_legacy(self):
        orders = {e.network.arguments["merging"] for e in FOUNDATION_MODELS if e.network.name == "swinunetr"}
        assert orders == {"legacy"}

    def test_unknown_order(self):
        with pytest.raises(BadInput, match="legacy"):
            build(NetworkSpec("swinunetr", {**SWIN, "merging": "newest"}), 2)


class TestBatchStatistics:
    def test_batch_statistics_in_evaluation_and_no_change_of_buffers(self):
        torch.manual_seed(0)
        norm = BatchStatisticsNorm3d(3).eval()
        x = torch.randn(2, 3, 4, 4, 4) * 5 + 2
        expected = (x - x.mean((0, 2, 3, 4), keepdim=True)) / torch.sqrt(
            x.var((0, 2, 3, 4), unbiased=False, keepdim=True) + norm.eps
        )
        assert torch.allclose(norm(x), expected, atol=1e-5)
        assert torch.equal(norm.running_mean, torch.zeros(3))
        norm.train()(x)
        assert torch.equal(norm.running_mean, torch.zeros(3))
        assert int(norm.num_batches_tracked) == 0


class TestUNet2D:
    def test_a_volume_is_its_slices(self):
        network = network_of("unet2d", {"filters": 4}, 2).eval()
        volume = torch.randn(2, 1, 16, 24, 3)
        with torch.inference_mode():
            whole = network(volume)
            slices = torch.stack([network(volume[..., k]) for k in range(3)], -1)
        assert torch.allclose(whole, slices, atol=1e-5)

    def test_the_norm_after_the_head_is_folded_into_new_rows(self):
        torch.manual_seed(0)
        network, anatomy = build(NetworkSpec("unet2d", {"filters": 4}), 1)
        norm = network.out_path[2]
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, -0.2)
        network.eval()
        image = torch.randn(1, 1, 16, 16)
        with torch.inference_mode():
            before = network(image)
        entry = replace(ENTRIES["cc359-unet2d"], structures=(Structure("brain", 1),))
        fit_head(network, anatomy, entry, (Structure("brain", 1), Structure("other", 2)), "sigmoid")
        with torch.inference_mode():
            after = network(image)
        assert after.shape[1] == 2
        assert torch.allclose(after[:, :1], before, atol=1e-5)
        assert head_rows(network, anatomy)[0].shape[0] == 2

    def test_empty_voxels_are_the_darkest_as_in_its_training(self):
        """Smallest value to 0, largest to 1; voxels of 0 are not filled with the mean, as MONAI's models want it."""
        array = np.random.default_rng(0).uniform(10, 90, (12, 10, 8)).astype(np.float32)
        array[:4] = 0
        volume = Volume(array, Grid(array.shape, np.eye(4)), "study")
        image = prepare(volume, ENTRIES["cc359-unet2d"].preprocessing).image
        assert image.min() == 0
        assert image.max() == pytest.approx(1.0, abs=1e-5)
        assert int((image == 0).sum()) >= 4 * 10 * 8

    def test_its_head_runs_in_float32_in_16_bits(self):
        network, anatomy = build(NetworkSpec("unet2d", {"filters": 4}), 2)
        replace_head(network, anatomy, 2)
        with torch.inference_mode(), _float32_head(network.eval()), torch.autocast("cpu", dtype=torch.bfloat16):
            assert network(torch.randn(1, 1, 16, 16, 2)).dtype == torch.float32

    def test_names_are_those_of_its_authors_code(self):
        """From aleemsidra/ConvLoRA models.py and neuro-ml/deep_pipe's blocks."""
        network = network_of("unet2d", {}, 1)
        shapes = {
            "init_path.0.weight": (16, 1, 3, 3),
            "init_path.2.conv_path.0.bn.weight": (16,),
            "init_path.4.conv_path.1.layer.weight": (16, 16, 3, 3),
            "shortcut0.bias": (16,),
            "down1.0.running_mean": (16,),
            "down1.1.weight": (32, 16, 2, 2),
            "down3.6.conv_path.0.layer.weight": (128, 128, 3, 3),
            "up3.3.weight": (128,),
            "up3.4.weight": (128, 64, 2, 2),
            "out_path.0.conv_path.0.layer.weight": (16, 16, 1, 1),
            "out_path.1.layer.bias": (1,),
            "out_path.2.num_batches_tracked": (),
        }
        state = network.state_dict()
        assert {name: tuple(state[name].shape) for name in shapes} == shapes

    def test_early_heads_have_the_input_size(self):
        network = network_of("unet2d", {"filters": 16}, 1).eval()
        image = torch.randn(1, 1, 32, 48)
        with torch.inference_mode():
            features = network.encode(image)
            heads = [EarlyHead(16 * 2**k).eval() for k in range(4)]
            logits = [head(f, (32, 48)) for head, f in zip(heads, features, strict=True)]
        assert [tuple(z.shape) for z in logits] == [(1, 1, 32, 48)] * 4


class TestZeroShot:
    """A model as it is: structures by name, one yes-or-no output each."""

    @pytest.fixture
    def volume(self):
        rng = np.random.default_rng(0)
        affine = np.diag([1.5, 1.5, 1.5, 1.0])
        return Volume(rng.uniform(-200, 300, (20, 18, 16)).astype(np.float32), Grid((20, 18, 16), affine), "study")

    def test_a_sigmoid_model_gives_a_mask_a_structure(self, volume, tmp_path):
        tensors = small_tensors(9)
        tensors["conv_final.2.conv.bias"] = torch.full((9,), -50.0)
        tensors["conv_final.2.conv.bias"][[7, 8]] = 50.0  # spleen and stomach everywhere
        import_checkpoint(SMALL, write(tmp_path / "w.pth", tensors, "module.", "net"), reporter=Reporter.silent())
        accept(catalogue()[SMALL.id])
        segmenter = model_segmenter(SMALL.id)
        masks = segment_volume(segmenter, volume, torch.device("cpu"))
        there = {s.name for s, mask in zip(segmenter.structures, masks, strict=True) if mask.any()}
        assert masks.shape == (9, 20, 18, 16)
        assert there == {"spleen", "stomach"}

    def test_before_its_licence_is_accepted_it_is_refused(self, tmp_path):
        import_checkpoint(SMALL, write(tmp_path / "w.pth", small_tensors(9)), reporter=Reporter.silent())
        with pytest.raises(BadInput, match="models accept suprem-segresnet"):
            model_segmenter(SMALL.id)

    def test_without_a_head_it_says_what_to_do(self, text_driven, tmp_path):
        entry = ENTRIES["suprem-unet"]
        file = write(tmp_path / "w.pth", text_driven, "module.", "net")
        import_checkpoint(entry, file, reporter=Reporter.silent(), clip_driven=False)
        accept(catalogue()[entry.id])
        with pytest.raises(BadInput, match="Adapt it"):
            model_segmenter(entry.id)


class TestNonzeroRange:
    """MONAI's NormalizeIntensity(nonzero) and ScaleIntensity to -1..1, against MONAI."""

    def test_equals_monai(self):
        from monai.transforms import NormalizeIntensity, ScaleIntensity

        rng = np.random.default_rng(0)
        array = rng.integers(-50, 50, (12, 10, 8)).astype(np.float32) * 10
        assert (array == 0).any()
        expected = ScaleIntensity(-1.0, 1.0)(NormalizeIntensity(nonzero=True)(array[None]))
        recipe = ENTRIES["monai-wholebody-ct-1.5mm"].preprocessing
        volume = Volume(array, Grid(array.shape, np.diag([1.5, 1.5, 1.5, 1.0])), "study")
        assert np.allclose(prepare(volume, recipe).image, expected, atol=1e-5)

    def test_a_constant_study_is_no_error(self):
        volume = Volume(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), np.diag([1.5, 1.5, 1.5, 1.0])), "study")
        image = prepare(volume, ENTRIES["monai-wholebody-ct-1.5mm"].preprocessing).image
        assert torch.isfinite(image).all()


class TestCatalogue:
    def test_what_is_declared_anew_reaches_an_imported_model(self, tmp_path, monkeypatch):
        """Its structures and network stay those of the file; licence and preprocessing are the catalogue's."""
        file = write(tmp_path / "w.pth", small_tensors(9), "module.", "net")
        imported = import_checkpoint(SMALL, file, reporter=Reporter.silent())
        accept(imported)
        newer = replace(SMALL, licence="another licence", overlap=0.1)
        monkeypatch.setattr("peftseg.foundation_models.FOUNDATION_MODELS", (newer,))
        found = catalogue()[SMALL.id]
        assert (found.licence, found.overlap) == ("another licence", 0.1)
        assert found.structures == imported.structures
        assert found.network == imported.network
        with pytest.raises(BadInput, match="models accept"):
            load_base(found)

    def test_a_damaged_folder_does_not_hide_the_others(self, tmp_path):
        folder = tmp_path / "home" / "models" / "broken"
        folder.mkdir(parents=True)
        (folder / "model.json").write_text("{")
        entries, problems = known_models()
        assert "phantom-ct" in {e.id for e in entries}
        assert len(problems) == 1
        assert "broken" in problems[0]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda d: d.pop("title"),
            lambda d: d.pop("window"),
            lambda d: d["structures"][0].pop("code"),
            lambda d: d["preprocessing"]["intensity"].update(gamma=2),
            lambda d: d["source"].update(size_mb=1),
            lambda d: d.update(layout={}),
        ],
    )
    def test_nor_does_one_that_lacks_a_field(self, damage, tmp_path):
        data = to_dict(ENTRIES["suprem-segresnet"])
        damage(data)
        folder = tmp_path / "home" / "models" / "broken"
        folder.mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps(data))
        entries, problems = known_models()
        assert "phantom-ct" in {e.id for e in entries}
        assert len(problems) == 1
        assert "not complete" in problems[0]

    @pytest.mark.parametrize("content", [b"3", b"[]", b'{"id": "\xff"}'])
    def test_nor_does_one_that_is_no_description_at_all(self, content, tmp_path):
        folder = tmp_path / "home" / "models" / "broken"
        folder.mkdir(parents=True)
        (folder / "model.json").write_bytes(content)
        assert len(known_models()[1]) == 1

    def test_a_folder_that_was_adapted_by_path_is_found_again(self, tmp_path):
        network = network_of("segresnet", SMALL.network.arguments, 9)
        entry = replace(SMALL, id="ours", structures=SMALL.alternatives[0], alternatives=(), acknowledge=False)
        save_model(tmp_path / "elsewhere", entry, network)
        assert "ours" not in catalogue()
        remember(tmp_path / "elsewhere")
        assert catalogue()["ours"].directory == (tmp_path / "elsewhere").resolve()
        (tmp_path / "elsewhere" / "model.json").unlink()
        assert "ours" not in catalogue()

    def test_a_folder_that_is_listed_anyway_is_not_listed_twice(self):
        remember(BUNDLED / "phantom-ct")
        assert [e.id for e in known_models()[0]].count("phantom-ct") == 1

    def test_a_damaged_list_of_folders_is_told(self, tmp_path):
        (tmp_path / "home" / "models").mkdir(parents=True)
        (tmp_path / "home" / "models" / "folders.json").write_text("{[")
        assert "folders.json" in known_models()[1][0]
