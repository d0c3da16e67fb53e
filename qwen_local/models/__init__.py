"""Models: families, architectures, and checks of model files."""
