"""The user's choices in one typed record that is saved with the scene."""

import slicer
from slicer.parameterNodeWrapper import parameterNodeWrapper


@parameterNodeWrapper
class ModuleState:
    """What the user has chosen. Lists of records are JSON texts; `support.py` and `structures.py` read them.

    Attributes
    ----------
    model : str
        Id of the foundation model, "" before one is chosen.
    scan : vtkMRMLScalarVolumeNode
        The scan that "try" and "apply" work on.
    structures : str
        JSON list of the structures to learn.
    support : str
        JSON list of the support scans: key, and the user's marks by structure name.
    currentRow : str
        Key of the support scan that is being edited, or "".
    labelled : bool
        Adapt from labelled scans (True), or from unlabelled ones of a new scanner.
    adapterName : str
        Name of the adapter to make.
    siteName : str
        Name of the adapter to make from unlabelled scans.
    siteLeftOut : str
        JSON list of the tokens of unlabelled scans that are not to be used.
    sitePreset : str
        Way to adapt to unlabelled scans, "" for the default.
    siteOptions : str
        JSON object of the options of that way.
    sitePasses : int
        Passes over the unlabelled scans; 0 for the way's own number.
    method : str
        Adaptation method, "" for the default.
    methodOptions : str
        JSON object of the method's options.
    minutes : float
        Time for the adaptation; 0 for the engine's own limit.
    estimate : bool
        Leave each scan out once, to see how well the adapter does on scans that it has not seen.
    seed : int
        Start of the random numbers.
    device : str
        What adapts: "auto", "cuda", "mps" or "cpu".
    adapter : str
        Reference of the adapter to apply, e.g. "liver, site A-v2", or "".
    allScans : bool
        Apply to all loaded scans instead of the chosen one.
    """

    model: str = ""
    scan: slicer.vtkMRMLScalarVolumeNode
    structures: str = "[]"
    support: str = "[]"
    currentRow: str = ""
    labelled: bool = True
    adapterName: str = ""
    siteName: str = ""
    siteLeftOut: str = "[]"
    sitePreset: str = ""
    siteOptions: str = "{}"
    sitePasses: int = 0
    method: str = ""
    methodOptions: str = "{}"
    minutes: float = 0.0
    estimate: bool = False
    seed: int = 0
    device: str = "auto"
    adapter: str = ""
    allScans: bool = False
