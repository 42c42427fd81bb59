"""Several processes as one program: start-up and launcher."""
