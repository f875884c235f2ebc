"""How lmms-eval finds the model: the entry point `lmms_eval.models` names `manifest`, which says where the class is.

    lmms_eval --model savi --model_args pretrained=PATH,num_frames=8 --tasks egoschema_subset

Kept free of torch and of everything else that could fail: lmms-eval wraps all plugins in one try, so a broken one drops those after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL_ID = "savi"
CLASS_PATH = "harness.run.lmms_model.SaviLmms"


def manifest() -> ModelManifest:
    """The payload of the entry point (called by lmms-eval, whose registry is then imported already)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_ID, simple_class_path=CLASS_PATH, aliases=("videosavi",))
