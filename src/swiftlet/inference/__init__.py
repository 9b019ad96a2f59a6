"""Generation, chat and inference over a dataset."""
