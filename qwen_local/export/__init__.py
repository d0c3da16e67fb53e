"""What comes out of a run besides its adapter: the merged model, and its proof."""
