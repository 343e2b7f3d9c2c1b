"""Video and text in: from files to numpy batches."""
