"""The loop and what stands around it; no framework is imported here."""
