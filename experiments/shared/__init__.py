"""What scripts share: flags, how they are read and checked, and how rounds are laid out."""
