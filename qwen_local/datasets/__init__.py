"""From data sources to tokens, masks and rows. Shared by both engines; needs neither of them."""
