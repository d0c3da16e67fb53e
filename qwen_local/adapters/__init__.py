"""The adapter: one canonical form (PEFT names, float32), and the layouts that libraries read."""
