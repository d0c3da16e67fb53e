"""Messages on stderr, the log file, signals."""
