"""Remedies: ways to train with a large batch that keep the small batch's generalisation; one file each."""
