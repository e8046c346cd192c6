"""What pydicom-seg 0.4.1 imports from here, and pydicom 3 keeps in pydicom.uid."""

from pydicom.uid import SegmentationStorage

__all__ = ["SegmentationStorage"]
