"""Assembly: one file a command, straight down, no algorithms."""
