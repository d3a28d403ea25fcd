"""Reading and writing nodes and scenes through the real MRML storage classes (`slicer.app.coreIOManager()`)."""

from __future__ import annotations

from pathlib import Path

import vtk

VOLUMES = (".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd", ".hdr")
SCENES = (".mrml", ".mrb")


class CoreIOManager:
    """The methods of qSlicerCoreIOManager that slicer.util uses."""

    def __init__(self, scene, logics: dict):
        self._scene, self._logics = scene, logics
        self._blocked = False
        self.recent: list[str] = []  # what the main window puts into its list, by the signal newFileLoaded

    def blockSignals(self, block: bool) -> bool:
        before, self._blocked = self._blocked, block
        return before

    def fileType(self, path) -> str:
        name = Path(path).name.lower()
        if name.endswith((".seg.nrrd", ".seg.nhdr")):
            return "SegmentationFile"
        kinds = {
            VOLUMES: "VolumeFile",
            SCENES: "SceneFile",
            (".csv", ".tsv"): "TableFile",
            (".txt", ".json"): "TextFile",
        }
        return next((kind for endings, kind in kinds.items() if name.endswith(endings)), "NoFile")

    def fileWriterFileType(self, node, _extension: str = "") -> str:
        return "SegmentationFile" if node.IsA("vtkMRMLSegmentationNode") else "NodeFile"

    def loadNodes(self, file_type: str, parameters: dict, loaded=None, messages=None) -> bool:
        if parameters.get("fileName") is None or not isinstance(parameters["fileName"], str):
            raise TypeError("fileName must be a str: Qt cannot convert a Path")
        path = parameters["fileName"]
        if not self._blocked:
            self.recent.append(path)  # also of a file that cannot be read
        if not Path(path).exists():
            return self._refuse(messages, f"{path} does not exist")
        if file_type == "SceneFile":
            return self.loadScene(path, parameters.get("clear", False), messages)
        reader = {"VolumeFile": self._volume, "SegmentationFile": self._segmentation}.get(file_type, self._by_storage)
        node = reader(path, parameters, file_type)
        if node is None:
            return self._refuse(messages, f"{path} cannot be read as {file_type}")
        if loaded is not None:
            loaded.AddItem(node)
        return True

    @staticmethod
    def _refuse(messages, text: str) -> bool:
        if messages is not None:
            messages.AddMessage(vtk.vtkCommand.ErrorEvent, text)
        return False

    def _volume(self, path: str, parameters: dict, _file_type: str):
        name = parameters.get("name") or Path(path).name.split(".")[0]
        options = 1 if parameters.get("labelmap") else 0
        return self._logics["volumes"].AddArchetypeVolume(path, name, options)

    def _segmentation(self, path: str, parameters: dict, _file_type: str):
        name = parameters.get("name") or Path(path).name.split(".")[0]
        return self._logics["segmentations"].LoadSegmentationFromFile(path, True, name)

    def _by_storage(self, path: str, parameters: dict, file_type: str):
        kinds = {
            "TableFile": "vtkMRMLTableNode",
            "TextFile": "vtkMRMLTextNode",
            "ColorTableFile": "vtkMRMLColorTableNode",
        }
        if file_type not in kinds:
            raise NotImplementedError(f"the test host does not read files of type {file_type}")
        node = self._scene.AddNewNodeByClass(kinds[file_type], parameters.get("name") or Path(path).stem)
        node.AddDefaultStorageNode(path)
        if not node.GetStorageNode().ReadData(node):
            self._scene.RemoveNode(node)
            return None
        return node

    def loadScene(self, path: str, clear: bool = True, _messages=None) -> bool:
        scene = self._scene
        if path.endswith(".mrb"):
            return bool(scene.ReadFromMRB(path, clear))
        scene.SetURL(path)
        return bool(scene.Connect() if clear else scene.Import())

    def saveNodes(self, file_type: str, parameters: dict, messages=None, _scene=None) -> bool:
        path = str(parameters["fileName"])
        if file_type == "SceneFile":
            return self._save_scene(path)
        node = self._scene.GetNodeByID(parameters["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode(path)
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in parameters:
            storage.SetUseCompression(int(parameters["useCompression"]))
        return bool(storage.WriteData(node)) or self._refuse(messages, f"{path} cannot be written")

    def _save_scene(self, path: str) -> bool:
        if path.endswith(".mrml"):
            self._scene.SetURL(path)
            self._scene.SetRootDirectory(str(Path(path).parent))
            return bool(self._scene.Commit())
        if path.endswith(".mrb"):
            return bool(self._scene.WriteToMRB(path, None))
        return bool(self._scene.SaveSceneToSlicerDataBundleDirectory(path, None))
