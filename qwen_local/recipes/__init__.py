"""Recipes: published data as rows that `train` reads.

Each recipe reads its sources, draws rows from them and writes a folder with `train.jsonl` and
`valid.jsonl`. Which rows are drawn depends on a hash of their content and the seed, not on where
they stand in the file; only `code-alpaca` without `--sample` takes the first ones on purpose.
"""
