"""What the library looks at before anything is traced: arguments, data, losses, states."""
