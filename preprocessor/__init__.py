"""Images to tiles to tensors, and text with images to model inputs; loaded through `auto_map` or imported from a clone."""
