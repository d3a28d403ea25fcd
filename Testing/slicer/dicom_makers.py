"""Small DICOM series and scan files on the disk, for tests of the Slicer module. No test itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scene_makers import SIZE, balls


def write_series(folder: Path, number: int, patient: str = "Müller^Jörg", slices: int = SIZE, **changes) -> str:
    """Write the scan of this number as single slices; its SeriesInstanceUID."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    image = balls(number)[0].astype(np.int16)[:slices]
    study, series, frame = f"1.2.3.{number}", generate_uid(), f"1.2.4.{number}"
    for k, plane in enumerate(image):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{k:03d}.dcm"
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SpecificCharacterSet = "ISO_IR 192"
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.Modality, data.PatientName, data.PatientID = "MR", patient, f"P{number}"
        data.PatientBirthDate, data.PatientSex, data.AccessionNumber = "", "", ""
        data.StudyID, data.StudyDate, data.StudyTime = "1", f"2025010{number}", ""
        data.ReferringPhysicianName = ""
        data.StudyDescription, data.SeriesDescription, data.SeriesNumber = "Abdomen", f"T1 {number}", number
        data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        data.InstanceNumber, data.SliceThickness, data.PixelSpacing = k + 1, 1.0, [1.0, 1.0]
        data.ImagePositionPatient, data.ImageOrientationPatient = [5.0, -7.0, 10.0 + k], [1, 0, 0, 0, 1, 0]
        data.Rows, data.Columns = plane.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        for name, value in changes.items():
            setattr(data, name, value)
        data.PixelData = plane.tobytes()
        data.save_as(path, enforce_file_format=True)
    return str(series)


def write_scan(path: Path, number: int, times: int = 1) -> Path:
    """Write the scan of this number as a file, side by side with itself so many times along each axis."""
    import SimpleITK as sitk

    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.tile(balls(number)[0], (times,) * 3)), str(path))
    return path
