"""What the user asked for: arguments, parsing, rules and arithmetic. No torch, no I/O on models."""
