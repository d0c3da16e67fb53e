"""Token rows, their targets and the plan of micro-batches: what crosses the seam to an engine."""
