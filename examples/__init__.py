"""Examples of use: `make chat`, and fine-tuning from end to end."""
