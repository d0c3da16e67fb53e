"""The Qwen families that we know: shapes, files, refusals."""
