"""The job: schema, YAML reader with file:line places, and presets."""
