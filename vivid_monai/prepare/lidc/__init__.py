"""LIDC-IDRI as TCIA distributes it: CT series in DICOM and the readers' marks in XML (Armato et al., 2011)."""
