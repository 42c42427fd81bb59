"""Files that nobody vouches for, read with bounds: pickles, archives, arrays."""
