"""Studies, one file per shape: which cells, which measurements, which sections."""
