"""From flags and YAML files to a checked config."""
