"""What a dataset says of itself to others: Croissant, STAC and a datasheet, from the manifest and index alone."""
