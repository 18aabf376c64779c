"""Reads and writes DICOM files. Only this folder imports pydicom."""
