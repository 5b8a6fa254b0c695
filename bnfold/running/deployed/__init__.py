"""Files that are deployed: read and run as they are, whatever made them."""
