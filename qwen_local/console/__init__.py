"""Messages on stderr, the log file, signals, and safe text for terminals."""
