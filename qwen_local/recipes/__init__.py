"""Recipes: convert published data sets to records that `train` reads.

Each recipe reads its sources, samples rows and writes a folder with `train.jsonl` and
`valid.jsonl`. The sample depends on a hash of each row's content and on the seed, not on the order
of the file. The exception is `code-alpaca` without `--sample`, which takes the first rows.
"""
