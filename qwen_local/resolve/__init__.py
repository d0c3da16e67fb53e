"""Decide what a command runs on, and open it: the only place for both."""
