"""What the server of :mod:`tests.processes` imports of this package: all that a run of the bundle imports."""

import vivid_monai.engines.run
import vivid_monai.engines.setup
import vivid_monai.engines.step
import vivid_monai.evaluation.workflows
import vivid_monai.networks.teacher
import vivid_monai.prepare.phantoms  # noqa: F401
