"""DICOM files. Only this folder knows pydicom."""
