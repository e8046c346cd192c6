"""Inference of an exported ONNX file by ONNX Runtime alone: no PyTorch, no MONAI, no code from the file.

This module imports neither, so that a program that only predicts starts in a fraction of a second.
"""

import json
import mmap
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from vivid_monai.errors import VividError, first_line, one_line

if TYPE_CHECKING:
    from vivid_monai.images.preprocess import Preprocess

FORMAT = "vivid-classifier 1"
INPUT, OUTPUTS = "image", ("pred", "features")


class OnnxClassifier:
    """A classifier of :func:`~vivid_monai.deploy.export.export_onnx`, in 32 or 8 bits, on the CPU.

    Attributes:
        fields: names of the logits, in order.
        metadata: what the file says of itself.
        image_shape: (C, H, W) of an image.

    Raises:
        VividError: a file that is missing, broken or not one of ours; weights that lie in another file.
    """

    def __init__(self, path: str | PathLike, *, threads: int | None = None) -> None:
        self.path = Path(path)
        _refuse_external_data(self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads or 0, 1
        options.log_severity_level = 4  # errors are raised; what is logged besides is about hardware
        # Threads that spin while they wait are 7 % faster on a machine of their own, but on a shared one half as fast,
        # and they take the processor from whoever prepares the next image.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has a dozen kinds without a common base
            raise VividError(f"{self.path}: is no ONNX file that can be run: {one_line(error, 160)}") from error
        self.metadata = self._metadata()
        self.fields: tuple[str, ...] = tuple(self.metadata["fields"])
        self.image_shape = tuple(self._session.get_inputs()[0].shape[1:])

    @property
    def preprocess(self) -> "Preprocess":
        """What an image must go through before this classifier."""
        from vivid_monai.images.preprocess import Preprocess  # MONAI takes seconds to import

        return Preprocess.from_dict(self.metadata["preprocess"])

    def __call__(self, images: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (B, F), whose σ are the probabilities, and pooled features (B, D), float32, of preprocessed images.

        Args:
            images: array or CPU tensor float32 (B, C, H, W), B at least 1; another shape or type raises a VividError.
        """
        batch = np.asarray(images)
        if batch.dtype != np.float32 or batch.ndim != 4 or batch.shape[1:] != self.image_shape or not len(batch):
            raise VividError(
                f"a batch {batch.dtype} {batch.shape} does not fit {self.path.name}, which takes float32 images "
                f"{self.image_shape}, as its preprocessing makes them"
            )
        logits, features = self._session.run(OUTPUTS, {INPUT: batch})
        return logits, features

    def _metadata(self) -> dict[str, Any]:
        stored = self._session.get_modelmeta().custom_metadata_map
        inputs = [one.name for one in self._session.get_inputs()]
        outputs = [one.name for one in self._session.get_outputs()]
        try:
            metadata = {name: json.loads(value) for name, value in stored.items()}
            if metadata["format"] == FORMAT and inputs == [INPUT] and outputs == list(OUTPUTS):
                return metadata | {"fields": list(metadata["fields"]), "preprocess": dict(metadata["preprocess"])}
        except (KeyError, ValueError, TypeError):
            pass
        raise VividError(f"{self.path}: was not written by export_onnx or quantize_onnx of this version")


def _refuse_external_data(path: Path) -> None:
    """Weights that lie elsewhere could be any file of this machine. What names their place is the key "location".

    Our own files have this word nowhere, not even where a field is called so (see ``write_metadata``).
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            external = content.find(b"location") >= 0
    except (OSError, ValueError) as error:
        raise VividError(f"{path}: cannot be read: {first_line(error)}") from error
    if external:
        raise VividError(f"{path}: its weights lie in another file, which is not read; export it as one file")
