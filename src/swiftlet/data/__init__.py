"""Rows to token batches: text and token ids on the CPU."""
