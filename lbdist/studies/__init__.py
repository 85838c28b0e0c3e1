"""Studies, one file a shape: which cells, which measurements, which sections."""
