"""Backups of the whole board, and the move of its images to another bucket."""
