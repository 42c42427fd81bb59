"""Where data come from: every data set by its name, found, downloaded or generated, and kept."""
