"""A name to a model ready to train: transformers and peft calls, the family table."""
