"""What studies show, one file a section, or a study's own selection of them."""
