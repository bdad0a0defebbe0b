"""Importers: other sources of scans, written as raw nnU-Net datasets."""
