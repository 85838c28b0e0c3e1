"""Remedies, one file each: training with a large batch that keeps the small batch's generalisation."""
