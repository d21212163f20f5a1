"""From images to tiles to tensors, and from messages to model inputs.

Loaded through `auto_map`, or imported from a clone.
"""
