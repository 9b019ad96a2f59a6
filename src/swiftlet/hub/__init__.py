"""Names to folders: models and datasets of ModelScope and Hugging Face."""

from swiftlet.hub.folders import Wanted, cached_folder, dataset_folder, missing, model_folder

__all__ = ["Wanted", "cached_folder", "dataset_folder", "missing", "model_folder"]
