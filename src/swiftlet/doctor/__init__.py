"""What can be wrong with a machine or shown by a log, as tables that people extend, and how it is found. No torch."""
