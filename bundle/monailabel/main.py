"""The MONAI Label app: findings of chest X-rays by a bundle of `vivid bundle`."""

import json
from pathlib import Path
from typing import Any

from dicomweb_client.session_utils import create_session_from_user_pass
from lib.agreement import Agreement, UncertaintyOfImages
from lib.infer import FindingsInfer
from lib.pacs import PacsStore
from lib.requested import check
from lib.rules import Rules
from lib.scripts import load_rules
from lib.store import FolderStore
from lib.training import Training
from lib.uncertainty import LeastSure, Uncertainty
from lib.weights import Weights
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask


class ChestXrayApp(MONAILabelApp):
    """Serves one bundle (``--conf bundle FOLDER``).

    Trained weights, and images and findings of a PACS, are kept in a folder of its own (``--conf work FOLDER``;
    default: model/NAME beside this file).
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        if "bundle" not in conf:
            raise ValueError("which bundle? start the server with --conf bundle FOLDER")
        self.bundle = Path(conf["bundle"]).resolve()
        self.work = Path(conf.get("work") or Path(app_dir) / "model" / self.bundle.name).resolve()
        self.rules = load_rules(self.bundle)
        self.weights = Weights(self.bundle, self.work / "trained")
        self.infer_task = FindingsInfer(self.bundle, conf, self.rules, self.weights)
        self.uncertainty = Uncertainty(self.infer_task)
        metadata = json.loads((self.bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
        super().__init__(
            app_dir,
            studies,
            conf,
            name=metadata["name"],
            description=metadata["description"],
            version=metadata["version"],
            labels=self.rules.fields,
        )
        # MONAI Label would start a process for every scoring method at every request for an image; on demand instead.
        self._auto_update_scoring = False

    def init_datastore(self) -> Datastore:
        rules = Rules(self.rules.spec)
        if not self.studies.startswith(("http://", "https://")):
            return FolderStore(
                self.studies,
                rules,
                auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
                read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
            )
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        client = DICOMwebClientX(
            url=self.studies.rstrip("/"),
            session=create_session_from_user_pass(user, password) if user and password else None,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        )
        return PacsStore(self.work / "pacs", client, rules, settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)

    def init_infers(self) -> dict[str, InferTask]:
        return {self.bundle.name: self.infer_task}

    def init_trainers(self) -> dict[str, TrainTask]:
        return {self.bundle.name: Training(self.bundle, self.rules.fields, self.infer_task, self.weights)}

    def init_strategies(self) -> dict[str, Strategy]:
        return {"least_sure": LeastSure(self.uncertainty)}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {
            "agreement": Agreement(self.infer_task, self.rules.fields, self.weights),
            "uncertainty": UncertaintyOfImages(self.uncertainty),
        }

    def bundle_path(self, model: Any) -> None:
        """None: training here is not MONAI Label's own of a bundle. (Its look-up fails where the name is a list.)"""

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        check(request, "model", self._infers)
        return super().infer(request, datastore)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        check(request, "model", self._trainers)
        return super().train(request)

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        check(request, "method", self._scoring_methods)
        return super().scoring(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        check(request, "strategy", self._strategies)
        return super().next_sample(request)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """The record that was stored goes into the response."""
        path = self.datastore().get_label_uri(label_id, "final")
        return {"record": json.loads(Path(path).read_text(encoding="utf-8"))}
