"""Distillation of chains of thought whose length follows the difficulty (report, section 2.3)."""
