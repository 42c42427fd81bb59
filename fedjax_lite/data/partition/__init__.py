"""How a data set is dealt to clients, and how a client's data are split."""
