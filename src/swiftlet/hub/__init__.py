"""Names to folders: models and datasets of ModelScope and Hugging Face."""

from swiftlet.hub.folders import dataset_folder, model_folder

__all__ = ["dataset_folder", "model_folder"]
