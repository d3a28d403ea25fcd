"""What step 5 says about maps and bars."""

from __future__ import annotations

from slicer.i18n import tr as _

from .inspect_layers import HEAD
from .inspect_maps import GRAD_CAM, MapFacts


def caution() -> str:
    """What is said beside every map."""
    return _("A map does not show that the result is right.")


def purpose(method: str) -> str:
    """What a method is for, in a sentence."""
    if method == GRAD_CAM:
        return _("Grad-CAM: which places in the scan speak for the structure, by one layer of the model.")
    return _("ProtoSeg: how well each layer of the model, taken alone, tells the structure from the rest.")


def reading(facts: MapFacts) -> str:
    """How to read a map, in a sentence."""
    if facts.method == GRAD_CAM:
        return _(
            "Bright: what {layer} sees there speaks for '{structure}'. Dark or uncoloured: it hardly does."
        ).format(layer=facts.label, structure=facts.structure)
    return _("Coloured: to {layer} alone, these places look more like '{structure}' than like the rest.").format(
        layer=facts.label, structure=facts.structure
    )


def nothing_found(structure: str, _label: str) -> str:
    """Nothing was predicted, so there is nothing to explain."""
    return _(
        "The model finds nothing of '{structure}' in this scan: there is nothing to explain, so there is no map."
    ).format(structure=structure)


def nothing_speaks(structure: str, label: str) -> str:
    """Of a Grad-CAM that is 0 everywhere."""
    return _("Nothing that {layer} sees speaks for '{structure}': its map is empty. Try another layer.").format(
        layer=label, structure=structure
    )


def waits(facts: MapFacts, scan: str) -> str:
    """A map is there, but the views show something else, or the user is painting."""
    return _("The map of {scan} is ready; click {layer} in the list to see it.").format(scan=scan, layer=facts.label)


def bars(structure: str, labelled: bool, not_defined: bool) -> str:
    """What the bars of a ProtoSeg mean."""
    if not_defined:
        return _(
            "The model finds nothing of '{structure}' in this scan: Segmentation Ability is not defined, and the maps are "
            "empty."
        ).format(structure=structure)
    if labelled:
        return _(
            "Segmentation Ability, 0 to 1: how well the map of each layer matches your labels of '{structure}'. Click a layer "
            "to see its map."
        ).format(structure=structure)
    return _(
        "Agreement, 0 to 1: how well the map of each layer matches the model's own '{structure}'. Segmentation Ability is not "
        "defined without your labels. Click a layer to see its map."
    ).format(structure=structure)


def layer_tip(kind: str, name: str, detail: str, channels: int, adapted: bool) -> str:
    """The tool tip of a layer."""
    lines = [
        _("Sees the scan at {detail} detail and looks for {count} patterns in it.").format(
            detail=detail, count=channels
        ),
        _("Technical name: {name}").format(name=name),
    ]
    if adapted:
        lines.insert(0, _("Changed by the adapter."))
    if kind == HEAD:
        lines.insert(0, _("The last step: its map is the result itself and explains nothing."))
    return "\n".join(lines)


def ability_tip(sa: float | None, agreement: float | None, control: float | None) -> str:
    """The tool tip of a bar."""
    lines = []
    if sa is not None:
        lines.append(_("Match with your labels (Segmentation Ability): {value:.2f}").format(value=sa))
    if agreement is not None:
        lines.append(_("Match with the model's own result: {value:.2f}").format(value=agreement))
    if control is not None:
        lines.append(_("Control, the example taken from your labels: {value:.2f}").format(value=control))
    return "\n".join(lines) or _("Not defined")
