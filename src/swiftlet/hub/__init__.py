"""Names to folders: models and datasets of ModelScope and Hugging Face."""

from swiftlet.hub.folders import cached_folder, dataset_folder, model_folder

__all__ = ["cached_folder", "dataset_folder", "model_folder"]
