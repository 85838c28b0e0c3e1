"""What studies show, one file per section, or a study's own selection of them."""
