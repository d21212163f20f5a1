"""Images to tiles to tensors, text with images to model inputs; through `auto_map` or imported from a clone."""
