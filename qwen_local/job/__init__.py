"""The job: its schema, its YAML reader with places, and presets."""
