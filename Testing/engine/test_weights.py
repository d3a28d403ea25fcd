"""Base weights on disk, fingerprints, and heads for new structures."""

from __future__ import annotations

import pytest
import torch

from peftseg.errors import BadInput
from peftseg.models import Intensity, ModelEntry, NetworkSpec, Preprocessing, Structure, read_model_dir
from peftseg.networks import build, head_of
from peftseg.weights import fingerprint, fit_head, load_base, save_model

LIVER, SPLEEN, KIDNEY = Structure("liver", 1), Structure("spleen", 2), Structure("kidney", 3)
ARGUMENTS = {"spatial_dims": 3, "init_filters": 8, "in_channels": 1, "blocks_down": [1, 1], "blocks_up": [1]}


def make_entry(activation="softmax", structures=(LIVER, SPLEEN)):
    return ModelEntry(
        id="tiny",
        title="Tiny",
        modality="CT",
        structures=structures,
        network=NetworkSpec("segresnet", ARGUMENTS),
        activation=activation,
        preprocessing=Preprocessing("RAS", (1.0, 1.0, 1.0), Intensity("zscore")),
        window=(16, 16, 16),
        overlap=0.5,
        licence="Apache-2.0",
    )


def make_network(entry, seed=0):
    torch.manual_seed(seed)
    return build(entry.network, len(entry.structures) + (entry.activation == "softmax"))


def test_a_model_folder_gives_the_same_network_back(tmp_path):
    entry = make_entry()
    network, _ = make_network(entry)
    save_model(tmp_path / "m", entry, network)
    found = read_model_dir(tmp_path / "m")
    loaded, anatomy = load_base(found)
    assert found.structures == entry.structures
    assert anatomy.head == "conv_final.2.conv"
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    entry = make_entry()
    save_model(tmp_path / "m", entry, make_network(make_entry(structures=(LIVER,)))[0])
    with pytest.raises(BadInput, match="conv_final"):
        load_base(read_model_dir(tmp_path / "m"))


def test_a_truncated_weights_file_is_refused(tmp_path):
    entry = make_entry()
    save_model(tmp_path / "m", entry, make_network(entry)[0])
    path = tmp_path / "m" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be read"):
        load_base(read_model_dir(tmp_path / "m"))


def test_missing_weights_say_how_to_get_them(tmp_path):
    entry = make_entry()
    save_model(tmp_path / "m", entry, make_network(entry)[0])
    (tmp_path / "m" / "weights.safetensors").unlink()
    with pytest.raises(BadInput) as failure:
        load_base(read_model_dir(tmp_path / "m"))
    assert "import" in failure.value.remedy


def test_the_fingerprint_sees_every_change():
    state = {"a": torch.zeros(4), "b": torch.ones(2, 2)}
    first = fingerprint(state, "net")
    changed = {"a": torch.zeros(4), "b": torch.tensor([[1.0, 1.0], [1.0, 1.0000001]])}
    assert fingerprint({"b": state["b"], "a": state["a"]}, "net") == first
    assert fingerprint(changed, "net") != first
    assert fingerprint(state, "other") != first
    assert fingerprint({"a": torch.zeros(2, 2), "b": torch.ones(2, 2)}, "net") != first
    assert fingerprint({"a": torch.zeros(4).double(), "b": torch.ones(2, 2)}, "net") != first


def outputs(network, seed=3):
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return network.eval()(x)


def test_softmax_base_rows_and_background_are_kept_by_name():
    entry = make_entry()
    network, anatomy = make_network(entry)
    before = outputs(network)
    fit_head(network, anatomy, entry, (SPLEEN, KIDNEY), "softmax")
    after = outputs(network)
    assert torch.allclose(after[:, 0], before[:, 0], atol=1e-5)
    assert torch.allclose(after[:, 1], before[:, 2], atol=1e-5)
    assert head_of(network, anatomy).weight[2].abs().max() < head_of(network, anatomy).weight[1].abs().max()


def test_softmax_of_one_structure_equals_the_sigmoid_base():
    entry = make_entry("sigmoid")
    network, anatomy = make_network(entry)
    expected = torch.sigmoid(outputs(network)[:, 1])
    fit_head(network, anatomy, entry, (SPLEEN,), "softmax")
    assert torch.allclose(outputs(network).softmax(1)[:, 1], expected, atol=1e-5)


def test_sigmoid_of_one_structure_equals_the_softmax_base():
    entry = make_entry("softmax", (LIVER,))
    network, anatomy = make_network(entry)
    expected = outputs(network).softmax(1)[:, 1]
    fit_head(network, anatomy, entry, (LIVER,), "sigmoid")
    assert torch.allclose(torch.sigmoid(outputs(network))[:, 0], expected, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"init_filters": 4}, {"no_such_argument": 1}])
def test_impossible_network_arguments_are_bad_input(wrong):
    with pytest.raises(BadInput, match="segresnet"):
        build(NetworkSpec("segresnet", ARGUMENTS | wrong), 2)
